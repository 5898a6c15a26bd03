//! How much of content that has been edited a little is found again, by our chunker and by `fastcdc` v2020 at the same mean
//! length of a chunk.
//!
//! Each window of the content is edited once, at a random place: some bytes put in, some taken out, 4 KiB overwritten, or
//! one of the three by chance. What is found again is the share of the edited bytes whose chunk was there before. Every
//! seed edits other places; the difference is that within a seed, its error the standard error of their mean.
//!
//! `fastcdc` knows average lengths only by powers of two, and normalises more or less strictly (1 is its default). For
//! each of two levels its average, and where that is not enough its least length, are moved until its mean is ours.

use std::collections::HashSet;

use cfs_format::Fingerprint;
use cfs_seal::chunker::{ChunkParams, Chunker};
use cfs_seal::keys::DomainSecret;
use fastcdc::v2020::{FastCDC, Normalization};

use super::{chunks, xorshift};

/// Most content that is edited, bytes.
pub const CONTENT_BYTES_MAX: usize = 128 << 20;
/// Edited bytes of all seeds together, about.
const EDITED_BYTES: usize = 2 << 30;
/// One edit in each.
const WINDOW_BYTES: usize = 512 << 10;
/// Bytes put in or taken out at most.
const SHIFT_BYTES_MAX: u64 = 1000;
const OVERWRITTEN_BYTES: usize = 4096;
/// Means that differ by less are the same, as a share.
const MEAN_TOLERANCE: f64 = 0.005;
const KIB: usize = 1 << 10;

#[derive(Clone, Copy)]
enum Edit {
    Insert,
    Remove,
    Overwrite,
}

/// What the edits of a content are.
const KINDS: [(&str, &[Edit]); 4] = [
    ("bytes put in", &[Edit::Insert]),
    ("bytes taken out", &[Edit::Remove]),
    ("4 KiB overwritten", &[Edit::Overwrite]),
    (
        "one of these",
        &[Edit::Insert, Edit::Remove, Edit::Overwrite],
    ),
];

/// How `fastcdc` is asked to cut.
#[derive(Clone, Copy)]
struct Theirs {
    level: Normalization,
    min: usize,
    avg: usize,
    max: usize,
}

/// Compares the two on this content and prints a table.
pub fn compare(content: &[u8]) {
    let params = ChunkParams::DEFAULT;
    let ours = Chunker::new(params);
    let mean = mean_of(chunks(&ours, content));
    let seeds = (EDITED_BYTES / content.len()).clamp(8, 512);
    println!(
        "  found again after one edit in each {} KiB, {} bytes, {seeds} seeds, mean chunk {mean:.0} bytes; \
         target: within 1 point of fastcdc",
        WINDOW_BYTES / KIB,
        content.len()
    );
    let theirs: Vec<Theirs> = [Normalization::Level1, Normalization::Level2]
        .into_iter()
        .filter_map(|level| {
            let found = Theirs::with_mean(content, params, level, mean);
            match found {
                Some(it) => println!(
                    "    fastcdc, level {}: min {}, average {}, max {}, mean chunk {:.0} bytes",
                    level.bits(),
                    it.min,
                    it.avg,
                    it.max,
                    it.mean(content)
                ),
                None => println!("    fastcdc, level {}: no such mean", level.bits()),
            }
            found
        })
        .collect();
    let secret = DomainSecret::from_bytes([7; 32]);
    let known = names(&secret, chunks(&ours, content));
    let known_to_theirs: Vec<_> = theirs
        .iter()
        .map(|it| names(&secret, it.chunks(content)))
        .collect();
    for (title, edits) in KINDS {
        let mut shares = vec![Vec::new(); theirs.len() + 1];
        for seed in 1..=seeds as u64 {
            let edited = edited(content, edits, seed);
            shares[0].push(found_again(&secret, &known, chunks(&ours, &edited)));
            for ((it, known), shares) in theirs.iter().zip(&known_to_theirs).zip(&mut shares[1..]) {
                shares.push(found_again(&secret, known, it.chunks(&edited)));
            }
        }
        print!(
            "    {title:<20} {:6.2} %",
            mean_and_error(&shares[0]).0 * 100.0
        );
        for (it, other) in theirs.iter().zip(&shares[1..]) {
            let differences: Vec<f64> = shares[0].iter().zip(other).map(|(a, b)| a - b).collect();
            let (difference, error) = mean_and_error(&differences);
            print!(
                ", fastcdc level {} {:6.2} %: {:+.2} points (error {:.2})",
                it.level.bits(),
                mean_and_error(other).0 * 100.0,
                difference * 100.0,
                error * 100.0
            );
        }
        println!();
    }
}

impl Theirs {
    fn chunks(self, data: &[u8]) -> impl Iterator<Item = &[u8]> {
        FastCDC::with_level(data, self.min, self.avg, self.max, self.level)
            .map(|chunk| &data[chunk.offset..chunk.offset + chunk.length])
    }

    fn mean(self, data: &[u8]) -> f64 {
        mean_of(self.chunks(data))
    }

    /// With the least length that is nearest to ours of those that have this mean on `data`.
    fn with_mean(data: &[u8], ours: ChunkParams, level: Normalization, mean: f64) -> Option<Self> {
        let (min, max) = (ours.min() as usize, ours.max() as usize);
        let nearest_first = (0..min)
            .step_by(4 * KIB)
            .flat_map(|by| [min - by, min + by]);
        nearest_first.filter(|min| *min < max / 2).find_map(|min| {
            let with = |avg: usize| Self {
                level,
                min,
                avg,
                max,
            };
            // The averages that round to one power of two: the mean grows with them.
            let ranges = [(46, 90), (94, 180)].map(|(low, high)| (low * KIB, high * KIB));
            ranges.into_iter().find_map(|(low, high)| {
                let (mut low, mut high) = (low.max(min), high);
                if low >= high || with(low).mean(data) > mean || with(high).mean(data) < mean {
                    return None;
                }
                // Odd lengths are none for `fastcdc`.
                while high - low > KIB / 2 {
                    let middle = (low + high) / 4 * 2;
                    match with(middle).mean(data) < mean {
                        true => low = middle,
                        false => high = middle,
                    }
                }
                let found = with(high);
                ((found.mean(data) / mean - 1.0).abs() < MEAN_TOLERANCE).then_some(found)
            })
        })
    }
}

fn mean_of<'a>(chunks: impl Iterator<Item = &'a [u8]>) -> f64 {
    let (count, bytes) = chunks.fold((0, 0), |(count, bytes), chunk| {
        (count + 1, bytes + chunk.len())
    });
    bytes as f64 / f64::from(count)
}

/// `content` with one edit in each window.
fn edited(content: &[u8], edits: &[Edit], seed: u64) -> Vec<u8> {
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut below = move |bound: u64| xorshift(&mut random) % bound;
    let mut out = Vec::with_capacity(content.len() + content.len() / 64);
    for window in content.chunks(WINDOW_BYTES) {
        let room = window.len().saturating_sub(OVERWRITTEN_BYTES);
        if room == 0 {
            out.extend_from_slice(window);
            continue;
        }
        let at = below(room as u64) as usize;
        let shift = 1 + below(SHIFT_BYTES_MAX) as usize;
        let (put_in, taken_out) = match edits[below(edits.len() as u64) as usize] {
            Edit::Insert => (shift, 0),
            Edit::Remove => (0, shift),
            Edit::Overwrite => (OVERWRITTEN_BYTES, OVERWRITTEN_BYTES),
        };
        out.extend_from_slice(&window[..at]);
        out.extend((0..put_in).map(|_| below(256) as u8));
        out.extend_from_slice(&window[at + taken_out..]);
    }
    out
}

fn names<'a>(
    secret: &DomainSecret,
    chunks: impl Iterator<Item = &'a [u8]>,
) -> HashSet<Fingerprint> {
    chunks.map(|chunk| secret.fingerprint(chunk)).collect()
}

/// Share of the bytes of `chunks` whose chunk is one of `known`.
fn found_again<'a>(
    secret: &DomainSecret,
    known: &HashSet<Fingerprint>,
    chunks: impl Iterator<Item = &'a [u8]>,
) -> f64 {
    let (mut found, mut all) = (0, 0);
    for chunk in chunks {
        all += chunk.len();
        if known.contains(&secret.fingerprint(chunk)) {
            found += chunk.len();
        }
    }
    found as f64 / all as f64
}

fn mean_and_error(figures: &[f64]) -> (f64, f64) {
    let count = figures.len() as f64;
    let mean = figures.iter().sum::<f64>() / count;
    let squares: f64 = figures.iter().map(|it| (it - mean).powi(2)).sum();
    (mean, (squares / (count - 1.0).max(1.0) / count).sqrt())
}
