//! What a process and a thread must be before they may serve devices.

use std::io;

use rustix::{
    process::configure_io_flusher_behavior,
    thread::{CapabilitySet, capabilities, set_capabilities},
};

/// Marks the calling thread, and all that it starts from then on, as ones that writeback depends on, so that their allocations
/// wait for no writeback, which might be that of their own devices. To be called while there is no other thread: what serves
/// waits for those that log, fetch and open too, and for the kernel's workers of its ring, which inherit the mark as well.
///
/// # Errors
/// The kernel's answer: EPERM without CAP_SYS_RESOURCE.
pub fn mark_io_flusher() -> io::Result<()> {
    Ok(configure_io_flusher_behavior(true)?)
}

/// Prepares the calling thread to serve devices; meant to be the `prepare` of [`crate::reactor::ReactorThread::start`].
///
/// Takes CAP_SYS_ADMIN from the thread's effective set: the driver then leaves the partition scan out of starting a device,
/// which on Linux before 6.18 would run inside the START command and could hang for ever if this process died in it.
///
/// # Errors
/// The kernel's answer.
pub fn prepare_serving_thread() -> io::Result<()> {
    let mut sets = capabilities(None)?;
    sets.effective.remove(CapabilitySet::SYS_ADMIN);
    Ok(set_capabilities(None, sets)?)
}
