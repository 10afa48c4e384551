//! Keeps a panic inside the task that it comes from.
//!
//! A reactor serves many devices. A panic in one request's task, on bytes of one image, must neither end the others'
//! thread, which would hang all its devices, nor the process, which would start again and meet the same bytes. So the
//! task is dropped, with its destructors, and the panic is logged; whoever waits for the task sees its end: a frontend's
//! request is answered by its guard, a [`super::ReactorHandle::call`] is cancelled.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `act`; returns None if it panicked. `what` says in the log what that was.
///
/// Unwinding leaves nothing of the reactor half changed, since it calls out to tasks only while nothing is borrowed.
pub(super) fn contain<T>(what: &'static str, act: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(act)) {
        Ok(output) => Some(output),
        Err(panic) => {
            let message = panic
                .downcast_ref::<&str>()
                .copied()
                .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
                .unwrap_or("no message");
            tracing::error!(what, panic = message, "a panic on a reactor; only this task ends");
            None
        }
    }
}
