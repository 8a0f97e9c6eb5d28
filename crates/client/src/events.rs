//! Events: pages, and following without a gap.

use std::time::Duration;

use flames_error::{Error, ErrorKind, Result};
use flames_wire::{Event, EventList, EventQuery};
use futures::StreamExt;
use futures::stream::BoxStream;
use http::Method;
use http::header::{HeaderName, HeaderValue};

use crate::body::lines_of;
use crate::client::Client;

/// Events as they come. Dropping it ends the following.
pub type EventStream = BoxStream<'static, Result<Event>>;

const OPERATION: &str = "client.follow_events";
const EVENTS: &str = "/v1/events";
const CONTROLLER_EVENTS: &str = "/v1/controllers/events";
/// The waits before a connection that broke is made again.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// The server says something at least every 15 seconds: who is silent for three times as long is gone.
const SILENCE: Duration = Duration::from_secs(45);

struct Follower {
    client: Client,
    path: &'static str,
    after: Option<String>,
    connection: Option<BoxStream<'static, Result<String>>>,
    message: Message,
    wait: Duration,
    failures: u32,
    ended: bool,
}

/// One server-sent event that is being read.
#[derive(Default)]
struct Message {
    id: Option<String>,
    data: String,
}

impl Client {
    /// A page of events.
    pub async fn list_events(&self, query: &EventQuery) -> Result<EventList> {
        self.call("client.list_events", Method::GET, EVENTS.to_owned()).query(query)?.read().await
    }

    /// A page of the events of controllers.
    pub async fn list_controller_events(&self, query: &EventQuery) -> Result<EventList> {
        self.call("client.list_events", Method::GET, CONTROLLER_EVENTS.to_owned()).query(query)?.read().await
    }

    /// Events behind `after` (a position, `newest`, or none: from the oldest one kept), and each further one as it comes. A connection
    /// that breaks is made again where it broke, so that no event is lost and none comes twice.
    ///
    /// Ends with an error that a new connection cannot mend, or after `attempts` failed connections in a row.
    pub fn follow_events(&self, after: Option<String>, attempts: u32) -> EventStream {
        self.follow(EVENTS, after, attempts)
    }

    /// Events of controllers, as [`Client::follow_events`].
    pub fn follow_controller_events(&self, after: Option<String>, attempts: u32) -> EventStream {
        self.follow(CONTROLLER_EVENTS, after, attempts)
    }

    fn follow(&self, path: &'static str, after: Option<String>, attempts: u32) -> EventStream {
        let follower = Follower {
            client: self.clone(),
            path,
            after,
            connection: None,
            message: Message::default(),
            wait: FIRST_WAIT,
            failures: 0,
            ended: false,
        };
        futures::stream::unfold(follower, move |mut follower| async move {
            let next = follower.next(attempts).await?;
            follower.ended = next.is_err();
            Some((next, follower))
        })
        .boxed()
    }
}

impl Follower {
    async fn next(&mut self, attempts: u32) -> Option<Result<Event>> {
        if self.ended {
            return None;
        }
        loop {
            match self.read().await {
                Ok(event) => return Some(Ok(event)),
                Err(error) => {
                    self.connection = None;
                    self.failures += 1;
                    if !error.is_retryable() || self.failures >= attempts.max(1) {
                        return Some(Err(error));
                    }
                    self.client.config.clock.sleep(self.wait).await;
                    self.wait = (self.wait * 2).min(LONGEST_WAIT);
                }
            }
        }
    }

    async fn read(&mut self) -> Result<Event> {
        use flames_clock::ClockExt;
        loop {
            let mut connection = match self.connection.take() {
                Some(connection) => connection,
                None => self.connect().await?,
            };
            let line = self.client.config.clock.timeout(SILENCE, connection.next()).await;
            let line = line.map_err(|_| Error::unavailable(OPERATION, "the server is silent"))?;
            let line = line.ok_or_else(|| Error::unavailable(OPERATION, "the connection ended"))??;
            self.connection = Some(connection);
            if let Some(event) = self.take_line(&line)? {
                self.after = Some(event.position.clone());
                (self.failures, self.wait) = (0, FIRST_WAIT);
                return Ok(event);
            }
        }
    }

    async fn connect(&mut self) -> Result<BoxStream<'static, Result<String>>> {
        self.message = Message::default();
        let query = EventQuery { after: self.after.clone(), follow: true, limit: None };
        let mut call = self.client.call(OPERATION, Method::GET, self.path.to_owned());
        if let Some(position) = self.after.as_deref().filter(|after| *after != "newest")
            && let Ok(value) = HeaderValue::from_str(position)
        {
            call = call.header(HeaderName::from_static("last-event-id"), value);
        }
        let response = call.query(&query)?.accept("text/event-stream").send().await?;
        Ok(lines_of(OPERATION, response.into_body()).boxed())
    }

    /// One line of `text/event-stream` (WHATWG HTML, "Server-sent events"); an event when the line ends one.
    fn take_line(&mut self, line: &str) -> Result<Option<Event>> {
        if line.is_empty() {
            let message = std::mem::take(&mut self.message);
            if message.data.is_empty() {
                // An id without data only moves the place to resume at.
                if let Some(id) = message.id {
                    self.after = Some(id);
                }
                return Ok(None);
            }
            let event = serde_json::from_str(&message.data).map_err(|error| {
                Error::new(ErrorKind::Corrupt, OPERATION, "an event cannot be read").with_source(error)
            })?;
            return Ok(Some(event));
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => self.message.id = Some(value.to_owned()),
            "data" => self.message.data.push_str(value),
            _ => {}
        }
        Ok(None)
    }
}
