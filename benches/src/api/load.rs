//! Clients: a keep-alive connection each, all on one thread of their own, so that what they cost can be told from what the server costs.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use flames_model::VmId;
use flames_wire::{CreateVm, Vm};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use super::{IMAGE, TOKEN};
use crate::measure::thread_cpu;

/// When a client sends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pace {
    /// As soon as the last answer is there, for so long.
    Closed(Duration),
    /// As soon as the last answer is there, until so many were sent by all clients.
    Count(usize),
    /// So many requests in a second by all clients together, for so long. A request that had to wait for its connection counts from
    /// when it was due.
    Open(f64, Duration),
}

/// A request that was answered with 202.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Post {
    pub(crate) at: Instant,
    pub(crate) took: Duration,
    pub(crate) vm: VmId,
}

/// What came of a load.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) posts: Vec<Post>,
    /// From the first request to the last answer.
    pub(crate) elapsed: Duration,
    /// What the clients used of processors.
    pub(crate) cpu: Duration,
}

/// Of which server the load generator asks, with how many clients.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) server: SocketAddr,
    pub(crate) clients: usize,
    pub(crate) pace: Pace,
}

/// What every request asks for: about what `flames run` sends.
pub(crate) fn create() -> CreateVm {
    let mut create = CreateVm::new(IMAGE);
    create.labels = [("team".to_owned(), "bench".to_owned())].into();
    // A workload that simulated guests know: one that ends at once would be a life and a death for each VM, and not a start.
    create.spec.command = Some(vec!["sleep".to_owned(), "infinity".to_owned()]);
    create.spec.env = [("LANG".to_owned(), "C.UTF-8".to_owned())].into();
    create
}

/// A number that no earlier request of this process had.
static REQUESTS: AtomicU64 = AtomicU64::new(0);

impl Load {
    /// Puts the load on the server and returns when it is over. Errors: when an answer was another than 202.
    pub(crate) fn run(self) -> anyhow::Result<Sent> {
        let thread = std::thread::Builder::new().name("clients".to_owned());
        let running = thread.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let sent = runtime.block_on(self.send());
            // Connections end before their server is asked to.
            drop(runtime);
            sent.map(|sent| Sent { cpu: thread_cpu(), ..sent })
        })?;
        running.join().map_err(|_| anyhow::anyhow!("the load generator broke down"))?
    }

    async fn send(self) -> anyhow::Result<Sent> {
        let body = Bytes::from(serde_json::to_vec(&create())?);
        let ready = Arc::new(Barrier::new(self.clients + 1));
        let left = Arc::new(AtomicUsize::new(match self.pace {
            Pace::Count(count) => count,
            Pace::Closed(_) | Pace::Open(..) => usize::MAX,
        }));
        let mut clients = JoinSet::new();
        for number in 0..self.clients {
            let connection = connect(self.server).await?;
            let client =
                Client { number, load: self, connection, body: body.clone(), left: Arc::clone(&left) };
            let ready = Arc::clone(&ready);
            clients.spawn(async move {
                ready.wait().await;
                client.run().await
            });
        }
        ready.wait().await;
        let began = Instant::now();
        let mut posts = Vec::new();
        while let Some(ended) = clients.join_next().await {
            posts.extend(ended??);
        }
        let last = posts.iter().map(|post: &Post| post.at + post.took).max().unwrap_or(began);
        Ok(Sent { posts, elapsed: last.saturating_duration_since(began), cpu: Duration::ZERO })
    }
}

async fn connect(server: SocketAddr) -> anyhow::Result<SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(server).await.context("the server takes no connection")?;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    // It ends with the runtime of the load, at the latest.
    tokio::spawn(connection);
    Ok(sender)
}

struct Client {
    number: usize,
    load: Load,
    connection: SendRequest<Full<Bytes>>,
    body: Bytes,
    left: Arc<AtomicUsize>,
}

impl Client {
    async fn run(mut self) -> anyhow::Result<Vec<Post>> {
        let mut posts = Vec::new();
        let began = Instant::now();
        match self.load.pace {
            Pace::Closed(window) => {
                while began.elapsed() < window {
                    posts.push(self.post(Instant::now()).await?);
                }
            }
            Pace::Count(_) => {
                let take = |left: usize| left.checked_sub(1);
                while self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
                    posts.push(self.post(Instant::now()).await?);
                }
            }
            Pace::Open(rate, window) => {
                let step = Duration::from_secs_f64(crate::measure::count(self.load.clients) / rate);
                // The clients' turns are spread over one step.
                let share = crate::measure::count(self.number) / crate::measure::count(self.load.clients);
                let mut due = began + step.mul_f64(share);
                while due < began + window {
                    let at = if due > Instant::now() {
                        tokio::time::sleep_until(due.into()).await;
                        // The timer's own lateness is not the server's.
                        Instant::now()
                    } else {
                        due
                    };
                    posts.push(self.post(at).await?);
                    due += step;
                }
            }
        }
        Ok(posts)
    }

    async fn post(&mut self, at: Instant) -> anyhow::Result<Post> {
        let number = REQUESTS.fetch_add(1, Ordering::Relaxed);
        let request = Request::post("/v1/vms")
            .header("host", "localhost")
            .header("authorization", format!("Bearer {TOKEN}"))
            .header("content-type", "application/json")
            .header("idempotency-key", format!("bench-{number}"))
            .body(Full::new(self.body.clone()))?;
        self.connection.ready().await?;
        let answer = self.connection.send_request(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        let took = at.elapsed();
        if status != StatusCode::ACCEPTED {
            bail!("the server answered {status}: {}", String::from_utf8_lossy(&body));
        }
        Ok(Post { at, took, vm: id_of(&body)? })
    }
}

/// The id is the first field of a VM. Decoding it all would cost the clients as much as the server.
fn id_of(body: &[u8]) -> anyhow::Result<VmId> {
    let text = std::str::from_utf8(body)?.strip_prefix(r#"{"id":""#);
    let id = text.and_then(|text| text.split('"').next()).context("the answer is no VM")?;
    Ok(id.parse()?)
}

/// One VM as the server shows it.
pub(crate) async fn one_vm(server: SocketAddr) -> anyhow::Result<Vm> {
    let mut connection = connect(server).await?;
    let request = Request::post("/v1/vms")
        .header("host", "localhost")
        .header("authorization", format!("Bearer {TOKEN}"))
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(serde_json::to_vec(&create())?)))?;
    let answer = connection.send_request(request).await?;
    let status = answer.status();
    let body = answer.into_body().collect().await?.to_bytes();
    ensure!(
        status == StatusCode::ACCEPTED,
        "the server answered {status}: {}",
        String::from_utf8_lossy(&body)
    );
    Ok(serde_json::from_slice(&body)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_is_read_without_decoding_the_rest() {
        let id = "vm_01890a5dac96774bbcceb302099a8057";
        assert_eq!(id_of(format!(r#"{{"id":"{id}","name":"a"}}"#).as_bytes()).unwrap().to_string(), id);
        assert!(id_of(b"{}").is_err());
    }
}
