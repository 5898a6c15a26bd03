//! Figures of the S3 face and the pool below it, as `/api/stats` and `/metrics` show them.
//!
//! `dedup_unique_blobs` counts stored chunks and `dedup_total_references` what refers to them; small objects lie inline
//! and are in neither. A ratio of counts says little where chunks differ in size, so the true bytes stand beside.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::{Method, StatusCode};
use parking_lot::Mutex;
use s3s::{S3Error, S3ErrorCode, S3Result};
use serde::Serialize;

use crate::errors::from_fs;
use crate::face::{Face, blocking};

/// Upper bounds of the classes of latencies, seconds.
const LATENCIES: [f64; 8] = [0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0];

#[derive(Clone, Default)]
struct Counter {
    requests: BTreeMap<u16, u64>,
    classes: [u64; LATENCIES.len()],
    seconds: f64,
    count: u64,
}

/// Bytes of all connections since the start, with heads and TLS.
#[derive(Default)]
pub(crate) struct Traffic {
    pub(crate) received: AtomicU64,
    pub(crate) sent: AtomicU64,
}

/// What a request turns out to be.
#[derive(Clone, Default)]
pub(crate) struct Operation(Arc<OnceLock<String>>);

impl Operation {
    /// It is the operation of this name.
    pub(crate) fn set(&self, name: &str) {
        // A request is one operation; the first name stays.
        let _ = self.0.set(name.to_owned());
    }

    /// The name; for what was refused before it became an operation, the method.
    pub(crate) fn name(&self, method: &Method) -> &str {
        match (self.0.get(), method) {
            (Some(name), _) => name,
            (None, &Method::OPTIONS) => "Preflight",
            // Whatever a client thinks of must not make the table grow.
            _ => "none",
        }
    }
}

/// Requests since the start, by operation.
#[derive(Default)]
pub(crate) struct Counters {
    by_operation: Mutex<BTreeMap<String, Counter>>,
    pub(crate) traffic: Arc<Traffic>,
    pub(crate) under_way: AtomicU64,
    measuring: Mutex<()>,
}

impl Counters {
    /// Counts a request that has been answered; a body may still be on its way.
    pub(crate) fn count(&self, name: &str, status: StatusCode, took: Duration) {
        let mut by_operation = self.by_operation.lock();
        let counter = match by_operation.get_mut(name) {
            Some(counter) => counter,
            None => by_operation.entry(name.to_owned()).or_default(),
        };
        *counter.requests.entry(status.as_u16()).or_default() += 1;
        counter.count += 1;
        counter.seconds += took.as_secs_f64();
        for (class, bound) in counter.classes.iter_mut().zip(LATENCIES) {
            *class += u64::from(took.as_secs_f64() <= bound);
        }
    }
}

/// Of one bucket: all that is below its directory, older versions and files that are no objects too.
#[derive(Serialize)]
struct BucketReport {
    bucket: String,
    files: u64,
    dedup_unique_blobs: u64,
    dedup_total_references: u64,
    dedup_ratio: f64,
    logical_bytes: u64,
    unique_bytes: u64,
    stored_bytes: u64,
    is_estimate: bool,
}

/// The answer to `/api/stats?bucket=NAME`: JSON. It takes a while for a large one, and one is read at a time.
///
/// # Errors
/// `NoSuchBucket`, `SlowDown`, `InternalError`.
pub(crate) async fn bucket_report(face: &Arc<Face>, name: String) -> S3Result<String> {
    // Who asks and goes away before the answer must not leave work behind.
    let asked = Arc::new(());
    let (face, asks) = (Arc::clone(face), Arc::downgrade(&asked));
    let report = blocking(move || {
        let bucket = face.bucket(&name, None)?;
        let Some(_one) = face.counters.measuring.try_lock() else {
            return Err(S3ErrorCode::SlowDown.into());
        };
        let go_on = || asks.strong_count() > 0;
        let held = face.fs.holdings(bucket.ino(), &go_on).map_err(from_fs)?;
        let held = held.unwrap_or_default();
        let report = BucketReport {
            bucket: name,
            files: held.files,
            dedup_unique_blobs: held.chunks,
            dedup_total_references: held.references,
            dedup_ratio: ratio(held.chunks, held.references),
            logical_bytes: held.logical_bytes,
            unique_bytes: held.unique_bytes,
            stored_bytes: held.stored_bytes,
            is_estimate: held.is_estimate,
        };
        serde_json::to_string_pretty(&report).map_err(S3Error::internal_error)
    })
    .await;
    drop(asked);
    report
}

fn ratio(unique: u64, references: u64) -> f64 {
    match unique {
        0 => 1.0,
        _ => (references as f64 / unique as f64 * 100.0).round() / 100.0,
    }
}

#[derive(Serialize)]
struct Report {
    dedup_unique_blobs: u64,
    dedup_total_references: u64,
    dedup_ratio: f64,
    logical_bytes: u64,
    unique_bytes: u64,
    stored_bytes: u64,
    available_bytes: u64,
    healthy: bool,
}

fn measure(face: &Face) -> Report {
    let stats = face.fs.store().stats();
    let (unique, references) = (
        stats.pool.chunk_count.get(),
        stats.pool.reference_count.get(),
    );
    Report {
        dedup_unique_blobs: unique,
        dedup_total_references: references,
        dedup_ratio: ratio(unique, references),
        logical_bytes: face.fs.logical_bytes(),
        unique_bytes: stats.pool.chunk_raw_bytes.get(),
        stored_bytes: stats.pool.chunk_stored_bytes.get(),
        available_bytes: stats.available_bytes,
        healthy: face.fs.store().health() == cfs_store::Health::Good,
    }
}

/// The answer to `/api/stats`: JSON.
///
/// # Errors
/// `InternalError`.
pub(crate) async fn report(face: &Arc<Face>) -> S3Result<String> {
    let face = Arc::clone(face);
    blocking(move || serde_json::to_string_pretty(&measure(&face)).map_err(S3Error::internal_error))
        .await
}

/// The answer to `/metrics`: Prometheus' text format.
///
/// # Errors
/// `InternalError`.
pub(crate) async fn metrics(face: &Arc<Face>) -> S3Result<String> {
    let face = Arc::clone(face);
    blocking(move || Ok(exposition(&face))).await
}

/// Lines of the text format.
#[derive(Default)]
struct Exposition(String);

impl Exposition {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP cfs_{name} {help}\n# TYPE cfs_{name} {kind}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.head(name, kind, help);
        let _ = writeln!(self.0, "cfs_{name} {value}");
    }

    fn line(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let _ = writeln!(self.0, "cfs_{name}{{{labels}}} {value}");
    }
}

fn exposition(face: &Face) -> String {
    let report = measure(face);
    let store = face.fs.store();
    let (stats, reclaim) = (store.stats(), store.reclaim_totals());
    let mut text = Exposition::default();
    for (name, help, value) in [
        (
            "dedup_unique_blobs",
            "Chunks that are stored.",
            report.dedup_unique_blobs,
        ),
        (
            "dedup_total_references",
            "References to them.",
            report.dedup_total_references,
        ),
        (
            "logical_bytes",
            "Bytes of content of all files.",
            report.logical_bytes,
        ),
        (
            "unique_bytes",
            "Bytes of content of the stored chunks.",
            report.unique_bytes,
        ),
        (
            "stored_bytes",
            "Bytes that they take, compressed.",
            report.stored_bytes,
        ),
        (
            "available_bytes",
            "Bytes that can still be written.",
            report.available_bytes,
        ),
        (
            "dead_bytes",
            "Bytes in data segments that nothing refers to.",
            stats.data_used_bytes.saturating_sub(stats.live_bytes),
        ),
        (
            "damaged_chunks",
            "Chunks that could not be opened, and have not been replaced.",
            stats.damaged_chunks,
        ),
        (
            "unreadable_table_blocks",
            "Blocks of tables that could not be read since the start.",
            stats.unreadable_table_blocks,
        ),
        (
            "healthy",
            "1 while the pool takes changes.",
            u64::from(report.healthy),
        ),
        (
            "s3_requests_under_way",
            "Requests that are not answered yet.",
            face.counters.under_way.load(Ordering::Relaxed),
        ),
    ] {
        text.one(name, "gauge", help, value);
    }
    let traffic = &face.counters.traffic;
    for (name, help, value) in [
        (
            "healed_blocks_total",
            "Damaged metadata blocks that parity brought back.",
            stats.healed_blocks,
        ),
        (
            "reclaim_segments_total",
            "Segments emptied by compaction.",
            reclaim.segments,
        ),
        (
            "reclaim_copied_bytes_total",
            "Bytes that compaction copied.",
            reclaim.copied_bytes,
        ),
        (
            "reclaim_dropped_chunks_total",
            "Chunks that left the index.",
            reclaim.dropped_chunks,
        ),
        (
            "s3_received_bytes_total",
            "Bytes received by S3 connections.",
            traffic.received.load(Ordering::Relaxed),
        ),
        (
            "s3_sent_bytes_total",
            "Bytes sent by S3 connections.",
            traffic.sent.load(Ordering::Relaxed),
        ),
    ] {
        text.one(name, "counter", help, value);
    }
    let by_operation = face.counters.by_operation.lock();
    text.head(
        "s3_requests_total",
        "counter",
        "Requests by operation and status.",
    );
    for (name, counter) in &*by_operation {
        for (status, count) in &counter.requests {
            text.line(
                "s3_requests_total",
                &format!("operation=\"{name}\",status=\"{status}\""),
                count,
            );
        }
    }
    text.head(
        "s3_request_seconds",
        "histogram",
        "Time until the answer began, by operation.",
    );
    for (name, counter) in &*by_operation {
        let label = format!("operation=\"{name}\"");
        for (class, bound) in counter.classes.iter().zip(LATENCIES) {
            text.line(
                "s3_request_seconds_bucket",
                &format!("{label},le=\"{bound}\""),
                class,
            );
        }
        text.line(
            "s3_request_seconds_bucket",
            &format!("{label},le=\"+Inf\""),
            counter.count,
        );
        text.line("s3_request_seconds_sum", &label, counter.seconds);
        text.line("s3_request_seconds_count", &label, counter.count);
    }
    text.0
}
