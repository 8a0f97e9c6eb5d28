//! Reading parts.

use flames_error::ErrorKind;

use crate::Fixture;
use crate::support::*;

const LENGTH: u64 = 700_000;

pub(crate) async fn a_range_reads_just_those_bytes(fixture: &dyn Fixture) {
    let store = fixture.store();
    let bytes = bytes_of(1, LENGTH as usize);
    put(&*store, "a", &bytes).await;
    let seam = 256 * 1024;
    for range in [
        0..1,
        1..2,
        0..LENGTH,
        10..10,
        seam - 1..seam + 1,
        65_535..65_537,
        12_345..654_321,
        LENGTH - 1..LENGTH,
    ] {
        let read = within(store.get(&key("a"), Some(range.clone()))).await.expect("the range can be read");
        assert_eq!(read.range, range);
        assert_eq!(read.info.size, LENGTH, "the description is that of the whole blob");
        assert_eq!(read.info.digest, digest_of(&bytes), "the description is that of the whole blob");
        let wanted = bytes.slice(range.start as usize..range.end as usize);
        assert_same_bytes(&collect(read.stream).await, &wanted);
    }
}

pub(crate) async fn a_range_past_the_end_is_cut(fixture: &dyn Fixture) {
    let store = fixture.store();
    let bytes = bytes_of(1, 1_000);
    put(&*store, "a", &bytes).await;
    for (range, cut) in [
        (900..1_001, 900..1_000),
        (0..u64::MAX, 0..1_000),
        (1_000..1_000, 1_000..1_000),
        (1_000..2_000, 1_000..1_000),
    ] {
        let read = within(store.get(&key("a"), Some(range))).await.expect("the range is cut");
        assert_eq!(read.range, cut);
        assert_same_bytes(&collect(read.stream).await, &bytes.slice(cut.start as usize..cut.end as usize));
    }
}

pub(crate) async fn a_range_that_starts_past_the_end_is_refused(fixture: &dyn Fixture) {
    let store = fixture.store();
    put(&*store, "a", &bytes_of(1, 1_000)).await;
    for range in [1_001..1_002, 1_001..1_001, u64::MAX - 1..u64::MAX] {
        let refused =
            within(store.get(&key("a"), Some(range.clone()))).await.expect_err("there is nothing there");
        assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{range:?}");
    }
}

#[allow(clippy::reversed_empty_ranges)]
pub(crate) async fn a_reversed_range_is_refused(fixture: &dyn Fixture) {
    let store = fixture.store();
    put(&*store, "a", &bytes_of(1, 1_000)).await;
    for range in [1..0, 500..499, 1_000..0] {
        let refused = within(store.get(&key("a"), Some(range.clone()))).await.expect_err("the range is none");
        assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{range:?}");
    }
}

pub(crate) async fn what_is_not_there_is_not_found(fixture: &dyn Fixture) {
    let store = fixture.store();
    assert_absent(&*store, "a").await;
    put(&*store, "a/b", &bytes_of(1, 10)).await;
    assert_absent(&*store, "a").await;
    assert_absent(&*store, "a/b/c").await;
    let part =
        within(store.get(&key("a"), Some(0..1))).await.expect_err("there is nothing to read a part of");
    assert_eq!(part.kind(), ErrorKind::NotFound);
}
