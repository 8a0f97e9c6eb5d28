//! A resolver of the world, and a guest's way to ask one.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::lab::{Ns, Servers, inside};

pub(crate) const A: u16 = 1;
pub(crate) const AAAA: u16 = 28;
pub(crate) const TXT: u16 = 16;
pub(crate) const CNAME: u16 = 5;

/// Owner, type, TTL, data.
type Record = (String, u16, u32, Vec<u8>);

#[derive(Debug, Default)]
struct Zone {
    answers: HashMap<(String, u16), Vec<Record>>,
    /// Names that are answered in full over TCP only.
    truncated: Vec<String>,
    asked: Vec<String>,
}

#[derive(Debug, Clone)]
pub(crate) struct Resolver(Arc<Mutex<Zone>>);

impl Resolver {
    pub(crate) fn start(namespace: &Ns, address: &str, servers: &mut Servers) -> Self {
        let at = SocketAddr::new(address.parse().unwrap(), 53);
        let (udp, tcp) =
            inside(namespace.path(), move || (UdpSocket::bind(at).unwrap(), TcpListener::bind(at).unwrap()));
        let resolver = Self(Arc::default());
        let (zone, end) = (resolver.clone(), servers.ended());
        servers.add(std::thread::spawn(move || zone.serve_udp(&udp, &end)));
        let (zone, end) = (resolver.clone(), servers.ended());
        servers.add(std::thread::spawn(move || zone.serve_tcp(&tcp, &end)));
        resolver
    }

    fn serve_udp(&self, socket: &UdpSocket, end: &AtomicBool) {
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let mut buffer = [0; 1500];
        while !end.load(Ordering::Relaxed) {
            if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&self.answer(&buffer[..length], false), from);
            }
        }
    }

    fn serve_tcp(&self, listener: &TcpListener, end: &AtomicBool) {
        listener.set_nonblocking(true).unwrap();
        while !end.load(Ordering::Relaxed) {
            let Ok((mut stream, _)) = listener.accept() else {
                std::thread::sleep(Duration::from_millis(3));
                continue;
            };
            stream.set_nonblocking(false).unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
            if let Some(query) = read_framed(&mut stream) {
                let _ = stream.write_all(&framed(&self.answer(&query, true)));
            }
        }
    }

    fn answer(&self, query: &[u8], tcp: bool) -> Vec<u8> {
        let (name, kind, end) = question(query);
        let mut zone = self.0.lock().unwrap();
        zone.asked.push(name.clone());
        let records = zone.answers.get(&(name.clone(), kind)).cloned();
        let truncated = !tcp && zone.truncated.contains(&name);
        let known = records.is_some() || zone.answers.keys().any(|(other, _)| *other == name);
        let records = records.filter(|_| !truncated).unwrap_or_default();
        let mut bytes = query[..2].to_vec();
        bytes.extend([0x81 | if truncated { 2 } else { 0 }, if known { 0x80 } else { 0x83 }, 0, 1]);
        bytes.extend(u16::try_from(records.len()).unwrap().to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(&query[12..end]);
        for (owner, kind, ttl, data) in records {
            push_name(&mut bytes, &owner);
            bytes.extend(kind.to_be_bytes());
            bytes.extend([0, 1]);
            bytes.extend(ttl.to_be_bytes());
            bytes.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
            bytes.extend(data);
        }
        bytes
    }

    /// Lets `name` resolve to these addresses.
    pub(crate) fn set(&self, name: &str, ttl: u32, addresses: &[&str]) {
        let mut zone = self.0.lock().unwrap();
        for kind in [A, AAAA] {
            zone.answers.insert((name.to_owned(), kind), Vec::new());
        }
        for address in addresses {
            let (kind, data) = match address.parse().unwrap() {
                IpAddr::V4(address) => (A, address.octets().to_vec()),
                IpAddr::V6(address) => (AAAA, address.octets().to_vec()),
            };
            let record = (name.to_owned(), kind, ttl, data);
            zone.answers.get_mut(&(name.to_owned(), kind)).unwrap().push(record);
        }
    }

    /// Lets `name` be answered by these records.
    pub(crate) fn set_records(&self, name: &str, kind: u16, records: Vec<Record>) {
        self.0.lock().unwrap().answers.insert((name.to_owned(), kind), records);
    }

    pub(crate) fn only_over_tcp(&self, name: &str) {
        self.0.lock().unwrap().truncated.push(name.to_owned());
    }

    pub(crate) fn was_asked_for(&self, name: &str) -> bool {
        self.0.lock().unwrap().asked.iter().any(|asked| asked == name)
    }
}

/// The name, the type, and where the question ends.
fn question(message: &[u8]) -> (String, u16, usize) {
    let mut labels = Vec::new();
    let mut at = 12;
    while message[at] != 0 {
        let end = at + 1 + usize::from(message[at]);
        labels.push(String::from_utf8_lossy(&message[at + 1..end]).into_owned());
        at = end;
    }
    (labels.join("."), u16::from_be_bytes([message[at + 1], message[at + 2]]), at + 5)
}

pub(crate) fn push_name(bytes: &mut Vec<u8>, name: &str) {
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
}

fn framed(message: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(message.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend(message);
    bytes
}

fn read_framed(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).ok()?;
    Some(message)
}

/// What a guest was answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) code: u8,
    pub(crate) addresses: Vec<String>,
    pub(crate) records: u16,
}

impl Answer {
    pub(crate) fn addresses(addresses: &[&str]) -> Vec<String> {
        addresses.iter().map(|address| (*address).to_owned()).collect()
    }
}

pub(crate) const NO_ERROR: u8 = 0;
pub(crate) const NO_SUCH_NAME: u8 = 3;
pub(crate) const REFUSED: u8 = 5;

/// Asks a resolver from inside of a namespace; none when it does not answer.
pub(crate) fn ask(namespace: &Path, resolver: &str, name: &str, kind: u16, tcp: bool) -> Option<Answer> {
    let mut query = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    push_name(&mut query, name);
    query.extend(kind.to_be_bytes());
    query.extend([0, 1]);
    let to = SocketAddr::new(resolver.parse().unwrap(), 53);
    let wait = Duration::from_secs(3);
    let message = inside(namespace, move || {
        if tcp {
            let mut stream = TcpStream::connect_timeout(&to, Duration::from_millis(700)).ok()?;
            stream.set_read_timeout(Some(wait)).unwrap();
            stream.write_all(&framed(&query)).ok()?;
            read_framed(&mut stream)
        } else {
            let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
            socket.set_read_timeout(Some(wait)).unwrap();
            socket.connect(to).ok()?;
            socket.send(&query).ok()?;
            let mut buffer = vec![0; 1500];
            let length = socket.recv(&mut buffer).ok()?;
            buffer.truncate(length);
            Some(buffer)
        }
    })?;
    assert_eq!(message[..2], [0xab, 0xcd]);
    let records = u16::from_be_bytes([message[6], message[7]]);
    let (_, _, mut at) = question(&message);
    let mut addresses = Vec::new();
    for _ in 0..records {
        while message[at] != 0 && message[at] & 0xc0 == 0 {
            at += 1 + usize::from(message[at]);
        }
        at += if message[at] == 0 { 1 } else { 2 };
        let length = usize::from(u16::from_be_bytes([message[at + 8], message[at + 9]]));
        let data = &message[at + 10..at + 10 + length];
        match u16::from_be_bytes([message[at], message[at + 1]]) {
            A => addresses.push(IpAddr::from(<[u8; 4]>::try_from(data).unwrap()).to_string()),
            AAAA => addresses.push(IpAddr::from(<[u8; 16]>::try_from(data).unwrap()).to_string()),
            _ => {}
        }
        at += 10 + length;
    }
    Some(Answer { code: message[3] & 0x0f, addresses, records })
}
