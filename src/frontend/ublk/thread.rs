//! What a thread must be before it may serve devices.

use std::io;

use rustix::{
    io::Errno,
    process::configure_io_flusher_behavior,
    thread::{CapabilitySet, capabilities, set_capabilities},
};

/// Prepares the calling thread to serve devices; meant to be the `prepare` of [`crate::reactor::ReactorThread::start`].
///
/// Takes CAP_SYS_ADMIN from the thread's effective set: the driver then leaves the partition scan out of starting a device,
/// which on Linux before 6.18 would run inside the START command and could hang for ever if this process died in it.
/// Marks the thread as one that writeback depends on, so that its allocations do not wait for its own devices.
///
/// # Errors
/// The kernel's answer. A process that may not mark itself (no CAP_SYS_RESOURCE) is only warned.
pub fn prepare_serving_thread() -> io::Result<()> {
    match configure_io_flusher_behavior(true) {
        Ok(()) => {}
        Err(Errno::PERM | Errno::INVAL) => {
            tracing::warn!(
                "cannot mark a serving thread as IO_FLUSHER: memory pressure may stall written devices"
            );
        }
        Err(errno) => return Err(errno.into()),
    }
    let mut sets = capabilities(None)?;
    sets.effective.remove(CapabilitySet::SYS_ADMIN);
    Ok(set_capabilities(None, sets)?)
}
