//! `cfs repair`: opening what other commands refuse to open. Each kind of repair says what is lost by it.

use std::collections::HashSet;
use std::process::ExitCode;
use std::time::Instant;

use cfs_fs::Rebuilt;
use serde::Serialize;

use crate::admin::client::{self, Terms};
use crate::admin::protocol::{Event, Finding, Progress};
use crate::admin::reporter::Reporter;
use crate::admin::scrub::{names, ranges};
use crate::bytes::count;
use crate::cli::RepairArgs;
use crate::datadir::DataDir;
use crate::failure::{Code, Failure, Result};
use crate::keys::{Environment, KeyGiven};
use crate::pool::{self, Use};

/// What a rebuild looked at and found.
#[derive(Debug, Serialize)]
struct RebuildSummary {
    /// Where the list of the tables came from.
    source: &'static str,
    /// Whether the superblock had to be taken from the data directory.
    superblock_from_copy: bool,
    segments: u64,
    rows: u64,
    /// Table blocks that could not be read.
    lost_blocks: u64,
    /// Commands of the log that were applied.
    commands: u64,
    commands_skipped: u64,
    /// The last ones, that nobody knows to have been durable.
    commands_unfinished: u64,
    chunks: u64,
    lost_chunks: u64,
    /// Files with content that is lost.
    files: u64,
    findings: u64,
    seconds: f64,
}

/// Does what the options want.
///
/// # Errors
/// What stands in the way; the pool is as it was then.
pub fn run(args: RepairArgs, environment: Environment) -> Result<ExitCode> {
    let dir = DataDir::at(&args.existing.data)?;
    let given = KeyGiven::new(args.existing.key, environment);
    if args.repair.rebuild_index {
        return rebuild(&dir, given, args.json);
    }
    let usage = Use {
        accept_log_loss: true,
        ..Use::default()
    };
    let pool = pool::open(&dir, given, usage)?;
    let loss = pool.fs.store().log_loss().map(str::to_owned);
    pool::close(&pool.fs)?;
    crate::tell!("the pool in {} opens", dir.path().display());
    Ok(match loss {
        Some(loss) => {
            crate::tell!("lost: {loss}; names and content are those of that moment");
            ExitCode::from(Code::Failed.number())
        }
        None => ExitCode::SUCCESS,
    })
}

fn rebuild(dir: &DataDir, given: KeyGiven, json: bool) -> Result<ExitCode> {
    let started = Instant::now();
    client::on_terminal(json, |terminal| {
        let reporter: &dyn Reporter = &**terminal;
        let go_on = |progress: cfs_store::RebuildProgress| {
            reporter.event(&Event::Progress(Progress {
                phase: progress.stage.to_owned(),
                objects: progress.segments,
                objects_total: Some(progress.segments_total),
                ..Progress::default()
            }));
            !reporter.cancelled()
        };
        let (rebuilt, _lock) = pool::rebuild(dir, given, go_on)?.ok_or_else(|| {
            Failure::new(Code::Interrupted, "interrupted; the pool is as it was")
                .hint("the rebuild begins anew each time")
        })?;
        let summary = tell(&rebuilt, reporter, started)?;
        pool::close(&rebuilt.fs)?;
        let terms = Terms {
            findings: summary.findings,
            summary: &summary,
            line: line(&summary),
        };
        Ok(client::show_findings(terminal, json, terms))
    })
}

/// Tells everything that is lost.
fn tell(rebuilt: &Rebuilt, reporter: &dyn Reporter, started: Instant) -> Result<RebuildSummary> {
    let report = &rebuilt.report;
    let mut findings = 0;
    let mut find = |id: &str, object: String, sentence: String| {
        findings += 1;
        reporter.event(&Event::Finding(Finding {
            id: id.to_owned(),
            object,
            sentence,
        }));
    };
    if report.is_behind {
        let sentence = "the newest are lost; what was found is older than the last checkpoint";
        find("tables", "the tables".to_owned(), sentence.to_owned());
    }
    if let Some(sentence) = &report.log_damage {
        find("log", "the log".to_owned(), sentence.clone());
    }
    for sentence in &report.skipped {
        let sentence = format!("could not be applied: {sentence}");
        find("log", "a change in the log".to_owned(), sentence);
    }
    if report.commands_unfinished > 0 {
        let sentence = format!(
            "the last {} changes are left out: they had not been flushed, and content of the first of them is not there",
            count(report.commands_unfinished)
        );
        find("log", "the log".to_owned(), sentence);
    }
    for finding in &rebuilt.findings {
        find(finding.id, finding.object.clone(), finding.sentence.clone());
    }
    let mut lost = HashSet::new();
    for chunk in rebuilt.fs.store().freeze().chunks() {
        let (fingerprint, record) = chunk.map_err(|error| {
            Failure::new(
                Code::Failed,
                format!("the new index cannot be read: {error}"),
            )
            .hint("look at the disk, and rebuild once more")
        })?;
        if record.is_lost() {
            lost.insert(fingerprint);
        }
    }
    let affected = rebuilt.fs.affected_by(&lost, || true).unwrap_or_default();
    if let Some(error) = &affected.incomplete {
        let sentence = format!("not all files that they belong to can be named: {error}");
        find(
            "lost-chunks",
            format!("{} lost chunks", lost.len()),
            sentence,
        );
    }
    for file in &affected.files {
        for name in names(file, affected.incomplete.is_some()) {
            find("unreadable", name, ranges(file));
        }
    }
    let skipped_untold = report.commands_skipped - report.skipped.len() as u64;
    Ok(RebuildSummary {
        source: report.source,
        superblock_from_copy: report.superblock_from_copy,
        segments: report.segments,
        rows: report.rows,
        lost_blocks: report.lost_blocks,
        commands: report.commands,
        commands_skipped: report.commands_skipped,
        commands_unfinished: report.commands_unfinished,
        chunks: report.chunks,
        lost_chunks: report.lost_chunks,
        files: affected.files.len() as u64,
        findings: findings + rebuilt.findings_omitted + skipped_untold,
        seconds: started.elapsed().as_secs_f64(),
    })
}

fn line(summary: &RebuildSummary) -> String {
    format!(
        "{}: rebuilt in {:.1} s from {} segments, by {}: {} rows, {} chunks, {} changes of the log",
        client::verdict(summary.findings),
        summary.seconds,
        count(summary.segments),
        summary.source,
        count(summary.rows),
        count(summary.chunks),
        count(summary.commands)
    )
}
