//! How many requests of one device are under way, and which have been for too long, for whoever wants to know.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::telemetry::Counter;

/// Requests of a queue that are listed: one with thousands that hang is told by its first.
const MOST_LISTED: usize = 16;

/// The overdue requests of one device, and how many it has in all.
#[derive(Debug)]
pub struct Overdue {
    limit: Duration,
    in_flight: AtomicU64,
    device: OnceLock<u32>,
    next_queue: AtomicU64,
    /// By queue; one without any has no row.
    queues: Mutex<BTreeMap<u64, Vec<OverdueRequest>>>,
    named: Counter,
}

/// A request that has been under way for too long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverdueRequest {
    /// `read`, `write`, `flush` or `discard`.
    pub kind: &'static str,
    /// Where it begins on the device, in bytes; 0 for a flush.
    pub offset: u64,
    /// Its length in bytes; 0 for a flush.
    pub len: u64,
    /// For how long it has been looked at, which is a little less than it has been there.
    pub age: Duration,
    /// What it waits for, where whoever serves it has said so.
    pub waits_for: Option<String>,
}

impl Overdue {
    /// Nothing is overdue yet. A request is after `limit`.
    #[must_use]
    pub fn new(limit: Duration) -> Self {
        Self {
            limit,
            in_flight: AtomicU64::new(0),
            device: OnceLock::new(),
            next_queue: AtomicU64::new(0),
            queues: Mutex::default(),
            named: Counter::default(),
        }
    }

    /// What the log is to call the device. Only the first name counts.
    pub fn set_device(&self, id: u32) {
        let _ = self.device.set(id);
    }

    /// When a request is overdue.
    #[must_use]
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Requests that are under way at this moment.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// A request has begun.
    pub(super) fn begin(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// One that had begun has ended.
    pub(super) fn end(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// Those of this moment, those that have been there for the longest first.
    #[must_use]
    pub fn list(&self) -> Vec<OverdueRequest> {
        let mut all: Vec<_> = self.queues().values().flatten().cloned().collect();
        all.sort_by_key(|request| std::cmp::Reverse(request.age));
        all
    }

    /// How many requests were overdue so far, those of this moment among them.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.named.get()
    }

    /// A number for another queue that tells what is overdue.
    pub(super) fn add_queue(&self) -> u64 {
        self.next_queue.fetch_add(1, Ordering::Relaxed)
    }

    /// Takes what a queue says for what is overdue of it now.
    pub(super) fn tell(&self, queue: u64, mut overdue: Vec<OverdueRequest>) {
        overdue.sort_by_key(|request| std::cmp::Reverse(request.age));
        overdue.truncate(MOST_LISTED);
        if overdue.is_empty() {
            self.queues().remove(&queue);
        } else {
            self.queues().insert(queue, overdue);
        }
    }

    /// Names a request in the log.
    pub(super) fn name(&self, request: &OverdueRequest) {
        self.named.inc();
        let OverdueRequest { kind, offset, len, age, waits_for } = request;
        let waits_for = waits_for.as_deref().unwrap_or("nobody has said what");
        let device = self.device.get();
        tracing::warn!(device, kind, offset, len, ?age, waits_for, "a request does not end");
    }

    /// Tells the log that a request has ended after all.
    pub(super) fn ended(&self, queue: u64, request: &OverdueRequest) {
        let OverdueRequest { kind, offset, len, age, .. } = request;
        let device = self.device.get();
        tracing::warn!(device, kind, offset, len, ?age, "a request that had not ended for long has ended");
        let mut queues = self.queues();
        if let Some(listed) = queues.get_mut(&queue) {
            listed.retain(|other| (other.kind, other.offset, other.len) != (*kind, *offset, *len));
            if listed.is_empty() {
                queues.remove(&queue);
            }
        }
    }

    fn queues(&self) -> MutexGuard<'_, BTreeMap<u64, Vec<OverdueRequest>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
