//! The manifest: bytes that name the runs of a tree.
//!
//! All numbers are little-endian. Magic, version, then the count of sorted runs of level 0, newest first, and of
//! levels; then each sorted run: its count of runs and for each run the pointer of its root, the count of its extents
//! and the extents. What a run holds is in its root.

use std::sync::Arc;

use crate::{BlockPtr, OpenError, run::Run, state::SortedRun};

/// First bytes of a manifest.
const MAGIC: [u8; 8] = *b"CFSkvman";
/// Newest version that this build reads, and the one that it writes.
const VERSION: u32 = 1;

/// A run as a manifest names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RunName {
    pub root: BlockPtr,
    pub extents: Vec<u64>,
}

/// The runs that a manifest names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub level0: Vec<Vec<RunName>>,
    pub levels: Vec<Vec<RunName>>,
}

/// The manifest of these sorted runs.
pub(crate) fn encode(level0: &[SortedRun], levels: &[SortedRun]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    let number = |number: usize| {
        let number = u32::try_from(number).expect("a tree has fewer runs and extents");
        number.to_le_bytes()
    };
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&number(level0.len()));
    bytes.extend_from_slice(&number(levels.len()));
    for sorted in level0.iter().chain(levels) {
        bytes.extend_from_slice(&number(sorted.len()));
        for run in sorted.iter() {
            bytes.extend_from_slice(&run.root().encode());
            bytes.extend_from_slice(&number(run.extents().len()));
            for extent in run.extents() {
                bytes.extend_from_slice(&extent.to_le_bytes());
            }
        }
    }
    bytes
}

/// What a manifest names.
///
/// # Errors
/// [`OpenError::Manifest`], [`OpenError::Version`].
pub(crate) fn decode(bytes: &[u8]) -> Result<Manifest, OpenError> {
    let mut reader = Reader(bytes);
    if reader.array()? != MAGIC {
        return Err(OpenError::Manifest { rule: "magic" });
    }
    let version = u32::from_le_bytes(reader.array()?);
    if version == 0 || version > VERSION {
        return Err(OpenError::Version {
            found: version,
            supported: VERSION,
        });
    }
    let level0_count = reader.count(4)?;
    let level_count = reader.count(4)?;
    let manifest = Manifest {
        level0: (0..level0_count)
            .map(|_| reader.sorted_run())
            .collect::<Result<_, _>>()?,
        levels: (0..level_count)
            .map(|_| reader.sorted_run())
            .collect::<Result<_, _>>()?,
    };
    if !reader.0.is_empty() {
        return Err(OpenError::Manifest {
            rule: "bytes after its end",
        });
    }
    Ok(manifest)
}

/// Checks what opening the runs has shown: the runs of a sorted run follow each other.
pub(crate) fn check_sorted(sorted: &[Arc<Run>]) -> Result<(), OpenError> {
    let ascend = |pair: &[Arc<Run>]| pair[0].summary().last_key < pair[1].summary().first_key;
    if sorted.windows(2).all(ascend) {
        Ok(())
    } else {
        Err(OpenError::Manifest {
            rule: "runs of a level overlap",
        })
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], OpenError> {
        let (array, rest) = self
            .0
            .split_first_chunk::<N>()
            .ok_or(OpenError::Manifest { rule: "cut short" })?;
        self.0 = rest;
        Ok(*array)
    }

    /// A count of things that take at least `bytes_each`, so that no more memory is asked for than the input warrants.
    fn count(&mut self, bytes_each: usize) -> Result<usize, OpenError> {
        let count = u32::from_le_bytes(self.array()?) as usize;
        if count > self.0.len() / bytes_each {
            return Err(OpenError::Manifest { rule: "cut short" });
        }
        Ok(count)
    }

    fn sorted_run(&mut self) -> Result<Vec<RunName>, OpenError> {
        let count = self.count(BlockPtr::ENCODED_BYTES + 4)?;
        (0..count).map(|_| self.run_name()).collect()
    }

    fn run_name(&mut self) -> Result<RunName, OpenError> {
        let root = BlockPtr::decode(self.array()?);
        let extent_count = self.count(8)?;
        let extents = (0..extent_count)
            .map(|_| Ok(u64::from_le_bytes(self.array()?)))
            .collect::<Result<_, OpenError>>()?;
        if root.stored_len == 0 {
            return Err(OpenError::Manifest {
                rule: "a run without a root",
            });
        }
        Ok(RunName { root, extents })
    }
}
