//! The two traits at the seam: a shared device, and its thread-local queue.

use super::{BlockError, Geometry};
use crate::reactor::Reactor;

/// A device that any thread may hold and any reactor may serve.
pub trait BlockDevice: Send + Sync + 'static {
    /// The thread-local half.
    type Queue: BlockQueue;

    /// Size, block sizes and abilities. Constant while the device is open.
    fn geometry(&self) -> Geometry;

    /// Opens a queue on `reactor`; called once for each hardware queue, on the reactor's own thread.
    ///
    /// # Errors
    /// Whatever the engine needs and cannot have on this thread, such as memory or a descriptor.
    fn open_queue(&self, reactor: &Reactor) -> Result<Self::Queue, BlockError>;
}

/// The thread-local half of a device. Every offset and length is in bytes and has been checked by the
/// frontend against [`Geometry`]: a multiple of the logical block size, inside the device.
///
/// Operations that overlap in flight may take effect in either order; a completed one is seen by all
/// later ones.
pub trait BlockQueue: 'static {
    /// Fills all of `dest` with the bytes at `offset`.
    ///
    /// # Errors
    /// On an error the content of `dest` is unspecified and must not reach the caller.
    fn read(&self, offset: u64, dest: &mut [u8]) -> impl Future<Output = Result<(), BlockError>>;

    /// Writes `data` at `offset`; durable only after a later [`BlockQueue::flush`].
    ///
    /// # Errors
    /// [`super::ErrorKind::ReadOnly`] where the device takes no writes.
    fn write(&self, offset: u64, data: &[u8]) -> impl Future<Output = Result<(), BlockError>>;

    /// Makes every write that completed before this call durable.
    ///
    /// # Errors
    /// After a failure the durability of those writes is unknown.
    fn flush(&self) -> impl Future<Output = Result<(), BlockError>>;

    /// Makes `len` bytes at `offset` read as zeroes; a discard may end here too.
    ///
    /// # Errors
    /// [`super::ErrorKind::ReadOnly`] where the device takes no writes.
    fn write_zeroes(&self, offset: u64, len: u64) -> impl Future<Output = Result<(), BlockError>>;
}
