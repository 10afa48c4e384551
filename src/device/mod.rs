//! Block devices that need no image: the members of the family that tests, benches and comparisons stand on.
//!
//! [`NullDevice`] measures a frontend alone, [`MemoryDevice`] is the model that others are compared with,
//! [`FileDevice`] serves a file or a block device as kernel loop does, and [`FaultyDevice`] makes any of them fail,
//! dawdle or stop half way by a script.

mod fault;
mod file;
mod memory;
mod null;
#[cfg(test)]
mod tests;

pub use fault::{Fault, FaultPlan, FaultyDevice, FaultyQueue, Op, Trouble};
pub use file::{FileDevice, FileDeviceError, FileQueue};
pub use memory::{MemoryDevice, MemoryError, MemoryQueue};
pub use null::{NullDevice, NullQueue};
