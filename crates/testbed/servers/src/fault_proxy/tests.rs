//! Each fault as both sides see it.

use std::io::ErrorKind;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::*;

/// Long enough for anything on this machine that is going to happen.
const SOON: Duration = Duration::from_secs(20);

/// Long enough to see that nothing comes.
const A_WHILE: Duration = Duration::from_millis(150);

/// A client, the server's end of its connection, and the proxy between.
async fn connected(proxy: &FaultProxy, server: &TcpListener) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(proxy.address()).await.unwrap();
    let (server, _) = timeout(SOON, server.accept()).await.unwrap().unwrap();
    (client, server)
}

async fn start(fault: Fault) -> (FaultProxy, TcpListener) {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = FaultProxy::start(server.local_addr().unwrap()).await.unwrap();
    proxy.fail_next(fault);
    (proxy, server)
}

async fn read(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    timeout(SOON, stream.read_exact(&mut bytes)).await.unwrap().unwrap();
    bytes
}

/// All that still comes, and how it ended.
async fn rest(stream: &mut TcpStream) -> (Vec<u8>, Result<(), ErrorKind>) {
    let mut bytes = Vec::new();
    let end = timeout(SOON, stream.read_to_end(&mut bytes)).await.unwrap();
    (bytes, end.map(drop).map_err(|error| error.kind()))
}

async fn is_silent(stream: &mut TcpStream) -> bool {
    timeout(A_WHILE, stream.read(&mut [0; 1])).await.is_err()
}

async fn until(condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(SOON, waiting).await.unwrap();
}

#[tokio::test]
async fn without_a_fault_bytes_and_ends_pass_in_both_directions() {
    let (proxy, server) = start(Fault::None).await;
    let (mut client, mut server) = connected(&proxy, &server).await;
    let large: Vec<u8> = (0..1_000_000_u32).map(|index| index.to_le_bytes()[0]).collect();
    let sent = large.clone();
    let writer = async {
        client.write_all(&sent).await.unwrap();
        client.shutdown().await.unwrap();
        rest(&mut client).await
    };
    let reader = async {
        let got = rest(&mut server).await;
        server.write_all(b"after the end of the other direction").await.unwrap();
        drop(server);
        got
    };
    let (answer, got) = tokio::join!(writer, reader);
    assert!(got == (large, Ok(())));
    assert_eq!(answer, (b"after the end of the other direction".to_vec(), Ok(())));
    until(|| proxy.open_connections() == 0).await;
    assert_eq!((proxy.connections(), proxy.faults()), (1, 0));
}

#[tokio::test]
async fn a_cut_delivers_exactly_its_bytes_and_then_the_end_to_both() {
    let (proxy, server) = start(Fault::CutAfter { bytes: 5, direction: Direction::ToServer }).await;
    let (mut client, mut server) = connected(&proxy, &server).await;
    server.write_all(b"hello").await.unwrap();
    assert_eq!(read(&mut client, 5).await, b"hello");
    client.write_all(b"0123456789").await.unwrap();
    assert_eq!(rest(&mut server).await, (b"01234".to_vec(), Ok(())));
    let (more, _) = rest(&mut client).await;
    assert_eq!(more, b"");
    assert_eq!(proxy.faults(), 1);
}

#[tokio::test]
async fn a_reset_after_no_byte_at_all_is_a_reset_to_both() {
    for direction in [Direction::ToServer, Direction::ToClient] {
        let (proxy, server) = start(Fault::ResetAfter { bytes: 0, direction }).await;
        let (mut client, mut server) = connected(&proxy, &server).await;
        assert_eq!(rest(&mut client).await, (vec![], Err(ErrorKind::ConnectionReset)));
        assert_eq!(rest(&mut server).await, (vec![], Err(ErrorKind::ConnectionReset)));
    }
}

#[tokio::test]
async fn a_stall_of_a_plan_holds_both_directions_and_ends_when_it_is_healed() {
    let (proxy, listener) = start(Fault::StallAfter { bytes: 3, direction: Direction::ToClient }).await;
    let (mut client, mut server) = connected(&proxy, &listener).await;
    server.write_all(b"abcdef").await.unwrap();
    assert_eq!(read(&mut client, 3).await, b"abc");
    client.write_all(b"to the server").await.unwrap();
    assert!(is_silent(&mut client).await && is_silent(&mut server).await);
    proxy.heal();
    assert_eq!(rest(&mut server).await.0, b"");
    let (mut client, mut server) = connected(&proxy, &listener).await;
    server.write_all(b"abcdef").await.unwrap();
    assert_eq!(read(&mut client, 6).await, b"abcdef", "a healed proxy gives later connections no fault");
}

#[tokio::test]
async fn a_commanded_stall_loses_nothing() {
    let (proxy, server) = start(Fault::None).await;
    let (mut client, mut server) = connected(&proxy, &server).await;
    client.write_all(b"before").await.unwrap();
    assert_eq!(read(&mut server, 6).await, b"before");
    proxy.stall(true);
    client.write_all(b"meanwhile").await.unwrap();
    server.write_all(b"answer").await.unwrap();
    assert!(is_silent(&mut server).await && is_silent(&mut client).await);
    proxy.stall(false);
    assert_eq!(read(&mut server, 9).await, b"meanwhile");
    assert_eq!(read(&mut client, 6).await, b"answer");
}

#[tokio::test]
async fn a_half_open_connection_loses_one_direction_and_its_end_alone() {
    let (proxy, server) = start(Fault::SwallowAfter { bytes: 2, direction: Direction::ToServer }).await;
    let (mut client, mut server) = connected(&proxy, &server).await;
    client.write_all(b"abcdef").await.unwrap();
    assert_eq!(read(&mut server, 2).await, b"ab");
    server.write_all(b"still heard").await.unwrap();
    assert_eq!(read(&mut client, 11).await, b"still heard");
    client.shutdown().await.unwrap();
    assert!(is_silent(&mut server).await);
}

#[tokio::test]
async fn commanded_swallowing_is_cut_by_healing_since_bytes_are_missing() {
    let (proxy, server) = start(Fault::None).await;
    let (mut damaged, mut its_server) = connected(&proxy, &server).await;
    let (mut unused, mut other_server) = connected(&proxy, &server).await;
    proxy.swallow(Direction::ToServer);
    damaged.write_all(b"lost").await.unwrap();
    assert!(is_silent(&mut its_server).await);
    until(|| proxy.faults() == 1).await;
    proxy.heal();
    assert_eq!(rest(&mut its_server).await.0, b"");
    unused.write_all(b"whole").await.unwrap();
    assert_eq!(read(&mut other_server, 5).await, b"whole", "one that lost nothing goes on");
}

#[tokio::test]
async fn a_delay_holds_each_chunk_in_each_direction() {
    let (proxy, server) = start(Fault::None).await;
    let (mut client, mut server) = connected(&proxy, &server).await;
    proxy.delay(Duration::from_millis(60));
    let start = std::time::Instant::now();
    client.write_all(b"ping").await.unwrap();
    read(&mut server, 4).await;
    server.write_all(b"pong").await.unwrap();
    read(&mut client, 4).await;
    assert!(start.elapsed() >= Duration::from_millis(120), "{:?}", start.elapsed());
}

#[tokio::test]
async fn cut_and_reset_now_end_open_connections_and_leave_later_ones() {
    let (proxy, server) = start(Fault::None).await;
    let (mut cut, mut cut_server) = connected(&proxy, &server).await;
    proxy.cut_now();
    assert_eq!(rest(&mut cut).await, (vec![], Ok(())));
    assert_eq!(rest(&mut cut_server).await, (vec![], Ok(())));
    let (mut broken, mut broken_server) = connected(&proxy, &server).await;
    proxy.reset_now();
    assert_eq!(rest(&mut broken).await.1, Err(ErrorKind::ConnectionReset));
    assert_eq!(rest(&mut broken_server).await.1, Err(ErrorKind::ConnectionReset));
    let (mut client, mut server) = connected(&proxy, &server).await;
    client.write_all(b"alive").await.unwrap();
    assert_eq!(read(&mut server, 5).await, b"alive");
    assert_eq!((proxy.connections(), proxy.faults()), (3, 2));
}

#[tokio::test]
async fn a_proxy_that_refuses_and_a_server_that_is_not_there_both_end_the_connection() {
    let (proxy, server) = start(Fault::None).await;
    proxy.refuse(true);
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    assert!(rest(&mut client).await.1.is_err());
    proxy.refuse(false);
    drop(server);
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    assert!(rest(&mut client).await.1.is_err());
}

#[tokio::test]
async fn a_seed_strikes_the_connections_that_its_plan_says() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let plan = FaultPlan { healthy_percent: 30, max_bytes: 64, ..FaultPlan::new(11) };
    let proxy = FaultProxy::seeded(server.local_addr().unwrap(), plan.clone()).await.unwrap();
    let mut struck = 0;
    for number in 0..20 {
        let (mut client, mut server) = connected(&proxy, &server).await;
        let expected = match plan.fault_of(number) {
            Fault::CutAfter { bytes, direction: Direction::ToServer }
            | Fault::ResetAfter { bytes, direction: Direction::ToServer } => Some(bytes),
            // The server says nothing, so only "after no byte" strikes in the other direction.
            Fault::CutAfter { bytes: 0, .. } | Fault::ResetAfter { bytes: 0, .. } => Some(0),
            _ => None,
        };
        // A reset may reach the client while it still writes.
        let _ = client.write_all(&[7; 100]).await;
        let _ = client.shutdown().await;
        let (got, _) = rest(&mut server).await;
        let expected = expected.map_or(100, |bytes| usize::try_from(bytes).unwrap());
        struck += u64::from(expected != 100);
        assert_eq!(got.len(), expected, "connection {number}: {:?}", plan.fault_of(number));
    }
    assert!(struck > 3, "{struck}");
    assert_eq!(proxy.faults(), struck);
}

#[tokio::test]
async fn a_dropped_proxy_leaves_neither_connections_nor_its_port() {
    let (proxy, server) = start(Fault::None).await;
    let (mut client, mut server) = connected(&proxy, &server).await;
    let address = proxy.address();
    drop(proxy);
    assert_eq!(rest(&mut server).await.0, b"");
    assert_eq!(rest(&mut client).await.0, b"");
    let is_gone = timeout(SOON, async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    is_gone.await.unwrap();
}
