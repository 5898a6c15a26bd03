//! INIT: what this side and the kernel agree on before the first real request.
//!
//! What is wanted and the kernel does not have is left out; nothing here depends on a kernel newer than 5.4.

use std::io;

use zerocopy::IntoBytes;

use crate::abi::{
    InitIn, InitInExtension, InitOut, READ_BUFFER_BYTES_MIN, VERSION_MAJOR, VERSION_MINOR,
    VERSION_MINOR_MIN, VERSION_MINOR_MODIFIED, capability,
};
use crate::channel::{Channel, Received};
use crate::request::{Operation, Request};

/// Bytes of the largest write that the kernel sends in one request: its limit unless `fs.fuse.max_pages_limit` is
/// raised.
pub(crate) const WRITE_BYTES_MAX: u32 = 1 << 20;
/// Bytes that the kernel reads ahead of a sequential reader.
pub(crate) const READ_AHEAD_BYTES: u32 = 1 << 20;
/// Requests that the kernel sends without a caller waiting (read-ahead, write-back of mapped pages).
const BACKGROUND_REQUESTS_MAX: u16 = 64;
/// How many of them may wait before the kernel holds back.
const CONGESTION_THRESHOLD: u16 = BACKGROUND_REQUESTS_MAX / 4 * 3;

/// Bytes that a buffer for any request needs: the largest write, and what stands before it.
pub(crate) const REQUEST_BYTES_MAX: usize = WRITE_BYTES_MAX as usize + 4096;
const _: () = assert!(REQUEST_BYTES_MAX >= READ_BUFFER_BYTES_MIN);

/// What is asked of the kernel. Not `ASYNC_DIO` (1 << 15): a direct write that ends on its own leaves pages in the page cache which
/// were read while it was under way, and others go on reading them (xfstests generic/451).
const WANTED: u64 = capability::ASYNC_READ
    | capability::BIG_WRITES
    | capability::MAX_PAGES
    | capability::ATOMIC_O_TRUNC
    | capability::PARALLEL_DIROPS
    | capability::DO_READDIRPLUS
    | capability::READDIRPLUS_AUTO
    | capability::CACHE_SYMLINKS
    | capability::EXPORT_SUPPORT
    | capability::EXPLICIT_INVAL_DATA
    // The umask arrives with the request: a default ACL takes its place.
    | capability::POSIX_ACL
    | capability::DONT_MASK
    // Without it the kernel asks for `security.capability` before each write.
    | capability::HANDLE_KILLPRIV_V2
    | capability::SETXATTR_EXT
    | capability::INIT_EXT;

/// What was agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Agreement {
    /// SETXATTR is of the longer form.
    pub setxattr_ext: bool,
    /// The kernel has set-user-id bits cleared before `fallocate` and `copy_file_range`.
    pub clears_suid_before_ranges: bool,
}

/// Reads and answers the kernel's INIT, the first request of a session.
///
/// # Errors
/// When the kernel is too old, the session ends instead, or the device fails.
pub(crate) fn agree(channel: &Channel, buffer: &mut [u8]) -> io::Result<Agreement> {
    loop {
        let len = match channel.receive(buffer)? {
            Received::Request(len) => len,
            Received::Nothing => {
                channel.wait()?;
                continue;
            }
            Received::End => return Err(io::Error::other("it was unmounted at once")),
        };
        let request = Request::parse(&buffer[..len], false)
            .map_err(|error| io::Error::other(error.to_string()))?;
        let Operation::Init(kernel, extension) = request.operation else {
            let text = format!("operation {} came before INIT", request.header.opcode);
            return Err(io::Error::other(text));
        };
        let unique = request.header.unique;
        if kernel.major > VERSION_MAJOR {
            // The kernel asks again, in the version that it is told here.
            let version = [VERSION_MAJOR, VERSION_MINOR];
            channel.reply(unique, &[version.as_bytes()])?;
            continue;
        }
        if kernel.major < VERSION_MAJOR || kernel.minor < VERSION_MINOR_MIN {
            channel.refuse(unique, libc::EPROTO)?;
            return Err(io::Error::other(format!(
                "the kernel's FUSE is of version {}.{}; at least {VERSION_MAJOR}.{VERSION_MINOR_MIN} (Linux 5.4) is needed",
                kernel.major, kernel.minor
            )));
        }
        let (answer, agreement) = terms(&kernel, &extension);
        channel.reply(unique, &[answer.as_bytes()])?;
        return Ok(agreement);
    }
}

fn terms(kernel: &InitIn, extension: &InitInExtension) -> (InitOut, Agreement) {
    let mut offered = u64::from(kernel.flags);
    if offered & capability::INIT_EXT != 0 {
        offered |= u64::from(extension.flags2) << 32;
    }
    let agreed = offered & WANTED;
    tracing::debug!(
        minor = kernel.minor,
        missing = format_args!("{:#x}", WANTED & !agreed),
        "agreed with the kernel"
    );
    let pages = WRITE_BYTES_MAX as usize / rustix::param::page_size();
    let answer = InitOut {
        major: VERSION_MAJOR,
        minor: VERSION_MINOR,
        max_readahead: kernel.max_readahead.min(READ_AHEAD_BYTES),
        flags: agreed as u32,
        max_background: BACKGROUND_REQUESTS_MAX,
        congestion_threshold: CONGESTION_THRESHOLD,
        max_write: WRITE_BYTES_MAX,
        time_gran: 1,
        max_pages: u16::try_from(pages).unwrap_or(u16::MAX),
        flags2: (agreed >> 32) as u32,
        ..InitOut::default()
    };
    let agreement = Agreement {
        setxattr_ext: agreed & capability::SETXATTR_EXT != 0,
        clears_suid_before_ranges: kernel.minor >= VERSION_MINOR_MODIFIED,
    };
    (answer, agreement)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_agreed_on_that_the_kernel_lacks() {
        let old = InitIn {
            major: 7,
            minor: 32,
            max_readahead: 128 << 10,
            flags: (capability::ASYNC_READ | capability::MAX_PAGES | 1 << 17) as u32,
        };
        let garbage = InitInExtension {
            flags2: u32::MAX,
            ..InitInExtension::default()
        };
        let (answer, agreement) = terms(&old, &garbage);
        let expected = (capability::ASYNC_READ | capability::MAX_PAGES) as u32;
        assert_eq!((answer.flags, answer.flags2), (expected, 0));
        assert_eq!(answer.max_readahead, 128 << 10);
        assert!(!agreement.setxattr_ext && !agreement.clears_suid_before_ranges);

        let new = InitIn {
            minor: 45,
            flags: u32::MAX,
            max_readahead: u32::MAX,
            ..old
        };
        let (answer, agreement) = terms(&new, &garbage);
        assert_eq!(
            u64::from(answer.flags) | u64::from(answer.flags2) << 32,
            WANTED
        );
        assert_eq!(answer.max_readahead, READ_AHEAD_BYTES);
        assert!(agreement.setxattr_ext && agreement.clears_suid_before_ranges);
    }
}
