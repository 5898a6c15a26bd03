use super::*;

struct Xorshift(u64);

impl Xorshift {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Bytes of several kinds: noise, few symbols, short periods, one symbol.
    fn data(&mut self, len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(len);
        while out.len() < len {
            let part = (self.below(len) + 1).min(len - out.len());
            match self.below(4) {
                0 => out.extend((0..part).map(|_| self.next() as u8)),
                1 => out.extend((0..part).map(|_| b"etaoin shrdlu\n\0\xff"[self.below(16)])),
                2 => {
                    let period = self.below(300) + 1;
                    let pattern: Vec<u8> = (0..period).map(|_| self.next() as u8).collect();
                    out.extend(pattern.iter().cycle().take(part));
                }
                _ => {
                    let symbol = self.next() as u8;
                    out.extend(std::iter::repeat_n(symbol, part));
                }
            }
        }
        out
    }
}

/// The definition, as slow as it is.
fn cut_by_definition(params: ChunkParams, data: &[u8], at_end: bool) -> Option<usize> {
    let bits = (params.avg - params.min).ilog2();
    let entries: Vec<u64> = (0..=255).map(|byte| gear_table().step(0, byte)).collect();
    for position in params.min as usize..data.len().min(params.max as usize) {
        let hash = data[position - WINDOW_BYTES..position]
            .iter()
            .rev()
            .enumerate()
            .fold(0u64, |hash, (back, byte)| {
                hash.wrapping_add(entries[usize::from(*byte)] << back)
            });
        let high_bits = if position < params.avg as usize {
            bits + 1 - 10
        } else {
            bits - 1 - 10
        };
        if hash & 0xffc0 == 0 && hash.leading_zeros() >= high_bits {
            return Some(position);
        }
    }
    if data.len() >= params.max as usize {
        return Some(params.max as usize);
    }
    (at_end && !data.is_empty()).then_some(data.len())
}

fn check_all_ways(params: ChunkParams, data: &[u8], at_end: bool, story: &str) {
    let expected = cut_by_definition(params, data, at_end);
    for instructions in Instructions::available() {
        let chunker = Chunker::with_instructions(params, instructions).unwrap();
        assert_eq!(
            chunker.cut(data, at_end),
            expected,
            "{instructions:?}, {story}"
        );
    }
}

#[test]
fn every_way_follows_the_definition() {
    let seed = 0x5eed_0001;
    let mut random = Xorshift(seed);
    let mut cuts_inside = 0;
    for round in 0..150 {
        let min = 64 + random.below(4096) as u32;
        let avg = (min + 4096).next_power_of_two();
        let max = avg + 1 + random.below(3 * avg as usize) as u32;
        let params = ChunkParams::new(min, avg, max).unwrap();
        let len = random.below(2 * max as usize);
        let data = random.data(len);
        let at_end = random.below(2) == 0;
        let story = format!("seed {seed} round {round} {params:?} {len} bytes");
        check_all_ways(params, &data, at_end, &story);
        if let Some(cut) = cut_by_definition(params, &data, false)
            && cut < max as usize
        {
            cuts_inside += 1;
            // The ends of the search: the cut is the last or just beyond the last position that the data allow.
            let blocks = [128, 256, 512].map(|block| [block - 1, block, block + 1]);
            for behind in blocks.as_flattened().iter().chain(&[0, 1, 2, 16, 17]) {
                let data = &data[..(cut - 1 + behind).min(data.len())];
                check_all_ways(params, data, false, &story);
                check_all_ways(params, data, true, &story);
            }
        }
    }
    assert!(cuts_inside > 20, "{cuts_inside} cuts by content");
}

/// The first positions of a search depend on bytes that it does not go through.
#[test]
fn cuts_where_the_search_begins() {
    let params = ChunkParams::new(64, 8192, 16384).unwrap();
    let data = golden_data(1 << 20);
    let mut position = 0;
    let mut cuts = 0;
    while let Some(len) = cut_by_definition(params, &data[position..], false) {
        position += len;
        if len < params.avg as usize && position > 8192 {
            for behind in 0..20 {
                let data = &data[position - 64 - behind..][..4096];
                let cut = cut_by_definition(params, data, false);
                assert!(cut.is_some_and(|cut| cut <= 64 + behind), "{cut:?}");
                check_all_ways(params, data, false, &format!("{position} {behind}"));
            }
            cuts += 1;
        }
    }
    assert!(cuts > 20, "{cuts} cuts");
}

#[test]
fn more_data_never_change_a_cut() {
    let params = ChunkParams::new(1024, 8192, 32768).unwrap();
    let chunker = Chunker::new(params);
    let mut random = Xorshift(0x5eed_0002);
    for _ in 0..40 {
        let data = random.data(40_000);
        let full = chunker.cut(&data, false);
        assert!(full.is_some());
        for _ in 0..50 {
            let part = &data[..random.below(data.len())];
            let early = chunker.cut(part, false);
            assert!(early.is_none() || early == full, "{early:?} {full:?}");
        }
    }
}

fn cuts(data: &[u8]) -> Vec<usize> {
    cuts_by(&Chunker::new(ChunkParams::DEFAULT), data)
}

fn cuts_by(chunker: &Chunker, data: &[u8]) -> Vec<usize> {
    let mut position = 0;
    std::iter::from_fn(|| {
        position += chunker.cut(&data[position..], true)?;
        Some(position)
    })
    .collect()
}

fn golden_data(len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    blake3::Hasher::new()
        .update(b"chunker golden data")
        .finalize_xof()
        .fill(&mut data);
    data
}

/// These cut points are part of the format of every pool. If this test fails, the chunker is wrong, not the numbers.
#[test]
fn golden_cut_points() {
    let noise = golden_data(4 << 20);
    let text: Vec<u8> = noise
        .iter()
        .map(|byte| b"etaoin shrdlcu\n "[usize::from(byte & 15)])
        .collect();
    for instructions in Instructions::available() {
        let chunker = Chunker::with_instructions(ChunkParams::DEFAULT, instructions).unwrap();
        let [noise, text] = [&noise, &text].map(|data| cuts_by(&chunker, data));
        assert_eq!(
            noise[..6],
            [119607, 261352, 473059, 602978, 762443, 947849],
            "{instructions:?}"
        );
        assert_eq!(
            text[..6],
            [184272, 314314, 464213, 600740, 734759, 802647],
            "{instructions:?}"
        );
        let all: Vec<u8> = [noise, text]
            .concat()
            .iter()
            .flat_map(|cut| (*cut as u32).to_le_bytes())
            .collect();
        assert_eq!(
            blake3::hash(&all).to_hex().as_str(),
            "4c6450cbe98ae88aa0027bd8d730f26c1583f8adbd794ac2ad5ab2d97dd8e9d1",
            "{instructions:?}"
        );
    }
}

/// What decides which way is taken: every machine that has them runs them.
#[test]
fn the_fastest_instructions_of_the_machine_are_used() {
    let chunker = Chunker::new(ChunkParams::DEFAULT);
    let available = Instructions::available();
    assert_eq!(available.last(), Some(&chunker.instructions));
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512bw") {
        assert_eq!(chunker.instructions, Instructions::Avx512);
    }
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    assert_eq!(chunker.instructions, Instructions::Neon);
}

#[test]
fn chunks_fall_into_step_after_an_edit() {
    let data = golden_data(8 << 20);
    let before = cuts(&data);
    let mut edited = data;
    edited.insert(1 << 20, 7);
    let after = cuts(&edited);
    let kept = before
        .iter()
        .filter(|cut| **cut > 1 << 20 && after.contains(&(**cut + 1)))
        .count();
    assert!(kept + 14 > before.len(), "{kept} of {}", before.len());
    let mean = (8 << 20) / before.len();
    assert!((110 << 10..150 << 10).contains(&mean), "mean {mean}");
}

#[test]
fn even_data_make_largest_chunks() {
    for byte in 0..=255u8 {
        let data = vec![byte; 300 << 10];
        assert_eq!(cuts(&data), [256 << 10, 300 << 10], "byte {byte}");
    }
}

#[test]
fn short_data() {
    let chunker = Chunker::new(ChunkParams::DEFAULT);
    assert_eq!(chunker.cut(&[], true), None);
    assert_eq!(chunker.cut(&[], false), None);
    assert_eq!(chunker.cut(&[1], true), Some(1));
    assert_eq!(chunker.cut(&[1], false), None);
    let params = ChunkParams::new(64, 8192, 16384).unwrap();
    for len in 60..70 {
        let data = golden_data(len);
        check_all_ways(params, &data, true, "short");
        check_all_ways(params, &data, false, "short");
    }
}

#[test]
fn params_are_checked() {
    ChunkParams::new(64, 8192, 8193).unwrap();
    ChunkParams::new(64 << 10, 128 << 10, 1 << 20).unwrap();
    for (min, avg, max) in [
        (63, 8192, 16384),
        (0, 8192, 16384),
        (64, 8191, 16384),
        (64, 0, 16384),
        (4097, 8192, 16384),
        (u32::MAX, 8192, 16384),
        (64, 8192, 8192),
        (64, 8192, (1 << 20) + 1),
    ] {
        ChunkParams::new(min, avg, max).unwrap_err();
    }
}
