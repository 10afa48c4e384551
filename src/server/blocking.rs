//! Work that may block, off the threads that carry every fetch and the control API.

use tokio::{
    sync::Semaphore,
    task::{self, JoinError},
};

use super::failure::{Failure, FailureClass};

/// Devices that are made, asked for and removed at once: the rest of the runtime's threads is for files, names and credentials,
/// also while the driver hangs.
const DEVICE_WORK_AT_ONCE: usize = 16;

/// Runs `work` on a thread that may block. It goes on to its end when the caller gives up waiting.
///
/// # Errors
/// Those of `work`, and [`FailureClass::Internal`] where it has panicked.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    task::spawn_blocking(work).await.map_err(broken_task)?
}

/// As [`blocking`], for work on devices. What hangs in the driver keeps its thread, and counts until it has ended.
///
/// # Errors
/// As [`blocking`].
pub(super) async fn device_work<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    static SLOTS: Semaphore = Semaphore::const_new(DEVICE_WORK_AT_ONCE);
    let slot = SLOTS.acquire().await.expect("it is never closed");
    blocking(move || {
        let _slot = slot;
        work()
    })
    .await
}

/// A task that has ended without an answer.
pub(super) fn broken_task(source: JoinError) -> Failure {
    Failure::with_source(FailureClass::Internal, "a task has failed", source)
}
