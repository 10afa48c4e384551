//! The engine: a stack of read-only layers as one block device.

pub mod index;
