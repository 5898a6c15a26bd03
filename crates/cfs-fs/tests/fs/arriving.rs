//! What others may do to a directory while a stream comes into it: look.

use std::io::Read;

use cfs_format::Ino;
use cfs_fs::stream::StreamError;
use cfs_fs::{
    AllocateMode, Caller, Fs, FsError, LockChange, RecordChange, RenameFlags, SetAttr,
    VolumeOptions, XattrFlags,
};

use crate::pool::{Pool, assert_clean};
use crate::stream::{change, file, mkdir, receive, same, send, source};

/// A stream beside which somebody else does something, each time that so much of it has been read.
struct Beside<'a> {
    bytes: &'a [u8],
    step: usize,
    read: usize,
    act: &'a (dyn Fn() + Sync),
}

impl Read for Beside<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let len = out.len().min(self.step);
        let read = self.bytes.read(&mut out[..len])?;
        let steps = |bytes: usize| bytes / self.step;
        if steps(self.read + read) > steps(self.read) {
            std::thread::scope(|scope| {
                scope.spawn(self.act).join().expect("no panic");
            });
        }
        self.read += read;
        Ok(read)
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(done: Result<T, FsError>) {
    assert!(matches!(done, Err(FsError::Receiving)), "{done:?}");
}

/// Everything that changes something, in a directory with the file `big`; `open` is a file that had lost its name before.
fn try_everything(fs: &Fs, root: Ino, outside: Ino, open: Ino) {
    let caller = Caller::default();
    let flags = RenameFlags::default;
    refused(fs.create(root, b"stray", 0o600, &caller));
    refused(fs.mkdir(root, b"stray", 0o700, &caller));
    refused(fs.symlink(root, b"stray", b"x", &caller));
    refused(fs.mknod(root, b"stray", libc::S_IFIFO | 0o600, 0, &caller));
    refused(fs.volume_create(b"/v/stray", &VolumeOptions::default(), &caller));
    refused(fs.snapshot_create(b"/v", b"half"));
    refused(fs.write(open, 0, b"spoilt", false));
    let attr = SetAttr {
        mode: Some(0o777),
        ..SetAttr::default()
    };
    refused(fs.setattr(root, &attr));
    // What is not there yet, or not any more, is not there for others either.
    let Ok(big) = fs.lookup(root, b"big") else {
        return;
    };
    let mut content = Vec::new();
    fs.read(big.ino, 0, 100, &mut content).expect("read");
    refused(fs.write(big.ino, 0, b"spoilt", false));
    refused(fs.setattr(big.ino, &attr));
    let size = SetAttr {
        size: Some(1),
        ..SetAttr::default()
    };
    refused(fs.setattr(big.ino, &size));
    refused(fs.fallocate(big.ino, AllocateMode::Punch, 0, 4096, false));
    refused(fs.copy_range(outside_file(fs, outside), 0, big.ino, 0, 3));
    refused(fs.setxattr(big.ino, b"user.stray", b"x", XattrFlags::default()));
    refused(fs.link(big.ino, root, b"stray"));
    refused(fs.unlink(root, b"big"));
    refused(fs.rename(root, b"big", root, b"stray", flags()));
    let lock = LockChange {
        hold: Some(true),
        ..LockChange::default()
    };
    refused(fs.set_lock(big.ino, lock));
    let mut records = RecordChange::default();
    records.put.push((b"s3.tags".to_vec(), b"x".to_vec()));
    refused(fs.set_records(big.ino, records));
}

fn outside_file(fs: &Fs, outside: Ino) -> Ino {
    fs.lookup(outside, b"ours").expect("there").ino
}

#[test]
fn nobody_else_changes_what_a_stream_makes() {
    let (from, to) = (Pool::new(64), Pool::new(64));
    let (source, target) = (source(&from), to.open());
    let (whole, _) = send(&source, "one", None);
    receive(&target, &whole).expect("received");
    let root = target.resolve(b"/v").expect("there").ino;
    let outside = mkdir(&target, Ino::ROOT, "elsewhere");
    file(&target, outside, "ours", b"abc");
    let open = file(&target, root, "open", b"abc");
    target.open(open).expect("opened");
    target.unlink(root, b"open").expect("removed");

    change(&source);
    for base in [Some("one"), None] {
        // What has only been accepted by then is undone, too.
        file(&target, root, &format!("stray {base:?}"), b"x");
        let big = target.lookup(root, b"big").expect("there").ino;
        target.write(big, 7, b"spoilt", false).expect("accepted");
        let (bytes, _) = send(&source, "two", base);
        let tried = std::sync::atomic::AtomicUsize::new(0);
        let act = || {
            tried.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            try_everything(&target, root, outside, open);
            let ours = outside_file(&target, outside);
            target.write(ours, 0, b"abcd", false).expect("written");
        };
        // The first frames come before anything is changed.
        let start = 2000.min(bytes.len() / 4);
        let mut input = bytes[..start].chain(Beside {
            bytes: &bytes[start..],
            step: bytes.len() / 12,
            read: 0,
            act: &act,
        });
        let done = target.receive(
            None,
            &mut input,
            &mut std::io::sink(),
            &mut crate::stream::Nobody,
        );
        done.expect("received");
        assert!(tried.into_inner() > 5);
        same(&source, &target, ("/v", "/v"), "two");
        let two = target.snapshot(b"/v", b"two").expect("there");
        target.snapshot_delete(&two).expect("deleted");
        file(&target, root, "after", b"x");
    }
    target.release(open).expect("closed");
    assert_clean(&target);
}

/// What cannot be received leaves nothing behind.
#[test]
fn a_stream_without_its_base_makes_no_directory() {
    let (from, to) = (Pool::new(64), Pool::new(64));
    let (source, target) = (source(&from), to.open());
    change(&source);
    let (difference, _) = send(&source, "two", Some("one"));
    let refused = receive(&target, &difference);
    assert!(
        matches!(refused, Err(StreamError::NoBase(_))),
        "{refused:?}"
    );
    assert!(matches!(target.resolve(b"/v"), Err(FsError::NotFound)));
    let plain = mkdir(&target, Ino::ROOT, "v");
    let (whole, _) = send(&source, "one", None);
    let refused = receive(&target, &whole);
    assert!(
        matches!(refused, Err(StreamError::Target(_))),
        "{refused:?}"
    );
    assert!(target.names_from(plain, b"", 9).expect("listed").is_empty());
    target.rmdir(Ino::ROOT, b"v").expect("removed");
    receive(&target, &whole).expect("received");
}
