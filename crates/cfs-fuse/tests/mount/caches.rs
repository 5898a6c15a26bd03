//! What the kernel remembers, and how it is made to forget.

use std::fs;
use std::os::unix::fs::FileExt as _;

use cfs_format::Ino;
use cfs_fs::Caller;

use crate::support::mount;

#[test]
fn the_kernel_forgets_what_it_is_told_to() {
    let Some(test) = mount() else { return };
    let path = test.path("name");
    assert!(!path.exists());
    let caller = Caller::default();
    let attr = test
        .fs
        .create(Ino::ROOT, b"name", 0o644, &caller)
        .expect("create behind its back");
    assert!(!path.exists(), "absent names are remembered");
    test.mounted()
        .invalidate_entry(Ino::ROOT.0, b"name")
        .expect("invalidate");
    assert_eq!(fs::read(&path).expect("read"), b"");

    test.fs
        .write(attr.ino, 0, b"content", false)
        .expect("write behind its back");
    assert_eq!(
        fs::metadata(&path).expect("stat").len(),
        0,
        "attributes are remembered"
    );
    test.mounted()
        .invalidate_inode(attr.ino.0)
        .expect("invalidate");
    // Opening it anew would drop what is remembered, for the sake of the access time.
    let file = fs::File::open(&path).expect("open");
    let content = || {
        let mut content = [0; 7];
        file.read_exact_at(&mut content, 0).expect("read");
        content
    };
    assert_eq!(&content(), b"content");

    test.fs
        .write(attr.ino, 0, b"CONTENT", false)
        .expect("write behind its back");
    assert_eq!(&content(), b"content", "content is remembered");
    test.mounted()
        .invalidate_inode(attr.ino.0)
        .expect("invalidate");
    assert_eq!(&content(), b"CONTENT");

    // What it does not know, it can forget as well.
    test.mounted()
        .invalidate_entry(Ino::ROOT.0, b"never seen")
        .expect("invalidate");
    test.mounted()
        .invalidate_inode(0x1234_5678)
        .expect("invalidate");
}
