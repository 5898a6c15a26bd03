//! What `status`, `df` and `ls-domains` report: the figures, named once, as JSON and as tables.
//!
//! The words: **logical** is what files hold as readers see it, **unique** is the content of distinct chunks,
//! **stored** is what those chunks take after compression and encryption, **pool** is what the pool takes from the
//! host, with tables, journal and room not yet reclaimed.

use serde::{Deserialize, Serialize};

use super::protocol::{GcPlan, GcResult};
use crate::bytes::{count, show};

/// Health and figures of a pool.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// Version of the program that has the pool open.
    pub version: String,
    /// Version of the pool's format.
    pub format_version: u32,
    /// Identity of the pool.
    pub pool_uuid: String,
    /// Data directory.
    pub data: String,
    /// Block device, where the pool is on one.
    pub device: Option<String>,
    /// Where it is mounted.
    pub mount: Option<String>,
    /// Process that serves it.
    pub pid: Option<u32>,
    /// `good`, `full`, `damaged`, or `read-only`.
    pub health: String,
    /// Why it is not good.
    pub health_reason: Option<String>,
    /// Cipher of everything in it.
    pub cipher: String,
    /// Compression of new data in the root volume.
    pub codec: String,
    /// What opens the pool: `passphrase` or `key-file`.
    pub opens_with: String,
    /// Seconds since it was opened.
    pub uptime_seconds: f64,
    /// Segments.
    pub segments: Segments,
    /// Files, directories and all else that has an inode.
    pub inodes: u64,
    /// Bytes of content that files hold.
    pub logical_bytes: u64,
    /// Bytes of content of all chunks, each once.
    pub unique_bytes: u64,
    /// Bytes that the chunks take, compressed and encrypted.
    pub stored_bytes: u64,
    /// Bytes that the pool takes from the host.
    pub pool_bytes: u64,
    /// Most that it may take, if it was given a limit.
    #[serde(default)]
    pub pool_bytes_max: Option<u64>,
    /// Bytes that may still be written, if nothing shrinks.
    pub available_bytes: u64,
    /// Distinct chunks.
    pub chunks: u64,
    /// References to chunks.
    pub chunk_references: u64,
    /// Bytes that the references stand for.
    pub referenced_bytes: u64,
    /// Referenced by unique bytes.
    pub dedup_ratio: f64,
    /// Unique by stored bytes.
    pub compression_ratio: f64,
    /// Bytes of the log that an open after a crash would replay.
    pub journal_bytes: u64,
    /// Bytes accepted and not yet stored.
    pub dirty_bytes: u64,
    /// Bytes of opened chunks in memory.
    pub hot_bytes: u64,
    /// Damaged blocks of tables and log that were restored from parity since the pool was opened.
    pub healed_blocks: u64,
    /// Emptying of segments since the pool was opened.
    #[serde(default)]
    pub reclaim: Reclaim,
    /// Recounts of references.
    #[serde(default)]
    pub recount: Recount,
}

/// What recounts of references have found, and how far the one is that is under way.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Recount {
    /// One is under way, in the background or asked for.
    pub is_running: bool,
    /// Extents and chunks that it has looked at.
    pub seen: u64,
    /// Extents and chunks that it is to look at.
    pub total: u64,
    /// When the last one ended, seconds since 1970.
    pub finished_at: Option<u64>,
    /// Chunks whose count was not that of the extents that show them.
    pub differing: u64,
    /// Those of them that no extent showed.
    pub leaked: u64,
    /// Those of them that the index had not.
    pub missing: u64,
    /// Why the last one could not go on.
    pub failed: Option<String>,
}

impl Recount {
    fn text(&self) -> String {
        let mut text = match self.finished_at {
            None => "none yet".to_owned(),
            Some(at) => {
                let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
                let hours = now.map_or(0, |now| now.as_secs().saturating_sub(at) / 3600);
                let result = match self.differing {
                    0 => "all agree".to_owned(),
                    differing => format!(
                        "{} chunks differ ({} leaked, {} missing)",
                        count(differing),
                        count(self.leaked),
                        count(self.missing)
                    ),
                };
                match hours {
                    0..48 => format!("{result}, {hours} h ago"),
                    _ => format!("{result}, {} days ago", hours / 24),
                }
            }
        };
        if self.is_running {
            let percent = self.seen as f64 * 100.0 / self.total.max(1) as f64;
            text += &format!("; one is under way, {percent:.0} %");
        }
        if let Some(failed) = &self.failed {
            text += &format!("; the last one could not go on: {failed}");
        }
        text
    }
}

/// What emptying segments has done, and whether a pass that was asked for is under way.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Reclaim {
    /// Segments emptied.
    pub segments: u64,
    /// Bytes copied out of them.
    pub copied_bytes: u64,
    /// Chunks without references that left the index.
    pub dropped_chunks: u64,
    /// Bytes that a pass would free now.
    pub reclaimable_bytes: u64,
    /// A pass that was asked for is under way.
    pub pass_is_running: bool,
    /// Segments that it, or the last one, has emptied.
    pub pass_segments: u64,
    /// Segments that it was to empty when it began.
    pub pass_segments_total: u64,
}

/// Segments of a pool by what they hold.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Segments {
    /// All that the pool may have.
    pub total: u64,
    /// Free ones.
    pub free: u64,
    /// Of the log.
    pub journal: u64,
    /// Of tables.
    pub table: u64,
    /// Of chunks.
    pub data: u64,
    /// Emptied, and free after the next checkpoint.
    pub pending: u64,
}

/// Bytes by volume.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Df {
    /// The volumes.
    pub volumes: Vec<VolumeUse>,
    /// Bytes of content that files hold, in all.
    pub logical_bytes: u64,
    /// Bytes of content of all chunks, each once.
    pub unique_bytes: u64,
    /// Bytes that the chunks take, compressed and encrypted.
    pub stored_bytes: u64,
    /// Bytes that the pool takes from the host.
    pub pool_bytes: u64,
    /// Bytes that may still be written, if nothing shrinks.
    pub available_bytes: u64,
}

/// A volume's share.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct VolumeUse {
    /// Its number.
    pub volume: u32,
    /// Where it is.
    pub path: String,
    /// Bytes of content that its files hold.
    pub logical_bytes: u64,
    /// The same without holes.
    pub allocated_bytes: u64,
    /// Its inodes.
    pub inodes: u64,
    /// Its compression.
    pub codec: String,
    /// Its dedup domain.
    pub domain: u16,
}

/// The dedup domains.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Domains {
    /// Each of them.
    pub domains: Vec<DomainUse>,
}

/// A dedup domain.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct DomainUse {
    /// Its number.
    pub domain: u16,
    /// Volumes whose new data go there.
    pub volumes: Vec<u32>,
    /// The user of the S3 face whose buckets are in it, if it is one's.
    pub user: Option<String>,
    /// Bytes of content that the files of these volumes hold.
    pub logical_bytes: u64,
}

/// The snapshots that there are.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Snapshots {
    /// Oldest first.
    pub snapshots: Vec<SnapshotUse>,
    /// Directories that receive and show something half, by their paths.
    #[serde(default)]
    pub incomplete: Vec<Incomplete>,
}

/// A directory that is neither what it was nor what is sent to it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Incomplete {
    /// The directory.
    pub path: String,
    /// The same in hexadecimal digits, if it is no UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
    /// A stream is coming now; else the last one was cut off.
    pub receiving: bool,
}

/// Bytes in hexadecimal digits, if they are no text that says the same.
pub fn hex_if_no_text(bytes: &[u8]) -> Option<String> {
    use std::fmt::Write as _;
    std::str::from_utf8(bytes).is_err().then(|| {
        bytes.iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    })
}

/// The volumes that there are.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Volumes {
    /// In the order in which they were made.
    pub volumes: Vec<VolumeShown>,
}

/// A volume.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct VolumeShown {
    /// Its number.
    pub volume: u32,
    /// The path of its root.
    pub path: String,
    /// The same in hexadecimal digits, if it is no UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
    /// Bytes of content, holes counted.
    pub logical_bytes: u64,
    /// Most of them.
    pub quota_bytes: Option<u64>,
    /// Inodes.
    pub inodes: u64,
    /// Most of them.
    pub quota_inodes: Option<u64>,
    /// Snapshots.
    pub snapshots: u64,
    /// Its dedup domain.
    pub domain: u16,
    /// Of a clone, directory and name of the snapshot; the counts are of what is its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// Of a volume that receives what other pools send, what has come: `complete`, `receiving`, or `cut off`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<String>,
}

impl Volumes {
    /// The lines that people read.
    pub fn lines(&self) -> Vec<String> {
        let head = [
            "volume",
            "path",
            "logical",
            "of",
            "inodes",
            "of",
            "snapshots",
            "domain",
            "replica",
            "clone of",
        ];
        let mut rows = vec![head.map(str::to_owned)];
        let none = || "-".to_owned();
        rows.extend(self.volumes.iter().map(|it| {
            [
                it.volume.to_string(),
                printable(&it.path),
                show(it.logical_bytes),
                it.quota_bytes.map_or_else(none, show),
                count(it.inodes),
                it.quota_inodes.map_or_else(none, count),
                count(it.snapshots),
                it.domain.to_string(),
                it.replica.clone().unwrap_or_else(none),
                it.origin.as_deref().map_or_else(none, printable),
            ]
        }));
        let (left, right) = (Align::Left, Align::Right);
        table(
            &rows,
            &[
                right, left, right, right, right, right, right, right, left, left,
            ],
        )
    }
}

/// The policies that there are.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Policies {
    /// In the order in which their directories were made.
    pub policies: Vec<PolicyShown>,
}

/// A directory of which snapshots are taken by themselves.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PolicyShown {
    /// The directory.
    pub path: String,
    /// The same in hexadecimal digits, if it is no UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
    /// How many are kept.
    pub policy: String,
}

impl Policies {
    /// The lines that people read.
    pub fn lines(&self) -> Vec<String> {
        let rows: Vec<_> = self
            .policies
            .iter()
            .map(|it| [printable(&it.path), it.policy.clone()])
            .collect();
        table(&rows, &[Align::Left, Align::Left])
    }
}

/// A snapshot.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SnapshotUse {
    /// What names it for ever, among all of the pool.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The same in hexadecimal digits, if it is no UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_hex: Option<String>,
    /// The directory, with the path that it has; if it has been removed, that it had.
    pub path: String,
    /// The same in hexadecimal digits, if it is no UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
    /// The directory has been removed.
    pub removed: bool,
    /// It holds what had come of a stream that was cut off; receiving that to its end takes it away.
    pub cut_off: bool,
    /// The directory's volume.
    pub volume: u32,
    /// When it was taken, seconds since 1970.
    pub created: i64,
    /// The same as text, UTC.
    pub created_text: String,
    /// It cannot be deleted.
    pub held: bool,
    /// Bytes of content that it shows.
    pub logical_bytes: u64,
    /// Inodes that it shows.
    pub inodes: u64,
    /// Stored bytes of chunks that nothing else holds.
    pub exclusive_bytes: u64,
    /// Stored bytes of chunks that nothing would hold any more if it, and those given with `--with`, were deleted.
    pub freed_bytes: u64,
}

/// A snapshot that was just taken.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SnapshotTaken {
    /// Its name.
    pub name: String,
    /// The same in hexadecimal digits, if it is no UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_hex: Option<String>,
    /// The directory.
    pub path: String,
    /// The same in hexadecimal digits, if it is no UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
    /// How long it took until it was durable.
    pub seconds: f64,
}

/// Quotient for people; 1 when nothing is there.
pub fn ratio(numerator: u64, denominator: u64) -> f64 {
    match denominator {
        0 => 1.0,
        _ => (numerator as f64 / denominator as f64 * 1000.0).round() / 1000.0,
    }
}

impl Status {
    /// The lines that people read.
    pub fn lines(&self) -> Vec<String> {
        let mut rows: Vec<[String; 2]> = Vec::new();
        let mut row = |name: &str, value: String| rows.push([name.to_owned(), value]);
        row("pool", self.pool_uuid.clone());
        row("data", self.data.clone());
        if let Some(device) = &self.device {
            row("device", device.clone());
        }
        row(
            "served by",
            match (self.pid, &self.mount) {
                (Some(pid), Some(mount)) => format!("process {pid}, at {mount}"),
                (Some(pid), None) => format!("process {pid}, not mounted"),
                (None, _) => "nobody; opened for this report".to_owned(),
            },
        );
        row(
            "health",
            match &self.health_reason {
                Some(reason) => format!("{}: {reason}", self.health),
                None => self.health.clone(),
            },
        );
        row(
            "format",
            format!(
                "version {}, {}, {}, opens with a {}",
                self.format_version, self.cipher, self.codec, self.opens_with
            ),
        );
        row("up", format!("{:.0} s", self.uptime_seconds));
        row("inodes", count(self.inodes));
        row("logical", show(self.logical_bytes));
        row("unique", show(self.unique_bytes));
        row("stored", show(self.stored_bytes));
        row(
            "pool",
            format!(
                "{}{}, room for {} more",
                show(self.pool_bytes),
                (self.pool_bytes_max)
                    .map_or_else(String::new, |most| format!(" of at most {}", show(most))),
                show(self.available_bytes)
            ),
        );
        row(
            "deduplication",
            format!(
                "{:.2}x ({} references to {} chunks)",
                self.dedup_ratio,
                count(self.chunk_references),
                count(self.chunks)
            ),
        );
        row("compression", format!("{:.2}x", self.compression_ratio));
        row(
            "segments",
            format!(
                "data {}, tables {}, journal {}, soon free {}; {} of {} free",
                count(self.segments.data),
                count(self.segments.table),
                count(self.segments.journal),
                count(self.segments.pending),
                count(self.segments.free),
                count(self.segments.total)
            ),
        );
        let reclaim = &self.reclaim;
        let mut reclaimed = format!(
            "{} segments emptied, {} copied; a pass would free {}",
            count(reclaim.segments),
            show(reclaim.copied_bytes),
            show(reclaim.reclaimable_bytes)
        );
        if reclaim.pass_is_running {
            reclaimed += &format!(
                "; pass under way, {} of {} segments",
                count(reclaim.pass_segments),
                count(reclaim.pass_segments_total)
            );
        }
        row("reclaim", reclaimed);
        row("recount", self.recount.text());
        row("journal", format!("{} to replay", show(self.journal_bytes)));
        row("dirty", show(self.dirty_bytes));
        row("hot", show(self.hot_bytes));
        if self.healed_blocks > 0 {
            row(
                "restored",
                format!(
                    "{} damaged blocks; look at the disk",
                    count(self.healed_blocks)
                ),
            );
        }
        table(&rows, &[Align::Left, Align::Left])
    }
}

impl Snapshots {
    /// The lines that people read.
    pub fn lines(&self) -> Vec<String> {
        let mut rows = vec![
            [
                "name",
                "of",
                "taken (UTC)",
                "",
                "inodes",
                "logical",
                "it alone",
                "freed",
                "id",
            ]
            .map(str::to_owned),
        ];
        rows.extend(self.snapshots.iter().map(|it| {
            [
                printable(&it.name),
                printable(&it.path),
                it.created_text.clone(),
                [
                    (it.held, "held"),
                    (it.removed, "removed"),
                    (it.cut_off, "cut off"),
                ]
                .iter()
                .filter_map(|(is, word)| is.then_some(*word))
                .collect::<Vec<_>>()
                .join(", "),
                count(it.inodes),
                show(it.logical_bytes),
                show(it.exclusive_bytes),
                show(it.freed_bytes),
                it.id.clone(),
            ]
        }));
        let align = [
            Align::Left,
            Align::Left,
            Align::Left,
            Align::Left,
            Align::Right,
            Align::Right,
            Align::Right,
            Align::Right,
            Align::Left,
        ];
        let mut lines = table(&rows, &align);
        lines.extend(self.incomplete.iter().map(|it| {
            let path = printable(&it.path);
            match it.receiving {
                true => format!("{path} is being received, and not complete until it has a new snapshot"),
                false => format!(
                    "{path} is not complete: what was sent to it was cut off. Send it again, or remove it; its snapshots are whole"
                ),
            }
        }));
        lines
    }
}

/// Without what would move the terminal's cursor.
pub fn printable(text: &str) -> String {
    text.replace(|c: char| c.is_control(), "?")
}

impl Df {
    /// The lines that people read.
    pub fn lines(&self) -> Vec<String> {
        let mut rows = vec![
            [
                "volume",
                "path",
                "inodes",
                "logical",
                "without holes",
                "codec",
                "domain",
            ]
            .map(str::to_owned),
        ];
        rows.extend(self.volumes.iter().map(|it| {
            [
                it.volume.to_string(),
                it.path.clone(),
                count(it.inodes),
                show(it.logical_bytes),
                show(it.allocated_bytes),
                it.codec.clone(),
                it.domain.to_string(),
            ]
        }));
        let mut lines = table(
            &rows,
            &[
                Align::Right,
                Align::Left,
                Align::Right,
                Align::Right,
                Align::Right,
                Align::Left,
                Align::Right,
            ],
        );
        lines.push(format!(
            "in all: {} logical, {} unique, {} stored, {} pool, {} available",
            show(self.logical_bytes),
            show(self.unique_bytes),
            show(self.stored_bytes),
            show(self.pool_bytes),
            show(self.available_bytes)
        ));
        lines
    }
}

impl Domains {
    /// The lines that people read.
    pub fn lines(&self) -> Vec<String> {
        let mut rows = vec![["domain", "user", "volumes", "logical"].map(str::to_owned)];
        rows.extend(self.domains.iter().map(|it| {
            let volumes: Vec<String> = it.volumes.iter().map(u32::to_string).collect();
            [
                it.domain.to_string(),
                it.user.clone().unwrap_or_else(|| "-".to_owned()),
                volumes.join(","),
                show(it.logical_bytes),
            ]
        }));
        table(
            &rows,
            &[Align::Right, Align::Left, Align::Left, Align::Right],
        )
    }
}

impl GcPlan {
    /// The lines that people read.
    pub fn lines(&self) -> Vec<String> {
        let mut rows = vec![["live", "segments", "written", "live bytes"].map(str::to_owned)];
        let tenths = self.segments.iter().filter(|tenth| tenth.segments > 0);
        rows.extend(tenths.map(|it| {
            [
                format!("{}-{} %", it.live_percent_max - 10, it.live_percent_max),
                count(it.segments),
                show(it.used_bytes),
                show(it.live_bytes),
            ]
        }));
        let mut lines = match rows.len() {
            1 => vec!["no full data segments".to_owned()],
            _ => table(&rows, &[Align::Right; 4]),
        };
        lines.push(match self.segments_to_empty {
            0 => "nothing is worth emptying".to_owned(),
            segments => format!(
                "to empty: {} segments; {} to copy, {} come free",
                count(segments),
                show(self.bytes_to_copy),
                show(self.bytes_to_free)
            ),
        });
        if self.bytes_on_the_way > 0 {
            lines.push(format!("free soon anyway: {}", show(self.bytes_on_the_way)));
        }
        lines
    }
}

impl GcResult {
    /// The lines that people read.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![self.line()];
        if self.segments_left > 0 {
            lines.push(format!(
                "{} segments are as they were: they are in use, cannot be read, or there is too little room; the same \
                 command begins anew",
                count(self.segments_left)
            ));
        }
        lines
    }

    fn line(&self) -> String {
        format!(
            "emptied {} segments, copied {}, dropped {} chunks in {:.1} s; the pool takes {}, before {}",
            count(self.segments),
            show(self.copied_bytes),
            count(self.dropped_chunks),
            self.seconds,
            show(self.pool_bytes_after),
            show(self.pool_bytes_before)
        )
    }
}

/// To which side a column goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// Rows with their columns aligned.
pub fn table<const COLUMNS: usize>(
    rows: &[[String; COLUMNS]],
    align: &[Align; COLUMNS],
) -> Vec<String> {
    let mut widths = [0; COLUMNS];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |row: &[String; COLUMNS]| {
        let cells: Vec<String> = (0..COLUMNS)
            .map(|i| {
                let width = widths[i];
                match align[i] {
                    Align::Left => format!("{:<width$}", row[i]),
                    Align::Right => format!("{:>width$}", row[i]),
                }
            })
            .collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [["a", "1"], ["long", "23"]].map(|row| row.map(str::to_owned));
        assert_eq!(
            table(&rows, &[Align::Left, Align::Right]),
            ["a      1", "long  23"]
        );
    }
}
