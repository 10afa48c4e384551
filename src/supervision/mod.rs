//! Finds requests that do not end, and says what they wait for.
//!
//! [`Supervised`] stands between a frontend and any device, and hands all through. While a queue has requests, it looks at them
//! from time to time; one that has been there for too long is told in the log, and stands in [`Overdue`], where others read it, until
//! it ends. A request costs an entry in a table of its own thread, and a count: no lock, no look at the clock, and no memory once the
//! table has grown to what the queue has at once.

mod overdue;
mod requests;
#[cfg(test)]
mod tests;

use std::{pin::pin, rc::Rc, sync::Arc};

pub use overdue::{Overdue, OverdueRequest};
use requests::{Kind, Requests};

use crate::{
    block::{BlockDevice, BlockError, BlockQueue, ByteRange, Geometry},
    reactor::{Buffer, BufferPool, BufferSlot, Reactor},
};

/// A device whose requests are looked after.
#[derive(Debug)]
pub struct Supervised<D> {
    device: Arc<D>,
    overdue: Arc<Overdue>,
}

/// A queue of it.
#[derive(Debug)]
pub struct SupervisedQueue<Q> {
    queue: Q,
    requests: Rc<Requests>,
}

impl<D> Supervised<D> {
    /// Has the requests to `device` looked after, and told to `overdue`.
    #[must_use]
    pub fn new(device: Arc<D>, overdue: Arc<Overdue>) -> Self {
        Self { device, overdue }
    }
}

impl<D: BlockDevice> BlockDevice for Supervised<D> {
    type Queue = SupervisedQueue<D::Queue>;

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
        Ok(SupervisedQueue { queue, requests: Requests::new(reactor, &self.overdue) })
    }
}

impl<Q: BlockQueue> BlockQueue for SupervisedQueue<Q> {
    async fn read(&self, offset: u64, dest: &mut [u8]) -> Result<(), BlockError> {
        let request = self.requests.begin(Kind::Read, offset, dest.len() as u64);
        request.drive(pin!(self.queue.read(offset, dest))).await
    }

    async fn read_to_slot(&self, offset: u64, len: u32, slot: &Rc<BufferSlot>) -> bool {
        let request = self.requests.begin(Kind::Read, offset, len.into());
        request.drive(pin!(self.queue.read_to_slot(offset, len, slot))).await
    }

    async fn read_pooled(&self, offset: u64, len: usize, pool: &BufferPool) -> Result<Buffer, BlockError> {
        let request = self.requests.begin(Kind::Read, offset, len as u64);
        request.drive(pin!(self.queue.read_pooled(offset, len, pool))).await
    }

    fn next_data(&self, range: ByteRange) -> ByteRange {
        self.queue.next_data(range)
    }

    async fn write(&self, offset: u64, data: &[u8]) -> Result<(), BlockError> {
        let request = self.requests.begin(Kind::Write, offset, data.len() as u64);
        request.drive(pin!(self.queue.write(offset, data))).await
    }

    async fn write_pooled(
        &self,
        offset: u64,
        len: usize,
        pool: &BufferPool,
        collect: impl FnOnce(&mut [u8]) -> Result<(), BlockError>,
    ) -> Result<(), BlockError> {
        let request = self.requests.begin(Kind::Write, offset, len as u64);
        request.drive(pin!(self.queue.write_pooled(offset, len, pool, collect))).await
    }

    async fn flush(&self) -> Result<(), BlockError> {
        let request = self.requests.begin(Kind::Flush, 0, 0);
        request.drive(pin!(self.queue.flush())).await
    }

    fn count_failure(&self) {
        self.queue.count_failure();
    }

    async fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        let request = self.requests.begin(Kind::Discard, offset, len);
        request.drive(pin!(self.queue.write_zeroes(offset, len))).await
    }
}
