//! A broken network: cut, stalled, half-open. No call may claim what is not so.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use flames_blob::{BlobStore, PutOptions};
use flames_clock::{RandomExt, SeededRandom};
use flames_conformance_runner::seeds;
use flames_error::{ErrorKind, Result};
use futures::StreamExt;
use futures::future::join_all;

use crate::Fixture;
use crate::support::*;

/// Beyond a call's own deadline: what a busy machine may add.
const SLACK: Duration = Duration::from_secs(3);
/// How long one case goes on with new faults.
const ENOUGH: Duration = Duration::from_secs(25);

/// The call's answer, which must come: a call has a few steps, and each may wait for the deadline.
async fn in_time<T>(fixture: &dyn Fixture, call: impl Future<Output = T>) -> T {
    let limit = fixture.operation_deadline() * 3 + SLACK;
    tokio::time::timeout(limit, call).await.unwrap_or_else(|_| panic!("no answer came within {limit:?}"))
}

/// What the call answers once the network works again. It must by itself, within two deadlines.
async fn once_reachable<T, F: Future<Output = Result<T>>>(
    fixture: &dyn Fixture,
    call: impl Fn() -> F,
) -> Result<T> {
    let started = tokio::time::Instant::now();
    loop {
        match in_time(fixture, call()).await {
            Err(error)
                if error.kind() == ErrorKind::Unavailable
                    && started.elapsed() < fixture.operation_deadline() * 2 + SLACK =>
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            answer => return answer,
        }
    }
}

/// The whole blob, through a network that works; none when it is not there.
async fn found(fixture: &dyn Fixture, name: &str) -> Option<Bytes> {
    let (store, key) = (fixture.store(), key(name));
    let read = async || {
        let mut read = store.get(&key, None).await?;
        let mut bytes = Vec::new();
        while let Some(chunk) = read.stream.next().await {
            bytes.extend_from_slice(&chunk?);
        }
        assert_eq!(read.info.digest, digest_of(&bytes), "{name}: not the bytes that it tells");
        Ok(Bytes::from(bytes))
    };
    match once_reachable(fixture, read).await {
        Ok(bytes) => Some(bytes),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => panic!("{name} cannot be read though the network works again: {error:?}"),
    }
}

/// A change that met a fault, and what may be there because of what it answered.
struct Told {
    name: String,
    may_be: Vec<Option<Bytes>>,
    when: String,
}

impl Told {
    fn new(name: String, old: Option<&Bytes>, new: Option<&Bytes>, answer: Result<()>, when: String) -> Self {
        let (old, new) = (old.cloned(), new.cloned());
        let may_be = match answer.as_ref().map_err(flames_error::Error::kind) {
            Ok(()) => vec![new],
            Err(ErrorKind::Unavailable) => vec![old],
            Err(ErrorKind::OutcomeUnknown) => vec![old, new],
            Err(_) => panic!("{when}: {name}: the network is to blame, not this: {answer:?}"),
        };
        Self { name, may_be, when }
    }

    async fn settle(&self, fixture: &dyn Fixture) {
        let found = found(fixture, &self.name).await;
        let length = |blob: &Option<Bytes>| blob.as_ref().map(Bytes::len);
        assert!(
            self.may_be.contains(&found),
            "{}: {} has {:?} bytes, but its call told of {:?}",
            self.when,
            self.name,
            length(&found),
            self.may_be.iter().map(length).collect::<Vec<_>>(),
        );
    }
}

/// Checks again at the end: what was told may not change later.
async fn settle_all(fixture: &dyn Fixture, all: &[Told]) {
    settle().await;
    for told in all {
        told.settle(fixture).await;
    }
}

fn must_be_hit(all: &[Told], answers: &[bool]) {
    assert!(
        !all.is_empty() && answers.contains(&false),
        "no call was hit: is the fixture's proxy in between?"
    );
}

async fn try_put(fixture: &dyn Fixture, name: &str, bytes: &Bytes) -> Result<()> {
    let (store, key) = (fixture.store(), key(name));
    let stream = stream_of(bytes, 64 * 1024);
    in_time(fixture, store.put(&key, stream, PutOptions::default())).await.map(|_| ())
}

/// Brings a connection up, so that the next fault hits one that is in use.
async fn warm(fixture: &dyn Fixture) {
    let store = fixture.store();
    let _ =
        once_reachable(fixture, async || store.exists(&key("warm")).await).await.expect("the network works");
}

pub(crate) async fn a_put_cut_at_any_byte_is_told_truthfully(fixture: &dyn Fixture) {
    let started = Instant::now();
    let (mut all, mut answers) = (Vec::new(), Vec::new());
    let old = bytes_of(1, 900);
    // Closely where requests begin, then further apart, and beyond the blob's end.
    let beginnings = (0..2_000).step_by(100).chain((2_000..20_000).step_by(1_500));
    for (number, bytes) in beginnings.chain((20_000..23_000).step_by(150)).enumerate() {
        if started.elapsed() > ENOUGH {
            break;
        }
        let name = format!("blob-{number}");
        let replaces = number % 2 == 1;
        if replaces {
            put(&*fixture.store(), &name, &old).await;
        }
        warm(fixture).await;
        fixture.faults().cut_after(bytes).await;
        let new = bytes_of(number as u64 + 2, 20_000);
        let answer = try_put(fixture, &name, &new).await;
        fixture.faults().heal().await;
        answers.push(answer.is_ok());
        let when = format!("cut after {bytes} bytes");
        let told = Told::new(name, replaces.then_some(&old), Some(&new), answer, when);
        told.settle(fixture).await;
        all.push(told);
    }
    must_be_hit(&all, &answers);
    settle_all(fixture, &all).await;
}

pub(crate) async fn no_put_reports_success_for_what_is_not_there(fixture: &dyn Fixture) {
    for seed in seeds("no_put_reports_success_for_what_is_not_there", [51]) {
        let random = SeededRandom::new(seed);
        let started = Instant::now();
        let mut all = Vec::new();
        for round in 0..24 {
            if started.elapsed() > ENOUGH {
                break;
            }
            warm(fixture).await;
            // Now and then one that is long enough to go in parts.
            let sizes = [0, 300, 40_000, 400_000].map(|size: usize| (size, size));
            let long = (round % 8 == 7).then_some((9 * 1024 * 1024, 9));
            let puts: Vec<_> = sizes
                .into_iter()
                .chain(long)
                .map(|(size, tag)| (format!("{round}.{tag}"), bytes_of(random.next_u64(), size)))
                .collect();
            let reach = if long.is_some() { 12_000_000 } else { 450_000 };
            let sort = random.below(4);
            if sort > 0 {
                // Small numbers as likely as large ones.
                let bits = random.below(64 - u64::leading_zeros(reach) as u64 + 1);
                fixture.faults().cut_after(random.below((1 << bits).min(reach) + 1)).await;
            }
            let breaking = async {
                if sort == 0 {
                    tokio::time::sleep(Duration::from_micros(random.below(20_000))).await;
                    fixture.faults().cut_connections().await;
                }
            };
            let putting = join_all(puts.iter().map(|(name, bytes)| try_put(fixture, name, bytes)));
            let (answers, ()) = futures::join!(putting, breaking);
            fixture.faults().heal().await;
            for ((name, bytes), answer) in puts.iter().zip(answers) {
                let when = format!("seed {seed}, round {round}");
                let told = Told::new(name.clone(), None, Some(bytes), answer, when);
                told.settle(fixture).await;
                all.push(told);
            }
        }
        settle_all(fixture, &all).await;
    }
}

pub(crate) async fn a_put_whose_answer_never_comes_is_told_truthfully(fixture: &dyn Fixture) {
    for seed in seeds("a_put_whose_answer_never_comes_is_told_truthfully", [61]) {
        let random = SeededRandom::new(seed);
        let started = Instant::now();
        let (mut all, mut answers) = (Vec::new(), Vec::new());
        for round in 0..8_u64 {
            if started.elapsed() > ENOUGH {
                break;
            }
            warm(fixture).await;
            let (name, new) = (format!("blob-{round}"), bytes_of(round, 5_000));
            // At once, or when the put is some steps further.
            let wait = Duration::from_micros(if round == 0 { 0 } else { random.below(12_000) });
            let breaking = async {
                tokio::time::sleep(wait).await;
                fixture.faults().stall_answers().await;
            };
            let answer = if wait.is_zero() {
                breaking.await;
                try_put(fixture, &name, &new).await
            } else {
                futures::join!(try_put(fixture, &name, &new), breaking).0
            };
            fixture.faults().heal().await;
            answers.push(answer.is_ok());
            let when = format!("seed {seed}, round {round}");
            let told = Told::new(name, None, Some(&new), answer, when);
            told.settle(fixture).await;
            all.push(told);
        }
        must_be_hit(&all, &answers);
        settle_all(fixture, &all).await;
    }
}

pub(crate) async fn a_delete_cut_at_any_byte_is_told_truthfully(fixture: &dyn Fixture) {
    let (mut all, mut answers) = (Vec::new(), Vec::new());
    let old = bytes_of(1, 900);
    for bytes in (0..1_500).step_by(75) {
        let name = format!("blob-{bytes}");
        put(&*fixture.store(), &name, &old).await;
        warm(fixture).await;
        fixture.faults().cut_after(bytes).await;
        let store = fixture.store();
        let answer = in_time(fixture, store.delete(&key(&name))).await;
        fixture.faults().heal().await;
        answers.push(answer.is_ok());
        let told = Told::new(name, Some(&old), None, answer, format!("cut after {bytes} bytes"));
        told.settle(fixture).await;
        all.push(told);
    }
    must_be_hit(&all, &answers);
    settle_all(fixture, &all).await;
}

/// Reads a part to its end, or to its error.
async fn try_read(fixture: &dyn Fixture, name: &str, range: std::ops::Range<u64>) -> Result<Bytes> {
    let (store, key) = (fixture.store(), key(name));
    let mut read = in_time(fixture, store.get(&key, Some(range))).await?;
    let mut bytes = Vec::new();
    while let Some(chunk) = in_time(fixture, read.stream.next()).await {
        bytes.extend_from_slice(&chunk?);
    }
    Ok(bytes.into())
}

/// Only the network may be to blame.
fn is_honest(error: &flames_error::Error, when: &str) {
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{when}: {error:?}");
}

pub(crate) async fn a_read_cut_at_any_byte_is_right_or_told(fixture: &dyn Fixture) {
    for seed in seeds("a_read_cut_at_any_byte_is_right_or_told", [71]) {
        let random = SeededRandom::new(seed);
        let started = Instant::now();
        let bytes = bytes_of(1, 2_500_000);
        put(&*fixture.store(), "long", &bytes).await;
        let (mut right, mut told) = (0, 0);
        for round in 0..40 {
            if started.elapsed() > ENOUGH {
                break;
            }
            warm(fixture).await;
            let reach = 1 << random.below(23);
            let after = random.below(reach);
            // The whole, whose digest could be checked, and a part, where only care helps.
            let range = if round % 2 == 0 { 0..2_500_000 } else { 7..2_400_000 };
            fixture.faults().cut_after(after).await;
            let read = try_read(fixture, "long", range.clone()).await;
            fixture.faults().heal().await;
            let when = format!("seed {seed}, round {round}, cut after {after} bytes");
            match read {
                Ok(read) => {
                    let wanted = bytes.slice(range.start as usize..range.end as usize);
                    assert!(read == wanted, "{when}: {} bytes instead of {}", read.len(), wanted.len());
                    right += 1;
                }
                Err(error) => {
                    is_honest(&error, &when);
                    told += 1;
                }
            }
        }
        assert!(right > 0 && told > 0, "seed {seed}: {right} reads were right and {told} were told of");
        assert_same_bytes(&found(fixture, "long").await.unwrap_or_default(), &bytes);
    }
}

pub(crate) async fn a_read_that_goes_on_after_a_replacement_is_never_stitched(fixture: &dyn Fixture) {
    const LENGTH: usize = 3_000_000;
    let (old, new) = (bytes_of(1, LENGTH), bytes_of(2, LENGTH));
    for (round, after) in [40_000, 900_000, 1_500_000].into_iter().enumerate() {
        let name = format!("blob-{round}");
        let store = fixture.store();
        put(&*store, &name, &old).await;
        warm(fixture).await;
        // A part, so that no digest tells; long enough not to lie in some buffer.
        let name_key = key(&name);
        fixture.faults().cut_after(after).await;
        let begun = in_time(fixture, store.get(&name_key, Some(3..LENGTH as u64))).await;
        let Ok(mut read) = begun else {
            is_honest(&begun.expect_err("it failed"), "the beginning");
            fixture.faults().heal().await;
            continue;
        };
        let mut bytes = Vec::new();
        let mut outcome = in_time(fixture, read.stream.next()).await;
        fixture.faults().heal().await;
        put(&*store, &name, &new).await;
        let ended = loop {
            match outcome {
                Some(Ok(chunk)) => bytes.extend_from_slice(&chunk),
                Some(Err(error)) => break Err(error),
                None => break Ok(()),
            }
            outcome = in_time(fixture, read.stream.next()).await;
        };
        assert!(old[3..].starts_with(&bytes), "after {after} bytes: not the blob that the read began with");
        match ended {
            Ok(()) => assert_eq!(bytes.len(), LENGTH - 3, "the read ended early, and did not tell"),
            Err(error) => assert!(
                matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Conflict),
                "the blob was replaced, or the network to blame: {error:?}"
            ),
        }
        assert_same_bytes(&found(fixture, &name).await.unwrap_or_default(), &new);
    }
}

pub(crate) async fn a_listing_cut_at_any_byte_is_right_or_told(fixture: &dyn Fixture) {
    for seed in seeds("a_listing_cut_at_any_byte_is_right_or_told", [81]) {
        let random = SeededRandom::new(seed);
        let store = fixture.store();
        let names: Vec<_> = (0..20).map(|n| format!("blob-{n:02}")).collect();
        join_all(names.iter().map(|name| async { put(&*store, name, &bytes_of(1, 10)).await })).await;
        let started = Instant::now();
        let (mut right, mut told) = (0, 0);
        for round in 0..40 {
            if started.elapsed() > ENOUGH {
                break;
            }
            warm(fixture).await;
            let after = random.below(1 << random.below(16));
            fixture.faults().cut_after(after).await;
            let page = in_time(fixture, store.list("", None, 100)).await;
            fixture.faults().heal().await;
            match page {
                Ok(page) => {
                    let listed: Vec<_> = page.blobs.iter().map(|info| info.key.as_str()).collect();
                    assert_eq!((listed, page.next), (names.iter().map(String::as_str).collect(), None));
                    right += 1;
                }
                Err(error) => {
                    is_honest(&error, &format!("seed {seed}, round {round}, cut after {after} bytes"));
                    told += 1;
                }
            }
        }
        assert!(told > 0, "seed {seed}: no listing was hit; {right} were right");
    }
}

pub(crate) async fn a_stalled_network_ends_every_call_within_its_deadline(fixture: &dyn Fixture) {
    let store: Arc<dyn BlobStore> = fixture.store();
    let bytes = bytes_of(1, 2_000_000);
    put(&*store, "a", &bytes).await;
    put(&*store, "b", &bytes).await;
    let mut begun = within(store.get(&key("a"), None)).await.expect("the blob is there");
    fixture.faults().stall().await;
    let kind = |error: Option<flames_error::Error>| error.map(|error| error.kind());
    let (a, b, new) = (key("a"), key("b"), key("new"));
    let (get, head, list, exists, put, delete) = in_time(fixture, async {
        futures::join!(
            async { kind(store.get(&a, None).await.err()) },
            async { kind(store.head(&a).await.err()) },
            async { kind(store.list("", None, 10).await.err()) },
            async { kind(store.exists(&a).await.err()) },
            async { kind(store.put(&new, stream_of(&bytes, 100_000), PutOptions::default()).await.err()) },
            async { kind(store.delete(&b).await.err()) },
        )
    })
    .await;
    for read in [get, head, list, exists] {
        assert_eq!(read, Some(ErrorKind::Unavailable), "nothing passes");
    }
    for change in [put, delete] {
        assert!(
            matches!(change, Some(ErrorKind::Unavailable | ErrorKind::OutcomeUnknown)),
            "nothing passes: {change:?}"
        );
    }
    let mut read = Vec::new();
    while let Some(chunk) = in_time(fixture, begun.stream.next()).await {
        match chunk {
            Ok(chunk) => read.extend_from_slice(&chunk),
            Err(error) => {
                is_honest(&error, "a read that had begun");
                break;
            }
        }
    }
    assert!(bytes.starts_with(&read));
    fixture.faults().heal().await;
    assert_same_bytes(&found(fixture, "a").await.unwrap_or_default(), &bytes);
    let again = once_reachable(fixture, async || {
        store.put(&key("again"), stream_of(&bytes, 100_000), PutOptions::default()).await
    });
    again.await.expect("the store works again by itself");
    assert_same_bytes(&found(fixture, "again").await.unwrap_or_default(), &bytes);
}
