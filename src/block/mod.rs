//! The contract between frontends, which speak to the kernel or a VM, and the engines behind them.
//!
//! A [`BlockDevice`] is shared by all threads and opens one [`BlockQueue`] for each reactor that serves
//! it; a queue never leaves its thread, so it needs no lock. The reactor is an argument of
//! [`BlockDevice::open_queue`], never ambient. Futures returned by a queue may be dropped at any time: an
//! operation in flight owns its buffers (see [`crate::reactor`]), so the kernel never writes into freed memory.

mod device;
mod error;
mod geometry;
mod request;

pub use device::{BlockDevice, BlockQueue, acquire};
pub use error::{BlockError, ErrorKind};
pub use geometry::{Geometry, GeometryError};
pub use request::{ByteRange, RangeError, SECTOR_BYTES};
