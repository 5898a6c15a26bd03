//! How work under way speaks to whoever asked for it, and learns that it should stop.

use std::io::{IsTerminal, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::protocol::{Event, Progress, send};
use crate::bytes::{count, show};
use crate::failure::{Code, plain};

/// The one who asked. Called from several threads.
pub trait Reporter: Send + Sync {
    /// Passes an event on. A reporter that cannot becomes cancelled.
    fn event(&self, event: &Event);

    /// Whether the work should end at the next good point.
    fn cancelled(&self) -> bool;
}

/// The events go over a stream. A client cancels by ending its side, and may wait for the last event then.
pub struct Remote<'a> {
    stream: Mutex<&'a UnixStream>,
    gone: AtomicBool,
    stopping: &'a AtomicBool,
}

impl<'a> Remote<'a> {
    /// Events to `stream` until `stopping`.
    pub fn new(stream: &'a UnixStream, stopping: &'a AtomicBool) -> Self {
        Self {
            stream: Mutex::new(stream),
            gone: AtomicBool::new(false),
            stopping,
        }
    }
}

impl Reporter for Remote<'_> {
    fn event(&self, event: &Event) {
        let is_last = matches!(event, Event::Done { .. } | Event::Failed { .. });
        if self.gone.load(Ordering::Relaxed) && !is_last {
            return;
        }
        let mut stream = self.stream.lock();
        if send(&mut *stream, event).is_err() || has_ended(&stream) {
            self.gone.store(true, Ordering::Relaxed);
        }
    }

    fn cancelled(&self) -> bool {
        self.gone.load(Ordering::Relaxed) || self.stopping.load(Ordering::Relaxed)
    }
}

/// Whether the other side will send nothing more.
fn has_ended(stream: &UnixStream) -> bool {
    let mut polled = [PollFd::new(stream, PollFlags::RDHUP)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut polled, Some(&now)).is_ok_and(|count| count > 0)
}

/// The events go to the terminal: lines to standard output, problems and a progress bar to standard error.
pub struct Terminal {
    bar: ProgressBar,
    interrupted: AtomicBool,
    /// Findings go into one JSON document at the end instead.
    findings: Mutex<Vec<super::protocol::Finding>>,
    json: bool,
}

impl Terminal {
    /// With `json`, findings are kept for [`Terminal::take_findings`] and not printed.
    pub fn new(json: bool) -> Self {
        let bar = if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new_spinner();
            bar.set_style(
                ProgressStyle::with_template("{spinner} {msg} [{elapsed}]")
                    .expect("the template is a constant"),
            );
            bar
        } else {
            ProgressBar::hidden()
        };
        Self {
            bar,
            interrupted: AtomicBool::new(false),
            findings: Mutex::default(),
            json,
        }
    }

    /// Asks the work to end.
    pub fn interrupt(&self) {
        self.interrupted.store(true, Ordering::Relaxed);
    }

    /// What fsck found, where it was not printed.
    pub fn take_findings(&self) -> Vec<super::protocol::Finding> {
        std::mem::take(&mut self.findings.lock())
    }

    /// Shows what is being done, where that has no measure.
    pub fn show_step(&self, name: &str) {
        self.bar.set_message(name.to_owned());
        self.bar.tick();
    }

    /// Removes the progress bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn show_progress(&self, progress: &Progress) {
        let objects = match (progress.objects_total, progress.bytes_total) {
            (Some(total), _) => format!("{} of {}", count(progress.objects), count(total)),
            (None, Some(total)) => {
                let percent = progress.bytes as f64 * 100.0 / total.max(1) as f64;
                format!("{percent:.1} % of {}", show(total))
            }
            (None, None) => count(progress.objects),
        };
        let mut message = format!("{}: {objects}", progress.phase);
        if progress.bytes > 0 {
            let seconds = self
                .bar
                .elapsed()
                .max(Duration::from_millis(1))
                .as_secs_f64();
            let rate = (progress.bytes as f64 / seconds) as u64;
            message += &format!(", {}, {}/s", show(progress.bytes), show(rate));
            if let Some(total) = progress.bytes_total {
                let left = total.saturating_sub(progress.bytes) / rate.max(1);
                message += &format!(", {}:{:02} left", left / 60, left % 60);
            }
        }
        self.bar.set_message(message);
        self.bar.tick();
    }
}

impl Reporter for Terminal {
    fn event(&self, event: &Event) {
        match event {
            Event::Progress(progress) => self.show_progress(progress),
            Event::Finding(finding) if self.json => self.findings.lock().push(finding.clone()),
            Event::Finding(finding) => self.bar.suspend(|| {
                print_line(&format!(
                    "{}  {}  {}",
                    finding.id, finding.object, finding.sentence
                ));
            }),
            Event::Problem { path, message } => {
                self.bar.suspend(|| crate::tell!("{path}: {message}"));
            }
            Event::Line { text } => self.bar.suspend(|| print_line(text)),
            Event::GcPlan(_) if self.json => {}
            Event::GcPlan(plan) => self
                .bar
                .suspend(|| plan.lines().iter().for_each(|line| print_line(line))),
            Event::Accepted | Event::Done { .. } | Event::Failed { .. } => {}
        }
    }

    fn cancelled(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}

/// Prints to standard output; a reader that has gone away (`cfs .. | head`) ends the process as it would `cat`.
pub fn print_line(text: &str) {
    let mut out = std::io::stdout().lock();
    let printed = writeln!(out, "{text}").and_then(|()| out.flush());
    end_if_unprinted(printed);
}

/// Ends the process when standard output does not take what was printed: quietly when its reader has gone away, and
/// as a failure when there is no room for it.
pub fn end_if_unprinted(printed: std::io::Result<()>) {
    match printed {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => {
            crate::tell!("error: cannot write to standard output: {}", plain(&error));
            std::process::exit(Code::Host.number().into());
        }
    }
}
