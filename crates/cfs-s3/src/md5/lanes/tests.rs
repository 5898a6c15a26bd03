use super::super::Md5;
use super::super::tests::Random;
use super::*;

/// Messages of unequal lengths, as many as there are lanes and fewer.
#[test]
fn every_way_computes_what_one_message_alone_gives() {
    for vectors in Vectors::available() {
        let mut random = Random(7);
        for count in (1..=vectors.lanes()).chain([vectors.lanes(); 20]) {
            let messages: Vec<Vec<[u8; BLOCK_BYTES]>> = (0..count)
                .map(|_| {
                    let blocks = 1 + random.below(40);
                    (0..blocks).map(|_| random.bytes()).collect()
                })
                .collect();
            let mut states = vec![*Md5::new().state(); count];
            let mut left: Vec<&[_]> = messages.iter().map(Vec::as_slice).collect();
            while left.iter().any(|blocks| !blocks.is_empty()) {
                let with = states.iter_mut().zip(&left);
                let mut lanes: Vec<_> = with
                    .filter(|(_, blocks)| !blocks.is_empty())
                    .map(|(state, blocks)| Lane { state, blocks })
                    .collect();
                let done = vectors.compress(&mut lanes);
                assert!(done > 0);
                for blocks in &mut left {
                    *blocks = blocks.get(done..).unwrap_or_default();
                }
            }
            for (state, message) in states.iter().zip(&messages) {
                let mut alone = Md5::new();
                alone.update(message.as_flattened());
                assert_eq!(state, alone.state(), "{vectors:?}, {count} messages");
            }
        }
    }
}

/// What decides which way is taken: every machine that has them runs them.
#[cfg(target_arch = "x86_64")]
#[test]
fn all_vectors_of_the_machine_are_found() {
    let found = Vectors::available();
    assert_eq!(
        found.contains(&Vectors::Avx2),
        is_x86_feature_detected!("avx2")
    );
    assert_eq!(
        found.contains(&Vectors::Avx512),
        is_x86_feature_detected!("avx512f")
    );
    assert!(found.is_sorted_by_key(|vectors| vectors.lanes()));
}
