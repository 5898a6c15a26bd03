//! A block device whose writes fail: a loop device whose file lies on a host that is full, which the pool does not see.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use crate::cfs;
use crate::support::{Scratch, Server, as_root, as_root_with_tmpfs, can_mount, command};
use crate::trees::noise;

const DEVICE_BYTES: u64 = 512 << 20;
const FILE_BYTES: usize = 8 << 20;

/// Goes away when it is dropped.
struct LoopDevice {
    path: String,
}

impl LoopDevice {
    /// None, loudly, where there is no such thing.
    fn over(image: &Path) -> Option<Self> {
        let mut losetup = Command::new("losetup");
        let made = losetup.args(["--find", "--show"]).arg(image).output();
        let why = match made {
            Ok(made) if made.status.success() => {
                let path = String::from_utf8_lossy(&made.stdout).trim().to_owned();
                return Some(Self { path });
            }
            Ok(made) => String::from_utf8_lossy(&made.stderr).into_owned(),
            Err(error) => error.to_string(),
        };
        eprintln!("SKIPPED: there is no loop device to be had here: {why}");
        None
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.path]).output();
    }
}

fn serve(data: &Path, mount: &Path, options: &[&str]) -> Server {
    let mut serving = command(&[&"mount", &"--data", &data, &mount]);
    serving.args(options);
    Server::spawn(serving, data, Some(mount))
}

fn write_and_sync(path: PathBuf, content: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Takes all room of the host.
fn fill(path: &Path) {
    let mut filler = File::create(path).expect("a file");
    for piece in [&[1; 1 << 20][..], &[1; 4096]] {
        while filler.write(piece).is_ok_and(|bytes| bytes > 0) {}
    }
}

#[track_caller]
fn is_refused<T>(done: io::Result<T>) {
    let errno = done.err().and_then(|error| error.raw_os_error());
    assert!(
        matches!(errno, Some(libc::EROFS | libc::EIO)),
        "{errno:?} is not the error of a device"
    );
}

#[test]
fn a_device_that_has_failed_to_write_is_only_read() {
    const NAME: &str = "a_device_that_has_failed_to_write_is_only_read";
    if !can_mount(NAME) || !as_root(NAME) {
        return;
    }
    let scratch = Scratch::new();
    let host = scratch.dir("host");
    if !as_root_with_tmpfs(&host, "size=96m") {
        return;
    }
    let image = host.join("image");
    let made = File::create(&image).and_then(|file| file.set_len(DEVICE_BYTES));
    made.expect("a sparse file");
    let Some(device) = LoopDevice::over(&image) else {
        return;
    };
    let (data, mount) = (scratch.path("data"), scratch.dir("mount"));
    let server = serve(&data, &mount, &["--device", &device.path]);
    let content = noise(1, FILE_BYTES);
    write_and_sync(mount.join("kept"), &content).expect("a device that works");
    let mut kept = OpenOptions::new().append(true).open(mount.join("kept"));
    let kept = kept.as_mut().expect("it is there");

    fill(&host.join("filler"));
    is_refused(write_and_sync(mount.join("lost"), &noise(2, FILE_BYTES)));
    // The device works again, and what it has of what was written is not known.
    fs::remove_file(host.join("filler")).expect("it is ours");
    is_refused(kept.write_all(b"more").and_then(|()| kept.sync_all()));
    is_refused(File::create(mount.join("new")));
    is_refused(fs::remove_file(mount.join("kept")));
    is_refused(File::open(&mount).and_then(|root| root.sync_all()));
    let there = fs::read(mount.join("kept")).expect("reading goes on");
    assert!(there == content, "what was synced reads as it was");
    let status = cfs!("admin", "status", "--json", "--data", data).ok();
    let status = status.json();
    assert_eq!(status["health"], "read-only", "{status}");
    let reason = status["health_reason"].as_str().expect("a reason");
    let said = server.said();
    assert!(
        said.contains("the pool goes read-only") && said.contains(reason),
        "{said}"
    );

    server.signal(Signal::TERM);
    assert_ne!(server.end(), 0, "not everything is written");
    let server = serve(&data, &mount, &[]);
    let there = fs::read(mount.join("kept")).expect("it is there");
    assert!(there == content, "what was synced is there");
    write_and_sync(mount.join("new"), &content).expect("the device works again");
    server.stop();
    cfs!("admin", "fsck", "--data", data).ok();
}
