//! Join tokens: with them hosts join that are not known yet.

use std::time::Duration;

use flames_error::{Error, ErrorKind, Result};
use flames_records::{Change, JoinToken};

use crate::{Caller, Service, codes};

/// What every token begins with, so that one that leaks is recognised.
const PREFIX: &str = "flames-join-";
/// The longest that a token may hold.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3_600);
/// The most tokens that hold at once.
const MOST: usize = 100;
/// The most expired tokens that are removed in one commit.
const SWEPT: usize = 20;

/// A token that was just made.
#[derive(Clone, PartialEq, Eq)]
pub struct NewJoinToken {
    /// The token itself, which is told this once.
    pub token: String,
    /// What is kept of it.
    pub record: JoinToken,
}

impl std::fmt::Debug for NewJoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewJoinToken").field("record", &self.record).finish_non_exhaustive()
    }
}

fn digest(token: &str) -> String {
    blake3::hash(token.as_bytes()).to_hex().to_string()
}

impl Service {
    /// Makes a token with which hosts join, any number of them, for as long as it holds. Expired ones are removed meanwhile.
    ///
    /// Errors: `InvalidInput` when it would hold for less than a second or more than a year; `Exhausted` when 100 tokens hold already;
    /// `Unavailable`; `OutcomeUnknown`.
    pub async fn create_join_token(&self, caller: &Caller, holds: Duration) -> Result<NewJoinToken> {
        const OPERATION: &str = "service.create_join_token";
        if !(Duration::from_secs(1)..=LONGEST).contains(&holds) {
            return Err(Error::invalid(OPERATION, "ttl_seconds", "A token holds from a second to a year.")
                .with_code(codes::INVALID_FIELD));
        }
        let now = self.clock().now();
        let known = self.records().join_tokens().await?;
        let (held, expired): (Vec<_>, Vec<_>) = known.into_iter().partition(|token| token.expires_at > now);
        let mut swept = Change::new();
        for token in expired.iter().take(SWEPT) {
            swept.remove_join_token(token);
        }
        if !expired.is_empty()
            && let Err(error) = self.records().apply(swept).await
        {
            // Mostly somebody else removed them meanwhile. They hold for nobody anyway.
            tracing::debug!(%error, "expired join tokens were not removed");
        }
        if held.len() >= MOST {
            return Err(Error::new(ErrorKind::Exhausted, OPERATION, "too many join tokens hold")
                .with_code(codes::EXHAUSTED)
                .with_user_message(
                    "100 join tokens hold already. Remove some: `flames controllers token rm`.",
                ));
        }
        let mut secret = [0; 32];
        self.parts.random.fill(&mut secret);
        let token = format!("{PREFIX}{}", blake3::Hash::from_bytes(secret).to_hex());
        let expires_at = now.saturating_add(holds).unwrap_or(now);
        let record =
            JoinToken { digest: digest(&token), by: caller.actor.clone(), created_at: now, expires_at };
        let mut change = Change::new();
        change.insert_join_token(&record);
        self.records().apply(change).await?;
        Ok(NewJoinToken { token, record })
    }

    /// The tokens that hold, the newest first.
    pub async fn list_join_tokens(&self) -> Result<Vec<JoinToken>> {
        let now = self.clock().now();
        let tokens = self.records().join_tokens().await?.into_iter().map(|token| token.into_record());
        let mut tokens: Vec<_> = tokens.filter(|token| token.expires_at > now).collect();
        tokens.sort_by_key(|token| std::cmp::Reverse(token.created_at));
        Ok(tokens)
    }

    /// Removes a token: nobody joins with it any more. Who has joined stays.
    ///
    /// Errors: `NotFound` ([`codes::JOIN_TOKEN_NOT_FOUND`]); `Unavailable`; `OutcomeUnknown`.
    pub async fn remove_join_token(&self, id: &str) -> Result<()> {
        let found = self.records().join_tokens().await?.into_iter().find(|token| token.id() == id);
        let found = found.ok_or_else(|| codes::join_token_not_found(id))?;
        let mut change = Change::new();
        change.remove_join_token(&found);
        match self.records().apply(change).await {
            // Somebody else removed it.
            Err(error) if error.kind() == ErrorKind::Conflict => Ok(()),
            other => other.map(drop),
        }
    }

    /// Whether a token holds that [`Service::create_join_token`] made.
    pub async fn join_token_holds(&self, token: &str) -> Result<bool> {
        if !token.starts_with(PREFIX) || token.len() != PREFIX.len() + 64 {
            return Ok(false);
        }
        // Found by its digest, so that the time that this takes tells nothing of tokens.
        let known = self.records().join_token(&digest(token)).await?;
        Ok(known.is_some_and(|known| known.expires_at > self.clock().now()))
    }
}
