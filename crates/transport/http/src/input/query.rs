//! Queries and paths.

use axum::extract::{FromRequestParts, Path};
use flames_service::VmRef;
use http::HeaderMap;
use http::header::ACCEPT;
use http::request::Parts;
use serde::de::DeserializeOwned;

use super::words::{refused, sentence};
use crate::failure::{Answer, Failure, invalid, unreadable};

/// What stands behind the `?`.
#[derive(Debug)]
pub(crate) struct QueryOf<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for QueryOf<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Answer<Self> {
        let query = parts.uri.query().unwrap_or_default();
        let pairs = form_urlencoded::parse(query.as_bytes());
        serde_path_to_error::deserialize(serde_urlencoded::Deserializer::new(pairs)).map(Self).map_err(
            |error| {
                let path = error.path().to_string();
                refused(&path, "query", &error.into_inner().to_string())
            },
        )
    }
}

/// What the path's placeholders stand for.
#[derive(Debug)]
pub(crate) struct PathOf<T>(pub(crate) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for PathOf<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Answer<Self> {
        let path = Path::<T>::from_request_parts(parts, state).await;
        path.map(|Path(value)| Self(value)).map_err(|rejection| unreadable(sentence(&rejection.body_text())))
    }
}

/// The VM that a path names, by id or name.
#[derive(Debug)]
pub(crate) struct VmPath(pub(crate) VmRef);

impl<S: Send + Sync> FromRequestParts<S> for VmPath {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Answer<Self> {
        let PathOf(placeholders) =
            PathOf::<std::collections::HashMap<String, String>>::from_request_parts(parts, state).await?;
        let text = placeholders.get("vm").map(String::as_str).unwrap_or_default();
        Ok(Self(VmRef::parse(text)?))
    }
}

/// Whether the client asks for this media type by name.
pub(crate) fn accepts(headers: &HeaderMap, media_type: &str) -> bool {
    headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .any(|part| part.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(media_type))
}

/// The size of a page: `default` when absent, `InvalidInput` outside 1 to `most`.
pub(crate) fn limit(given: Option<u32>, default: u32, most: u32) -> Answer<usize> {
    let limit = given.unwrap_or(default);
    if (1..=most).contains(&limit) {
        Ok(usize::try_from(limit).unwrap_or(usize::MAX))
    } else {
        Err(invalid("limit", format!("A page has 1 to {most} entries.")))
    }
}
