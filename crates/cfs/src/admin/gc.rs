//! `cfs admin gc`: what emptying segments would give, and doing it at the pace of background work or at once.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use cfs_seal::codec::Codec;
use cfs_store::{ReclaimFor, ReclaimPlan, ReclaimProgress, Store, WriteError};

use super::protocol::{Answer, Event, GcPlan, GcResult, GcSummary, GcTenth, Progress, Reseal};
use super::reporter::Reporter;
use crate::failure::{Code, Failure, Result};

/// Between two reports of progress.
const STEP: Duration = Duration::from_millis(100);

/// Where a pass is asked for.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// The pool.
    pub store: &'a Store,
    /// Bytes that it takes from its host.
    pub pool_bytes: &'a dyn Fn() -> u64,
    /// This process goes on after the command.
    pub serves: bool,
    /// What the pass is for.
    pub what_for: ReclaimFor,
}

/// What a pass with this request is for.
///
/// # Errors
/// [`Code::Usage`]: there is no such codec.
pub fn what_for(reseal: Option<&Reseal>) -> Result<ReclaimFor> {
    Ok(match reseal {
        None => ReclaimFor::Room,
        Some(Reseal::AsItIs) => ReclaimFor::NewSeals(None),
        Some(Reseal::Codec(name)) => {
            let codec = name.parse::<Codec>();
            let codec = codec.map_err(|error| Failure::new(Code::Usage, error.to_string()))?;
            ReclaimFor::NewSeals(Some(codec))
        }
    })
}

/// Tells the plan and nothing more.
///
/// # Errors
/// [`Code::Failed`] when a table cannot be read.
pub fn plan_only(place: Place<'_>, reporter: &dyn Reporter) -> Result<Answer> {
    let plan = tell_plan(place, reporter)?;
    Ok(Answer::Gc(GcSummary { plan, result: None }))
}

fn tell_plan(place: Place<'_>, reporter: &dyn Reporter) -> Result<GcPlan> {
    let plan = place.store.reclaim_plan(place.what_for);
    let plan = plan.map_err(|e| failed(e.into()))?;
    let plan = show_plan(&plan);
    reporter.event(&Event::GcPlan(plan.clone()));
    Ok(plan)
}

/// Does a whole pass in this thread, without regard to others.
///
/// # Errors
/// [`Code::Interrupted`], or [`Code::Failed`] when the pool is read-only or cannot be read.
pub fn at_once(place: Place<'_>, reporter: &dyn Reporter) -> Result<Answer> {
    run(place, reporter, |plan| {
        let mut told = Instant::now();
        let mut stopped = false;
        let mut go_on = |progress: ReclaimProgress| {
            stopped |= reporter.cancelled();
            if told.elapsed() >= STEP {
                told = Instant::now();
                reporter.event(&Event::Progress(show(&progress, plan)));
            }
            match stopped {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        };
        let progress = place.store.reclaim_now(place.what_for, &mut go_on);
        let progress = progress.map_err(failed)?;
        match stopped {
            true => Err(
                Failure::new(Code::Interrupted, "interrupted; what was done stays done")
                    .hint("the same command does the rest"),
            ),
            false => Ok(progress),
        }
    })
}

/// Begins a pass at the pace of background work and watches it.
///
/// # Errors
/// [`Code::Interrupted`] when it is no longer watched: in a server it goes on. [`Code::Failed`] when the pool is
/// read-only.
pub fn in_background(place: Place<'_>, reporter: &dyn Reporter) -> Result<Answer> {
    run(place, reporter, |plan| {
        let started = place.store.start_reclaim(place.what_for);
        started.map_err(failed)?;
        loop {
            let progress = place.store.reclaim_progress();
            if !progress.is_running {
                return Ok(progress);
            }
            reporter.event(&Event::Progress(show(&progress, plan)));
            if reporter.cancelled() {
                return Err(match place.serves {
                    true => Failure::new(
                        Code::Interrupted,
                        "no longer watching; the pass goes on in the server",
                    )
                    .hint("`cfs admin status` tells how far it is"),
                    false => Failure::new(
                        Code::Interrupted,
                        "interrupted; the pass has ended, and what was done stays done",
                    )
                    .hint("the same command does the rest"),
                });
            }
            if let Some(reason) = read_only(place.store) {
                return Err(failed(reason));
            }
            std::thread::sleep(STEP);
        }
    })
}

fn run(
    place: Place<'_>,
    reporter: &dyn Reporter,
    pass: impl FnOnce(&GcPlan) -> Result<ReclaimProgress>,
) -> Result<Answer> {
    if let Some(reason) = read_only(place.store) {
        return Err(failed(reason));
    }
    let started = Instant::now();
    let plan = tell_plan(place, reporter)?;
    let pool_bytes_before = (place.pool_bytes)();
    let progress = pass(&plan)?;
    let result = GcResult {
        segments: progress.done.segments,
        copied_bytes: progress.done.copied_bytes,
        dropped_chunks: progress.done.dropped_chunks,
        segments_left: progress.segments_left,
        pool_bytes_before,
        pool_bytes_after: (place.pool_bytes)(),
        seconds: started.elapsed().as_secs_f64(),
    };
    Ok(Answer::Gc(GcSummary {
        plan,
        result: Some(result),
    }))
}

fn read_only(store: &Store) -> Option<WriteError> {
    match store.health() {
        cfs_store::Health::Good => None,
        cfs_store::Health::ReadOnly { reason } => Some(WriteError::ReadOnly { reason }),
    }
}

fn failed(error: WriteError) -> Failure {
    let hint = match &error {
        WriteError::ReadOnly { .. } => {
            "if the disk failed, look at it, then start the server again; --dry-run tells the plan"
        }
        WriteError::NoSpace(_) => {
            "remove files in the pool, or make room on the disk that holds it; then run the same command again"
        }
        _ => "`cfs admin fsck` tells what is wrong with the tables",
    };
    Failure::new(Code::Failed, format!("nothing can be reclaimed: {error}")).hint(hint)
}

fn show(progress: &ReclaimProgress, plan: &GcPlan) -> Progress {
    Progress {
        phase: format!(
            "gc, {} of {} segments emptied",
            progress.done.segments, progress.segments_total
        ),
        objects: 0,
        objects_total: None,
        bytes: progress.done.copied_bytes,
        bytes_total: Some(plan.bytes_to_copy.max(progress.done.copied_bytes)),
    }
}

fn show_plan(plan: &ReclaimPlan) -> GcPlan {
    let tenths = plan.tenths.iter().zip((10..).step_by(10));
    GcPlan {
        segments: tenths
            .map(|(tenth, live_percent_max)| GcTenth {
                live_percent_max,
                segments: tenth.segments,
                used_bytes: tenth.used_bytes,
                live_bytes: tenth.live_bytes,
            })
            .collect(),
        segments_to_empty: plan.segments_to_empty,
        bytes_to_copy: plan.bytes_to_copy,
        bytes_to_free: plan.bytes_to_free,
        bytes_on_the_way: plan.bytes_on_the_way,
    }
}
