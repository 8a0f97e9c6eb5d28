//! Listing.

use flames_blob::MAX_PAGE;
use flames_error::ErrorKind;
use futures::StreamExt;

use crate::Fixture;
use crate::support::*;

pub(crate) async fn a_listing_is_ordered_and_pages_meet(fixture: &dyn Fixture) {
    let store = fixture.store();
    assert_eq!(pages(&*store, "", 10).await, [Vec::<String>::new()], "an empty store is one empty page");
    let mut wanted: Vec<String> = (0..12).map(|n| format!("blob-{n}")).collect();
    wanted.extend(["blob".into(), "blob-1/x".into(), "Blob".into(), "zebra".into(), "0".into()]);
    for name in wanted.iter().rev() {
        put(&*store, name, &bytes_of(1, 10)).await;
    }
    wanted.sort_unstable();
    for limit in [1, 4, wanted.len() - 1, wanted.len(), wanted.len() + 1, MAX_PAGE] {
        let pages = pages(&*store, "", limit).await;
        assert_eq!(pages.concat(), wanted, "in pages of {limit}");
        assert_eq!(pages.len(), wanted.len().div_ceil(limit), "pages of {limit} that are not full");
    }
    // Where a page starts need not be a blob that is there.
    let from_between = within(store.list("", Some(&key("blob-2x")), 2)).await.expect("the listing answers");
    let names: Vec<_> = from_between.blobs.iter().map(|info| info.key.as_str()).collect();
    assert_eq!(names, ["blob-3", "blob-4"]);
}

pub(crate) async fn a_prefix_lists_only_its_own(fixture: &dyn Fixture) {
    let store = fixture.store();
    let names = ["a", "a/1", "a/2", "a/b/3", "ab", "a-", "b", "b/1", "A/1"];
    for name in names {
        put(&*store, name, &bytes_of(1, 10)).await;
    }
    for prefix in ["", "a", "a/", "a/b", "a/b/3", "b", "b/", "c", "a/b/3/", "A", "a/1"] {
        let mut wanted: Vec<_> = names.into_iter().filter(|name| name.starts_with(prefix)).collect();
        wanted.sort_unstable();
        for limit in [1, 2, 100] {
            assert_eq!(
                pages(&*store, prefix, limit).await.concat(),
                wanted,
                "{prefix:?} in pages of {limit}"
            );
        }
    }
    let before = within(store.list("b", Some(&key("a")), 10)).await.expect("the listing answers");
    assert_eq!(before.blobs.len(), 2, "a start before the prefix leaves out nothing");
    let beyond = within(store.list("a", Some(&key("b")), 10)).await.expect("the listing answers");
    assert_eq!((beyond.blobs.len(), beyond.next), (0, None), "a start past the prefix leaves nothing");
}

pub(crate) async fn a_page_tells_what_head_tells(fixture: &dyn Fixture) {
    let store = fixture.store();
    for (seed, name) in (1..).zip(["a", "b/c", "d"]) {
        let options = flames_blob::PutOptions {
            content_type: Some(format!("kind/{seed}")),
            metadata: [("seed".to_owned(), seed.to_string())].into(),
            ..flames_blob::PutOptions::default()
        };
        put_with(&*store, name, &bytes_of(seed, 100), options).await;
    }
    let page = within(store.list("", None, 10)).await.expect("the listing answers");
    assert_eq!(page.blobs.len(), 3);
    for listed in page.blobs {
        let head = within(store.head(&listed.key)).await.expect("the blob is there");
        assert_eq!(listed, head);
    }
}

pub(crate) async fn a_page_limit_out_of_range_is_refused(fixture: &dyn Fixture) {
    let store = fixture.store();
    for limit in [0, MAX_PAGE + 1, usize::MAX] {
        let refused = within(store.list("", None, limit)).await.expect_err("the limit is out of range");
        assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{limit}");
    }
    within(store.list("", None, MAX_PAGE)).await.expect("the largest page is allowed");
}

pub(crate) async fn a_blob_that_stays_is_listed_once_while_others_come_and_go(fixture: &dyn Fixture) {
    let store = fixture.store();
    let stay: Vec<_> = (0..20).map(|n| format!("k{n:02}")).collect();
    for name in &stay {
        put(&*store, name, &bytes_of(1, 10)).await;
        put(&*store, &format!("{name}-goes"), &bytes_of(1, 10)).await;
    }
    let (mut listed, mut after, mut page_number) = (Vec::new(), None, 0);
    loop {
        let page = within(store.list("k", after.as_ref(), 3)).await.expect("the listing answers");
        listed.extend(page.blobs.iter().map(|info| info.key.to_string()));
        // Around the place where the next page starts: that blob itself goes, one comes before it, one is replaced.
        if let Some(next) = &page.next
            && next.as_str().ends_with("-goes")
        {
            within(store.delete(next)).await.expect("the delete succeeds");
        }
        put(&*store, &format!("k{page_number:02}-comes"), &bytes_of(1, 10)).await;
        put(&*store, &stay[page_number % stay.len()], &bytes_of(2, 20)).await;
        page_number += 1;
        match page.next {
            None => break,
            next => after = next,
        }
        assert!(page_number < 100, "the listing never ends");
    }
    assert!(listed.is_sorted(), "{listed:?}");
    let stayed: Vec<_> = listed.into_iter().filter(|name| stay.contains(name)).collect();
    assert_eq!(stayed, stay);
}

pub(crate) async fn a_page_that_ends_on_the_last_blob_says_so(fixture: &dyn Fixture) {
    let store = fixture.store();
    for name in ["a/1", "a/2", "b"] {
        put(&*store, name, &bytes_of(1, 10)).await;
    }
    for (prefix, after, limit) in [("", None, 3), ("a/", None, 2), ("", Some("a/1"), 2), ("a/2", None, 1)] {
        let page = within(store.list(prefix, after.map(key).as_ref(), limit)).await;
        let page = page.expect("the listing answers");
        assert_eq!((page.blobs.len(), page.next), (limit, None), "{prefix:?} after {after:?}");
    }
    let page = within(store.list("", None, 2)).await.expect("the listing answers");
    assert_eq!(page.next, Some(key("a/2")));
}

pub(crate) async fn more_blobs_than_a_page_holds_are_listed_once_each(fixture: &dyn Fixture) {
    let store = fixture.store();
    let names: Vec<_> = (0..MAX_PAGE + 3).map(|n| format!("many/{n:04}")).collect();
    let puts = names.iter().map(|name| {
        let store = store.clone();
        async move { put(&*store, name, &bytes_of(1, 10)).await }
    });
    futures::stream::iter(puts).buffer_unordered(32).count().await;
    let pages = pages(&*store, "many/", MAX_PAGE).await;
    assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [MAX_PAGE, 3]);
    assert_eq!(pages.concat(), names);
}
