//! How much memory this process may use: what the machine has, or less where a control group sets a limit; and giving
//! back what it does not need.
//!
//! Sources: proc(5) and cgroups(7); for version 1 `memory.limit_in_bytes`, for version 2 `memory.max` of the group and
//! of every group above it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

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

/// How often it is looked whether memory can be given back.
const TRIM_PERIOD: Duration = Duration::from_secs(5);
/// Resident memory must have grown by so many bytes since it was given back last.
const GROWN_BYTES_MIN: u64 = 16 << 20;

/// Gives memory that the allocator keeps back to the system when all buffers have become empty, and after a load that has
/// left no buffers behind, as that of many S3 clients does.
pub struct Trimmer {
    was_held: bool,
    looked: Instant,
    was_quiet: bool,
    resident_bytes: u64,
}

impl Default for Trimmer {
    fn default() -> Self {
        Self {
            was_held: false,
            looked: Instant::now(),
            was_quiet: true,
            resident_bytes: resident_bytes(),
        }
    }
}

impl Trimmer {
    /// To be called now and then with the bytes that buffers hold, and those of them that are to be written.
    pub fn trim(&mut self, held_bytes: u64, dirty_bytes: u64) {
        let is_held = held_bytes > 0;
        self.was_quiet &= dirty_bytes == 0;
        let is_due = std::mem::replace(&mut self.was_held, is_held) && !is_held;
        if is_due {
            give_back();
        }
        if self.looked.elapsed() < TRIM_PERIOD {
            return;
        }
        self.looked = Instant::now();
        // What is in use would be asked for again at once, and costs more than it is worth then.
        let is_quiet = std::mem::replace(&mut self.was_quiet, true);
        let resident = resident_bytes();
        self.resident_bytes = self.resident_bytes.min(resident);
        if is_quiet && resident > self.resident_bytes + GROWN_BYTES_MIN {
            give_back();
            self.resident_bytes = resident_bytes();
        }
    }
}

fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) takes the allocator's own locks and may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Bytes of this process that are in memory (proc(5), `statm`); 0 where nobody tells.
fn resident_bytes() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|text| text.parse().ok());
    pages.map_or(0, |pages: u64| pages * rustix::param::page_size() as u64)
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
