//! Operations in flight: what each one holds until the kernel answers, and the future that waits for it.

use std::{
    any::Any,
    io,
    os::fd::OwnedFd,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use io_uring::types::Timespec;

use super::{Buffer, BufferSlot, ring::Ring};

/// What the kernel may touch while an operation is in flight, and so must stay until its completion.
pub(super) enum Resources {
    /// Memory and the file that it moves to or from.
    Transfer(Buffer, Arc<OwnedFd>),
    /// A file without memory.
    File(#[expect(dead_code, reason = "held, not read")] Arc<OwnedFd>),
    /// A file, and the place of the pages that it is read into, which are a driver's.
    Slot(
        #[expect(dead_code, reason = "held, not read")] Arc<OwnedFd>,
        #[expect(dead_code, reason = "held, not read")] Rc<BufferSlot>,
    ),
    /// The file of a driver command, and the memory that the driver may touch until it answers.
    Command(#[expect(dead_code, reason = "held, not read")] Arc<OwnedFd>, Option<Rc<dyn Any>>),
    /// The time of a timer, on the heap so that it does not move.
    Time(Rc<Timespec>),
    /// Nothing any more: the reactor ended before the operation did.
    Gone,
}

impl Resources {
    /// Whether the kernel may touch memory of it, and can be made to end soon: a command that waits in a driver cannot.
    pub(super) fn is_awaited(&self) -> bool {
        matches!(self, Self::Transfer(..) | Self::Time(_))
    }

    /// Parts with what the kernel has not given back: memory is leaked, and so is the file it belongs to where that may
    /// be in use; others are dropped.
    pub(super) fn let_go(self) {
        match self {
            Self::Transfer(buffer, file) => std::mem::forget((buffer, file)),
            Self::Time(time) => std::mem::forget(time),
            Self::Command(_, memory) => std::mem::forget(memory),
            Self::File(_) | Self::Slot(..) | Self::Gone => {}
        }
    }
}

/// An operation between its submission and the end of its future; its place in the slab is its user data.
pub(super) struct Operation {
    pub(super) held: Resources,
    pub(super) state: State,
}

impl Operation {
    /// Whether the kernel has not answered yet.
    pub(super) fn is_in_flight(&self) -> bool {
        !matches!(self.state, State::Done(_))
    }
}

pub(super) enum State {
    Waiting(Option<Waker>),
    Done(i32),
    /// Its future was dropped: the operation goes when the kernel answers.
    Abandoned,
}

/// Waits for one operation. Dropping it leaves the operation to finish by itself.
pub(super) struct Completion {
    ring: Rc<Ring>,
    /// None once the outcome has been taken, for then the place in the slab is another's.
    index: Option<usize>,
}

impl Completion {
    pub(super) fn new(ring: Rc<Ring>, index: usize) -> Self {
        Self { ring, index: Some(index) }
    }
}

impl Future for Completion {
    type Output = (io::Result<u32>, Resources);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let index = self.index.expect("not polled after it was ready");
        let mut operations = self.ring.operations.borrow_mut();
        let operation = operations.get_mut(index).expect("an operation outlives its future");
        match &mut operation.state {
            State::Done(result) => {
                let result = outcome(*result);
                let held = operations.remove(index).held;
                drop(operations);
                self.index = None;
                Poll::Ready((result, held))
            }
            State::Waiting(waker) => {
                if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                    let before = waker.replace(cx.waker().clone());
                    // Only now: the end of a waker may be the end of anything.
                    drop(operations);
                    drop(before);
                }
                Poll::Pending
            }
            State::Abandoned => unreachable!("only the end of its future abandons an operation"),
        }
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        if let Some(index) = self.index {
            self.ring.abandon(index);
        }
    }
}

fn outcome(result: i32) -> io::Result<u32> {
    u32::try_from(result).map_err(|_| io::Error::from_raw_os_error(result.wrapping_neg()))
}
