//! The headers of mutations.

use axum::extract::FromRequestParts;
use flames_service::{Mutation, RequestKey};
use http::HeaderMap;
use http::header::IF_MATCH;
use http::request::Parts;

use crate::failure::{Answer, Failure, invalid};

const IDEMPOTENCY_KEY: &str = "Idempotency-Key";

/// What the headers say about a mutation.
#[derive(Debug)]
pub(crate) struct Change {
    key: Option<String>,
    if_generation: Option<u64>,
    route: String,
    query: String,
}

fn idempotency_key(headers: &HeaderMap) -> Answer<Option<String>> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let (first, second) = (values.next(), values.next());
    let Some(first) = first else { return Ok(None) };
    let key = first.to_str().ok().filter(|key| {
        second.is_none()
            && (1..=255).contains(&key.len())
            && key.bytes().all(|byte| (0x20..0x7f).contains(&byte))
    });
    match key {
        Some(key) => Ok(Some(key.to_owned())),
        None => Err(invalid(IDEMPOTENCY_KEY, "An idempotency key is 1 to 255 printable ASCII characters.")),
    }
}

/// The generation that `If-Match` names; none when it takes any (RFC 9110, section 13.1.1).
fn if_match(headers: &HeaderMap) -> Answer<Option<u64>> {
    let Some(value) = headers.get(IF_MATCH) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" {
        return Ok(None);
    }
    // The quotes belong to it, and are what shells take away first.
    let generation = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    match generation.parse().ok() {
        Some(generation) => Ok(Some(generation)),
        None => {
            Err(invalid("If-Match", "If-Match is `*` or one ETag of this API: a number in double quotes."))
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Change {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Answer<Self> {
        Ok(Self {
            key: idempotency_key(&parts.headers)?,
            if_generation: if_match(&parts.headers)?,
            route: format!("{} {}", parts.method, parts.uri.path()),
            query: parts.uri.query().unwrap_or_default().to_owned(),
        })
    }
}

impl Change {
    /// The mutation of a request with this body. The query is part of what must be the same under one key.
    pub(crate) fn with(self, body: &[u8]) -> Mutation {
        let digest = || {
            let mut hasher = blake3::Hasher::new();
            hasher.update(self.query.as_bytes()).update(b"\0").update(body);
            hasher.finalize().to_hex().to_string()
        };
        let body_digest = self.key.is_some().then(digest).unwrap_or_default();
        let request = self.key.map(|key| RequestKey { key, route: self.route, body_digest });
        Mutation { request, if_generation: self.if_generation }
    }

    /// For what happens inside a guest, of which no record is kept: a key would promise what cannot be held.
    pub(crate) fn refuse_key(self) -> Answer<()> {
        match self.key {
            None => Ok(()),
            Some(_) => Err(invalid(
                IDEMPOTENCY_KEY,
                "What is done inside a guest is not recorded, so an idempotency key cannot be kept. Leave it out.",
            )),
        }
    }
}
