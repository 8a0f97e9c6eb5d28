//! How a change is to be applied.

use flames_error::{Error, Result};
use http::HeaderValue;
use http::header::{HeaderName, IF_MATCH};

/// How a change is to be applied.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mutation {
    /// Carry it out at most once under this key (1 to 255 printable ASCII), and answer a repetition with what came of it.
    pub idempotency_key: Option<String>,
    /// Only if the record has this generation.
    pub if_generation: Option<u64>,
}

impl Mutation {
    /// At most once under this key.
    pub fn once(key: impl Into<String>) -> Self {
        Self { idempotency_key: Some(key.into()), if_generation: None }
    }

    /// Only if the record has this generation.
    #[must_use]
    pub fn if_generation(mut self, generation: u64) -> Self {
        self.if_generation = Some(generation);
        self
    }

    /// Errors: `InvalidInput` when the key cannot stand in a header: to leave it out would give up what it promises.
    pub(crate) fn headers(&self) -> Result<Vec<(HeaderName, HeaderValue)>> {
        let mut headers = Vec::new();
        if let Some(key) = &self.idempotency_key {
            let value = HeaderValue::from_str(key).map_err(|_| {
                let sentence = "An idempotency key is 1 to 255 printable ASCII characters.";
                Error::invalid("client.mutation", "Idempotency-Key", sentence)
            })?;
            headers.push((HeaderName::from_static("idempotency-key"), value));
        }
        if let Some(generation) = self.if_generation {
            // A number in quotes always fits; an error here could only be a defect.
            let value = HeaderValue::from_str(&format!("\"{generation}\"")).map_err(|error| {
                Error::internal("client.mutation", "a generation is no header value").with_source(error)
            })?;
            headers.push((IF_MATCH, value));
        }
        Ok(headers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_cannot_be_sent_is_refused_and_never_left_out() {
        let error = Mutation::once("line\nbreak").headers().unwrap_err();
        assert_eq!(error.field(), Some("Idempotency-Key"));
        assert_eq!(Mutation::once("k").if_generation(3).headers().unwrap().len(), 2);
    }
}
