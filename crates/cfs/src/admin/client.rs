//! Commands that go to the process that has the pool, or are done here when there is none.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::debug;
use super::lifecycle::summary_line;
use super::protocol::{
    Answer, DebugTarget, Envelope, Event, Finding, FsckSummary, GcResult, PROTOCOL, Present,
    RecountSummary, Request, RestoreSummary, ScrubSummary, TransferSummary,
};
use super::report::printable;
use super::reporter::{Reporter, Terminal, print_line};
use super::service::Service;
use super::socket;
use super::users::{issuer_lines, key_lines, user_lines};
use crate::bytes::{count, show};
use crate::cli::KeyArgs;
use crate::datadir::DataDir;
use crate::failure::{Code, Failure, Result, no_thread};
use crate::interrupt;
use crate::keys::{Environment, KeyGiven};
use crate::pool::{self, Pool};
use crate::serve::Ticker;

/// How long to wait for a process that has the lock and does not answer yet: it starts or ends.
const PATIENCE: Duration = Duration::from_secs(10);

/// Refuses an option that counts only for the process that opens the pool, when that is not this one.
///
/// # Errors
/// [`Code::Usage`] when another process has the pool.
pub fn refuse_when_served(dir: &DataDir, option: &str) -> Result<()> {
    let stream =
        socket::connect(dir).map_err(|e| Failure::host("connect to", &dir.socket(), &e))?;
    match stream {
        None => Ok(()),
        Some(_) => Err(Failure::new(
            Code::Usage,
            format!(
                "{option} has no effect: another process has the pool in {} open",
                dir.path().display()
            ),
        )
        .hint(format!("leave {option} out, or stop that process first"))),
    }
}

/// Does `request` where the pool is: in the process that has it, or by `here` when none has.
///
/// # Errors
/// What the command meets, or opening the pool.
pub fn perform(
    dir: &DataDir,
    request: Request,
    json: bool,
    here: impl FnOnce(Request, &dyn Reporter) -> Result<Answer>,
) -> Result<ExitCode> {
    on_terminal(json, |terminal| {
        let answer = ask_or_do(dir, request, &**terminal, here)?;
        show_answer(answer, terminal, json)
    })
}

/// Does work that tells of its progress on the terminal and ends early on a signal.
///
/// # Errors
/// Those of the work.
pub fn on_terminal(
    json: bool,
    work: impl FnOnce(&Arc<Terminal>) -> Result<ExitCode>,
) -> Result<ExitCode> {
    let terminal = Arc::new(Terminal::new(json));
    let signals = interrupt::listen()
        .map_err(|error| Failure::new(Code::Host, format!("cannot listen for signals: {error}")))?;
    let listening = {
        let terminal = Arc::clone(&terminal);
        move || {
            for _ in signals {
                terminal.interrupt();
                if std::io::stderr().is_terminal() {
                    crate::tell!("ending: what was accepted is being written");
                }
            }
        }
    };
    std::thread::Builder::new()
        .spawn(listening)
        .map_err(|error| no_thread(&error))?;
    let result = work(&terminal);
    terminal.finish();
    result
}

/// As [`perform`], for who wants the answer itself.
///
/// # Errors
/// As [`perform`].
pub fn ask(
    dir: &DataDir,
    request: Request,
    here: impl FnOnce(Request, &dyn Reporter) -> Result<Answer>,
) -> Result<Answer> {
    ask_or_do(dir, request, &Terminal::new(true), here)
}

fn ask_or_do(
    dir: &DataDir,
    request: Request,
    reporter: &dyn Reporter,
    here: impl FnOnce(Request, &dyn Reporter) -> Result<Answer>,
) -> Result<Answer> {
    let started = Instant::now();
    loop {
        let stream =
            socket::connect(dir).map_err(|e| Failure::host("connect to", &dir.socket(), &e))?;
        if let Some(stream) = stream {
            let envelope = Envelope {
                protocol: PROTOCOL,
                request,
            };
            return socket::ask(&stream, &envelope, reporter);
        }
        if !dir.is_busy() || started.elapsed() > PATIENCE {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    here(request, reporter)
}

/// Opens the pool for one request: to be only read if that is enough, or all that can be done for it.
///
/// # Errors
/// As [`pool::open`].
pub fn open_for(dir: &DataDir, given: KeyGiven, request: &Request) -> Result<Pool> {
    let only_reads = pool::Use {
        only_reads: true,
        ..pool::Use::default()
    };
    if request.only_looks() {
        return pool::open(dir, given, only_reads);
    }
    if !matches!(request, Request::Export(_)) {
        return pool::open(dir, given, pool::Use::default());
    }
    match pool::open(dir, given.clone(), pool::Use::default()) {
        Err(failure) if failure.code == Code::Host => {
            tell!(
                "notice: {}; the pool is only read, and damage that is found is not written down",
                failure.message
            );
            pool::open(dir, given, only_reads)
        }
        opened => opened,
    }
}

/// Does `request` on a pool that was opened for it, and closes the pool.
///
/// # Errors
/// What the command meets, or closing the pool.
pub fn on_own_pool(pool: Pool, request: Request, reporter: &dyn Reporter) -> Result<Answer> {
    let service = Service::new(pool, false);
    let ticker = Ticker::start(service.pool())?;
    let answer = service.perform(request, reporter);
    drop(ticker);
    let closed = service.pool().close();
    let answer = answer?;
    closed?;
    Ok(answer)
}

/// Prints a structure. Without a process that has the pool, the superblock and the journal are read as they lie on the
/// device, since opening the pool would replay and change them.
///
/// # Errors
/// As for [`perform`].
pub fn debug(dir: &DataDir, target: DebugTarget, given: KeyGiven) -> Result<ExitCode> {
    let request = Request::Debug(target);
    perform(dir, request, false, |request, reporter| {
        let mut out = |text| {
            reporter.event(&Event::Line { text });
            !reporter.cancelled()
        };
        match request {
            Request::Debug(DebugTarget::Superblock) => {
                debug::superblock(&pool::peek(dir)?.superblock, &mut out);
                Ok(Answer::Nothing)
            }
            Request::Debug(DebugTarget::Journal) => {
                debug::journal(&pool::peek(dir)?.logged_commands(given)?, &mut out);
                Ok(Answer::Nothing)
            }
            request => {
                let pool = open_for(dir, given, &request)?;
                on_own_pool(pool, request, reporter)
            }
        }
    })
}

/// Changes the passphrase, after asking whichever process has the pool what opens it now.
///
/// # Errors
/// As for [`perform`].
pub fn change_passphrase(
    dir: &DataDir,
    key: &KeyArgs,
    mut environment: Environment,
    new_file: Option<&Path>,
) -> Result<ExitCode> {
    let new = crate::keys::new_passphrase(new_file, &mut environment)?;
    let opens_with_passphrase = match socket::connect(dir) {
        Ok(Some(stream)) => {
            let envelope = Envelope {
                protocol: PROTOCOL,
                request: Request::Status,
            };
            match socket::ask(&stream, &envelope, &Terminal::new(true))? {
                Answer::Status(status) => status.opens_with == "passphrase",
                _ => {
                    return Err(Failure::new(
                        Code::Failed,
                        "the process that serves the pool gave another answer than asked for",
                    ));
                }
            }
        }
        _ => {
            pool::peek(dir)?.superblock.key_slot.unlock == cfs_format::superblock::UNLOCK_PASSPHRASE
        }
    };
    let given = KeyGiven::new(key.clone(), environment);
    let (present, opener) = match opens_with_passphrase {
        true => {
            let passphrase = given.passphrase(dir)?;
            (
                Present::Passphrase(passphrase.clone()),
                KeyGiven::known(passphrase),
            )
        }
        false => {
            let path = given.key_file(dir)?;
            let path = std::path::absolute(&path).map_err(|e| Failure::host("find", &path, &e))?;
            (
                Present::KeyFile((&*path).into()),
                KeyGiven::known_file(path),
            )
        }
    };
    let request = Request::ChangePassphrase { present, new };
    let code = perform(dir, request, true, |request, reporter| {
        let pool = pool::open(dir, opener, pool::Use::default())?;
        on_own_pool(pool, request, reporter)
    })?;
    crate::tell!(
        "the pool in {} opens with the new passphrase from now on",
        dir.path().display()
    );
    Ok(code)
}

/// What is said at the end of work that has findings.
pub struct Terms<'a, S> {
    /// How many.
    pub findings: u64,
    /// The whole, for JSON.
    pub summary: &'a S,
    /// The whole, for people.
    pub line: String,
}

/// Says it; the exit code says whether something was found.
pub fn show_findings<S: Serialize>(terminal: &Terminal, json: bool, terms: Terms<S>) -> ExitCode {
    terminal.finish();
    for line in findings_or_line(terminal, json, terms.findings, terms.summary, || terms.line) {
        print_line(&line);
    }
    match terms.findings {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::from(Code::Failed.number()),
    }
}

/// Prints the answer; the exit code says whether something was found or not done.
fn show_answer(answer: Answer, terminal: &Terminal, json: bool) -> Result<ExitCode> {
    terminal.finish();
    let lines = match &answer {
        Answer::Status(status) => or_json(&**status, json, || status.lines()),
        Answer::Df(df) => or_json(df, json, || df.lines()),
        Answer::Domains(domains) => or_json(domains, json, || domains.lines()),
        Answer::Fsck(summary) => {
            findings_or_line(terminal, json, summary.findings, summary, || {
                fsck_line(summary)
            })
        }
        Answer::Scrub(summary) => {
            findings_or_line(terminal, json, summary.findings, summary, || {
                scrub_line(summary)
            })
        }
        Answer::Gc(summary) => or_json(summary, json, || {
            summary.result.iter().flat_map(GcResult::lines).collect()
        }),
        Answer::Recount(summary) => {
            findings_or_line(terminal, json, summary.findings, summary, || {
                recount_line(summary)
            })
        }
        Answer::Transfer(summary) => or_json(summary, json, || summary_lines(summary)),
        Answer::SnapshotTaken(taken) => or_json(taken, json, || {
            let (name, path) = (printable(&taken.name), printable(&taken.path));
            vec![format!(
                "snapshot {name} of {path}, in {:.1} ms",
                taken.seconds * 1e3
            )]
        }),
        Answer::CloneMade(made) => or_json(made, json, || {
            let (name, path) = (printable(&made.name), printable(&made.path));
            vec![format!(
                "{path} is a clone of {name}, in {:.1} ms",
                made.seconds * 1e3
            )]
        }),
        Answer::Restored(summary) => or_json(summary, json, || vec![restore_line(summary)]),
        Answer::Policies(policies) => or_json(policies, json, || policies.lines()),
        Answer::Volumes(volumes) => or_json(volumes, json, || volumes.lines()),
        Answer::Snapshots(snapshots) => or_json(snapshots, json, || snapshots.lines()),
        Answer::Users { users } => or_json(users, json, || user_lines(users)),
        Answer::Key(key) => or_json(key, json, || key_lines(key)),
        Answer::Issuers { issuers } => or_json(issuers, json, || issuer_lines(issuers)),
        Answer::Names { names } => or_json(names, json, || names.clone()),
        Answer::Lifecycle(summary) => or_json(summary, json, || vec![summary_line(summary)]),
        Answer::Streamed { line } => {
            crate::tell!("{line}");
            Vec::new()
        }
        // Not for the terminal: who asked for it writes it to a file.
        Answer::ReplicaKey { .. } | Answer::Nothing => Vec::new(),
    };
    for line in lines {
        print_line(&line);
    }
    let incomplete = match &answer {
        Answer::Fsck(summary) => summary.findings > 0,
        Answer::Scrub(summary) => summary.findings > 0,
        Answer::Recount(summary) => summary.findings > 0,
        Answer::Transfer(summary) => summary.problems > 0,
        Answer::Restored(summary) => summary.problems > 0,
        Answer::Lifecycle(summary) => summary.failed > 0,
        _ => false,
    };
    Ok(match incomplete {
        true => ExitCode::from(Code::Failed.number()),
        false => ExitCode::SUCCESS,
    })
}

#[derive(Serialize)]
struct FindingsDocument<'a, S> {
    clean: bool,
    #[serde(flatten)]
    summary: &'a S,
    list: Vec<Finding>,
}

/// A summary, as JSON with the findings, which are printed as they come otherwise.
fn findings_or_line<S: Serialize>(
    terminal: &Terminal,
    json: bool,
    findings: u64,
    summary: &S,
    line: impl FnOnce() -> String,
) -> Vec<String> {
    let document = FindingsDocument {
        clean: findings == 0,
        summary,
        list: terminal.take_findings(),
    };
    or_json(&document, json, || vec![line()])
}

/// Findings in words.
pub fn verdict(findings: u64) -> String {
    match findings {
        0 => "clean".to_owned(),
        1 => "1 finding".to_owned(),
        n => format!("{} findings", count(n)),
    }
}

fn fsck_line(summary: &FsckSummary) -> String {
    format!(
        "{}: {} inodes, {} directory entries, {} extents, {} chunks (whose content was not read){}",
        verdict(summary.findings),
        count(summary.inodes),
        count(summary.entries),
        count(summary.extents),
        count(summary.chunks),
        match summary.snapshots {
            0 => String::new(),
            snapshots => format!(
                ", {} snapshots with {} earlier states",
                count(snapshots),
                count(summary.states)
            ),
        }
    )
}

fn recount_line(summary: &RecountSummary) -> String {
    let mut line = format!(
        "{}: {} references to {} chunks recounted in {:.1} s",
        verdict(summary.findings),
        count(summary.references),
        count(summary.chunks),
        summary.seconds
    );
    if summary.differing > 0 {
        line += &format!(
            "; {} chunks differ, {} of them leaked, {} missing; nothing of them is freed",
            count(summary.differing),
            count(summary.leaked),
            count(summary.missing)
        );
    }
    if summary.freed > 0 {
        line += &format!(
            "; {} chunks that nothing referred to were in no list, and are free now",
            count(summary.freed)
        );
    }
    line
}

fn restore_line(summary: &RestoreSummary) -> String {
    let mut line = format!(
        "{} brought back, {} unchanged, in {:.1} s",
        count(summary.restored),
        count(summary.unchanged),
        summary.seconds
    );
    if summary.removed > 0 {
        line += &format!("; {} removed", count(summary.removed));
    }
    if summary.problems > 0 {
        line += &format!("; {} could not be restored", count(summary.problems));
    }
    line
}

fn scrub_line(summary: &ScrubSummary) -> String {
    let mut line = format!(
        "{}: {} read in {:.1} s, {} chunks, {} table blocks",
        verdict(summary.findings),
        show(summary.bytes),
        summary.seconds,
        count(summary.chunks),
        count(summary.table_blocks)
    );
    if summary.bad_chunks > 0 {
        line += &format!(
            "; {} bad chunks in {} files",
            count(summary.bad_chunks),
            count(summary.files)
        );
    }
    if summary.restored_blocks > 0 {
        line += &format!(
            "; {} damaged blocks restored, look at the disk",
            count(summary.restored_blocks)
        );
    }
    line
}

fn or_json(value: &impl Serialize, json: bool, lines: impl FnOnce() -> Vec<String>) -> Vec<String> {
    match json {
        true => vec![serde_json::to_string_pretty(value).expect("reports have only text keys")],
        false => lines(),
    }
}

fn summary_lines(summary: &TransferSummary) -> Vec<String> {
    let rate = (summary.bytes as f64 / summary.seconds.max(1e-3)) as u64;
    let mut parts = vec![format!("{} files", count(summary.files))];
    for (number, name) in [
        (summary.files_skipped, "unchanged"),
        (summary.directories, "directories"),
        (summary.hard_links, "hard links"),
        (summary.others, "links and special files"),
    ] {
        if number > 0 {
            parts.push(format!("{} {name}", count(number)));
        }
    }
    let mut line = format!(
        "{}: {} in {:.1} s, {}/s",
        parts.join(", "),
        show(summary.bytes),
        summary.seconds,
        show(rate)
    );
    if summary.new_stored_bytes > 0 {
        line += &format!("; {} newly stored", show(summary.new_stored_bytes));
    }
    if summary.problems > 0 {
        line += &format!("; {} objects could not be copied", count(summary.problems));
    }
    vec![line]
}
