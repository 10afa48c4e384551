//! The Linux driver ublk: block devices whose requests are served by this process.
//!
//! Queue side and control side are our own, on the plain interface of the driver; `abi` says why. Every queue is served
//! by a reactor that it shares with other devices; attaching and removing happen on the caller's thread, and each command
//! to the driver on a thread of its own.
//!
//! A process must not read or write its own devices: killed while it waits for itself, it keeps its files open and the
//! driver waits for them, so that neither ends (seen on Linux 7.2).

mod abi;
mod abort;
mod attach;
mod attachment;
mod command;
mod control;
mod deadline;
mod descriptor;
mod features;
mod gate;
mod inventory;
mod memory;
mod messenger;
mod node;
mod params;
mod queue;
mod queues;
mod recovery;
mod thread;
mod transfer;
mod users;

use std::path::Path;

pub use descriptor::{Descriptor, DescriptorError, Work};
pub use features::{CopyMode, Features};
pub use inventory::{DeviceInfo, DeviceState};
pub use params::{Shape, ShapeError};
pub use thread::{mark_io_flusher, prepare_serving_thread};

/// The frontend. It holds nothing: devices belong to their [`super::Attachment`]s.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ublk {
    copy: Option<CopyMode>,
}

impl Ublk {
    /// Names one of those who use the block device at `path`, and would lose what they hold of it in a removal. Who has just opened
    /// it is not among them.
    #[must_use]
    pub fn user(&self, path: &Path) -> Option<String> {
        users::user(path)
    }

    /// Uses the best way of copying that the driver offers: [`CopyMode::User`] where there is one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Uses this way of copying, or [`CopyMode::TagBuffer`] where the driver does not offer it.
    #[must_use]
    pub fn with_copy(mode: CopyMode) -> Self {
        Self { copy: Some(mode) }
    }
}
