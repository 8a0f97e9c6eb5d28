//! What the suite cannot know: traffic, others' configuration, a Caddy that is shared, restarted or gone.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::process::ExitCode;

use flames_conformance_runner::{Row, Suite, run, table};

mod through {
    use flames_ingress::{IngressProvider, Route, RouteKey, RouteOwner, Target};
    use flames_ingress_caddy::CaddyIngress;
    use serde_json::{Value, json};
    use std::net::SocketAddr;
    use std::sync::Arc;
    use std::time::Duration;

    use crate::support::{Caddy, target};
    use flames_error::ErrorKind;
    use flames_ingress_caddy::{AdminAddress, CaddyConfig};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    fn key(vm: &str, port: u16) -> RouteKey {
        RouteKey { vm: RouteOwner::new(vm).unwrap(), port }
    }

    async fn register(
        ingress: &CaddyIngress,
        vm: &str,
        port: u16,
        hosts: &[&str],
        address: SocketAddr,
    ) -> flames_error::Result<flames_ingress::Registration> {
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        ingress.register(Route { key: key(vm, port), hosts }, Target::Address(address)).await
    }

    fn nowhere() -> SocketAddr {
        ([127, 0, 0, 1], 9).into()
    }

    pub(crate) async fn a_request_reaches_its_target_and_an_unknown_host_gets_404(_: &()) {
        let caddy = Caddy::start(json!({})).await;
        let ingress = caddy.ingress();
        ingress.check().await.unwrap();
        let (a, b) = (target("a").await, target("b").await);
        let registered = register(&ingress, "vm_1", 8080, &["a.example"], a).await.unwrap();
        assert_eq!(registered.url.as_deref(), Some("http://a.example/"));
        let registered = register(&ingress, "vm_2", 80, &[], b).await.unwrap();
        assert_eq!(registered.url.as_deref(), Some("http://80-vm-2.vms.example/"));
        for (host, answer) in [
            ("a.example", "a"),
            ("8080-vm_1.vms.example", "a"),
            ("8080-vm-1.vms.example", "a"),
            ("80-vm-2.vms.example", "b"),
        ] {
            assert_eq!(caddy.get(host).await, (200, answer.to_owned()), "{host}");
        }
        let unknown = (404, "404 Not Found\nNothing is served under this host name.\n".to_owned());
        for host in ["b.example", "81-vm-2.vms.example", "vms.example"] {
            assert_eq!(caddy.get(host).await, unknown, "{host}");
        }
        // The next request sees a change.
        register(&ingress, "vm_1", 8080, &["a.example"], b).await.unwrap();
        assert_eq!(caddy.get("a.example").await, (200, "b".to_owned()));
        ingress.unregister(&key("vm_1", 1).vm).await.unwrap();
        assert_eq!(caddy.get("a.example").await, unknown);
    }

    pub(crate) async fn a_name_of_another_vms_port_cannot_be_taken(_: &()) {
        let caddy = Caddy::start(json!({})).await;
        let ingress = caddy.ingress();
        for host in ["80-vm-2.vms.example", "vms.example"] {
            let refused = register(&ingress, "vm_1", 80, &[host], nowhere()).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{host}");
        }
    }

    pub(crate) async fn what_others_configured_is_never_touched(_: &()) {
        let others = json!({ "http": { "servers": {
            "other": { "listen": [], "automatic_https": { "disable": true }, "routes": [] },
        } } });
        let caddy = Caddy::start(others).await;
        let foreign = json!({ "@id": "flames:foreign", "match": [{ "host": ["foreign.example"] }],
            "handle": [{ "handler": "static_response", "body": "foreign" }] });
        let server = json!({ "listen": [caddy.listen()], "automatic_https": { "disable": true }, "routes": [foreign] });
        let (status, _) = caddy.ask_admin("PUT", "/config/apps/http/servers/shared", server).await;
        assert_eq!(status, 200);
        let (_, before) = caddy.ask_admin("GET", "/config/", Value::Null).await;

        let mut config = caddy.config();
        config.server = "shared".to_owned();
        let ingress = CaddyIngress::new(config).unwrap();
        let a = target("a").await;
        register(&ingress, "vm_1", 80, &["a.example"], a).await.unwrap();
        assert_eq!(caddy.get("a.example").await, (200, "a".to_owned()));
        assert_eq!(caddy.get("foreign.example").await, (200, "foreign".to_owned()));
        assert_eq!(caddy.get("b.example").await.0, 404);

        // A route that somebody appends behind ours is reached after our next change.
        let later = json!({ "match": [{ "host": ["later.example"] }],
            "handle": [{ "handler": "static_response", "body": "later" }] });
        caddy.ask_admin("POST", "/config/apps/http/servers/shared/routes", later.clone()).await;
        register(&ingress, "vm_1", 80, &["a.example", "b.example"], a).await.unwrap();
        assert_eq!(caddy.get("later.example").await, (200, "later".to_owned()));
        assert_eq!(caddy.get("c.example").await.0, 404, "the last word is still ours");

        ingress.unregister(&key("vm_1", 1).vm).await.unwrap();
        let (_, mut after) = caddy.ask_admin("GET", "/config/", Value::Null).await;
        let routes = after["apps"]["http"]["servers"]["shared"]["routes"].as_array_mut().unwrap();
        routes.retain(|route| !route["@id"].as_str().is_some_and(|id| id.starts_with("flames:default")));
        assert_eq!(routes.pop(), Some(later));
        assert_eq!(after, before);
    }

    pub(crate) async fn servers_of_one_cluster_do_not_overwrite_each_other(_: &()) {
        let caddy = Caddy::start(json!({})).await;
        let ingresses = [Arc::new(caddy.ingress()), Arc::new(caddy.ingress())];
        let calls = (0..40_u16).map(|number| {
            let ingress = Arc::clone(&ingresses[usize::from(number % 2)]);
            async move { register(&ingress, &format!("vm_{number}"), 80, &[], nowhere()).await }
        });
        for outcome in futures::future::join_all(calls).await {
            outcome.unwrap();
        }
        assert_eq!(ingresses[0].list(None, 1_000).await.unwrap().registrations.len(), 40);
        let rivals = ingresses.iter().enumerate().map(|(number, ingress)| async move {
            register(ingress, &format!("vm_{number}"), 81, &["one.example"], nowhere()).await
        });
        let outcomes = futures::future::join_all(rivals).await;
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{outcomes:?}");
    }

    pub(crate) async fn clusters_share_a_caddy(_: &()) {
        let caddy = Caddy::start(json!({})).await;
        let ingresses = ["one", "two"].map(|cluster| {
            let mut config = caddy.config();
            config.cluster = cluster.to_owned();
            config.domain = format!("{cluster}.example");
            CaddyIngress::new(config).unwrap()
        });
        let targets = [target("one").await, target("two").await];
        for (ingress, target) in ingresses.iter().zip(targets) {
            register(ingress, "vm_1", 80, &[], target).await.unwrap();
        }
        // Each one's word about unknown hosts would hide the other's routes, if it came before them.
        for name in ["one", "two"] {
            assert_eq!(caddy.get(&format!("80-vm-1.{name}.example")).await, (200, name.to_owned()));
        }
        for (ingress, target) in ingresses.iter().zip(targets) {
            register(ingress, "vm_1", 81, &[], target).await.unwrap();
            assert_eq!(ingress.list(None, 10).await.unwrap().registrations.len(), 2);
        }
        assert_eq!(caddy.get("80-vm-2.one.example").await.0, 404);
        ingresses[0].unregister(&key("vm_1", 1).vm).await.unwrap();
        assert_eq!(ingresses[1].get(&key("vm_1", 1).vm).await.unwrap().len(), 2);
    }

    pub(crate) async fn drift_is_listed_as_it_stands_and_repaired(_: &()) {
        let mut caddy = Caddy::start(json!({})).await;
        let ingress = caddy.ingress();
        let a = target("a").await;
        let wanted = register(&ingress, "vm_1", 80, &["a.example"], a).await.unwrap();
        let path = "/id/flames:default:80:vm_1/handle/0/upstreams/0/dial";
        assert_eq!(caddy.ask_admin("PATCH", path, json!("127.0.0.1:9")).await.0, 200);
        let listed = ingress.list(None, 10).await.unwrap().registrations;
        assert_eq!(listed[0].target, Target::Address(nowhere()));
        register(&ingress, "vm_1", 80, &["a.example"], a).await.unwrap();
        assert_eq!(
            ingress.list(None, 10).await.unwrap().registrations.as_slice(),
            std::slice::from_ref(&wanted)
        );

        // Edited until it is no route of ours: not listed, and made anew.
        caddy.ask_admin("PATCH", "/id/flames:default:80:vm_1/handle", json!([{ "handler": "vars" }])).await;
        assert_eq!(ingress.list(None, 10).await.unwrap().registrations, []);
        register(&ingress, "vm_1", 80, &["a.example"], a).await.unwrap();
        assert_eq!(caddy.get("a.example").await, (200, "a".to_owned()));

        caddy.restart(json!({})).await;
        assert_eq!(ingress.list(None, 10).await.unwrap().registrations, [], "it has forgotten");
        assert_eq!(register(&ingress, "vm_1", 80, &["a.example"], a).await.unwrap(), wanted);
        assert_eq!(caddy.get("a.example").await, (200, "a".to_owned()));
        assert_eq!(caddy.get("b.example").await.0, 404);
    }

    pub(crate) async fn a_caddy_that_is_gone_is_unavailable(_: &()) {
        let mut caddy = Caddy::start(json!({})).await;
        let ingress = caddy.ingress();
        register(&ingress, "vm_1", 80, &[], nowhere()).await.unwrap();
        caddy.kill().await;
        let vm = key("vm_1", 1).vm;
        let kinds = [
            register(&ingress, "vm_1", 80, &[], nowhere()).await.unwrap_err().kind(),
            ingress.unregister(&vm).await.unwrap_err().kind(),
            ingress.unregister_port(&key("vm_1", 80)).await.unwrap_err().kind(),
            ingress.get(&vm).await.unwrap_err().kind(),
            ingress.list(None, 1).await.unwrap_err().kind(),
            ingress.check().await.unwrap_err().kind(),
        ];
        assert_eq!(kinds, [ErrorKind::Unavailable; 6]);
    }

    /// An admin API that answers the first `answered` requests with `null`, and no other.
    async fn silent_after(answered: usize) -> AdminAddress {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let mut open = Vec::new();
            for number in 0.. {
                let (mut stream, _) = listener.accept().await.unwrap();
                if number < answered {
                    let mut request = [0; 4096];
                    let _ = stream.read(&mut request).await.unwrap();
                    stream
                        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\nnull")
                        .await
                        .unwrap();
                } else {
                    open.push(stream);
                }
            }
        });
        format!("http://{address}").parse().unwrap()
    }

    pub(crate) async fn a_caddy_that_does_not_answer_is_given_up_at_the_deadline(_: &()) {
        for (answered, kind) in [(0, ErrorKind::Unavailable), (1, ErrorKind::OutcomeUnknown)] {
            let mut config = CaddyConfig::new(silent_after(answered).await, "vms.example", ":0");
            config.deadline = Duration::from_millis(200);
            let ingress = CaddyIngress::new(config).unwrap();
            let started = std::time::Instant::now();
            let failed = register(&ingress, "vm_1", 80, &[], nowhere()).await.unwrap_err();
            assert_eq!(failed.kind(), kind, "after {answered} answers");
            assert!(started.elapsed() < Duration::from_secs(3));
        }
    }

    /// An admin API that closes the first change's connection without an answer, after it made the change or without.
    async fn cuts_the_first_change(makes_it: bool) -> AdminAddress {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut server, mut changes) = ("null".to_owned(), 0);
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                let text = loop {
                    let _ = stream.read_buf(&mut request).await.unwrap();
                    let text = String::from_utf8_lossy(&request).into_owned();
                    let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                    if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                        break text;
                    }
                };
                let mut answer = String::new();
                if text.starts_with("GET") {
                    answer.clone_from(&server);
                } else {
                    changes += 1;
                    if changes > 1 || makes_it {
                        server = text.split_once("\r\n\r\n").unwrap().1.to_owned();
                    }
                    if changes == 1 {
                        continue;
                    }
                }
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    answer.len()
                );
                stream.write_all((head + &answer).as_bytes()).await.unwrap();
            }
        });
        format!("http://{address}").parse().unwrap()
    }

    pub(crate) async fn a_change_whose_answer_is_lost_is_made_once_whatever_became_of_it(_: &()) {
        for makes_it in [true, false] {
            let admin = cuts_the_first_change(makes_it).await;
            let ingress = CaddyIngress::new(CaddyConfig::new(admin, "vms.example", ":0")).unwrap();
            let registered = register(&ingress, "vm_1", 80, &["a.example"], nowhere()).await.unwrap();
            assert_eq!(ingress.list(None, 10).await.unwrap().registrations, [registered], "made: {makes_it}");
        }
    }

    pub(crate) async fn a_configuration_that_cannot_be_names_its_setting(_: &()) {
        for wrong in ["", "localhost:2019", "https://localhost:2019", "http://localhost", "unix://admin"] {
            assert_eq!(wrong.parse::<AdminAddress>().unwrap_err().field(), Some("admin"), "{wrong}");
        }
        let change = |change: fn(&mut CaddyConfig)| {
            let admin = "http://localhost:2019".parse().unwrap();
            let mut config = CaddyConfig::new(admin, "vms.example", ":80");
            change(&mut config);
            config
        };
        for (config, setting) in [
            (change(|config| config.cluster = "a:b".to_owned()), "cluster"),
            (change(|config| config.server = "a/b".to_owned()), "server"),
            (change(|config| config.domain = "Not.One".to_owned()), "domain"),
            (change(|config| config.deadline = Duration::ZERO), "deadline"),
        ] {
            assert_eq!(CaddyIngress::new(config).unwrap_err().field(), Some(setting));
        }
    }
}

fn rows() -> Vec<Row<Box<()>>> {
    table![through:
        a_request_reaches_its_target_and_an_unknown_host_gets_404,
        a_name_of_another_vms_port_cannot_be_taken,
        what_others_configured_is_never_touched,
        servers_of_one_cluster_do_not_overwrite_each_other,
        clusters_share_a_caddy,
        drift_is_listed_as_it_stands_and_repaired,
        a_caddy_that_is_gone_is_unavailable,
        a_caddy_that_does_not_answer_is_given_up_at_the_deadline,
        a_change_whose_answer_is_lost_is_made_once_whatever_became_of_it,
        a_configuration_that_cannot_be_names_its_setting,
    ]
}

fn main() -> ExitCode {
    let fresh = || async { Box::new(()) };
    run(Suite::own_tests("ingress-traffic", "caddy", support::unavailable(), rows(), fresh))
}
