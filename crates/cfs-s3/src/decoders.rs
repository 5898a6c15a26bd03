//! Entry point for fuzzing: what is decoded from rows that a pool keeps for this face, and what looks at it at once.
//!
//! The first byte of an input chooses the kind of record, the rest is the record; where several are looked at together,
//! a zero byte ends each but the last. Only with the feature `decoders`, and for the tests of this crate.

mod asks;
mod buckets;
mod objects;
mod people;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::records;

/// A kind of record.
struct Kind {
    /// Valid records.
    seeds: fn() -> Vec<Vec<u8>>,
    /// Decodes a record and uses it. Whether it is one.
    run: fn(&[u8]) -> bool,
}

const fn kind(seeds: fn() -> Vec<Vec<u8>>, run: fn(&[u8]) -> bool) -> Kind {
    Kind { seeds, run }
}

/// By the first byte of an input: a new kind comes last.
const KINDS: [Kind; 23] = [
    kind(objects::content_seeds, objects::content),
    kind(objects::header_seeds, objects::headers),
    kind(objects::tag_seeds, objects::tags),
    kind(objects::metadata_seeds, objects::metadata),
    kind(objects::upload_seeds, objects::upload),
    kind(objects::version_seeds, objects::version),
    kind(objects::name_seeds, objects::name),
    kind(objects::due_seeds, objects::due),
    kind(buckets::bucket_seeds, buckets::bucket),
    kind(buckets::acl_seeds, buckets::acl),
    kind(buckets::policy_seeds, buckets::policy),
    kind(buckets::public_access_seeds, buckets::public_access),
    kind(buckets::ownership_seeds, buckets::ownership),
    kind(buckets::encryption_seeds, buckets::encryption),
    kind(buckets::cors_seeds, buckets::cors),
    kind(buckets::lifecycle_seeds, buckets::lifecycle),
    kind(buckets::object_lock_seeds, buckets::object_lock),
    kind(buckets::logging_seeds, buckets::logging),
    kind(people::user_seeds, people::user),
    kind(people::group_seeds, people::group),
    kind(people::role_seeds, people::role),
    kind(people::provider_seeds, people::provider),
    kind(people::issuer_seeds, people::issuer),
];

/// Valid inputs to begin with, at least one of each kind.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let of_kind = |(number, kind): (u8, &Kind)| {
        let seeds = (kind.seeds)().into_iter();
        seeds.map(move |seed| [&[number][..], &seed].concat())
    };
    (0..).zip(&KINDS).flat_map(of_kind).collect()
}

/// Decodes an input.
///
/// # Panics
/// A decoder does, or what uses a record: for whoever looks for that.
pub fn run(input: &[u8]) {
    is_record(input);
}

fn is_record(input: &[u8]) -> bool {
    let Some((number, record)) = input.split_first() else {
        return false;
    };
    (KINDS[usize::from(*number) % KINDS.len()].run)(record)
}

/// What a zero byte ends, and the rest.
fn split(input: &[u8]) -> (&[u8], &[u8]) {
    match input.iter().position(|byte| *byte == 0) {
        Some(at) => (&input[..at], &input[at + 1..]),
        None => (input, &[]),
    }
}

/// The inverse of [`split`].
fn join(first: &[u8], rest: &[u8]) -> Vec<u8> {
    [first, &[0], rest].concat()
}

/// A record in JSON. Written again it stays what it is.
fn decode<T: Serialize + DeserializeOwned>(record: &[u8]) -> Option<T> {
    let decoded: T = records::decode(record).ok()?;
    let written = records::encode(&decoded);
    let again: T = records::decode(&written).expect("what was just encoded");
    assert_eq!(
        written,
        records::encode(&again),
        "a record changes when it is written"
    );
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_records() {
        let seeds = seeds();
        for seed in &seeds {
            assert!(is_record(seed), "{:?}", String::from_utf8_lossy(seed));
        }
        for number in 0..KINDS.len() {
            let mut numbers = seeds.iter().map(|seed| usize::from(seed[0]));
            assert!(numbers.any(|it| it == number), "kind {number} has a seed");
        }
    }
}
