//! Who is let in.

use axum::Router;
use axum::body::Body;
use flames_transport_http::{Access, Peer};
use http::{Request, StatusCode};
use tower::ServiceExt;

use crate::common::{Harness, Reply};

async fn get(router: &Router, path: &str, headers: &[(&str, &str)]) -> Reply {
    let mut request = Request::get(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Reply::of(router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap()).await
}

fn guarded() -> Router {
    let access = Access::Token { token: "secret".to_owned(), hosts: vec!["flames.example".to_owned()] };
    Harness::new().api.router(access)
}

const TOKEN: (&str, &str) = ("authorization", "Bearer secret");
const HOST: (&str, &str) = ("host", "127.0.0.1:7070");

#[tokio::test]
async fn only_the_right_token_is_let_in() {
    let router = guarded();
    assert_eq!(get(&router, "/v1/vms", &[HOST, TOKEN]).await.status, StatusCode::OK);
    for wrong in ["", "Bearer", "Bearer ", "Bearer secre", "Bearer secrets", "Basic secret", "secret"] {
        let reply = get(&router, "/v1/vms", &[HOST, ("authorization", wrong)]).await;
        reply.refused(401, "UNAUTHENTICATED");
        assert!(reply.headers["www-authenticate"].starts_with("Bearer"));
    }
    for path in ["/v1/vms", "/metrics", "/readyz", "/v1/version", "/nowhere"] {
        get(&router, path, &[HOST]).await.refused(401, "UNAUTHENTICATED");
    }
}

#[tokio::test]
async fn health_needs_nothing_and_documentation_no_token() {
    let router = guarded();
    assert_eq!(get(&router, "/healthz", &[]).await.status, StatusCode::OK);
    for path in ["/openapi.json", "/docs/errors/INTERNAL"] {
        assert_eq!(get(&router, path, &[HOST]).await.status, StatusCode::OK);
        get(&router, path, &[("host", "evil.example")]).await.refused(403, "FORBIDDEN");
    }
}

#[tokio::test]
async fn a_host_name_that_was_bound_to_this_address_by_somebody_else_is_refused() {
    let router = guarded();
    for host in ["localhost", "localhost:1", "127.0.0.1", "[::1]", "[::1]:7070", "flames.example:443"] {
        assert_eq!(get(&router, "/v1/vms", &[("host", host), TOKEN]).await.status, StatusCode::OK, "{host}");
    }
    for host in ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:7070", "", "127.0.0.2"] {
        get(&router, "/v1/vms", &[("host", host), TOKEN]).await.refused(403, "FORBIDDEN");
    }
    get(&router, "/v1/vms", &[TOKEN]).await.refused(403, "FORBIDDEN");
    get(&router, "/v1/vms", &[HOST, ("host", "evil.example"), TOKEN]).await.refused(403, "FORBIDDEN");
    get(&router, "http://evil.example/v1/vms", &[HOST, TOKEN]).await.refused(403, "FORBIDDEN");
}

#[tokio::test]
async fn a_page_of_another_origin_is_refused_even_with_the_token() {
    let router = guarded();
    let same = ("origin", "http://127.0.0.1:7070");
    assert_eq!(get(&router, "/v1/vms", &[HOST, TOKEN, same]).await.status, StatusCode::OK);
    for origin in ["http://evil.example", "http://127.0.0.1:8080", "null", "https://127.0.0.1", ""] {
        get(&router, "/v1/vms", &[HOST, TOKEN, ("origin", origin)]).await.refused(403, "FORBIDDEN");
    }
}

#[tokio::test]
async fn over_a_unix_socket_only_the_servers_own_user_and_root_are_let_in() {
    let router = Harness::new().api.router(Access::Peer);
    let as_peer = async |peer: Option<Peer>| {
        let mut request = Request::get("/v1/vms").body(Body::empty()).unwrap();
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        Reply::of(router.clone().oneshot(request).await.unwrap()).await
    };
    let own = rustix::process::geteuid().as_raw();
    for uid in [own, 0] {
        assert_eq!(as_peer(Some(Peer { uid })).await.status, StatusCode::OK);
    }
    as_peer(Some(Peer { uid: own + 1_234 })).await.refused(403, "FORBIDDEN");
    as_peer(None).await.refused(403, "FORBIDDEN");
}

#[test]
fn a_token_does_not_show_itself() {
    let access = Access::Token { token: "secret".to_owned(), hosts: Vec::new() };
    assert!(!format!("{access:?}").contains("secret"));
}
