//! Bounds how many requests a device begins in a second, and how many bytes they move.
//!
//! [`Limited`] stands before any device. A request takes its place in line when it comes, and goes on when that has had its turn,
//! so that all queues of a device have their share. It has no buffer while it waits. Without a limit nothing is counted, and no lock
//! is taken.

mod bucket;
#[cfg(test)]
mod tests;

use std::{
    cell::Cell,
    rc::Rc,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bucket::Bucket;

use crate::{
    block::{BlockDevice, BlockError, BlockQueue, ByteRange, Geometry},
    reactor::{Buffer, BufferPool, BufferSlot, Reactor},
};

/// How long somebody who waits does not look whether there is another limit by now.
const LONGEST_NAP: Duration = Duration::from_millis(100);

/// What a device may begin in a second; 0 stands for as much as comes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    /// Reads, writes, flushes and discards.
    pub requests_per_second: u64,
    /// Bytes of reads and writes.
    pub bytes_per_second: u64,
}

/// The limit of one device, which may change at any time. Locked for moments only.
#[derive(Debug)]
pub struct Limit {
    is_set: AtomicBool,
    began: Instant,
    lines: Mutex<Lines>,
}

#[derive(Debug, Default)]
struct Lines {
    requests: Bucket,
    bytes: Bucket,
}

/// A request's places in both lines.
#[derive(Debug, Clone, Copy)]
struct Places {
    request: u128,
    bytes: u128,
}

impl Limit {
    /// One of `rates`.
    #[must_use]
    pub fn new(rates: Rates) -> Self {
        let limit = Self { is_set: AtomicBool::default(), began: Instant::now(), lines: Mutex::default() };
        limit.set(rates);
        limit
    }

    /// Puts `rates` in the place of those before, also for the requests that wait.
    pub fn set(&self, rates: Rates) {
        self.with(|lines, now| {
            lines.requests.set_rate(rates.requests_per_second, now);
            lines.bytes.set_rate(rates.bytes_per_second, now);
        });
        self.is_set.store(rates != Rates::default(), Ordering::Release);
    }

    /// Those of now.
    #[must_use]
    pub fn rates(&self) -> Rates {
        self.with(|lines, _| Rates {
            requests_per_second: lines.requests.rate(),
            bytes_per_second: lines.bytes.rate(),
        })
    }

    /// The places of a request of `bytes`; none where there is no limit.
    fn take(&self, bytes: u64) -> Option<Places> {
        if !self.is_set.load(Ordering::Acquire) {
            return None;
        }
        Some(self.with(|lines, now| Places {
            request: lines.requests.take(1, now),
            bytes: lines.bytes.take(bytes, now),
        }))
    }

    fn wait(&self, places: Places) -> Duration {
        self.with(|lines, now| {
            lines.requests.wait(places.request, now).max(lines.bytes.wait(places.bytes, now))
        })
    }

    fn with<T>(&self, work: impl FnOnce(&mut Lines, Duration) -> T) -> T {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        work(&mut lines, self.began.elapsed())
    }
}

/// A device whose requests are bounded.
#[derive(Debug)]
pub struct Limited<D> {
    device: D,
    limit: Arc<Limit>,
}

/// A queue of it.
#[derive(Debug)]
pub struct LimitedQueue<Q> {
    queue: Q,
    reactor: Reactor,
    limit: Arc<Limit>,
    /// Offset and length of the read that had its turn last, and could not be done in its slot: it comes again, at once, as another.
    passed: Cell<Option<(u64, u64)>>,
}

impl<D> Limited<D> {
    /// Bounds the requests to `device`.
    #[must_use]
    pub fn new(device: D, limit: Arc<Limit>) -> Self {
        Self { device, limit }
    }
}

impl<D: BlockDevice> BlockDevice for Limited<D> {
    type Queue = LimitedQueue<D::Queue>;

    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    fn reach_bytes(&self) -> u64 {
        self.device.reach_bytes()
    }

    fn reads_to_slots(&self) -> bool {
        self.device.reads_to_slots()
    }

    fn open_queue(&self, reactor: &Reactor) -> Result<Self::Queue, BlockError> {
        let queue = self.device.open_queue(reactor)?;
        let (reactor, limit) = (reactor.for_queue(), Arc::clone(&self.limit));
        Ok(LimitedQueue { queue, reactor, limit, passed: Cell::default() })
    }
}

impl<Q> LimitedQueue<Q> {
    /// Waits for the turn of a request of so many bytes.
    async fn pass(&self, bytes: u64) {
        let Some(places) = self.limit.take(bytes) else { return };
        loop {
            let wait = self.limit.wait(places);
            if wait.is_zero() {
                return;
            }
            self.reactor.sleep(wait.min(LONGEST_NAP)).await;
        }
    }

    /// As [`Self::pass`], for a read, which has its turn once, however often it is tried.
    async fn pass_read(&self, offset: u64, bytes: u64) {
        if self.passed.take() != Some((offset, bytes)) {
            self.pass(bytes).await;
        }
    }
}

impl<Q: BlockQueue> BlockQueue for LimitedQueue<Q> {
    async fn read(&self, offset: u64, dest: &mut [u8]) -> Result<(), BlockError> {
        self.pass_read(offset, dest.len() as u64).await;
        self.queue.read(offset, dest).await
    }

    async fn read_to_slot(&self, offset: u64, len: u32, slot: &Rc<BufferSlot>) -> bool {
        self.pass(len.into()).await;
        let is_read = self.queue.read_to_slot(offset, len, slot).await;
        self.passed.set((!is_read).then_some((offset, len.into())));
        is_read
    }

    async fn read_pooled(&self, offset: u64, len: usize, pool: &BufferPool) -> Result<Buffer, BlockError> {
        self.pass_read(offset, len as u64).await;
        self.queue.read_pooled(offset, len, pool).await
    }

    fn next_data(&self, range: ByteRange) -> ByteRange {
        self.queue.next_data(range)
    }

    async fn write(&self, offset: u64, data: &[u8]) -> Result<(), BlockError> {
        self.pass(data.len() as u64).await;
        self.queue.write(offset, data).await
    }

    async fn write_pooled(
        &self,
        offset: u64,
        len: usize,
        pool: &BufferPool,
        collect: impl FnOnce(&mut [u8]) -> Result<(), BlockError>,
    ) -> Result<(), BlockError> {
        self.pass(len as u64).await;
        self.queue.write_pooled(offset, len, pool, collect).await
    }

    async fn flush(&self) -> Result<(), BlockError> {
        self.pass(0).await;
        self.queue.flush().await
    }

    fn count_failure(&self) {
        self.queue.count_failure();
    }

    async fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        self.pass(0).await;
        self.queue.write_zeroes(offset, len).await
    }
}
