//! GB/s of MD5 on one core: of one message as AWS-LC computes it, and of several in the lanes of each vector.
//!
//! `cargo bench -p cfs-s3 --bench md5`

use std::hint::black_box;
use std::time::{Duration, Instant};

use src::md5::Md5;
use src::md5::lanes::{Lane, Vectors};

#[path = "../src"]
mod src {
    #[expect(
        dead_code,
        unused_imports,
        reason = "only the ways to compute are measured"
    )]
    pub(crate) mod md5;
}

/// Blocks of a message.
const BLOCKS: usize = 4096;
/// Blocks that are computed before the next call.
const TURN_BLOCKS: usize = 512;

fn main() {
    // Not all alike, and not all in one page.
    let messages: Vec<Vec<[u8; 64]>> = (0..16).map(|byte| vec![[byte; 64]; BLOCKS]).collect();
    let mut parts: Vec<(String, usize, Box<dyn FnMut()>)> = Vec::new();
    let all = &messages;
    let alone = messages[0].as_flattened().to_vec();
    parts.push((
        "one after the other".to_owned(),
        1,
        Box::new(move || {
            black_box(Md5::digest(&alone));
        }),
    ));
    for vectors in Vectors::available() {
        for count in [1, 2, 4, 8, 16] {
            if count > vectors.lanes() {
                continue;
            }
            let messages = all[..count].to_vec();
            let work = move || {
                let mut states = [[0; 4]; 16];
                for turn in 0..BLOCKS / TURN_BLOCKS {
                    let mut lanes: Vec<_> = states
                        .iter_mut()
                        .zip(&messages)
                        .map(|(state, message)| Lane {
                            state,
                            blocks: &message[turn * TURN_BLOCKS..][..TURN_BLOCKS],
                        })
                        .collect();
                    vectors.compress(&mut lanes);
                }
                black_box(states);
            };
            let name = format!("{vectors:?}, {count} of {} lanes", vectors.lanes());
            parts.push((name, count, Box::new(work)));
        }
    }
    measure_in_turns(&mut parts);
}

/// Runs each piece of work, which handles so many messages, in turns for half a second each; prints the best run and the
/// median.
fn measure_in_turns(parts: &mut [(String, usize, Box<dyn FnMut()>)]) {
    let mut times = vec![Vec::new(); parts.len()];
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(500) * parts.len() as u32 {
        for ((_, _, work), times) in parts.iter_mut().zip(&mut times) {
            let start = Instant::now();
            work();
            times.push(start.elapsed());
        }
    }
    for ((part, count, _), times) in parts.iter().zip(&mut times) {
        times.sort_unstable();
        let bytes = (count * BLOCKS * 64) as f64;
        let rate = |time: Duration| bytes / time.as_secs_f64() / 1e9;
        let (best, median) = (rate(times[0]), rate(times[times.len() / 2]));
        println!("  {part:<28} {best:7.2} GB/s, median {median:7.2}");
    }
}
