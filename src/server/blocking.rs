//! Work that may block, off the threads that carry every fetch and the control API.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use tokio::{
    sync::Semaphore,
    task::{self, JoinError},
    time::sleep,
};

use super::{
    failure::{Failure, FailureClass},
    mounts::file_system_work,
};

/// Devices that are made, asked for and removed at once: the rest of the runtime's threads is for files, names and credentials,
/// also while the driver hangs.
const DEVICE_WORK_AT_ONCE: usize = 16;

/// Questions about files that are asked at once.
const FILE_WORK_AT_ONCE: usize = 8;

/// How long somebody is waited for who has what is wanted and may well keep it, and how often it is tried.
pub(super) const BUSY_PATIENCE: Duration = Duration::from_secs(2);
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// Runs `work` on a thread that may block. It goes on to its end when the caller gives up waiting.
///
/// # Errors
/// Those of `work`, and [`FailureClass::Internal`] where it has panicked.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    task::spawn_blocking(work).await.map_err(broken_task)?
}

/// As [`file_system_work`], for `work` that is tried again for as long as `patience` when it ends with [`FailureClass::Conflict`]: a process that was
/// killed lets go of its files a moment after it has gone, when its ring has.
///
/// # Errors
/// As [`blocking`].
pub(super) async fn blocking_while_busy<T: Send + 'static>(
    path: &Path,
    patience: Duration,
    work: impl Fn() -> Result<T, Failure> + Clone + Send + 'static,
) -> Result<T, Failure> {
    let began = Instant::now();
    loop {
        match file_system_work(path, work.clone()).await {
            Err(failure) if failure.class() == FailureClass::Conflict && began.elapsed() < patience => {
                sleep(BUSY_PAUSE).await;
            }
            done => return done,
        }
    }
}

/// As [`blocking`], for work on devices. What hangs in the driver keeps its thread, and counts until it has ended.
///
/// # Errors
/// As [`blocking`].
pub(super) async fn device_work<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    static SLOTS: Semaphore = Semaphore::const_new(DEVICE_WORK_AT_ONCE);
    within(&SLOTS, work).await
}

/// As [`device_work`], for questions about files that users have named: of a file system that hangs, everybody may ask again and
/// again.
///
/// # Errors
/// As [`blocking`].
pub(super) async fn file_work<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    static SLOTS: Semaphore = Semaphore::const_new(FILE_WORK_AT_ONCE);
    within(&SLOTS, work).await
}

async fn within<T: Send + 'static>(
    slots: &'static Semaphore,
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let slot = slots.acquire().await.expect("it is never closed");
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
