//! `cfs admin scrub`: reads all that is stored, at a rate that leaves room for others, and tells which files damage
//! touches.

use std::num::NonZeroU64;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use cfs_fs::Fs;
use cfs_fs::check::AffectedFile;
use cfs_store::{ScrubProgress, ScrubReport};

use super::protocol::{Answer, Event, Finding, Progress, ScrubSummary};
use super::reporter::Reporter;
use crate::failure::{Code, Failure, Result};

/// Between two reports of progress, and longest wait without a look whether to go on.
const STEP: Duration = Duration::from_millis(100);
/// Ranges of a file that are listed.
const RANGES_MAX: usize = 50;

/// Scrubs a pool, at most `rate` bytes a second if there is one. `restored_before` counts blocks that belong into the
/// answer although they had been restored before.
///
/// # Errors
/// [`Code::Interrupted`], or [`Code::Failed`] when it cannot go on; damage is no error.
pub fn scrub(
    fs: &Fs,
    rate: Option<NonZeroU64>,
    restored_before: u64,
    reporter: &dyn Reporter,
) -> Result<Answer> {
    let started = Instant::now();
    let mut told = started;
    let mut pace = |progress: ScrubProgress| {
        loop {
            let since = told.elapsed();
            if since >= STEP {
                told = Instant::now();
                reporter.event(&Event::Progress(show(progress)));
                if reporter.cancelled() {
                    return ControlFlow::Break(());
                }
            }
            let due = rate.map_or(0.0, |rate| progress.bytes as f64 / rate.get() as f64);
            let early = due - started.elapsed().as_secs_f64();
            if early <= 0.0 {
                return ControlFlow::Continue(());
            }
            std::thread::sleep(STEP.min(Duration::from_secs_f64(early)));
        }
    };
    let failed = |error: &dyn std::fmt::Display| {
        Failure::new(Code::Failed, format!("the scrub could not go on: {error}"))
            .hint("`cfs admin fsck` tells what is wrong with the tables")
    };
    let mut report = fs.store().scrub(&mut pace).map_err(|e| failed(&e))?;
    report.restored_blocks += restored_before;
    let mut findings = 0;
    let mut tell = |id: &str, object: String, sentence: String| {
        findings += 1;
        reporter.event(&Event::Finding(Finding {
            id: id.to_owned(),
            object,
            sentence,
        }));
    };
    for finding in &report.findings {
        tell(finding.id, finding.object.clone(), finding.sentence.clone());
    }
    let affected = match report.stopped {
        true => None,
        false => fs.affected_by(&report.bad_chunks, || !reporter.cancelled()),
    };
    let is_stopped = affected.is_none();
    let affected = affected.unwrap_or_default();
    for file in &affected.files {
        for name in names(file, affected.incomplete.is_some()) {
            tell("unreadable", name, ranges(file));
        }
    }
    let unnamed = match &affected.incomplete {
        Some(error) => Some(format!(
            "not all files that they belong to can be named: {error}"
        )),
        None if is_stopped => Some("which files they belong to was not looked up".to_owned()),
        None => None,
    };
    if let Some(sentence) = unnamed.filter(|_| !report.bad_chunks.is_empty()) {
        let object = format!("{} damaged chunks", report.bad_chunks.len());
        tell("bad-chunks", object, sentence);
    }
    if is_stopped {
        return Err(Failure::new(
            Code::Interrupted,
            "interrupted; what was found until then has been told",
        )
        .hint("a scrub begins anew each time"));
    }
    Ok(Answer::Scrub(summary(
        &report,
        &affected.files,
        findings,
        started,
    )))
}

fn summary(
    report: &ScrubReport,
    affected: &[AffectedFile],
    findings: u64,
    started: Instant,
) -> ScrubSummary {
    ScrubSummary {
        bytes: report.bytes,
        chunks: report.chunks,
        table_blocks: report.table_blocks,
        bad_chunks: report.bad_chunks.len() as u64,
        files: affected.len() as u64,
        restored_blocks: report.restored_blocks,
        findings,
        seconds: started.elapsed().as_secs_f64(),
    }
}

fn show(progress: ScrubProgress) -> Progress {
    Progress {
        phase: "scrub".to_owned(),
        objects: 0,
        objects_total: None,
        bytes: progress.bytes,
        bytes_total: Some(progress.bytes_total),
    }
}

/// A file's names, or what stands for them.
pub fn names(file: &AffectedFile, is_incomplete: bool) -> Vec<String> {
    let past = match file.in_snapshots {
        true => " (as snapshots show it)",
        false => "",
    };
    if file.paths.is_empty() {
        let why = match is_incomplete {
            true => "its name cannot be read",
            false if file.in_snapshots => "removed, and in snapshots",
            false => "removed, and still open",
        };
        return vec![format!("inode {} ({why})", file.ino)];
    }
    let paths = file.paths.iter();
    paths
        .map(|path| String::from_utf8_lossy(path).into_owned() + past)
        .collect()
}

/// What of it cannot be read.
pub fn ranges(file: &AffectedFile) -> String {
    let mut listed: Vec<String> = file
        .ranges
        .iter()
        .take(RANGES_MAX)
        .map(|(start, end)| format!("{start}-{}", end - 1))
        .collect();
    if file.ranges.len() > RANGES_MAX {
        listed.push(format!("{} more ranges", file.ranges.len() - RANGES_MAX));
    }
    format!(
        "bytes {} cannot be read; writing the same again heals them",
        listed.join(", ")
    )
}
