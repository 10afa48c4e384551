//! Ends requests that wait for the engine, from the thread that removes their device.

use std::{
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Poll, Waker},
};

use crate::block::{BlockError, ErrorKind};

/// Shared by all tags of a device and the thread that removes it.
#[derive(Debug, Default)]
pub(super) struct Abort {
    set: AtomicBool,
    /// One for each tag, for as long as the device lives.
    wakers: Mutex<Vec<Waker>>,
}

impl Abort {
    /// Lets the calling task be woken by [`Abort::set`]; once for each task.
    pub(super) async fn join(&self) {
        poll_fn(|cx| {
            self.wakers.lock().unwrap_or_else(PoisonError::into_inner).push(cx.waker().clone());
            Poll::Ready(())
        })
        .await;
    }

    /// Whether the device is being removed.
    pub(super) fn is_set(&self) -> bool {
        self.set.load(Ordering::Relaxed)
    }

    /// Makes all requests fail, those that wait and those that come.
    pub(super) fn set(&self) {
        self.set.store(true, Ordering::SeqCst);
        for waker in self.wakers.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            waker.wake();
        }
    }

    /// Drives `work` until it is done or given up, which is an error. A panic of the engine gives up this request and no
    /// other: the tag must be answered, or the device could never be removed.
    pub(super) async fn guard<T>(&self, work: impl Future<Output = T>) -> Result<T, BlockError> {
        let mut work = pin!(work);
        poll_fn(|cx| {
            if self.is_set() {
                return Poll::Ready(Err(BlockError::new(ErrorKind::Gone, "the device is being removed")));
            }
            match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(cx))) {
                Ok(polled) => polled.map(Ok),
                Err(_) => Poll::Ready(Err(BlockError::new(ErrorKind::Io, "the engine panicked"))),
            }
        })
        .await
    }
}
