//! TLS from files.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use flames_ingress_proxy::{CertificateFiles, Hooks, Listener, Proxy};
use http::Request;
use http_body_util::BodyExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::support::*;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/proxy/certificates").join(name)
}

fn pair(hosts: &[&str], name: &str) -> CertificateFiles {
    CertificateFiles {
        hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
        certificate: file(&format!("{name}.pem")),
        key: file(&format!("{name}.key")),
    }
}

async fn tls_proxy(certificates: Vec<CertificateFiles>, check: Duration) -> Proxy {
    let target = named("a").await;
    let proxy = proxy_with(
        |config| {
            config.listeners[0].tls = true;
            config.listeners.push(Listener { address: ([127, 0, 0, 1], 0).into(), tls: false });
            config.tls = certificates;
            config.timeouts.certificate_check = check;
        },
        Hooks::default(),
    )
    .await;
    let registered = route(&proxy, "vm_a", 80, &["a.example"], target.address).await;
    let port = proxy.addresses()[0].port();
    assert_eq!(registered.url.unwrap(), format!("https://a.example:{port}/"));
    // The target lives as long as the test's process.
    std::mem::forget(target);
    proxy
}

/// Connects as `server_name`, trusting the certificate `name` alone.
async fn connect(
    proxy: &Proxy,
    server_name: &str,
    name: &str,
    protocols: &[&str],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(file(&format!("{name}.pem"))).unwrap()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    let stream = TcpStream::connect(proxy.addresses()[0]).await.unwrap();
    let server_name = ServerName::try_from(server_name.to_owned()).unwrap();
    soon(TlsConnector::from(Arc::new(config)).connect(server_name, stream)).await
}

#[tokio::test]
async fn the_protocol_is_agreed_on_in_the_handshake() {
    let proxy = tls_proxy(vec![pair(&[], "a")], Duration::from_secs(10)).await;
    for protocols in [&["http/1.1"][..], &[]] {
        let stream = connect(&proxy, "a.example", "a", protocols).await.unwrap();
        let got = Client::over(stream).get("a.example", "/").await;
        assert_eq!(got.text(), "a 0", "{protocols:?}");
    }
    let stream = connect(&proxy, "a.example", "a", &["h2", "http/1.1"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let mut client = http2_client(stream).await;
    let request = Request::get("https://a.example/").body(empty()).unwrap();
    let response = soon(client.send_request(request)).await.unwrap();
    assert_eq!(response.collect().await.unwrap().to_bytes(), "a 0");
    // The other listener speaks plainly.
    let mut plain = Client::over(TcpStream::connect(proxy.addresses()[1]).await.unwrap());
    assert_eq!(plain.get("a.example", "/").await.status, 200);
}

#[tokio::test]
async fn each_server_name_is_shown_its_own_certificate() {
    let certificates =
        vec![pair(&["a.example"], "a"), pair(&["*.vms.example"], "wildcard"), pair(&[], "otherwise")];
    let proxy = tls_proxy(certificates, Duration::from_secs(10)).await;
    for (server_name, name) in [
        ("a.example", "a"),
        ("A.EXAMPLE", "a"),
        ("8080-vm-1.vms.example", "wildcard"),
        ("other.example", "otherwise"),
    ] {
        connect(&proxy, server_name, name, &[]).await.unwrap();
    }
    connect(&proxy, "a.example", "wildcard", &[]).await.expect_err("it is another's");
}

#[tokio::test]
async fn certificates_are_read_again_when_their_files_change_and_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let files = CertificateFiles {
        hosts: vec![],
        certificate: folder.path().join("tls.pem"),
        key: folder.path().join("tls.key"),
    };
    let install = |name: &str| {
        std::fs::copy(file(&format!("{name}.key")), &files.key).unwrap();
        std::fs::copy(file(&format!("{name}.pem")), &files.certificate).unwrap();
    };
    install("a");
    let proxy = tls_proxy(vec![files.clone()], Duration::from_secs(3_600)).await;
    let mut before = Client::over(connect(&proxy, "a.example", "a", &[]).await.unwrap());
    install("renewed");
    proxy.reload_certificates().await.unwrap();
    connect(&proxy, "a.example", "renewed", &[]).await.unwrap();
    assert_eq!(before.get("a.example", "/").await.status, 200, "a connection of before goes on");

    std::fs::copy(file("a.key"), &files.key).unwrap();
    let refused = proxy.reload_certificates().await.unwrap_err();
    assert_eq!(refused.kind(), flames_error::ErrorKind::InvalidInput);
    assert!(refused.user_message().unwrap().contains("tls.key"), "{refused:?}");
    connect(&proxy, "a.example", "renewed", &[]).await.expect("the old one stays");

    install("renewed");
    let proxy = tls_proxy(vec![files.clone()], Duration::from_millis(50)).await;
    connect(&proxy, "a.example", "renewed", &[]).await.unwrap();
    install("a");
    let started = std::time::Instant::now();
    while connect(&proxy, "a.example", "a", &[]).await.is_err() {
        assert!(started.elapsed() < SOON, "the change is not noticed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_is_named_at_the_start() {
    let mut config = config();
    config.listeners[0].tls = true;
    for (certificate, key) in
        [("a.pem", "renewed.key"), ("none.pem", "a.key"), ("a.key", "a.key"), ("a.pem", "a.pem")]
    {
        config.tls = vec![CertificateFiles { hosts: vec![], certificate: file(certificate), key: file(key) }];
        let refused = Proxy::start(config.clone(), Hooks::default()).await.unwrap_err();
        assert_eq!((refused.kind(), refused.field()), (flames_error::ErrorKind::InvalidInput, Some("tls")));
    }
}

#[tokio::test]
async fn a_handshake_that_does_not_come_is_given_up() {
    let proxy = {
        let mut config = config();
        config.listeners[0].tls = true;
        config.tls = vec![pair(&[], "a")];
        config.timeouts.header_read = Duration::from_millis(200);
        Proxy::start(config, Hooks::default()).await.unwrap()
    };
    assert!(Client::connect(&proxy).await.is_closed().await);
}
