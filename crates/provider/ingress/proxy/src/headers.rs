//! What is taken from a message's headers, and put into them, on the way through.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION,
    TE, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderValue, Method, Version};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// Whether a header that is a list of tokens holds one, whatever its case.
pub(crate) fn list_contains(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers.get_all(name).iter().any(|value| {
        let mut tokens = value.as_bytes().split(|b| *b == b',');
        tokens.any(|one| one.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    })
}

/// Whether `Connection` names `token`.
pub(crate) fn connection_names(headers: &HeaderMap, token: &str) -> bool {
    list_contains(headers, &CONNECTION, token)
}

/// Removes what is for one connection alone (RFC 9110, section 7.6.1), in requests and responses. hyper frames the body anew.
pub(crate) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        for name in named_by_connection(headers) {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    for name in [
        KEEP_ALIVE,
        PROXY_CONNECTION,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        TE,
        TRANSFER_ENCODING,
        UPGRADE,
        HTTP2_SETTINGS,
    ] {
        headers.remove(name);
    }
}

/// What `Connection` names and is not removed, or set anew, anyway.
fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b','))
        .filter_map(|token| HeaderName::from_bytes(token.trim_ascii()).ok())
        // A peer cannot have taken away what says whom a message is for and how long it is.
        .filter(|name| !is_replaced(name.as_str()))
        .collect()
}

/// Whether a client's header is not passed on as it came, because it is for this connection, framed anew, or ours to say.
fn is_replaced(name: &str) -> bool {
    match name {
        "connection"
        | "keep-alive"
        | "proxy-connection"
        | "proxy-authenticate"
        | "proxy-authorization"
        | "te"
        | "transfer-encoding"
        | "upgrade"
        | "http2-settings"
        | "expect"
        | "content-length" => true,
        _ if name.contains('_') => is_ours(&name.replace('_', "-")),
        _ => is_ours(name),
    }
}

/// Whether a request's trailer is passed on: not what frames or routes a message (RFC 9110, section 6.5.1), and not what is ours to say.
pub(crate) fn is_trailer_allowed(name: &HeaderName) -> bool {
    let name = name.as_str();
    let is_early = matches!(
        name,
        "trailer"
            | "authorization"
            | "cache-control"
            | "content-encoding"
            | "content-range"
            | "content-type"
            | "cookie"
            | "max-forwards"
            | "set-cookie"
    );
    !is_early && !is_replaced(name)
}

/// Who a connection's requests come from, as targets are told. Made once for each connection.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) peer: IpAddr,
    trusted: bool,
    peer_value: HeaderValue,
    scheme: &'static str,
    port_value: HeaderValue,
}

impl Origin {
    pub(crate) fn new(peer: SocketAddr, local_port: u16, tls: bool, trusted: bool) -> Self {
        let peer = peer.ip().to_canonical();
        let peer_value = HeaderValue::from_str(&peer.to_string());
        Self {
            peer,
            trusted,
            peer_value: peer_value.unwrap_or_else(|_| HeaderValue::from_static("unknown")),
            scheme: if tls { "https" } else { "http" },
            port_value: HeaderValue::from(local_port),
        }
    }

    /// Makes a client's headers those that the target gets.
    ///
    /// `host` is the host header's value as the client wrote it. From a peer that is not trusted, everything that tells of earlier
    /// hops is replaced; a trusted one's is kept and extended.
    pub(crate) fn rewrite(&self, headers: &mut HeaderMap, host: &HeaderValue, upgrade: Option<HeaderValue>) {
        // Room for what is added, at once.
        headers.reserve(10);
        let trailers = list_contains(headers, &TE, "trailers");
        remove_hop_by_hop(headers);
        // Answered here: the client is told to continue when the target begins to take the body.
        headers.remove(EXPECT);
        // Behind a CGI-like interface `x_forwarded_for` is read as `x-forwarded-for`.
        let aliased =
            |name: &&HeaderName| name.as_str().contains('_') && is_ours(&name.as_str().replace('_', "-"));
        let aliases: Vec<HeaderName> = headers.keys().filter(aliased).cloned().collect();
        for name in aliases {
            headers.remove(name);
        }
        self.tell_origin(headers, host);
        if let Some(upgrade) = upgrade {
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(UPGRADE, upgrade);
        } else if trailers {
            headers.insert(CONNECTION, HeaderValue::from_static("te"));
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
        headers.insert(HOST, host.clone());
    }

    /// Writes the head of an HTTP/1.1 request for the target: what [`Origin::rewrite`] says, without changing the map.
    pub(crate) fn write_head(
        &self,
        (method, path): (&Method, &str),
        headers: &mut HeaderMap,
        host: &HeaderValue,
        upgrade: Option<HeaderValue>,
        length: Option<u64>,
    ) -> Vec<u8> {
        let mut head = Vec::with_capacity(1_024);
        let mut put = |parts: &[&[u8]]| parts.iter().for_each(|part| head.extend_from_slice(part));
        put(&[
            method.as_str().as_bytes(),
            b" ",
            path.as_bytes(),
            b" HTTP/1.1\r\nhost: ",
            host.as_bytes(),
            b"\r\n",
        ]);
        let was_sized = headers.contains_key(CONTENT_LENGTH);
        if self.trusted {
            // What is there is extended: seldom, and easier in the map.
            self.rewrite(headers, host, upgrade.clone());
            for (name, value) in headers.iter().filter(|(name, _)| !matches!(**name, HOST | CONTENT_LENGTH)) {
                put(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"]);
            }
        } else {
            let named = named_by_connection(headers);
            for (name, value) in headers.iter() {
                let text = name.as_str();
                if !is_replaced(text) && !named.contains(name) {
                    put(&[text.as_bytes(), b": ", value.as_bytes(), b"\r\n"]);
                }
            }
            put(&[b"forwarded: ", self.forwarded(host).as_bytes()]);
            let (peer, port) = (self.peer_value.as_bytes(), self.port_value.as_bytes());
            put(&[
                b"\r\nx-forwarded-for: ",
                peer,
                b"\r\nx-real-ip: ",
                peer,
                b"\r\nx-forwarded-host: ",
                host.as_bytes(),
            ]);
            put(&[
                b"\r\nx-forwarded-proto: ",
                self.scheme.as_bytes(),
                b"\r\nx-forwarded-port: ",
                port,
                b"\r\n",
            ]);
            match upgrade {
                Some(upgrade) => put(&[b"connection: upgrade\r\nupgrade: ", upgrade.as_bytes(), b"\r\n"]),
                None if list_contains(headers, &TE, "trailers") => {
                    put(&[b"connection: te\r\nte: trailers\r\n"])
                }
                None => {}
            }
        }
        match length {
            // RFC 9110, section 8.6: said for methods that give an empty body a meaning.
            Some(0) if !was_sized && !matches!(*method, Method::POST | Method::PUT | Method::PATCH) => {}
            Some(length) => put(&[b"content-length: ", length.to_string().as_bytes(), b"\r\n"]),
            None => put(&[b"transfer-encoding: chunked\r\n"]),
        }
        put(&[b"\r\n"]);
        head
    }

    /// This hop, as an element of `Forwarded` (RFC 7239).
    fn forwarded(&self, host: &HeaderValue) -> String {
        let mut element = String::with_capacity(96);
        // Section 6: an IPv6 address stands in brackets and quotes. A host may have a port, so it is quoted.
        let _ = match self.peer {
            IpAddr::V4(peer) => write!(element, "for={peer}"),
            IpAddr::V6(peer) => write!(element, "for=\"[{peer}]\""),
        };
        if let Ok(host) = host.to_str() {
            let _ = write!(element, ";host=\"{host}\"");
        }
        let _ = write!(element, ";proto={}", self.scheme);
        element
    }

    fn tell_origin(&self, headers: &mut HeaderMap, host: &HeaderValue) {
        let element = HeaderValue::try_from(self.forwarded(host))
            .unwrap_or_else(|_| HeaderValue::from_static("for=unknown"));

        if self.trusted {
            extend(headers, FORWARDED, &element);
            extend(headers, X_FORWARDED_FOR, &self.peer_value);
            for (name, value) in [
                (X_FORWARDED_HOST, host.clone()),
                (X_FORWARDED_PROTO, HeaderValue::from_static(self.scheme)),
                (X_FORWARDED_PORT, self.port_value.clone()),
                (X_REAL_IP, self.peer_value.clone()),
            ] {
                headers.entry(name).or_insert(value);
            }
        } else {
            let claims = |name: &&HeaderName| name.as_str().starts_with("x-forwarded-");
            let claimed: Vec<HeaderName> = headers.keys().filter(claims).cloned().collect();
            for name in claimed {
                headers.remove(name);
            }
            headers.insert(FORWARDED, element);
            headers.insert(X_FORWARDED_FOR, self.peer_value.clone());
            headers.insert(X_FORWARDED_HOST, host.clone());
            headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(self.scheme));
            headers.insert(X_FORWARDED_PORT, self.port_value.clone());
            headers.insert(X_REAL_IP, self.peer_value.clone());
        }
    }
}

fn is_ours(name: &str) -> bool {
    name == "forwarded" || name == "x-real-ip" || name == "host" || name.starts_with("x-forwarded-")
}

/// Appends an element to a list, in one header line.
fn extend(headers: &mut HeaderMap, name: HeaderName, element: &HeaderValue) {
    let mut list = Vec::new();
    for value in headers.get_all(&name) {
        list.extend_from_slice(value.as_bytes());
        list.extend_from_slice(b", ");
    }
    list.extend_from_slice(element.as_bytes());
    headers.insert(name, HeaderValue::from_bytes(&list).unwrap_or_else(|_| element.clone()));
}

/// Headers for a target or client that is spoken to in `version`: HTTP/2 knows no `Connection` (RFC 9113, section 8.2.2).
pub(crate) fn fit_version(headers: &mut HeaderMap, version: Version) {
    if version == Version::HTTP_2 {
        headers.remove(CONNECTION);
        headers.remove(HOST);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// As it is written for HTTP/1.1, which must be what it is for HTTP/2 but for the length.
    fn rewritten(trusted: bool, sent: &[(&'static str, &'static str)]) -> HeaderMap {
        let origin = Origin::new("192.0.2.7:999".parse().unwrap(), 443, true, trusted);
        let mut headers = HeaderMap::new();
        for (name, value) in sent {
            headers.append(*name, HeaderValue::from_static(value));
        }
        let host = HeaderValue::from_static("a.example");
        let length = headers.contains_key(CONTENT_LENGTH).then_some(3).or(Some(0));
        let head = origin.write_head((&Method::GET, "/"), &mut headers.clone(), &host, None, length);
        let head = String::from_utf8(head).unwrap();
        let mut written = HeaderMap::new();
        for line in head.trim_end().lines().skip(1) {
            let (name, value) = line.split_once(": ").unwrap();
            written.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        origin.rewrite(&mut headers, &host, None);
        assert_eq!(written, headers);
        headers
    }

    #[test]
    fn what_is_for_one_connection_is_removed_and_the_host_stays() {
        let headers = rewritten(
            false,
            &[
                ("connection", "keep-alive, X-Secret, host, content-length"),
                ("x-secret", "1"),
                ("keep-alive", "5"),
                ("proxy-authorization", "x"),
                ("transfer-encoding", "chunked"),
                ("upgrade", "h2c"),
                ("http2-settings", "x"),
                ("te", "gzip"),
                ("expect", "100-continue"),
                ("content-length", "3"),
                ("x-kept", "1"),
            ],
        );
        let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        names.retain(|name| !is_ours(name));
        names.sort_unstable();
        assert_eq!(names, ["content-length", "x-kept"]);
        assert_eq!(headers[HOST], "a.example");
    }

    #[test]
    fn an_untrusted_peer_cannot_say_where_a_request_comes_from() {
        let sent = [
            ("forwarded", "for=1.1.1.1"),
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-proto", "ftp"),
            ("x-real-ip", "1.1.1.1"),
            ("x-forwarded-prefix", "/x"),
            ("x_forwarded_for", "1.1.1.1"),
        ];
        let headers = rewritten(false, &sent);
        assert_eq!(headers["x-forwarded-for"], "192.0.2.7");
        assert_eq!(headers["x-forwarded-proto"], "https");
        assert_eq!(headers["x-real-ip"], "192.0.2.7");
        assert_eq!(headers["forwarded"], "for=192.0.2.7;host=\"a.example\";proto=https");
        assert!(!headers.contains_key("x-forwarded-prefix") && !headers.contains_key("x_forwarded_for"));

        let headers = rewritten(true, &sent);
        assert_eq!(headers["x-forwarded-for"], "1.1.1.1, 192.0.2.7");
        assert_eq!(headers["x-forwarded-proto"], "ftp");
        assert_eq!(headers["forwarded"], "for=1.1.1.1, for=192.0.2.7;host=\"a.example\";proto=https");
        assert!(!headers.contains_key("x_forwarded_for"));
    }
}
