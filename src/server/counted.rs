//! A decorator that counts what one device is asked for and how long it takes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    block::{BlockDevice, BlockError, BlockQueue, Geometry},
    image::Image,
    reactor::Reactor,
    telemetry::{Counter, LatencyHistogram},
};

/// What was counted of one kind of request.
#[derive(Debug, Default)]
pub struct OperationStats {
    /// Requests that have ended, failed ones among them.
    pub requests: Counter,
    /// Bytes of those that succeeded.
    pub bytes: Counter,
    /// Requests that failed.
    pub errors: Counter,
    /// How long they took.
    pub latency: LatencyHistogram,
}

/// What was counted of one device.
#[derive(Debug, Default)]
pub struct DeviceStats {
    /// Reads.
    pub read: OperationStats,
    /// Writes, and what makes ranges zero.
    pub write: OperationStats,
    /// Flushes.
    pub flush: OperationStats,
}

impl DeviceStats {
    /// Adds what another device has counted.
    pub fn absorb(&self, other: &Self) {
        for (mine, theirs) in
            [(&self.read, &other.read), (&self.write, &other.write), (&self.flush, &other.flush)]
        {
            mine.requests.inc_by(theirs.requests.get());
            mine.bytes.inc_by(theirs.bytes.get());
            mine.errors.inc_by(theirs.errors.get());
            mine.latency.absorb(&theirs.latency.snapshot());
        }
    }
}

impl OperationStats {
    fn ended(&self, began: Instant, len: u64, result: &Result<(), BlockError>) {
        let took: Duration = began.elapsed();
        self.latency.observe(took);
        self.requests.inc();
        match result {
            Ok(()) => {
                self.bytes.inc_by(len);
            }
            Err(error) => {
                self.errors.inc();
                tracing::warn!(error = super::failure::full_text(error), "a request has failed");
            }
        }
    }
}

/// An image as one device: the image may be shared, the counts are the device's own.
#[derive(Debug)]
pub struct CountedDevice {
    image: Arc<Image>,
    stats: Arc<DeviceStats>,
}

impl CountedDevice {
    /// `image`, counted.
    #[must_use]
    pub fn new(image: Arc<Image>) -> Self {
        Self { image, stats: Arc::default() }
    }

    /// What has been counted.
    #[must_use]
    pub fn stats(&self) -> &DeviceStats {
        &self.stats
    }
}

/// The queue of a [`CountedDevice`].
#[derive(Debug)]
pub struct CountedQueue<Q> {
    inner: Q,
    stats: Arc<DeviceStats>,
}

impl BlockDevice for CountedDevice {
    type Queue = CountedQueue<<Image as BlockDevice>::Queue>;

    fn geometry(&self) -> Geometry {
        self.image.geometry()
    }

    fn open_queue(&self, reactor: &Reactor) -> Result<Self::Queue, BlockError> {
        Ok(CountedQueue { inner: self.image.open_queue(reactor)?, stats: Arc::clone(&self.stats) })
    }
}

impl<Q: BlockQueue> BlockQueue for CountedQueue<Q> {
    async fn read(&self, offset: u64, dest: &mut [u8]) -> Result<(), BlockError> {
        let (began, len) = (Instant::now(), bytes(dest.len()));
        let result = self.inner.read(offset, dest).await;
        self.stats.read.ended(began, len, &result);
        result
    }

    async fn write(&self, offset: u64, data: &[u8]) -> Result<(), BlockError> {
        let began = Instant::now();
        let result = self.inner.write(offset, data).await;
        self.stats.write.ended(began, bytes(data.len()), &result);
        result
    }

    async fn flush(&self) -> Result<(), BlockError> {
        let began = Instant::now();
        let result = self.inner.flush().await;
        self.stats.flush.ended(began, 0, &result);
        result
    }

    async fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        let began = Instant::now();
        let result = self.inner.write_zeroes(offset, len).await;
        self.stats.write.ended(began, len, &result);
        result
    }
}

fn bytes(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}
