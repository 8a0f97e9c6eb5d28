//! As much HTTP as it takes to ask a server on this machine whether it is ready.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(5);

/// No answer to such a question is longer.
const MAX_ANSWER: u64 = 64 * 1024;

/// Connects to a port of 127.0.0.1, with limits of time on all that follows.
pub(crate) fn connect(port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    Ok(stream)
}

/// Sends one request and returns the body of an answer with a status of 200 to 299.
///
/// # Errors
/// What went wrong, or the status with the body.
pub(crate) fn request(port: u16, method: &str, path: &str, body: &str) -> Result<String, String> {
    let answer = exchange(port, method, path, body).map_err(|error| format!("{method} {path}: {error}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    if status.len() == 3 && status.starts_with('2') {
        Ok(body.to_owned())
    } else {
        Err(format!("{method} {path}: {} {}", head.lines().next().unwrap_or_default(), body.trim()))
    }
}

fn exchange(port: u16, method: &str, path: &str, body: &str) -> io::Result<String> {
    let mut stream = connect(port)?;
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
