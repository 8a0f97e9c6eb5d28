//! What is looked at before a request goes anywhere: whether it can be read in one way only, and whom it is for.

use http::header::{CONTENT_LENGTH, EXPECT, HOST, HeaderMap, TRANSFER_ENCODING, UPGRADE};
use http::uri::Authority;
use http::{Method, Request, Version};

use crate::headers::{connection_names, list_contains};
use crate::problem::Problem;

/// The host name asked for: lower case, without a port and without a final dot.
///
/// HTTP/1: exactly one `Host` (RFC 9112, section 3.2), and a target in absolute form names the same. HTTP/2: `:authority`, and a
/// `Host` beside it says the same (RFC 9113, section 8.3.1).
pub(crate) fn host<B>(request: &Request<B>) -> Result<String, Problem> {
    let mut named = request.headers().get_all(HOST).iter();
    let header = named.next();
    if named.next().is_some() {
        return Err(Problem::MalformedRequest);
    }
    let header = header.map(|value| value.to_str().map_err(|_| Problem::MalformedRequest)).transpose()?;
    let header = header.map(split).transpose()?;
    let authority = request.uri().authority().map(Authority::as_str).map(split).transpose()?;
    let is_http2 = request.version() == Version::HTTP_2;
    let (host, port) = match (authority, header) {
        (Some(authority), Some(header)) if authority == header => authority,
        (Some(authority), None) if is_http2 => authority,
        (None, Some(header)) => header,
        _ => return Err(Problem::MalformedRequest),
    };
    let is_port = |port: &str| port.parse::<u16>().is_ok() && port.bytes().all(|b| b.is_ascii_digit());
    if !port.is_none_or(|port| port.is_empty() || is_port(&port)) {
        return Err(Problem::MalformedRequest);
    }
    Ok(host)
}

/// Host and port of an authority. Only what a DNS name or an IP literal is made of is let through.
fn split(authority: &str) -> Result<(String, Option<String>), Problem> {
    let allowed =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b':' | b'[' | b']' | b'%');
    if authority.is_empty() || authority.len() > 262 || !authority.bytes().all(allowed) {
        return Err(Problem::MalformedRequest);
    }
    let (host, port) = if authority.starts_with('[') {
        let end = authority.find(']').ok_or(Problem::MalformedRequest)?;
        match &authority[end + 1..] {
            "" => (authority, None),
            rest => (&authority[..=end], Some(rest.strip_prefix(':').ok_or(Problem::MalformedRequest)?)),
        }
    } else {
        match authority.split_once(':') {
            Some((_, port)) if port.contains(':') => return Err(Problem::MalformedRequest),
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.is_empty() {
        return Err(Problem::MalformedRequest);
    }
    Ok((host.to_ascii_lowercase(), port.map(str::to_owned)))
}

/// Refuses what is not served, what is too long, and what two readers could frame in two ways.
pub(crate) fn check<B>(
    request: &Request<B>,
    uri_bytes: usize,
    body_bytes: Option<u64>,
) -> Result<(), Problem> {
    let (method, headers) = (request.method(), request.headers());
    // A tunnel to anywhere, and an echo of headers that the client may not see.
    if matches!(*method, Method::CONNECT | Method::TRACE) {
        return Err(Problem::MethodNotServed);
    }
    let path = request.uri().path_and_query().map_or("", |path| path.as_str());
    if path.len() > uri_bytes {
        return Err(Problem::UriTooLong);
    }
    if request.version() != Version::HTTP_2 {
        // RFC 9112, section 3.2.4: `*` is for OPTIONS alone.
        if path == "*" && *method != Method::OPTIONS {
            return Err(Problem::MalformedRequest);
        }
        if request.uri().scheme().is_some_and(|scheme| !matches!(scheme.as_str(), "http" | "https")) {
            return Err(Problem::MalformedRequest);
        }
    }
    if let Some(coding) = headers.get(TRANSFER_ENCODING) {
        // RFC 9112, section 6.1. hyper takes the length away where both are named; what it leaves is refused here.
        if headers.contains_key(CONTENT_LENGTH) || headers.get_all(TRANSFER_ENCODING).iter().count() > 1 {
            return Err(Problem::MalformedRequest);
        }
        if !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return Err(Problem::NotImplemented);
        }
    }
    if headers.get_all(CONTENT_LENGTH).iter().count() > 1 {
        return Err(Problem::MalformedRequest);
    }
    if let Some(length) = headers.get(CONTENT_LENGTH) {
        let digits = length.to_str().ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
        let length: u64 = digits.and_then(|text| text.parse().ok()).ok_or(Problem::MalformedRequest)?;
        if body_bytes.is_some_and(|most| length > most) {
            return Err(Problem::BodyTooLarge);
        }
    }
    if headers.get(EXPECT).is_some_and(|expected| !expected.as_bytes().eq_ignore_ascii_case(b"100-continue"))
    {
        return Err(Problem::ExpectationFailed);
    }
    Ok(())
}

/// Whether the client asks to leave HTTP on this connection (RFC 9110, section 7.8), in a way that is passed on: without a body,
/// and not to HTTP/2, which would let requests through unseen.
pub(crate) fn wants_upgrade(method: &Method, version: Version, headers: &HeaderMap) -> bool {
    version == Version::HTTP_11
        && *method == Method::GET
        && headers.contains_key(UPGRADE)
        && connection_names(headers, "upgrade")
        && !list_contains(headers, &UPGRADE, "h2c")
        && !headers.contains_key(TRANSFER_ENCODING)
        && headers.get(CONTENT_LENGTH).is_none_or(|length| length.as_bytes() == b"0")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn asked(version: Version, uri: &str, hosts: &[&str]) -> Result<String, Problem> {
        let mut request = Request::builder().version(version).uri(uri);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        host(&request.body(()).unwrap())
    }

    #[test]
    fn a_host_name_is_read_without_case_port_and_final_dot() {
        for written in ["A.Example", "a.example:8080", "a.example.", "a.example:"] {
            assert_eq!(asked(Version::HTTP_11, "/", &[written]).unwrap(), "a.example", "{written}");
        }
        assert_eq!(asked(Version::HTTP_11, "/", &["[::1]:80"]).unwrap(), "[::1]");
        assert_eq!(asked(Version::HTTP_11, "http://a.example/", &["a.example"]).unwrap(), "a.example");
        assert_eq!(asked(Version::HTTP_2, "http://a.example/", &[]).unwrap(), "a.example");
        assert_eq!(asked(Version::HTTP_2, "http://a.example/", &["a.example"]).unwrap(), "a.example");
    }

    #[test]
    fn a_host_name_that_can_be_read_in_two_ways_is_refused() {
        for hosts in [
            &[][..],
            &["a.example", "a.example"],
            &["a.example, b.example"],
            &["a.example@b.example"],
            &["a.example/b"],
            &["a.example:80:81"],
            &["a.example:+80"],
            &["a.example:99999"],
            &["[::1"],
            &[""],
            &["."],
        ] {
            assert_eq!(asked(Version::HTTP_11, "/", hosts), Err(Problem::MalformedRequest), "{hosts:?}");
        }
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let answer = asked(version, "http://a.example/", &["b.example"]);
            assert_eq!(answer, Err(Problem::MalformedRequest), "{version:?}");
        }
        assert_eq!(asked(Version::HTTP_11, "http://a.example/", &[]), Err(Problem::MalformedRequest));
    }
}
