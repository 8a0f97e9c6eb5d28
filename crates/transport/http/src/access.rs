//! Who may call: the token, the unix peer, and the two headers that keep web pages out.
//!
//! A page in somebody's browser can send requests to a server on the same machine, and with DNS rebinding it can read the answers too.
//! It cannot choose `Host` and `Origin`. So over TCP both are checked before the credential is.

use axum::extract::{FromRequestParts, Request};
use flames_error::{Error, ErrorKind};
use flames_model::Actor;
use flames_service::{Caller, codes};
use http::header::{AUTHORIZATION, HOST, ORIGIN};
use http::request::Parts;
use http::{HeaderMap, Uri};

use crate::api::Api;
use crate::failure::Failure;

/// One way in, and what it asks of callers.
#[derive(Clone)]
pub enum Access {
    /// The router is handed to a caller in the same process, who acts under this name. Nothing is checked.
    Trusted {
        /// The caller's name.
        actor: String,
    },
    /// Over TCP: a bearer token, a `Host` that is this server's, and no foreign `Origin`.
    Token {
        /// The token.
        token: String,
        /// Host names that mean this server, beside `localhost`, `127.0.0.1` and `[::1]`; without ports.
        hosts: Vec<String>,
    },
    /// Over a unix socket: the peer's user is this process's own, or root. [`serve_unix`](crate::serve_unix) tells who it is.
    Peer,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Trusted { actor } => f.debug_struct("Trusted").field("actor", actor).finish(),
            Self::Token { hosts, .. } => {
                f.debug_struct("Token").field("token", &"redacted").field("hosts", hosts).finish()
            }
            Self::Peer => f.write_str("Peer"),
        }
    }
}

/// The user at the other end of a unix socket, as the kernel says (`SO_PEERCRED`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// The user's number.
    pub uid: u32,
}

/// A request that was admitted.
#[derive(Debug, Clone)]
pub(crate) struct Admitted {
    pub(crate) actor: String,
    pub(crate) request_id: String,
}

/// An [`Access`] made ready to check each request.
pub(crate) enum Gate {
    Trusted { actor: String },
    Token { digest: blake3::Hash, hosts: Vec<String> },
    Peer,
}

impl From<Access> for Gate {
    fn from(access: Access) -> Self {
        match access {
            Access::Trusted { actor } => Self::Trusted { actor },
            Access::Token { token, hosts } => Self::Token { digest: blake3::hash(token.as_bytes()), hosts },
            Access::Peer => Self::Peer,
        }
    }
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").finish_non_exhaustive()
    }
}

fn forbidden(sentence: &str) -> Error {
    Error::new(ErrorKind::PermissionDenied, "http.access", sentence)
        .with_code(codes::FORBIDDEN)
        .with_user_message(sentence)
}

/// The host name of an authority, without its port.
fn host_name(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => authority,
    }
}

fn check_host(hosts: &[String], headers: &HeaderMap, uri: &Uri) -> Result<(), Error> {
    let refuse = || {
        forbidden(
            "The Host header names another server. Call this one as localhost, 127.0.0.1 or [::1], or add its name to the configuration.",
        )
    };
    let mut given = headers.get_all(HOST).iter();
    let (Some(host), None) = (given.next(), given.next()) else { return Err(refuse()) };
    let host = host.to_str().map_err(|_| refuse())?;
    let ours = |authority: &str| {
        let name = host_name(authority);
        ["localhost", "127.0.0.1", "[::1]"].contains(&name)
            || hosts.iter().any(|known| known.eq_ignore_ascii_case(name))
    };
    if !ours(host) || uri.authority().is_some_and(|authority| !ours(authority.as_str())) {
        return Err(refuse());
    }
    let same = |origin: &str| {
        let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        authority == Some(host)
    };
    if headers.get_all(ORIGIN).iter().any(|origin| !origin.to_str().is_ok_and(same)) {
        return Err(forbidden("Requests from pages of another origin are not taken."));
    }
    Ok(())
}

fn check_token(digest: &blake3::Hash, headers: &HeaderMap) -> Result<(), Error> {
    let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let (scheme, given) = given.and_then(|text| text.split_once(' ')).unwrap_or_default();
    // Digests are compared, in constant time (`blake3::Hash`), so that timing tells nothing of the token.
    let matches = blake3::hash(given.trim().as_bytes()) == *digest;
    if scheme.eq_ignore_ascii_case("bearer") && matches {
        return Ok(());
    }
    Err(Error::new(ErrorKind::PermissionDenied, "http.access", "no token, or a wrong one")
        .with_code(codes::UNAUTHENTICATED)
        .with_user_message(
            "Send `Authorization: Bearer <token>` with the token from the server's data folder.",
        ))
}

impl Gate {
    /// Who calls, when the request may pass.
    pub(crate) fn admit(&self, request: &Request) -> Result<String, Error> {
        let path = request.uri().path();
        // A liveness probe knows neither names nor tokens, and learns nothing but that somebody answers.
        let probe = path == "/healthz";
        // Documentation holds no secret, and links to it are opened in browsers.
        let documentation = path == "/openapi.json" || path.starts_with("/docs/errors/");
        match self {
            Self::Trusted { actor } => Ok(actor.clone()),
            Self::Token { digest, hosts } => {
                if probe {
                    return Ok("probe".to_owned());
                }
                check_host(hosts, request.headers(), request.uri())?;
                if !documentation {
                    check_token(digest, request.headers())?;
                }
                Ok("token".to_owned())
            }
            Self::Peer => {
                let peer = request.extensions().get::<Peer>().copied();
                let own = rustix::process::geteuid().as_raw();
                match peer {
                    Some(Peer { uid }) if uid == own || uid == 0 => Ok(format!("uid:{uid}")),
                    _ => Err(forbidden("Only the user who runs the server, and root, may use this socket.")),
                }
            }
        }
    }
}

/// The caller of a request.
#[derive(Debug)]
pub(crate) struct By(pub(crate) Caller);

impl FromRequestParts<Api> for By {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Failure> {
        let Some(Admitted { actor, request_id }) = parts.extensions.remove::<Admitted>() else {
            return Err(Failure(Error::internal("http.access", "a request passed without being admitted")));
        };
        Ok(Self(Caller { project: api.config.project.clone(), actor: Actor::User(actor), request_id }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_no_part_of_the_host_name_and_an_address_in_brackets_stays_whole() {
        for (authority, name) in
            [("localhost:80", "localhost"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]"), ("a.b", "a.b")]
        {
            assert_eq!(host_name(authority), name);
        }
    }
}
