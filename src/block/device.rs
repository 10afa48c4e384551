//! The two traits at the seam: a shared device, and its thread-local queue.

use std::{future::ready, rc::Rc};

use super::{BlockError, ByteRange, ErrorKind, Geometry};
use crate::reactor::{Buffer, BufferPool, BufferSlot, Reactor, waiting_for};

/// A device that any thread may hold and any reactor may serve.
pub trait BlockDevice: Send + Sync + 'static {
    /// The thread-local half.
    type Queue: BlockQueue;

    /// Size, block sizes and abilities. Constant while the device is open, but that its size may grow.
    fn geometry(&self) -> Geometry;

    /// How far its queues answer reads, in bytes: at least to its end. A stack of layers has more where a lower one is larger than
    /// the highest, and a larger device over it shows that.
    fn reach_bytes(&self) -> u64 {
        self.geometry().size_bytes
    }

    /// Whether [`BlockQueue::read_to_slot`] may ever succeed, for to register the pages of every request has a price.
    fn reads_to_slots(&self) -> bool {
        false
    }

    /// Opens a queue on `reactor`; called once for each hardware queue, on the reactor's own thread.
    ///
    /// # Errors
    /// Whatever the engine needs and cannot have on this thread, such as memory or a descriptor.
    fn open_queue(&self, reactor: &Reactor) -> Result<Self::Queue, BlockError>;
}

/// The thread-local half of a device. Every offset and length is in bytes and has been checked by the
/// frontend against [`Geometry`]: a multiple of the logical block size, inside the device; of a device below another, inside
/// its [reach](BlockDevice::reach_bytes).
///
/// Operations that overlap in flight may take effect in either order; a completed one is seen by all
/// later ones.
pub trait BlockQueue: 'static {
    /// Fills all of `dest` with the bytes at `offset`.
    ///
    /// # Errors
    /// On an error the content of `dest` is unspecified and must not reach the caller.
    fn read(&self, offset: u64, dest: &mut [u8]) -> impl Future<Output = Result<(), BlockError>>;

    /// Has the kernel read the `len` bytes at `offset` into the pages of a request, which its driver has put into `slot`: where
    /// all of them lie, as they are, in one file. Returns whether it has; if not, what the pages hold is unspecified, and
    /// [`BlockQueue::read_pooled`] is to be asked, which also tells what has failed.
    fn read_to_slot(&self, _offset: u64, _len: u32, _slot: &Rc<BufferSlot>) -> impl Future<Output = bool> {
        ready(false)
    }

    /// Returns the `len` bytes at `offset` in a buffer of `pool`, which other devices share. An engine whose bytes may be far
    /// away must hold no buffer while it waits for them, or one slow origin would keep all from being served.
    ///
    /// # Errors
    /// As [`BlockQueue::read`], or when the pool can never hand out `len` bytes.
    fn read_pooled(
        &self,
        offset: u64,
        len: usize,
        pool: &BufferPool,
    ) -> impl Future<Output = Result<Buffer, BlockError>> {
        async move {
            let mut dest = acquire(pool, len).await?;
            self.read(offset, &mut dest).await?;
            Ok(dest)
        }
    }

    /// The first stretch of `range`, which is made of sectors, that may hold something else than zeroes, as far as the engine
    /// knows without waiting; an empty one where all of `range` is known to be zeroes. A long stretch may be cut short.
    fn next_data(&self, range: ByteRange) -> ByteRange {
        range
    }

    /// Writes `data` at `offset`; durable only after a later [`BlockQueue::flush`].
    ///
    /// # Errors
    /// [`super::ErrorKind::ReadOnly`] where the device takes no writes.
    fn write(&self, offset: u64, data: &[u8]) -> impl Future<Output = Result<(), BlockError>>;

    /// Writes `len` bytes at `offset`, which `collect` puts into a buffer of `pool` that other requests want too. An engine that has
    /// to wait before it can write is to take the buffer only then.
    ///
    /// # Errors
    /// As [`BlockQueue::write`], those of `collect`, or when the pool can never hand out `len` bytes.
    fn write_pooled(
        &self,
        offset: u64,
        len: usize,
        pool: &BufferPool,
        collect: impl FnOnce(&mut [u8]) -> Result<(), BlockError>,
    ) -> impl Future<Output = Result<(), BlockError>> {
        async move {
            let mut data = acquire(pool, len).await?;
            collect(&mut data)?;
            self.write(offset, &data).await
        }
    }

    /// Makes every write that completed before this call durable.
    ///
    /// # Errors
    /// After a failure the durability of those writes is unknown.
    fn flush(&self) -> impl Future<Output = Result<(), BlockError>>;

    /// Counts a request to this queue that failed though no call failed: one that was refused before, given up meanwhile, or
    /// whose data could not be handed over.
    fn count_failure(&self) {}

    /// Makes `len` bytes at `offset` read as zeroes; a discard may end here too.
    ///
    /// # Errors
    /// [`super::ErrorKind::ReadOnly`] where the device takes no writes.
    fn write_zeroes(&self, offset: u64, len: u64) -> impl Future<Output = Result<(), BlockError>>;
}

/// A buffer for the data of a request; waits until `pool` has room.
///
/// # Errors
/// When `len` can never be had.
pub async fn acquire(pool: &BufferPool, len: usize) -> Result<Buffer, BlockError> {
    let acquired = waiting_for(|| "a buffer of its reactor", pool.acquire(len)).await;
    acquired.map_err(|error| BlockError::with_source(ErrorKind::Io, "no buffer for a request", error))
}
