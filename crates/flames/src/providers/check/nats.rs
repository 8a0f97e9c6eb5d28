//! Looking at a NATS without changing it.

use std::sync::Arc;

use async_nats::jetstream;
use flames_clock::{Clock, ClockExt};
use flames_queue_nats::{Credentials, NatsConfig};

/// It was not connected to, or did not answer: the adapter finds the words for why.
pub(super) struct NotConnected;

/// What was found.
pub(super) struct Looked {
    pub(super) version: String,
    pub(super) has_stream: bool,
}

pub(super) async fn look(config: &NatsConfig, clock: &Arc<dyn Clock>) -> Result<Looked, NotConnected> {
    match clock.timeout(config.operation_deadline, look_now(config)).await {
        Ok(Some(looked)) => Ok(looked),
        Ok(None) | Err(_) => Err(NotConnected),
    }
}

async fn look_now(config: &NatsConfig) -> Option<Looked> {
    let mut options = async_nats::ConnectOptions::new()
        .name("flames config check")
        .connection_timeout(config.operation_deadline);
    match &config.credentials {
        Credentials::None => {}
        Credentials::File(path) => options = options.credentials_file(path).await.ok()?,
        Credentials::Password { user, password } => {
            options = options.user_and_password(user.clone(), password.clone())
        }
        Credentials::Token(token) => options = options.token(token.clone()),
    }
    if let Some(path) = &config.certificate_authorities {
        options = options.add_root_certificates(path.clone());
    }
    let client = options.connect(config.servers.as_slice()).await.ok()?;
    let version = format!("NATS {}", client.server_info().version);
    let streams = jetstream::new(client.clone());
    let has_stream = match streams.get_stream(config.stream()).await {
        Ok(_) => Some(true),
        Err(error) => match error.kind() {
            jetstream::context::GetStreamErrorKind::JetStream(answer)
                if answer.error_code() == jetstream::ErrorCode::STREAM_NOT_FOUND =>
            {
                Some(false)
            }
            _ => None,
        },
    };
    // What is known is known, however the connection ends.
    let _ = client.drain().await;
    Some(Looked { version, has_stream: has_stream? })
}
