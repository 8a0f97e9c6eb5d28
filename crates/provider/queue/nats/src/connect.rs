//! Connecting, and the stream.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use async_nats::jetstream::context::{AccountErrorKind, Context, ContextBuilder, CreateStreamErrorKind};
use async_nats::jetstream::stream::{Config as StreamConfig, DiscardPolicy, RetentionPolicy, StorageType};
use async_nats::jetstream::{ErrorCode, response::Response, stream};
use async_nats::{ConnectError, ConnectErrorKind, ConnectOptions, Event};
use flames_clock::{Clock, ClockExt};
use flames_error::{Error, ErrorKind, Result};
use flames_queue::MAX_PAYLOAD_BYTES;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::backend::Backend;
use crate::config::{Credentials, NatsConfig};

const OPEN: &str = "queue.open";
/// The first server that has what is needed: messages with an end of their own (`allow_msg_ttl`, NATS ADR-43).
const NEEDED_SERVER: (i64, i64, i64) = (2, 11, 0);
/// How many publications may wait for their answer at once; further ones wait for a place.
const MAX_IN_FLIGHT: usize = 4_096;
/// How many deliveries of the stream may wait to be taken in. The server holds the rest back (flow control).
const FEED_CAPACITY: usize = 65_536;

fn refused(kind: ErrorKind, sentence: String) -> Error {
    Error::new(kind, OPEN, sentence.clone()).with_user_message(sentence)
}

/// Connects, and makes the stream where there is none.
pub(crate) async fn connect(config: &NatsConfig, clock: &Arc<dyn Clock>) -> Result<Backend> {
    config.validate(OPEN)?;
    let (connected, connections) = watch::channel(0_u64);
    let options = options(config, connected).await?;
    let client = within(config, clock, "connect", Box::pin(options.connect(config.servers.as_slice())))
        .await?
        .map_err(|error| not_connected(config, error))?;
    let (major, minor, patch) = NEEDED_SERVER;
    if !client.is_server_compatible(major, minor, patch) {
        let version = client.server_info().version;
        return Err(refused(
            ErrorKind::NotSupported,
            format!(
                "The queue `nats` needs NATS 2.11 or later; {} is {version}: upgrade it.",
                config.shown_servers()
            ),
        ));
    }
    let context = ContextBuilder::new()
        .timeout(config.operation_deadline)
        .ack_timeout(config.operation_deadline)
        .max_ack_inflight(MAX_IN_FLIGHT)
        .backpressure_on_inflight(true)
        .build(client.clone());
    check_jetstream(config, clock, &context).await?;
    make_stream(config, clock, &context).await?;
    let stream = within(config, clock, "find its stream", context.get_stream_no_info(config.stream()))
        .await?
        .map_err(|error| Error::internal(OPEN, "the stream cannot be addressed").with_source(error))?;
    Ok(Backend::new(
        context,
        stream,
        config.stream(),
        config.subject_prefix(),
        Arc::clone(clock),
        connections,
    ))
}

async fn within<T: Send>(
    config: &NatsConfig,
    clock: &Arc<dyn Clock>,
    what: &str,
    work: impl Future<Output = T> + Send,
) -> Result<T> {
    clock.timeout(config.operation_deadline, work).await.map_err(|late| {
        refused(
            ErrorKind::Unavailable,
            format!(
                "The queue `nats` could not {what} within {:?}: is NATS at {} (`servers`) well, and may this user use its JetStream API?",
                config.operation_deadline,
                config.shown_servers()
            ),
        )
        .with_source(late)
    })
}

async fn options(config: &NatsConfig, connected: watch::Sender<u64>) -> Result<ConnectOptions> {
    let mut options = ConnectOptions::new()
        .name("flames")
        .connection_timeout(config.operation_deadline)
        .request_timeout(Some(config.operation_deadline))
        // A connection whose other end is gone without a word is given up after two or three of these.
        .ping_interval(config.operation_deadline)
        .subscription_capacity(FEED_CAPACITY)
        .event_callback(move |event| {
            match event {
                Event::Connected => connected.send_modify(|count| *count += 1),
                Event::Disconnected => warn!("the connection to NATS is lost; connecting again"),
                other => warn!(event = %other, "NATS"),
            }
            std::future::ready(())
        });
    match &config.credentials {
        Credentials::None => {}
        Credentials::File(path) => {
            options = options.credentials(&read(path, "credentials").await?).map_err(|error| {
                refused(
                    ErrorKind::InvalidInput,
                    format!(
                        "The file {} (`credentials` of the queue `nats`) is no NATS credentials file.",
                        path.display()
                    ),
                )
                .with_source(error)
            })?;
        }
        Credentials::Password { user, password } => {
            options = options.user_and_password(user.clone(), password.clone());
        }
        Credentials::Token(token) => options = options.token(token.clone()),
    }
    if let Some(path) = &config.certificate_authorities {
        // Read here too, for an error that names the file: the client tells of it at the first connection only.
        read(path, "certificate_authorities").await?;
        options = options.add_root_certificates(path.clone());
    }
    Ok(options)
}

async fn read(path: &Path, setting: &str) -> Result<String> {
    tokio::fs::read_to_string(path).await.map_err(|error| {
        refused(
            ErrorKind::InvalidInput,
            format!("The file {} (`{setting}` of the queue `nats`) cannot be read: {error}.", path.display()),
        )
    })
}

fn not_connected(config: &NatsConfig, error: ConnectError) -> Error {
    let servers = config.shown_servers();
    let (kind, sentence) = match error.kind() {
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => (
            ErrorKind::PermissionDenied,
            format!("NATS at {servers} does not accept the `credentials` of the queue `nats`: check them."),
        ),
        ConnectErrorKind::ServerParse => (
            ErrorKind::InvalidInput,
            format!("The `servers` of the queue `nats` are no NATS URLs: {servers}. Write nats://host:port."),
        ),
        ConnectErrorKind::Tls => (
            ErrorKind::Unavailable,
            format!(
                "No TLS connection to NATS at {servers}: check `servers` and `certificate_authorities` of the queue `nats`."
            ),
        ),
        ConnectErrorKind::Dns
        | ConnectErrorKind::TimedOut
        | ConnectErrorKind::Io
        | ConnectErrorKind::MaxReconnects => (
            ErrorKind::Unavailable,
            format!("NATS at {servers} (`servers` of the queue `nats`) cannot be reached: is it running?"),
        ),
    };
    refused(kind, sentence).with_source(error)
}

async fn check_jetstream(config: &NatsConfig, clock: &Arc<dyn Clock>, context: &Context) -> Result<()> {
    let off = || {
        refused(
            ErrorKind::NotSupported,
            format!(
                "NATS at {} has no JetStream for this account, which the queue `nats` needs: start it with `--jetstream` and a `store_dir`.",
                config.shown_servers()
            ),
        )
    };
    let Err(error) = within(config, clock, "ask for JetStream", context.query_account()).await? else {
        return Ok(());
    };
    Err(match error.kind() {
        AccountErrorKind::JetStreamUnavailable => off(),
        AccountErrorKind::JetStream(answer)
            if matches!(
                answer.error_code(),
                ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT
            ) =>
        {
            off()
        }
        AccountErrorKind::JetStream(answer) => crate::error::api(OPEN, &answer),
        AccountErrorKind::TimedOut | AccountErrorKind::Other => {
            Error::unavailable(OPEN, "NATS did not tell of JetStream").with_source(error)
        }
    })
}

fn wanted(config: &NatsConfig) -> StreamConfig {
    StreamConfig {
        name: config.stream(),
        description: Some(
            "Jobs of Flames: the newest message of a subject is the record of one job".to_owned(),
        ),
        subjects: vec![format!("{}.>", config.subject_prefix())],
        // A record is what its subject's newest message says. Nothing is taken away by age, number or size: a job is never dropped.
        retention: RetentionPolicy::Limits,
        max_messages_per_subject: 1,
        discard: DiscardPolicy::New,
        max_bytes: config.max_bytes.map_or(-1, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
        // A record's head is below 16 KiB: its longest parts are a reason of 4 KiB, escaped, and a key of 256 bytes.
        max_message_size: i32::try_from(MAX_PAYLOAD_BYTES + 16 * 1024).unwrap_or(i32::MAX),
        storage: StorageType::File,
        num_replicas: config.replicas,
        allow_message_ttl: true,
        // Reads of one job go to the stream's leader: an answer of a replica may be old.
        allow_direct: false,
        ..StreamConfig::default()
    }
}

async fn make_stream(config: &NatsConfig, clock: &Arc<dyn Clock>, context: &Context) -> Result<()> {
    let name = config.stream();
    let about = within(
        config,
        clock,
        "ask for its stream",
        context.request::<_, _, Response<stream::Info>>(format!("STREAM.INFO.{name}"), &()),
    );
    match about.await? {
        Ok(Response::Ok(found)) => return check_stream(&found.config, config),
        Ok(Response::Err { error }) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {}
        Ok(Response::Err { error }) => return Err(crate::error::api(OPEN, &error)),
        Err(error) => {
            return Err(Error::unavailable(OPEN, "NATS did not tell of the stream").with_source(error));
        }
    }
    let made = within(config, clock, "make its stream", context.create_stream(wanted(config))).await?;
    match made {
        Ok(stream) => {
            info!(
                stream = name,
                "made the stream of the queue; NATS syncs to disk every two minutes unless its configuration says `jetstream {{ sync_interval: always }}`"
            );
            check_stream(&stream.cached_info().config, config)
        }
        Err(error) => Err(match error.kind() {
            CreateStreamErrorKind::JetStream(answer)
                if answer.error_code() == ErrorCode::STREAM_SUBJECT_OVERLAP =>
            {
                refused(
                    ErrorKind::AlreadyExists,
                    format!(
                        "Another stream has the subjects {}.>: choose another `prefix` for the queue `nats`.",
                        config.subject_prefix()
                    ),
                )
            }
            // Another process made it at the same moment, from another configuration.
            CreateStreamErrorKind::JetStream(answer)
                if answer.error_code() == ErrorCode::STREAM_NAME_EXIST =>
            {
                Error::unavailable(OPEN, "another process made the stream; open again")
            }
            CreateStreamErrorKind::JetStream(answer) => {
                let mut refusal = crate::error::api(OPEN, &answer);
                if refusal.kind() == ErrorKind::Internal {
                    refusal = refusal.with_kind(ErrorKind::InvalidInput);
                }
                let sentence = format!(
                    "NATS does not make the stream {name} of the queue `nats`: {answer}. Check `replicas` and `max_bytes`."
                );
                refusal.with_user_message(sentence)
            }
            _ => Error::unavailable(OPEN, "NATS did not make the stream").with_source(error),
        }),
    }
}

/// Refuses a stream on which the queue would lose jobs, and warns of one that promises less than the wanted one.
fn check_stream(found: &StreamConfig, config: &NatsConfig) -> Result<()> {
    let needed = wanted(config);
    let differs = if found.subjects != needed.subjects {
        Some("subjects")
    } else if found.max_messages_per_subject != 1 {
        Some("max_msgs_per_subject")
    } else if found.discard != DiscardPolicy::New {
        Some("discard")
    } else if found.retention != RetentionPolicy::Limits {
        Some("retention")
    } else if !found.max_age.is_zero() {
        Some("max_age")
    } else if !found.allow_message_ttl {
        Some("allow_msg_ttl")
    } else if found.sealed
        || found.mirror.is_some()
        || found.sources.as_ref().is_some_and(|from| !from.is_empty())
    {
        Some("sources")
    } else {
        None
    };
    if let Some(setting) = differs {
        return Err(refused(
            ErrorKind::InvalidInput,
            format!(
                "The stream {} is not one of the queue `nats` (its `{setting}` differs): choose another `prefix`, or delete the stream.",
                config.stream()
            ),
        ));
    }
    if found.storage == StorageType::Memory {
        warn!(stream = found.name, "the stream is kept in memory: a restart of NATS loses every job");
    }
    if matches!(found.persist_mode, Some(stream::PersistenceMode::Async)) {
        warn!(
            stream = found.name,
            "the stream is written behind (`persist_mode: async`): a crash of NATS loses jobs that were answered"
        );
    }
    if found.num_replicas != config.replicas {
        warn!(
            stream = found.name,
            found = found.num_replicas,
            wanted = config.replicas,
            "the stream has another number of replicas than `replicas` says; it is left as it is"
        );
    }
    Ok(())
}
