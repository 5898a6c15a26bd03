//! Compression: which codecs there are, and when bytes are kept as they are.
//!
//! A compressed form is kept only when it saves a sixteenth, so that opening data which hardly shrink costs nothing.

use std::cell::RefCell;
use std::fmt;
use std::str::FromStr;

use cfs_format::segment::{CODEC_LZ4, CODEC_NONE, CODEC_ZSTD};
use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use zstd_safe::{CCtx, DCtx};

/// The most bytes that are compressed, or claimed to come out of a decompression, at once.
pub const RAW_LEN_MAX: usize = 1 << 20;

/// Levels above this take memory out of proportion for chunks of this size.
const ZSTD_LEVEL_MAX: u8 = 19;
const ZSTD_LEVEL_DEFAULT: u8 = 3;

/// How to compress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Codec {
    /// Not at all.
    None,
    /// LZ4 block format.
    #[default]
    Lz4,
    /// A Zstandard frame (RFC 8878), at a level of 1 to 19.
    Zstd(u8),
}

impl Codec {
    /// The codec with these numbers (`CODEC_*` and level) in a volume's record.
    #[must_use]
    pub fn from_numbers(codec: u8, level: u8) -> Option<Self> {
        match (codec, level) {
            (CODEC_NONE, 0) => Some(Self::None),
            (CODEC_LZ4, 0) => Some(Self::Lz4),
            (CODEC_ZSTD, 1..=ZSTD_LEVEL_MAX) => Some(Self::Zstd(level)),
            _ => None,
        }
    }

    /// `CODEC_*` and level.
    #[must_use]
    pub fn numbers(self) -> (u8, u8) {
        match self {
            Self::None => (CODEC_NONE, 0),
            Self::Lz4 => (CODEC_LZ4, 0),
            Self::Zstd(level) => (CODEC_ZSTD, level),
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Lz4 => f.write_str("lz4"),
            Self::Zstd(level) => write!(f, "zstd:{level}"),
        }
    }
}

/// Not the name of a codec.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no codec {0:?}: expected none, lz4, zstd, or zstd:LEVEL with a level from 1 to 19")]
pub struct ParseCodecError(String);

impl FromStr for Codec {
    type Err = ParseCodecError;

    fn from_str(name: &str) -> Result<Self, ParseCodecError> {
        match name {
            "none" => return Ok(Self::None),
            "lz4" => return Ok(Self::Lz4),
            "zstd" => return Ok(Self::Zstd(ZSTD_LEVEL_DEFAULT)),
            _ => {}
        }
        name.strip_prefix("zstd:")
            .and_then(|level| level.parse().ok())
            .filter(|level| (1..=ZSTD_LEVEL_MAX).contains(level))
            .map(Self::Zstd)
            .ok_or_else(|| ParseCodecError(name.to_owned()))
    }
}

/// Contexts and buffers for compressing, to be kept by each worker.
pub struct Compressor {
    lz4: CompressTable,
    zstd: Option<CCtx<'static>>,
    scratch: Vec<u8>,
}

impl Default for Compressor {
    fn default() -> Self {
        Self::new()
    }
}

impl Compressor {
    /// A compressor. The memory for Zstandard is taken at its first use.
    #[must_use]
    pub fn new() -> Self {
        Self {
            lz4: CompressTable::large(),
            zstd: None,
            scratch: Vec::new(),
        }
    }

    /// Appends `data` to `out`, compressed with `codec` if that saves a sixteenth, else as it is. Returns the
    /// `CODEC_*` of what was appended. `data` is at most [`RAW_LEN_MAX`] bytes.
    pub fn compress(&mut self, codec: Codec, data: &[u8], out: &mut Vec<u8>) -> u8 {
        let (used, bytes) = self.compressed_or_plain(codec, data);
        out.extend_from_slice(bytes);
        used
    }

    /// As [`Self::compress`], but returns where the bytes are instead of copying them.
    pub(crate) fn compressed_or_plain<'a>(
        &'a mut self,
        codec: Codec,
        data: &'a [u8],
    ) -> (u8, &'a [u8]) {
        assert!(data.len() <= RAW_LEN_MAX, "{} bytes at once", data.len());
        let kept_max = data.len() - data.len().div_ceil(16);
        let compressed = match codec {
            Codec::None => None,
            Codec::Lz4 => self.lz4(data),
            Codec::Zstd(_) if self.looks_incompressible(data) => None,
            Codec::Zstd(level) => self.zstd(level, data, kept_max),
        };
        match compressed {
            Some(len) if len <= kept_max => (codec.numbers().0, &self.scratch[..len]),
            _ => (CODEC_NONE, data),
        }
    }

    /// Bytes of the LZ4 form, which is then in `scratch`.
    fn lz4(&mut self, data: &[u8]) -> Option<usize> {
        let room = get_maximum_output_size(data.len());
        self.make_room(room);
        compress_into_with_table(data, &mut self.scratch[..room], &mut self.lz4).ok()
    }

    /// Bytes of the Zstandard form, which is then in `scratch`; none when it has more than `kept_max`.
    fn zstd(&mut self, level: u8, data: &[u8], kept_max: usize) -> Option<usize> {
        self.make_room(kept_max);
        self.zstd
            .get_or_insert_with(CCtx::create)
            .compress(&mut self.scratch[..kept_max], data, level.into())
            .ok()
    }

    /// Whether the bytes are spread evenly and LZ4 finds next to nothing, which takes a small part of the time that
    /// Zstandard would.
    fn looks_incompressible(&mut self, data: &[u8]) -> bool {
        const SAMPLES: usize = 2048;
        let stride = data.len() / SAMPLES;
        if stride == 0 {
            return false;
        }
        let mut counts = [0u32; 256];
        // An odd stride meets all columns of tables with a power of two as width.
        for byte in data.iter().step_by(stride | 1).take(SAMPLES) {
            counts[usize::from(*byte)] += 1;
        }
        let total: u32 = counts.iter().sum();
        let pairs: u32 = counts.iter().map(|count| count * count).sum();
        // Expected for random bytes is total + total^2/256, with a deviation of about one hundredth; bytes that an
        // entropy coder could cut by a sixteenth are a third above it.
        let pairs_even = total + total * total / 256;
        pairs < pairs_even + pairs_even / 10
            && self
                .lz4(data)
                .is_some_and(|len| len > data.len() - data.len() / 64)
    }

    fn make_room(&mut self, room: usize) {
        if self.scratch.len() < room {
            self.scratch.resize(room, 0);
        }
    }
}

/// Bytes that do not decompress to what they should.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecompressError {
    /// No such codec.
    #[error("unknown codec number {0}")]
    UnknownCodec(u8),
    /// More than can be.
    #[error("{0} bytes are said to come out, more than there can be")]
    TooLarge(usize),
    /// Not the codec's format, or of another length.
    #[error("the compressed bytes are damaged")]
    Damaged,
}

/// Replaces `out` with the `raw_len` bytes that `data` holds under the codec with this `CODEC_*` number.
///
/// # Errors
/// [`DecompressError`]; `out` is then empty. No more than `raw_len` bytes are ever written or allocated.
pub fn decompress(
    codec: u8,
    data: &[u8],
    raw_len: usize,
    out: &mut Vec<u8>,
) -> Result<(), DecompressError> {
    let done = decompress_over(codec, data, raw_len, out);
    if done.is_err() {
        out.clear();
    }
    done
}

/// As [`decompress`], but that `out` holds anything after an error.
fn decompress_over(
    codec: u8,
    data: &[u8],
    raw_len: usize,
    out: &mut Vec<u8>,
) -> Result<(), DecompressError> {
    if raw_len > RAW_LEN_MAX {
        return Err(DecompressError::TooLarge(raw_len));
    }
    out.resize(raw_len, 0);
    let written = match codec {
        CODEC_NONE if data.len() == raw_len => {
            out.copy_from_slice(data);
            Some(raw_len)
        }
        CODEC_NONE => None,
        CODEC_LZ4 => lz4_decompress(data, out),
        CODEC_ZSTD => zstd_decompress(data, out),
        _ => return Err(DecompressError::UnknownCodec(codec)),
    };
    if written == Some(raw_len) {
        Ok(())
    } else {
        Err(DecompressError::Damaged)
    }
}

/// By the C library, which is 1.15 to 1.4 times as fast as `lz4_flex`; compressing with that is as fast or faster.
fn lz4_decompress(data: &[u8], out: &mut [u8]) -> Option<usize> {
    i32::try_from(data.len()).ok()?;
    let raw_len = i32::try_from(out.len()).ok()?;
    lz4::block::decompress_to_buffer(data, Some(raw_len), out).ok()
}

fn zstd_decompress(data: &[u8], out: &mut [u8]) -> Option<usize> {
    thread_local! {
        static CONTEXT: RefCell<DCtx<'static>> = RefCell::new(DCtx::create());
    }
    CONTEXT.with_borrow_mut(|context| context.decompress(out, data).ok())
}
