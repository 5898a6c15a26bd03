//! Operations on whole files, snapshots and volumes that others overlap with.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Scope;

use cfs_format::Ino;
use cfs_fs::{Caller, Fs, FsOptions};

use crate::pool::{Pool, assert_clean};

fn create(fs: &Fs, name: &str) -> Ino {
    fs.create(Ino::ROOT, name.as_bytes(), 0o644, &Caller::default())
        .expect("create")
        .ino
}

/// Ends the others of a test however it ends.
struct Until<'a>(&'a AtomicBool);

impl Drop for Until<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Does something over and over, beside a test.
fn over_and_over<'scope>(
    scope: &'scope Scope<'scope, '_>,
    stop: &'scope AtomicBool,
    mut work: impl FnMut() + Send + 'scope,
) {
    scope.spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            work();
        }
    });
}

/// Background work looks at each dirty file, which is in its hands meanwhile. A snapshot that was taken at that moment did not
/// show what had been written to the file.
#[test]
fn a_snapshot_shows_what_background_work_has_in_hand() {
    const FILES: usize = 64;
    let pool = Pool::new(64);
    let fs = pool.open_with(FsOptions {
        flush_after_ms: 1 << 40,
        ..FsOptions::default()
    });
    let files: Vec<Ino> = (0..FILES)
        .map(|number| create(&fs, &format!("f{number}")))
        .collect();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _until = Until(&stop);
        for _ in 0..2 {
            over_and_over(scope, &stop, || fs.tick().expect("tick"));
        }
        let mut missed = Vec::new();
        for size in 1..800_u64 {
            for ino in &files {
                fs.write(*ino, size - 1, b"x", false).expect("write");
            }
            let name = format!("s{size}");
            let taken = fs.snapshot_create(b"/", name.as_bytes()).expect("taken");
            for ino in &files {
                let shown = fs.getattr(ino.in_view(taken.view).expect("a number"));
                let shown = shown.expect("attributes").size;
                if shown != size {
                    missed.push((size, shown));
                }
            }
        }
        assert!(missed.is_empty(), "written and shown: {missed:?}");
    });
    assert_clean(&fs);
}
