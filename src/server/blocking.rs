//! Work that may block, off the threads that carry every fetch and the control API.

use tokio::task::{self, JoinError};

use super::failure::{Failure, FailureClass};

/// Runs `work` on a thread that may block. It goes on to its end when the caller gives up waiting.
///
/// # Errors
/// Those of `work`, and [`FailureClass::Internal`] where it has panicked.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    task::spawn_blocking(work).await.map_err(broken_task)?
}

/// A task that has ended without an answer.
pub(super) fn broken_task(source: JoinError) -> Failure {
    Failure::with_source(FailureClass::Internal, "a task has failed", source)
}
