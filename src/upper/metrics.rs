//! What is counted of a writable layer.

use std::time::Duration;

use crate::telemetry::{Counter, LatencyHistogram};

/// What was counted of one kind of request. Failed ones are not in here.
#[derive(Debug, Default)]
pub struct RequestMetrics {
    /// Requests.
    pub requests: Counter,
    /// Their bytes.
    pub bytes: Counter,
    /// How long they took.
    pub latency: LatencyHistogram,
}

/// Counters of one writable layer.
#[derive(Debug, Default)]
pub struct WriteMetrics {
    /// Reads that the layer has answered without the device below.
    pub reads: RequestMetrics,
    /// Writes.
    pub writes: RequestMetrics,
    /// Discards, and writes of zeroes.
    pub zeroes: RequestMetrics,
    /// Flushes; they have no bytes.
    pub flushes: RequestMetrics,
    /// Rounds that made something durable; many flushes may share one.
    pub rounds: Counter,
    /// Requests that failed.
    pub errors: Counter,
}

impl WriteMetrics {
    /// The kinds of requests, with their names in metrics.
    #[must_use]
    pub fn kinds(&self) -> [(&'static str, &RequestMetrics); 4] {
        [("read", &self.reads), ("write", &self.writes), ("zero", &self.zeroes), ("flush", &self.flushes)]
    }

    /// Adds what another layer has counted.
    pub fn absorb(&self, other: &Self) {
        for ((_, mine), (_, theirs)) in self.kinds().into_iter().zip(other.kinds()) {
            mine.requests.inc_by(theirs.requests.get());
            mine.bytes.inc_by(theirs.bytes.get());
            mine.latency.absorb(&theirs.latency.snapshot());
        }
        self.rounds.inc_by(other.rounds.get());
        self.errors.inc_by(other.errors.get());
    }
}

impl RequestMetrics {
    pub(super) fn served(&self, bytes: u64, took: Duration) {
        self.requests.inc();
        self.bytes.inc_by(bytes);
        self.latency.observe(took);
    }
}
