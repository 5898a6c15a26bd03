//! What the S3 face tells of itself: `/api/stats` and `/metrics`.
//!
//! `dedup_unique_blobs` counts stored chunks and `dedup_total_references` what refers to them; small objects lie inline
//! and are in neither. A ratio of counts says little where chunks differ in size, so the true bytes stand beside.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use parking_lot::Mutex;
use s3s::{S3Error, S3Result};
use serde::Serialize;

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

/// Requests since the start, by method.
#[derive(Default)]
pub(crate) struct Counters {
    by_method: Mutex<BTreeMap<String, Counter>>,
}

impl Counters {
    /// Counts a request that has been answered; a body may still be on its way.
    pub(crate) fn count(&self, method: &Method, status: StatusCode, took: Duration) {
        let name = match *method {
            Method::GET | Method::PUT | Method::HEAD | Method::POST | Method::DELETE => {
                method.as_str()
            }
            // Whatever a client thinks of must not make the table grow.
            _ => "other",
        };
        let mut by_method = self.by_method.lock();
        let counter = by_method.entry(name.to_owned()).or_default();
        *counter.requests.entry(status.as_u16()).or_default() += 1;
        counter.count += 1;
        counter.seconds += took.as_secs_f64();
        for (class, bound) in counter.classes.iter_mut().zip(LATENCIES) {
            *class += u64::from(took.as_secs_f64() <= bound);
        }
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
    let volumes = face.fs.store().volumes();
    let logical = volumes.iter().map(|(_, volume)| volume.logical_bytes.get());
    Report {
        dedup_unique_blobs: unique,
        dedup_total_references: references,
        dedup_ratio: match unique {
            0 => 1.0,
            _ => (references as f64 / unique as f64 * 100.0).round() / 100.0,
        },
        logical_bytes: logical.sum(),
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
pub(crate) async fn metrics(face: &Arc<Face>, counters: &Arc<Counters>) -> S3Result<String> {
    let (face, counters) = (Arc::clone(face), Arc::clone(counters));
    blocking(move || Ok(exposition(&measure(&face), &counters))).await
}

fn exposition(report: &Report, counters: &Counters) -> String {
    let mut text = String::new();
    let mut gauge = |name: &str, help: &str, value: u64| {
        let _ = writeln!(
            text,
            "# HELP cfs_{name} {help}\n# TYPE cfs_{name} gauge\ncfs_{name} {value}"
        );
    };
    gauge(
        "dedup_unique_blobs",
        "Chunks that are stored.",
        report.dedup_unique_blobs,
    );
    gauge(
        "dedup_total_references",
        "References to them.",
        report.dedup_total_references,
    );
    gauge(
        "logical_bytes",
        "Bytes of content of all files.",
        report.logical_bytes,
    );
    gauge(
        "unique_bytes",
        "Bytes of content of the stored chunks.",
        report.unique_bytes,
    );
    gauge(
        "stored_bytes",
        "Bytes that they take, compressed.",
        report.stored_bytes,
    );
    gauge(
        "available_bytes",
        "Bytes that can still be written.",
        report.available_bytes,
    );
    gauge(
        "healthy",
        "1 while the pool takes changes.",
        u64::from(report.healthy),
    );
    let by_method = counters.by_method.lock();
    text.push_str("# HELP cfs_s3_requests_total Requests by method and status.\n# TYPE cfs_s3_requests_total counter\n");
    for (method, counter) in &*by_method {
        for (status, count) in &counter.requests {
            let _ = writeln!(
                text,
                "cfs_s3_requests_total{{method=\"{method}\",status=\"{status}\"}} {count}"
            );
        }
    }
    text.push_str("# HELP cfs_s3_request_seconds Time until the answer began.\n# TYPE cfs_s3_request_seconds histogram\n");
    for (method, counter) in &*by_method {
        for (class, bound) in counter.classes.iter().zip(LATENCIES) {
            let _ = writeln!(
                text,
                "cfs_s3_request_seconds_bucket{{method=\"{method}\",le=\"{bound}\"}} {class}"
            );
        }
        let (count, seconds) = (counter.count, counter.seconds);
        let _ = writeln!(
            text,
            "cfs_s3_request_seconds_bucket{{method=\"{method}\",le=\"+Inf\"}} {count}"
        );
        let _ = writeln!(
            text,
            "cfs_s3_request_seconds_sum{{method=\"{method}\"}} {seconds}"
        );
        let _ = writeln!(
            text,
            "cfs_s3_request_seconds_count{{method=\"{method}\"}} {count}"
        );
    }
    text
}
