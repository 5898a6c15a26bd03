//! Btrfs in a file, behind a loop device: what snapshots cost there. Needs root and `mkfs.btrfs`.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::place::run_command;

/// Bytes of the file, which is sparse.
const IMAGE_BYTES: u64 = 32 << 30;

/// A mounted file system with one subvolume. Dropping it takes both away.
pub(super) struct Btrfs {
    dir: PathBuf,
}

impl Btrfs {
    /// Makes one below `parent`; `None` where the program for it is not there.
    ///
    /// # Errors
    /// When it is, and fails.
    pub fn new(parent: &Path, name: &str) -> anyhow::Result<Option<Self>> {
        if Command::new("mkfs.btrfs")
            .arg("--version")
            .output()
            .is_err()
        {
            return Ok(None);
        }
        let dir = parent.join(format!("btrfs-{name}-{}", std::process::id()));
        std::fs::create_dir(&dir)?;
        let place = Self { dir };
        let image = place.dir.join("image");
        std::fs::File::create(&image)?.set_len(IMAGE_BYTES)?;
        std::fs::create_dir(place.top())?;
        run_command(Command::new("mkfs.btrfs").arg("-q").arg(&image))?;
        let mut mount = Command::new("mount");
        run_command(mount.args(["-o", "loop"]).arg(&image).arg(place.top()))?;
        let mut make = Command::new("btrfs");
        run_command(make.args(["-q", "subvolume", "create"]).arg(place.root()))?;
        Ok(Some(place))
    }

    fn top(&self) -> PathBuf {
        self.dir.join("mnt")
    }

    /// The subvolume.
    pub fn root(&self) -> PathBuf {
        self.top().join("head")
    }

    /// A command that makes a snapshot of the subvolume, or of another snapshot, durable, under this name.
    pub fn snapshot(&self, of: &str, name: &str, writable: bool) -> Command {
        let mut command = Command::new("sh");
        let flag = if writable { "" } else { "-r" };
        let script = "btrfs -q subvolume snapshot $3 \"$0\" \"$1\" && btrfs filesystem sync \"$2\"";
        command
            .args(["-c", script])
            .arg(self.top().join(of))
            .arg(self.top().join(name))
            .arg(self.top())
            .arg(flag);
        command
    }
}

impl Drop for Btrfs {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.top()).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} stays mounted", self.top().display());
            return;
        }
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            eprintln!("removing {}: {error}", self.dir.display());
        }
    }
}
