//! Looking at an etcd without changing it, by its HTTP gateway.

use std::sync::Arc;

use flames_clock::{Clock, ClockExt};
use flames_state_etcd::EtcdConfig;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The most that is read of an answer.
const LONGEST: u64 = 256 * 1024;

/// What was found.
pub(super) struct Looked {
    pub(super) version: String,
    /// Whether there is anything below the prefix.
    pub(super) has_store: bool,
}

/// Nothing when no member answered as it should: the adapter finds the words for why.
pub(super) async fn look(config: &EtcdConfig, clock: &Arc<dyn Clock>) -> Option<Looked> {
    for endpoint in &config.endpoints {
        if let Ok(Some(looked)) = clock.timeout(config.operation_deadline, look_at(config, endpoint)).await {
            return Some(looked);
        }
    }
    None
}

async fn look_at(config: &EtcdConfig, endpoint: &str) -> Option<Looked> {
    let address = endpoint.strip_prefix("http://")?.trim_end_matches('/');
    let version = ask(address, "GET", "/version", None, None).await?;
    let token = match (&config.username, &config.password) {
        (Some(name), Some(password)) => {
            let answer = ask(
                address,
                "POST",
                "/v3/auth/authenticate",
                Some(json!({ "name": name, "password": password })),
                None,
            )
            .await?;
            Some(answer.get("token")?.as_str()?.to_owned())
        }
        _ => None,
    };
    let mut end = config.prefix.clone().into_bytes();
    // The first key behind all that begin with the prefix, which is printable.
    *end.last_mut()? += 1;
    let range = json!({ "key": base64(config.prefix.as_bytes()), "range_end": base64(&end), "limit": "1", "keys_only": true });
    let found = ask(address, "POST", "/v3/kv/range", Some(range), token.as_deref()).await?;
    // The gateway leaves out a count of 0.
    let has_store = found.get("count").and_then(Value::as_str).is_some_and(|count| count != "0");
    Some(Looked { version: format!("etcd {}", version.get("etcdserver")?.as_str()?), has_store })
}

/// One request over a connection of its own; nothing unless the answer is a 200 with JSON.
async fn ask(
    address: &str,
    method: &str,
    path: &str,
    body: Option<Value>,
    token: Option<&str>,
) -> Option<Value> {
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    let authorization = token.map(|token| format!("Authorization: {token}\r\n")).unwrap_or_default();
    let request = format!(
        "{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{authorization}\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(address).await.ok()?;
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    stream.take(LONGEST).read_to_end(&mut answer).await.ok()?;
    let answer = String::from_utf8(answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.lines().next()?.split(' ').nth(1).filter(|status| *status == "200")?;
    serde_json::from_str(body.trim()).ok()
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk
            .iter()
            .enumerate()
            .fold(0_u32, |bits, (place, byte)| bits | u32::from(*byte) << (16 - 8 * place));
        for place in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * place) & 63) as usize];
            text.push(if place <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_as_the_gateway_wants_them() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }
}
