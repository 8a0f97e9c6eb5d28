//! The server in a URL.

use std::io;
use std::net::SocketAddr;

/// Of `postgres://user:password@127.0.0.1:5432/database`, `127.0.0.1:5432`.
fn address_in(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or(rest);
    authority.rsplit_once('@').map_or(authority, |(_, address)| address)
}

/// Where the server of a URL is, which must name its port.
pub(crate) async fn server_of(url: &str) -> io::Result<SocketAddr> {
    let mut known = tokio::net::lookup_host(address_in(url)).await?;
    known.next().ok_or_else(|| io::Error::other("a URL whose server is not known"))
}

/// The URL, with another server in it.
pub(crate) fn through(url: &str, server: SocketAddr) -> String {
    url.replacen(address_in(url), &server.to_string(), 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_server_of_a_url_is_found_and_replaced() {
        let proxy = SocketAddr::from(([127, 0, 0, 1], 7));
        for (url, proxied) in [
            ("postgres://a:b@127.0.0.1:5432/c?d=e", "postgres://a:b@127.0.0.1:7/c?d=e"),
            ("http://127.0.0.1:2379", "http://127.0.0.1:7"),
            ("redis://127.0.0.1:6379/", "redis://127.0.0.1:7/"),
        ] {
            assert!(server_of(url).await.unwrap().ip().is_loopback());
            assert_eq!(through(url, proxy), proxied);
        }
    }
}
