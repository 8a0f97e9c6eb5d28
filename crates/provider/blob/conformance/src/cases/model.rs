//! Random sequences of calls, compared step by step with a plain map, and cut down to the shortest that shows a difference.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flames_blob::{BlobInfo, BlobKey, BlobStore, DEFAULT_CONTENT_TYPE, MAX_PAGE, PutOptions};
use flames_conformance_runner::{Sequences, agree, seeds};
use flames_error::ErrorKind;
use futures::StreamExt;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::Fixture;
use crate::support::*;

const SEQUENCES: Sequences = Sequences { least: 8, most: 64, time: Duration::from_secs(6) };
const STEPS: usize = 24;

/// Keys that are prefixes of each other and that sort next to each other.
const KEYS: [&str; 7] = ["a", "a-", "a/b", "a/b.c", "a0", "b", "sha256:00"];
const PREFIXES: [&str; 5] = ["", "a", "a/", "b", "c"];

#[derive(Debug, Clone)]
enum Step {
    Put {
        key: usize,
        size: usize,
        has_type: bool,
        pairs: usize,
    },
    /// A put that must be refused: its stream fails, or its size or digest is another one.
    BadPut {
        key: usize,
        size: usize,
        how: usize,
    },
    Get {
        key: usize,
        range: Option<Range<u64>>,
    },
    Head(usize),
    Delete(usize),
    List {
        prefix: usize,
        after: Option<usize>,
        limit: usize,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let any_key = 0..KEYS.len();
    let size = prop_oneof![Just(0_usize), Just(1), 2..200_usize, Just(70_000)];
    let range = (0..250_u64, 0..250_u64).prop_map(|(start, end)| Range { start, end });
    let limit = prop_oneof![1..5_usize, Just(MAX_PAGE)];
    let step = prop_oneof![
        5 => (any_key.clone(), size.clone(), any::<bool>(), 0..3_usize)
            .prop_map(|(key, size, has_type, pairs)| Step::Put { key, size, has_type, pairs }),
        1 => (any_key.clone(), size, 0..3_usize).prop_map(|(key, size, how)| Step::BadPut { key, size, how }),
        2 => (any_key.clone(), proptest::option::of(range)).prop_map(|(key, range)| Step::Get { key, range }),
        2 => any_key.clone().prop_map(Step::Head),
        2 => any_key.clone().prop_map(Step::Delete),
        2 => (0..PREFIXES.len(), proptest::option::of(any_key), limit)
            .prop_map(|(prefix, after, limit)| Step::List { prefix, after, limit }),
    ];
    vec(step, 1..=STEPS)
}

/// What does not agree.
type Difference = String;

struct Run {
    store: Arc<dyn BlobStore>,
    prefix: String,
    /// The reference: what the store must hold.
    blobs: BTreeMap<BlobKey, (BlobInfo, Bytes)>,
    puts: u64,
}

impl Run {
    fn key(&self, number: usize) -> BlobKey {
        key(&format!("{}{}", self.prefix, KEYS[number]))
    }

    async fn step(&mut self, step: &Step) -> Result<(), Difference> {
        let what = format!("{step:?}");
        match step {
            Step::Put { key, size, has_type, pairs } => self.put(*key, *size, *has_type, *pairs).await,
            Step::BadPut { key, size, how } => self.bad_put(*key, *size, *how).await,
            Step::Get { key, range } => self.get(*key, range.clone()).await,
            Step::Head(number) => {
                let key = self.key(*number);
                let found = within(self.store.head(&key)).await.map_err(|error| error.kind());
                let expected = self.blobs.get(&key).map(|(info, _)| info.clone()).ok_or(ErrorKind::NotFound);
                agree(&what, &found, &expected)?;
                let exists = within(self.store.exists(&key)).await.map_err(|error| error.kind());
                agree("exists", &exists, &Ok(expected.is_ok()))
            }
            Step::Delete(number) => {
                let key = self.key(*number);
                let answer = within(self.store.delete(&key)).await.map_err(|error| error.kind());
                agree(&what, &answer, &Ok(()))?;
                self.blobs.remove(&key);
                Ok(())
            }
            Step::List { prefix, after, limit } => self.list(*prefix, *after, *limit).await,
        }
    }

    async fn put(
        &mut self,
        number: usize,
        size: usize,
        has_type: bool,
        pairs: usize,
    ) -> Result<(), Difference> {
        self.puts += 1;
        let (key, bytes) = (self.key(number), bytes_of(self.puts, size));
        let options = PutOptions {
            content_type: has_type.then(|| format!("put/{}", self.puts)),
            metadata: (0..pairs).map(|pair| (format!("pair-{pair}"), self.puts.to_string())).collect(),
            expected_size: (pairs == 1).then_some(size as u64),
            expected_digest: (pairs == 2).then(|| digest_of(&bytes)),
        };
        let put = within(self.store.put(&key, stream_of(&bytes, 30_000), options.clone())).await;
        let put = put.map_err(|error| format!("put of {key}: {error:?}"))?;
        let told = (&put.key, put.size, put.digest, &put.content_type, &put.metadata);
        let content_type = options.content_type.unwrap_or_else(|| DEFAULT_CONTENT_TYPE.to_owned());
        let wanted = (&key, size as u64, digest_of(&bytes), &content_type, &options.metadata);
        agree("what put tells", &told, &wanted)?;
        self.blobs.insert(key, (put.clone(), bytes));
        Ok(())
    }

    async fn bad_put(&mut self, number: usize, size: usize, how: usize) -> Result<(), Difference> {
        let (key, bytes) = (self.key(number), bytes_of(77, size));
        let (stream, options, expected) = match how {
            0 => (stream_that_fails(&bytes), PutOptions::default(), ErrorKind::PermissionDenied),
            1 => {
                let expected_size = Some(size as u64 + 1);
                let options = PutOptions { expected_size, ..PutOptions::default() };
                (stream_of(&bytes, 30_000), options, ErrorKind::InvalidInput)
            }
            _ => {
                let expected_digest = Some(digest_of(b"another"));
                let options = PutOptions { expected_digest, ..PutOptions::default() };
                (stream_of(&bytes, 30_000), options, ErrorKind::InvalidInput)
            }
        };
        let answer = within(self.store.put(&key, stream, options)).await.map_err(|error| error.kind());
        agree("a bad put", &answer.map(|_| ()), &Err(expected))
    }

    async fn get(&self, number: usize, range: Option<Range<u64>>) -> Result<(), Difference> {
        let key = self.key(number);
        let answer = within(self.store.get(&key, range.clone())).await;
        let expected = match self.blobs.get(&key) {
            None => Err(ErrorKind::NotFound),
            Some((info, bytes)) => {
                let Range { start, end } = range.clone().unwrap_or(0..info.size);
                if start > end || start > info.size {
                    Err(ErrorKind::InvalidInput)
                } else {
                    let cut = start..end.min(info.size);
                    let part = cut.start as usize..cut.end as usize;
                    Ok((info.clone(), cut, bytes.slice(part)))
                }
            }
        };
        let found = match answer {
            Ok(read) => {
                let (info, range, mut stream, mut bytes) = (read.info, read.range, read.stream, Vec::new());
                while let Some(chunk) = within(stream.next()).await {
                    bytes.extend_from_slice(&chunk.map_err(|error| format!("get of {key}: {error:?}"))?);
                }
                Ok((info, range, Bytes::from(bytes)))
            }
            Err(error) => Err(error.kind()),
        };
        // Without printing the bytes.
        let brief = |read: &Result<(BlobInfo, Range<u64>, Bytes), ErrorKind>| {
            read.clone().map(|(info, range, bytes)| (info, range, digest_of(&bytes)))
        };
        agree(&format!("get of {key}, {range:?}"), &brief(&found), &brief(&expected))
    }

    async fn list(&self, prefix: usize, after: Option<usize>, limit: usize) -> Result<(), Difference> {
        let prefix = format!("{}{}", self.prefix, PREFIXES[prefix]);
        let mut after = after.map(|number| self.key(number));
        let expected: Vec<_> = self
            .blobs
            .iter()
            .filter(|(key, _)| {
                key.as_str().starts_with(&prefix) && after.as_ref().is_none_or(|after| *key > after)
            })
            .map(|(_, (info, _))| info.clone())
            .collect();
        let what = format!("{prefix} after {after:?} in pages of {limit}");
        let mut listed = Vec::new();
        loop {
            let page = within(self.store.list(&prefix, after.as_ref(), limit)).await;
            let page = page.map_err(|error| format!("{what}: {error:?}"))?;
            if page.blobs.len() > limit || listed.len() > expected.len() {
                return Err(format!("{what}: a page is too long, or there are too many"));
            }
            listed.extend(page.blobs);
            match page.next {
                None => return agree(&what, &listed, &expected),
                next => after = next,
            }
        }
    }
}

/// Runs a sequence from an empty store (under a prefix of its own).
async fn run(fixture: &dyn Fixture, number: usize, steps: &[Step]) -> Result<(), Difference> {
    let prefix = format!("run/{number}/");
    let mut run = Run { store: fixture.store(), prefix, blobs: BTreeMap::new(), puts: 0 };
    for step in steps {
        run.step(step).await?;
    }
    // At the end everything is compared, whether the sequence asked for it or not.
    for key in 0..KEYS.len() {
        run.get(key, None).await?;
    }
    run.list(0, None, MAX_PAGE).await
}

pub(crate) async fn random_operations_agree_with_a_reference_model(fixture: &dyn Fixture) {
    let seeds = seeds("random_operations_agree_with_a_reference_model", [101]);
    SEQUENCES.agree(seeds, steps(), async |number, steps| run(fixture, number, steps).await).await;
}
