//! Decoded extents of one file, kept by windows of the file so that a hot read needs no table.
//!
//! A window that is here is complete: all committed extents that show a part of it, in order and whole, so that one that
//! reaches over an edge is in both windows. Whoever commits a change of a file's extents drops the windows it touches, and
//! those beside them that have such an extent.

use std::collections::HashMap;
use std::sync::Arc;

use crate::error::Result;
use crate::extent::Extent;

/// Bytes of a file in one window.
pub(crate) const WINDOW_BYTES: u64 = 4 << 20;

/// Extents kept for one file at most; the window that goes beyond makes all others go.
const EXTENTS_MAX: usize = 1 << 15;

#[derive(Default)]
pub(crate) struct Windows {
    by_index: HashMap<u64, Arc<[Extent]>>,
    extent_count: usize,
}

impl Windows {
    /// The extents of the window at `index`, from `load` if they are not here.
    pub(crate) fn get(
        &mut self,
        index: u64,
        load: impl FnOnce(u64, u64) -> Result<Vec<Extent>>,
    ) -> Result<Arc<[Extent]>> {
        if let Some(extents) = self.by_index.get(&index) {
            return Ok(Arc::clone(extents));
        }
        let start = index * WINDOW_BYTES;
        let extents: Arc<[Extent]> = load(start, start + WINDOW_BYTES)?.into();
        if self.extent_count + extents.len() > EXTENTS_MAX {
            self.clear();
        }
        self.extent_count += extents.len();
        self.by_index.insert(index, Arc::clone(&extents));
        Ok(extents)
    }

    /// Forgets what touches `[from, to)`, and what extents reach into it from beside.
    pub(crate) fn invalidate(&mut self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        let (mut first, mut last) = (from / WINDOW_BYTES, (to - 1) / WINDOW_BYTES);
        let reaches = |index: &u64, touches: &dyn Fn(&Extent) -> bool| {
            let extents = self.by_index.get(index);
            extents.is_some_and(|extents| extents.iter().any(touches))
        };
        #[cfg(feature = "planted-bugs")]
        let reaches = |index: &u64, touches: &dyn Fn(&Extent) -> bool| {
            !cfs_format::planted::has(cfs_format::planted::Bug::WindowEdgeForgotten)
                && reaches(index, touches)
        };
        // No extent is as long as a window.
        if first > 0 && reaches(&(first - 1), &|extent| extent.end() > from) {
            first -= 1;
        }
        if reaches(&(last + 1), &|extent| extent.offset < to) {
            last += 1;
        }
        let extent_count = &mut self.extent_count;
        let mut drop_window = |extents: &Arc<[Extent]>| *extent_count -= extents.len();
        if last - first < 64 {
            for index in first..=last {
                if let Some(extents) = self.by_index.remove(&index) {
                    drop_window(&extents);
                }
            }
        } else {
            self.by_index.retain(|index, extents| {
                let keep = !(first..=last).contains(index);
                if !keep {
                    drop_window(extents);
                }
                keep
            });
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.by_index.clear();
        self.extent_count = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extents(count: usize) -> Vec<Extent> {
        (0..count as u64)
            .map(|offset| Extent {
                offset,
                len: 1,
                chunk_offset: 0,
                chunk_len: 1,
                domain: Default::default(),
                fingerprint: Default::default(),
            })
            .collect()
    }

    #[test]
    fn windows_are_loaded_once_until_invalidated() {
        let mut windows = Windows::default();
        let mut loads = 0;
        let mut get = |windows: &mut Windows, index| {
            windows
                .get(index, |from, to| {
                    assert_eq!(
                        (from, to),
                        (index * WINDOW_BYTES, (index + 1) * WINDOW_BYTES)
                    );
                    loads += 1;
                    Ok(extents(3))
                })
                .unwrap();
            loads
        };
        assert_eq!(get(&mut windows, 5), 1);
        assert_eq!(get(&mut windows, 5), 1);
        windows.invalidate(6 * WINDOW_BYTES, 7 * WINDOW_BYTES);
        assert_eq!(get(&mut windows, 5), 1);
        windows.invalidate(6 * WINDOW_BYTES - 1, u64::MAX);
        assert_eq!(get(&mut windows, 5), 2);
        assert_eq!(windows.extent_count, 3);
    }

    #[test]
    fn what_reaches_over_an_edge_is_dropped_on_both_sides() {
        const EDGE: u64 = 5 * WINDOW_BYTES;
        let over = Extent {
            offset: EDGE - 100,
            len: 200,
            ..extents(1)[0]
        };
        for (from, to, left) in [
            (EDGE - 100, EDGE, 0),
            (EDGE, EDGE + 1, 0),
            (EDGE - 200, EDGE - 100, 1),
            (EDGE + 100, EDGE + 200, 1),
            (EDGE + 50, u64::MAX, 0),
        ] {
            let mut windows = Windows::default();
            for index in [4, 5] {
                windows.get(index, |_, _| Ok(vec![over])).unwrap();
            }
            windows.invalidate(from, to);
            assert_eq!(windows.by_index.len(), left, "{from}..{to}");
        }
    }

    #[test]
    fn the_number_of_extents_is_bounded() {
        let mut windows = Windows::default();
        for index in 0..100 {
            windows.get(index, |_, _| Ok(extents(1000))).unwrap();
        }
        assert!(windows.extent_count <= EXTENTS_MAX);
        assert_eq!(
            windows.extent_count,
            windows.by_index.values().map(|extents| extents.len()).sum()
        );
    }
}
