//! Listing: delimiters, pages, and what it costs.

use std::collections::BTreeSet;

use cfs_fs::Caller;

use crate::client::{Answer, Client, encode};
use crate::pool::Pool;

/// Keys and common prefixes of all pages.
fn pages(client: &Client, query: &[(&str, &str)]) -> (Vec<String>, Vec<String>, usize) {
    let (mut keys, mut prefixes, mut count) = (Vec::new(), Vec::new(), 0);
    let mut token = String::new();
    loop {
        let mut query = query.to_vec();
        query.push(("list-type", "2"));
        query.push(("encoding-type", "url"));
        if !token.is_empty() {
            query.push(("continuation-token", &token));
        }
        let page: Answer = client.send("GET", "/bucket", &query, b"").is(200);
        count += 1;
        keys.append(&mut page.all("Key"));
        for group in page.all("CommonPrefixes") {
            let prefix = group
                .trim_start_matches("<Prefix>")
                .trim_end_matches("</Prefix>");
            prefixes.push(prefix.to_owned());
        }
        match page.all("NextContinuationToken").pop() {
            Some(next) => token = next,
            None => return (keys, prefixes, count),
        }
    }
}

/// What S3 defines, computed from all keys.
fn model(keys: &[String], prefix: &str, delimiter: &str) -> (Vec<String>, Vec<String>) {
    let (mut plain, mut groups) = (Vec::new(), BTreeSet::new());
    for key in keys.iter().filter(|key| key.starts_with(prefix)) {
        match key[prefix.len()..]
            .find(delimiter)
            .filter(|_| !delimiter.is_empty())
        {
            Some(at) => {
                groups.insert(key[..prefix.len() + at + delimiter.len()].to_owned());
            }
            None => plain.push(key.clone()),
        }
    }
    (plain, groups.into_iter().collect())
}

/// Random keys of few letters against the model, page by page.
#[test]
fn listing_agrees_with_the_model() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    let mut state = 20_261_121_u64;
    let mut below = |bound: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) % bound
    };
    let letters = ["a", "b", "/", "-", ".", "0", "a/", "ab"];
    let mut keys = BTreeSet::new();
    for _ in 0..300 {
        let len = 1 + below(6);
        let key: String = (0..len).map(|_| letters[below(8) as usize]).collect();
        keys.insert(key);
    }
    for key in &keys {
        root.put(&format!("/bucket/{key}"), b"").is(200);
    }
    let keys: Vec<_> = keys.into_iter().collect();
    for prefix in ["", "a", "a/", "a/b", "ab", "-", ".", "/", "a//", "zz"] {
        for delimiter in ["", "/", "a", "-", "b/"] {
            for size in ["1000", "7", "1"] {
                if size == "1" && prefix.is_empty() && delimiter.is_empty() {
                    continue;
                }
                let query = [
                    ("prefix", prefix),
                    ("delimiter", delimiter),
                    ("max-keys", size),
                ];
                let (listed, groups, _) = pages(&root, &query);
                let (plain, wanted) = model(&keys, prefix, delimiter);
                let plain: Vec<_> = plain.iter().map(|key| encode(key, true)).collect();
                let wanted: Vec<_> = wanted.iter().map(|key| encode(key, true)).collect();
                assert_eq!((listed, groups), (plain, wanted), "{query:?}");
            }
        }
    }
    served.assert_clean();
}

/// The same answer from a bucket with a hundred times as many keys reads no more of it: counted, not timed.
#[test]
fn a_listing_costs_what_it_answers() {
    let pool = Pool::new(256);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    let bucket = served.resolve("/bucket").ino;
    let caller = Caller::default();
    for dir in 0..20 {
        let name = format!("dir{dir:02}");
        let made = served
            .fs
            .mkdir(bucket, name.as_bytes(), 0o755, &caller)
            .expect("room");
        for file in 0..2000 {
            let name = format!("file{file:05}");
            served
                .fs
                .create(made.ino, name.as_bytes(), 0o644, &caller)
                .expect("room");
        }
    }
    let query = [("delimiter", "/")];
    let started = std::time::Instant::now();
    let (keys, groups, _) = pages(&root, &query);
    assert_eq!((keys.len(), groups.len()), (0, 20));
    // 40,000 inodes would take seconds to look at.
    assert!(
        started.elapsed().as_millis() < 500,
        "{:?}",
        started.elapsed()
    );
    let query = [("prefix", "dir13/file01"), ("max-keys", "1000")];
    let (keys, _, pages) = pages(&root, &query);
    assert_eq!((keys.len(), pages), (1000, 1));
}
