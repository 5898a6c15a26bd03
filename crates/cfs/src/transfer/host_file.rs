//! A file on the host that is written to.
//!
//! Large files go around the page cache: to fill new memory of it takes longer than opening the content, and pushes out
//! what others have there. What is no whole block at the end of a range goes through it, and so does everything on file
//! systems of which it is not known that they do the same with both.
//!
//! A file gets its length with its content, or after the disk has that, and where it is written directly at least its time
//! after it: a copy that goes on after a power cut takes a file of the right length and time for whole, and ext4 and XFS fill
//! one last that was made long first.

use std::cell::RefCell;
use std::os::fd::OwnedFd;

use cfs_device::AlignedBuf;
use rustix::fs::OFlags;
use rustix::io::Errno;

/// Files of so many bytes are written around the page cache.
const DIRECT_BYTES_MIN: u64 = 4 << 20;
/// Of linux/magic.h: file systems that write directly what they are given.
const DIRECT_MAGICS: [rustix::fs::FsWord; 2] = [/* ext4 */ 0xEF53, /* XFS */ 0x5846_5342];
/// What direct writes are multiples of, in the file, in length and in memory, bytes.
const BLOCK: usize = 4096;

thread_local! {
    /// Where direct writes come from: kept for the files after this one.
    static ALIGNED: RefCell<AlignedBuf> = RefCell::new(AlignedBuf::with_capacity(0));
}

pub(super) struct HostFile {
    file: OwnedFd,
    /// Whole blocks are written around the page cache.
    may_be_direct: bool,
    is_direct: bool,
    size: u64,
    /// What it has so far.
    len: u64,
    is_in_cache: bool,
    /// Of what is in the cache, something lies below a length that the file had before.
    is_behind_len: bool,
}

impl HostFile {
    /// An empty file that will have `size` bytes.
    pub(super) fn new(file: OwnedFd, size: u64) -> Result<Self, Errno> {
        let is_known = || {
            let about = rustix::fs::fstatfs(&file);
            about.is_ok_and(|about| DIRECT_MAGICS.contains(&about.f_type))
        };
        let may_be_direct = size >= DIRECT_BYTES_MIN && is_known();
        let mut len = 0;
        if may_be_direct {
            // Direct writes that lengthen a file wait for each other.
            len = size / BLOCK as u64 * BLOCK as u64;
            rustix::fs::ftruncate(&file, len)?;
        }
        Ok(Self {
            file,
            may_be_direct,
            is_direct: false,
            size,
            len,
            is_in_cache: false,
            is_behind_len: false,
        })
    }

    /// Gives it its length, when all that is no hole has been written, and returns it for its attributes.
    pub(super) fn finish(self) -> Result<OwnedFd, Errno> {
        let ends_in_hole = self.len < self.size;
        if self.is_in_cache && (self.is_behind_len || ends_in_hole) {
            rustix::fs::fdatasync(&self.file)?;
        }
        if ends_in_hole {
            rustix::fs::ftruncate(&self.file, self.size)?;
        }
        Ok(self.file)
    }

    /// Writes all of `bytes`.
    pub(super) fn write(&mut self, bytes: &[u8], offset: u64) -> Result<(), Errno> {
        let is_aligned = offset.is_multiple_of(BLOCK as u64);
        let direct_len = match self.may_be_direct && is_aligned {
            true => bytes.len() / BLOCK * BLOCK,
            false => 0,
        };
        let mut done = 0;
        if direct_len > 0 {
            done = self.write_direct(&bytes[..direct_len], offset)?;
        }
        if done < bytes.len() {
            self.be_direct(false)?;
            let offset = offset + done as u64;
            self.is_in_cache = true;
            self.is_behind_len |= offset < self.len;
            write_all(&self.file, &bytes[done..], offset)?;
        }
        self.len = self.len.max(offset + bytes.len() as u64);
        Ok(())
    }

    /// Writes whole blocks; returns how many bytes, which are none or few where the file system does not do that.
    fn write_direct(&mut self, bytes: &[u8], offset: u64) -> Result<usize, Errno> {
        let refused = |file: &mut Self, errno| match errno {
            Errno::INVAL | Errno::OPNOTSUPP => {
                file.may_be_direct = false;
                Ok(0)
            }
            errno => Err(errno),
        };
        if let Err(errno) = self.be_direct(true) {
            return refused(self, errno);
        }
        ALIGNED.with_borrow_mut(|aligned| {
            aligned.clear();
            aligned.extend_from_slice(bytes);
            let mut done = 0;
            while done < bytes.len() {
                let rest = &aligned.as_slice()[done..];
                match rustix::io::pwrite(&self.file, rest, offset + done as u64) {
                    Ok(0) => return Err(Errno::IO),
                    // A write that was cut within a block goes on through the page cache.
                    Ok(count) if !count.is_multiple_of(BLOCK) => return Ok(done + count),
                    Ok(count) => done += count,
                    Err(Errno::INTR) => {}
                    Err(errno) => return refused(self, errno).map(|_| done),
                }
            }
            Ok(done)
        })
    }

    fn be_direct(&mut self, wanted: bool) -> Result<(), Errno> {
        if self.is_direct != wanted {
            let mut flags = rustix::fs::fcntl_getfl(&self.file)?;
            flags.set(OFlags::DIRECT, wanted);
            rustix::fs::fcntl_setfl(&self.file, flags)?;
            self.is_direct = wanted;
        }
        Ok(())
    }
}

fn write_all(file: &OwnedFd, mut rest: &[u8], mut offset: u64) -> Result<(), Errno> {
    while !rest.is_empty() {
        match rustix::io::pwrite(file, rest, offset) {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => {
                rest = &rest[written..];
                offset += written as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    /// Pieces of any length at any place, as ranges between holes are, on a file system with direct writes or without.
    #[test]
    fn what_is_written_is_there() {
        let bytes: Vec<u8> = (0..3_000_000_u32)
            .map(|it| (it.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        for dir in ["/dev/shm", "/var/tmp"] {
            let Ok(dir) = tempfile::tempdir_in(dir) else {
                eprintln!("SKIPPED in {dir}: it cannot be written to");
                continue;
            };
            for (offset, step) in [
                (0_u64, 1 << 20),
                (4096, 100_000),
                (5, 1 << 20),
                (8192, 4095),
            ] {
                let path = dir.path().join("file");
                let size = DIRECT_BYTES_MIN + 77;
                let file = File::create(&path).expect("a file");
                let mut file = HostFile::new(file.into(), size).expect("lengthened");
                // An aligned write of whole blocks goes around the page cache wherever that is known to be right.
                let known = rustix::fs::fstatfs(&file.file).expect("it has one").f_type;
                assert_eq!(file.may_be_direct, DIRECT_MAGICS.contains(&known));
                let wanted = file.may_be_direct && offset.is_multiple_of(BLOCK as u64);
                file.write(&bytes[..BLOCK], offset).expect("written");
                assert!(file.is_direct == wanted || !file.may_be_direct);
                let mut at = offset;
                for piece in bytes.chunks(step) {
                    file.write(piece, at).expect("written");
                    at += piece.len() as u64;
                }
                // Who finds it now does not take it for whole.
                let len = std::fs::metadata(&path).expect("it is there").len();
                assert!(len < size, "{offset}, {step}");
                file.finish().expect("all of it");
                let found = std::fs::read(&path).expect("read");
                assert_eq!(found.len() as u64, size);
                let (before, rest) = found.split_at(offset as usize);
                let (written, after) = rest.split_at(bytes.len());
                assert!(written == bytes, "{offset}, {step}");
                assert!(before.iter().chain(after).all(|byte| *byte == 0));
            }
        }
    }
}
