//! Chunk records and codecs: round trips, damage, moves.

use cfs_format::segment::{CODEC_LZ4, CODEC_NONE, CODEC_ZSTD, RecordHeader};
use cfs_format::{DomainId, KeyEpoch, SegmentSeq};
use cfs_seal::block::{BlockCipher, Cipher};
use cfs_seal::chunk::{
    ChunkFields, ChunkSealer, OpenChunkError, RECORD_HEAD_BYTES, RecordPlace, finish_record,
    open_record, open_record_header, peek_record_len, record_len, sealed_head,
};
use cfs_seal::codec::{Codec, Compressor, DecompressError, RAW_LEN_MAX, decompress};
use cfs_seal::keys::DomainSecret;

struct Xorshift(u64);

impl Xorshift {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn noise(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

const PLACE: RecordPlace = RecordPlace {
    seq: SegmentSeq(3),
    offset: 4096,
};
const ELSEWHERE: RecordPlace = RecordPlace {
    seq: SegmentSeq(4),
    offset: 8192,
};

struct World {
    secret: DomainSecret,
    header_cipher: BlockCipher,
    sealer: ChunkSealer,
}

impl World {
    fn new(cipher: Cipher) -> Self {
        Self {
            secret: DomainSecret::from_bytes([1; 32]),
            header_cipher: BlockCipher::new(cipher, &[2; 32]),
            sealer: ChunkSealer::new(cipher),
        }
    }

    fn seal(&mut self, codec: Codec, data: &[u8]) -> Vec<u8> {
        let fields = ChunkFields {
            domain: DomainId(9),
            fingerprint: self.secret.fingerprint(data),
            salt: [4; 16],
            created_ns: 5,
            epoch: KeyEpoch(6),
        };
        let mut record = b"before".to_vec();
        let info = self.sealer.seal(
            &self.secret,
            &fields,
            codec,
            data,
            PLACE,
            &self.header_cipher,
            &mut record,
        );
        let record = record.split_off(6);
        assert_eq!(info.record_len as usize, record.len());
        assert_eq!(info.raw_len as usize, data.len());
        record
    }

    fn open(
        &self,
        record: &[u8],
        place: RecordPlace,
    ) -> Result<(RecordHeader, Vec<u8>), OpenChunkError> {
        let mut out = b"left over".to_vec();
        let result = open_record(
            record,
            place,
            &self.header_cipher,
            |domain| (domain == DomainId(9)).then_some(&self.secret),
            &mut b"left over".to_vec(),
            &mut out,
        );
        if result.is_err() {
            assert!(out.is_empty());
        }
        result.map(|header| (header, out))
    }
}

fn samples() -> Vec<Vec<u8>> {
    let mut random = Xorshift(0x5eed_0003);
    let text: Vec<u8> = b"sealed once, opened for a reader, moved without being opened; "
        .iter()
        .copied()
        .cycle()
        .take(200_000)
        .collect();
    let half = [random.noise(60_000), text[..60_000].to_vec()].concat();
    vec![
        Vec::new(),
        vec![7],
        text[..100].to_vec(),
        text,
        random.noise(131_072),
        half,
        vec![0; RAW_LEN_MAX],
        random.noise(RAW_LEN_MAX),
    ]
}

const CODECS: [Codec; 5] = [
    Codec::None,
    Codec::Lz4,
    Codec::Zstd(1),
    Codec::Zstd(3),
    Codec::Zstd(19),
];

#[test]
fn records_open_again() {
    for cipher in [Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305] {
        let mut world = World::new(cipher);
        for data in samples() {
            for codec in &CODECS[..4] {
                let record = world.seal(*codec, &data);
                assert_eq!(peek_record_len(&record).unwrap() as usize, record.len());
                let (header, content) = world.open(&record, PLACE).unwrap();
                assert!(content == data, "{codec} {} bytes", data.len());
                assert_eq!(record_len(&header) as usize, record.len());
                assert_eq!(header.fingerprint, world.secret.fingerprint(&content).0);
                // What follows a record in its segment does not matter.
                let longer = [&record[..], b"the next record"].concat();
                assert!(world.open(&longer, PLACE).unwrap().1 == data);
            }
        }
    }
}

/// The bytes of records are part of the format.
#[test]
fn golden_records() {
    let mut all = blake3::Hasher::new();
    for cipher in [Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305] {
        let mut world = World::new(cipher);
        all.update(&world.seal(Codec::None, b"golden content"));
    }
    assert_eq!(
        all.finalize().to_hex().as_str(),
        "5da2ba5494e0ef06ec26022c842310ef66bdd8834f3f9311174408771abdc343"
    );
}

#[test]
fn every_flipped_bit_is_seen() {
    for cipher in [Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305] {
        let mut world = World::new(cipher);
        for codec in [Codec::None, Codec::Lz4, Codec::Zstd(3)] {
            let record = world.seal(codec, &[b'a'; 300]);
            for bit in 0..record.len() * 8 {
                let mut damaged = record.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                let error = world.open(&damaged, PLACE).unwrap_err();
                let in_payload = bit / 8 >= RECORD_HEAD_BYTES;
                assert_eq!(
                    in_payload,
                    matches!(error, OpenChunkError::PayloadForged(_)),
                    "bit {bit}: {error}"
                );
            }
            for len in 0..record.len() {
                world.open(&record[..len], PLACE).unwrap_err();
            }
        }
        let mut random = Xorshift(0x5eed_0004);
        for len in 0..2000 {
            world.open(&random.noise(len), PLACE).unwrap_err();
        }
    }
}

#[test]
fn records_belong_to_place_domain_and_pool() {
    let mut world = World::new(Cipher::Aes256Gcm);
    let record = world.seal(Codec::Lz4, b"content");
    let error = world.open(&record, ELSEWHERE).unwrap_err();
    assert_eq!(error, OpenChunkError::HeaderForged);
    let other = RecordPlace {
        offset: PLACE.offset + 16,
        ..PLACE
    };
    assert_eq!(
        world.open(&record, other).unwrap_err(),
        OpenChunkError::HeaderForged
    );

    let open_with = |secret: Option<&DomainSecret>| {
        open_record(
            &record,
            PLACE,
            &world.header_cipher,
            |_| secret,
            &mut Vec::new(),
            &mut Vec::new(),
        )
    };
    assert_eq!(
        open_with(None).unwrap_err(),
        OpenChunkError::UnknownDomain(DomainId(9))
    );
    let stranger = DomainSecret::from_bytes([7; 32]);
    assert!(matches!(
        open_with(Some(&stranger)).unwrap_err(),
        OpenChunkError::PayloadForged(_)
    ));
    assert_ne!(
        stranger.fingerprint(b"content"),
        world.secret.fingerprint(b"content")
    );
}

#[test]
fn moved_records_open_at_their_new_place_only() {
    let mut world = World::new(Cipher::ChaCha20Poly1305);
    let record = world.seal(Codec::Zstd(1), &[9; 5000]);
    let header = open_record_header(&record, PLACE, &world.header_cipher).unwrap();
    let mut moved = sealed_head(&header, ELSEWHERE, &world.header_cipher).to_vec();
    moved.extend_from_slice(&record[RECORD_HEAD_BYTES..]);
    assert_eq!(moved[RECORD_HEAD_BYTES..], record[RECORD_HEAD_BYTES..]);
    assert_eq!(
        world.open(&moved, ELSEWHERE).unwrap(),
        (header, vec![9; 5000])
    );
    world.open(&moved, PLACE).unwrap_err();

    // A payload that goes with another header does not open, although both are whole.
    let other = world.seal(Codec::Zstd(1), &[8; 5000]);
    assert_eq!(other.len(), record.len());
    let mixed = [&record[..RECORD_HEAD_BYTES], &other[RECORD_HEAD_BYTES..]].concat();
    assert!(matches!(
        world.open(&mixed, PLACE).unwrap_err(),
        OpenChunkError::PayloadForged(_)
    ));
}

#[test]
fn split_sealing_gives_the_same_record() {
    let mut world = World::new(Cipher::Aes256Gcm);
    let whole = world.seal(Codec::Lz4, &[3; 9000]);
    let header = open_record_header(&whole, PLACE, &world.header_cipher).unwrap();
    let mut split = Vec::new();
    finish_record(
        &header,
        &whole[RECORD_HEAD_BYTES..],
        PLACE,
        &world.header_cipher,
        &mut split,
    );
    assert_eq!(split, whole);
}

#[test]
fn codecs_have_names_and_numbers() {
    for codec in CODECS {
        assert_eq!(codec.to_string().parse(), Ok(codec));
        let (number, level) = codec.numbers();
        assert_eq!(Codec::from_numbers(number, level), Some(codec));
    }
    assert_eq!("zstd".parse(), Ok(Codec::Zstd(3)));
    for name in [
        "", "LZ4", "lz4:1", "zstd:", "zstd:0", "zstd:20", "zstd:-1", "zstd:256", "gzip",
    ] {
        name.parse::<Codec>().unwrap_err();
    }
    for (number, level) in [(0, 1), (1, 1), (2, 0), (2, 20), (3, 0)] {
        assert_eq!(Codec::from_numbers(number, level), None);
    }
}

#[test]
fn compression_is_kept_only_where_it_pays() {
    let mut compressor = Compressor::new();
    let mut random = Xorshift(0x5eed_0005);
    let noise = random.noise(100_000);
    let text = vec![b'x'; 100_000];
    // Bytes without repetitions, of which each carries six bits: for Zstandard alone.
    let narrow: Vec<u8> = noise.iter().map(|byte| byte & 63).collect();
    // Saves less than a sixteenth.
    let hardly = [&noise[..96_000], &text[..4_000]].concat();
    let check = |compressor: &mut Compressor, codec, data: &[u8], expected| {
        let mut out = b"before".to_vec();
        let used = compressor.compress(codec, data, &mut out);
        assert_eq!(used, expected, "{codec}");
        assert_eq!(&out[..6], b"before");
        let packed = out.len() - 6;
        assert!(used == CODEC_NONE || packed <= data.len() - data.len() / 16);
        let mut plain = b"left".to_vec();
        decompress(used, &out[6..], data.len(), &mut plain).unwrap();
        assert!(plain == data);
    };
    check(&mut compressor, Codec::None, &text, CODEC_NONE);
    check(&mut compressor, Codec::Lz4, &text, CODEC_LZ4);
    check(&mut compressor, Codec::Zstd(3), &text, CODEC_ZSTD);
    check(&mut compressor, Codec::Lz4, &noise, CODEC_NONE);
    check(&mut compressor, Codec::Zstd(3), &noise, CODEC_NONE);
    check(&mut compressor, Codec::Lz4, &narrow, CODEC_NONE);
    check(&mut compressor, Codec::Zstd(3), &narrow, CODEC_ZSTD);
    check(&mut compressor, Codec::Lz4, &hardly, CODEC_NONE);
    check(&mut compressor, Codec::Zstd(1), &hardly, CODEC_NONE);
    for codec in CODECS {
        check(&mut compressor, codec, &[], CODEC_NONE);
        check(&mut compressor, codec, &[1], CODEC_NONE);
    }
}

#[test]
fn damaged_compressed_bytes_never_do_harm() {
    let mut compressor = Compressor::new();
    let mut random = Xorshift(0x5eed_0006);
    let data: Vec<u8> = (0..3000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
    let mut out = Vec::new();
    for codec in [Codec::Lz4, Codec::Zstd(3)] {
        let mut packed = Vec::new();
        let used = compressor.compress(codec, &data, &mut packed);
        assert_eq!(used, codec.numbers().0);
        for round in 0..20_000 {
            let mut damaged = packed.clone();
            for _ in 0..=round % 4 {
                let index = random.next() as usize % damaged.len();
                damaged[index] = random.next() as u8;
            }
            damaged.truncate(packed.len() - (round % 3) * (random.next() as usize % 100));
            let raw_len = random.next() as usize % (2 * data.len());
            match decompress(used, &damaged, raw_len, &mut out) {
                Ok(()) => assert_eq!(out.len(), raw_len),
                Err(_) => assert!(out.is_empty()),
            }
        }
        assert_eq!(
            decompress(used, &packed, RAW_LEN_MAX + 1, &mut out),
            Err(DecompressError::TooLarge(RAW_LEN_MAX + 1))
        );
        assert_eq!(
            decompress(used, &packed, data.len() - 1, &mut out),
            Err(DecompressError::Damaged)
        );
        assert_eq!(
            decompress(used, &packed, data.len() + 1, &mut out),
            Err(DecompressError::Damaged)
        );
    }
    assert_eq!(
        decompress(CODEC_NONE, &data, data.len() - 1, &mut out),
        Err(DecompressError::Damaged)
    );
    assert_eq!(
        decompress(77, &data, data.len(), &mut out),
        Err(DecompressError::UnknownCodec(77))
    );
}
