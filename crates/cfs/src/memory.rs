//! How much memory this process may use: what the machine has, or less where a control group sets a limit; and giving
//! back what it does not need.
//!
//! Sources: proc(5) and cgroups(7); for version 1 `memory.limit_in_bytes`, for version 2 `memory.max` of the group and
//! of every group above it.

use std::fs;
use std::path::{Path, PathBuf};

/// Bytes that this process may use.
pub fn usable_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    #[allow(
        clippy::useless_conversion,
        reason = "`totalram` is narrower on other architectures"
    )]
    let machine = u64::from(info.totalram).saturating_mul(info.mem_unit.into());
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = limit_files(&groups, Path::new("/sys/fs/cgroup"));
    limits
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok())
        .fold(machine, u64::min)
}

/// The files that may hold a limit for a process of these groups, as /proc/self/cgroup lists them. Inside a container
/// the hierarchy shows the container's group as its root, so the root counts too.
fn limit_files(groups: &str, hierarchy: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(group)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (root, file) = match controllers {
            "" => (hierarchy.to_path_buf(), "memory.max"),
            list if list.split(',').any(|it| it == "memory") => {
                (hierarchy.join("memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let group = Path::new(group.trim_start_matches('/'));
        files.extend(group.ancestors().map(|above| root.join(above).join(file)));
    }
    files
}

/// Gives memory that the allocator keeps back to the system when all buffers have become empty.
#[derive(Default)]
pub struct Trimmer {
    was_held: bool,
}

impl Trimmer {
    /// To be called now and then with the bytes that buffers hold.
    pub fn trim(&mut self, held_bytes: u64) {
        let is_held = held_bytes > 0;
        if std::mem::replace(&mut self.was_held, is_held) && !is_held {
            #[cfg(target_env = "gnu")]
            // SAFETY: malloc_trim(3) takes the allocator's own locks and may be called at any time.
            unsafe {
                libc::malloc_trim(0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_looked_for_in_every_group_above() {
        let check = |groups: &str, expected: &[&str]| {
            let files = limit_files(groups, Path::new("/c"));
            let expected: Vec<_> = expected.iter().map(PathBuf::from).collect();
            assert_eq!(files, expected, "{groups:?}");
        };
        check("", &[]);
        check("garbage\n1:memory", &[]);
        check("0::/\n", &["/c/memory.max"]);
        check(
            "0::/user.slice/a.scope\n",
            &[
                "/c/user.slice/a.scope/memory.max",
                "/c/user.slice/memory.max",
                "/c/memory.max",
            ],
        );
        check(
            "5:devices:/d\n4:cpu,memory:/m:n\n",
            &[
                "/c/memory/m:n/memory.limit_in_bytes",
                "/c/memory/memory.limit_in_bytes",
            ],
        );
    }
}
