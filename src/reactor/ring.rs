//! The io_uring itself: pushing entries, submitting them in batches, reaping completions.
#![expect(unsafe_code, reason = "io_uring takes pointers whose targets must outlive the operation")]

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io,
    os::fd::AsRawFd,
    rc::Rc,
    sync::Arc,
};

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use rustix::io::Errno;
use slab::Slab;

use super::{
    config::ReactorConfig,
    inbox::Inbox,
    operation::{Completion, Operation, Resources, State},
};

/// User data of the poll on the inbox's eventfd.
const WAKE_UP: u64 = u64::MAX;
/// User data of entries whose completion tells nothing, such as cancellations.
const IGNORED: u64 = u64::MAX - 1;
/// IORING_ENTER_GETEVENTS of linux/io_uring.h: run deferred completions also when none is waited for.
const ENTER_GETEVENTS: u32 = 1;

/// Threads of the kernel for operations on files that wait, at once. By itself it takes four for each processor, and an operation
/// on a disk that hangs keeps its thread: a sync and a hole of a writable layer, the writes to each of its two files, which the
/// kernel does one by one, and reads only where the file system cannot do them asynchronously. So this is enough for 256
/// devices that hang, or for 8 at full depth on a network's file system; and four reactors with so many stay below the
/// 4915 tasks that systemd lets a service have.
const WORKERS: u32 = 1024;

pub(super) struct Ring {
    uring: RefCell<IoUring>,
    pub(super) operations: RefCell<Slab<Operation>>,
    /// Entries that found the submission queue full, in order. As bounded as the operations are.
    backlog: RefCell<VecDeque<squeue::Entry>>,
    /// Completions between the ring and their operations; kept for its memory.
    reaped: Cell<Vec<cqueue::Entry>>,
    /// Set when the eventfd's poll must be put on the ring again.
    rearm: Cell<bool>,
    inbox: Arc<Inbox>,
}

impl Ring {
    pub(super) fn new(config: &ReactorConfig, inbox: Arc<Inbox>) -> io::Result<Rc<Self>> {
        let uring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(config.completion_entries.max(config.submission_entries.saturating_mul(2)))
            .build(config.submission_entries)?;
        // Of the two kinds the other, for what is no file or disk, keeps the limit that it has: that of the user's processes.
        uring.submitter().register_iowq_max_workers(&mut [WORKERS, 0])?;
        Ok(Rc::new(Self {
            uring: RefCell::new(uring),
            operations: RefCell::new(Slab::new()),
            backlog: RefCell::default(),
            reaped: Cell::default(),
            rearm: Cell::new(true),
            inbox,
        }))
    }

    /// Gives the ring an empty table for `count` buffers.
    pub(super) fn register_slots(&self, count: u16) -> io::Result<()> {
        self.uring.borrow().submitter().register_buffers_sparse(u32::from(count))
    }

    /// Puts an operation on the ring; the next turn of the loop submits it.
    ///
    /// # Safety
    /// Everything that `entry` points to lies in `held`, at an address that does not change when `held` moves,
    /// and nothing else uses it until the completion has been taken.
    pub(super) unsafe fn start(self: &Rc<Self>, entry: squeue::Entry, held: Resources) -> Completion {
        let index = self.operations.borrow_mut().insert(Operation { held, state: State::Waiting(None) });
        // SAFETY: the caller's promise; `held` stays in the slab until the completion has been reaped, or is leaked.
        unsafe { self.push(entry.user_data(index as u64)) };
        Completion::new(Rc::clone(self), index)
    }

    /// # Safety
    /// What `entry` points to must stay as it is until its completion.
    unsafe fn push(&self, entry: squeue::Entry) {
        let mut backlog = self.backlog.borrow_mut();
        // SAFETY: the caller's promise.
        if !backlog.is_empty() || unsafe { self.uring.borrow_mut().submission().push(&entry) }.is_err() {
            backlog.push_back(entry);
        }
    }

    /// Moves entries from the backlog to the submission queue; returns whether some are left.
    fn refill(&self) -> bool {
        let mut backlog = self.backlog.borrow_mut();
        let mut uring = self.uring.borrow_mut();
        let mut submission = uring.submission();
        while let Some(entry) = backlog.front() {
            // SAFETY: what it points to stays as whoever pushed it promised.
            if unsafe { submission.push(entry) }.is_err() {
                return true;
            }
            backlog.pop_front();
        }
        false
    }

    /// Submits what was pushed and, when `wait` is set, sleeps until something completes.
    pub(super) fn turn(&self, wait: bool) -> io::Result<()> {
        if self.rearm.replace(false) {
            let events = u32::from(rustix::event::PollFlags::IN.bits());
            let poll = opcode::PollAdd::new(types::Fd(self.inbox.event().as_raw_fd()), events)
                .multi(true)
                .build()
                .user_data(WAKE_UP);
            // SAFETY: the entry points to no memory, and the inbox keeps the eventfd open as long as the ring.
            unsafe { self.push(poll) };
        }
        loop {
            let more = self.refill();
            match self.enter(wait && !more) {
                Ok(()) if more => {}
                Ok(()) => break,
                // The rest is submitted in the next turn, which follows at once: this one has not slept.
                Err(error) if is_transient(&error) => break,
                Err(error) => return Err(error),
            }
        }
        self.reap();
        Ok(())
    }

    fn enter(&self, wait: bool) -> io::Result<()> {
        let mut uring = self.uring.borrow_mut();
        if wait {
            return uring.submit_and_wait(1).map(drop);
        }
        let (pending, taskrun) = {
            let submission = uring.submission();
            (submission.len(), submission.taskrun() || submission.cq_overflow())
        };
        if pending == 0 && !taskrun {
            return Ok(());
        }
        let pending = u32::try_from(pending).unwrap_or(u32::MAX);
        // SAFETY: no argument is passed by pointer.
        unsafe { uring.submitter().enter::<()>(pending, 0, ENTER_GETEVENTS, None) }.map(drop)
    }

    /// Takes all completions. Wakers run, and what operations held is dropped, while nothing of the ring is borrowed,
    /// since the end of a buffer or of a command's memory comes back here or wakes others.
    fn reap(&self) {
        let mut reaped = self.reaped.take();
        reaped.extend(self.uring.borrow_mut().completion());
        for entry in reaped.drain(..) {
            match entry.user_data() {
                IGNORED => {}
                WAKE_UP => {
                    self.inbox.acknowledge();
                    if !cqueue::more(entry.flags()) {
                        self.rearm.set(true);
                    }
                }
                index => self.complete(index, entry.result()),
            }
        }
        self.reaped.set(reaped);
    }

    fn complete(&self, index: u64, result: i32) {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        let mut operations = self.operations.borrow_mut();
        let Some(operation) = operations.get_mut(index) else {
            tracing::error!(index, result, "a completion for no operation");
            return;
        };
        match std::mem::replace(&mut operation.state, State::Done(result)) {
            State::Waiting(waker) => {
                drop(operations);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            State::Done(_) => tracing::error!(index, result, "an operation completed twice"),
            State::Abandoned => {
                let operation = operations.remove(index);
                drop(operations);
                drop(operation);
            }
        }
    }

    /// Lets go of the operation at `index`; called when its future ends before it.
    pub(super) fn abandon(&self, index: usize) {
        let mut operations = self.operations.borrow_mut();
        let Some(operation) = operations.get_mut(index) else { return };
        let is_timer = matches!(operation.held, Resources::Time(_));
        match std::mem::replace(&mut operation.state, State::Abandoned) {
            State::Done(_) => {
                let operation = operations.remove(index);
                drop(operations);
                drop(operation);
            }
            State::Waiting(_) | State::Abandoned if is_timer => {
                let cancel = opcode::TimeoutRemove::new(index as u64).build().user_data(IGNORED);
                // SAFETY: the entry points to no memory.
                unsafe { self.push(cancel) };
            }
            State::Waiting(_) | State::Abandoned => {}
        }
    }

    /// Cancels everything in flight and waits until the kernel holds no memory of ours. Whatever it will not give back
    /// is leaked, since freeing it would let the kernel write into memory that is used again. Operations without memory,
    /// such as commands that wait in a driver, are not waited for: they end when the ring does.
    pub(super) fn drain(&self) {
        const ROUNDS: usize = 100;
        for _ in 0..ROUNDS {
            let more = self.refill();
            let submitted = self.enter(false);
            self.reap();
            if !self.kernel_holds_memory() {
                break;
            }
            if more && submitted.is_ok() {
                continue;
            }
            self.cancel_all();
            // SAFETY: no argument is passed by pointer.
            let _ = unsafe { self.uring.borrow().submitter().enter::<()>(0, 0, ENTER_GETEVENTS, None) };
            self.reap();
        }
        self.let_go();
    }

    /// Has the kernel end everything in flight that it can, and waits for it a little.
    pub(super) fn cancel_all(&self) {
        let deadline = types::Timespec::new().nsec(20_000_000);
        let uring = self.uring.borrow();
        let _ = uring.submitter().register_sync_cancel(Some(deadline), types::CancelBuilder::any());
    }

    fn kernel_holds_memory(&self) -> bool {
        let operations = self.operations.borrow();
        operations.iter().any(|(_, operation)| operation.is_in_flight() && operation.held.is_awaited())
    }

    /// Parts with operations that have not ended. Their futures never end.
    fn let_go(&self) {
        let mut gone = Vec::new();
        let mut leaked = 0;
        for (_, operation) in self.operations.borrow_mut().iter_mut() {
            if operation.is_in_flight() {
                leaked += u32::from(operation.held.is_awaited());
                gone.push(std::mem::replace(&mut operation.held, Resources::Gone));
            }
        }
        if leaked > 0 {
            tracing::error!(operations = leaked, "the kernel did not end these; their memory is leaked");
        }
        // Only now: what is dropped may come back here.
        gone.into_iter().for_each(Resources::let_go);
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // Closing the ring ends its operations some time later, and until then the kernel may use their memory.
        self.drain();
    }
}

fn is_transient(error: &io::Error) -> bool {
    [Errno::INTR, Errno::BUSY, Errno::AGAIN, Errno::TIME]
        .into_iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_that_hang_have_more_workers_than_the_kernel_gives_by_itself() {
        let ring = Ring::new(&ReactorConfig::default(), Arc::new(Inbox::new().unwrap())).unwrap();
        let mut workers = [0, 0];
        ring.uring.borrow().submitter().register_iowq_max_workers(&mut workers).unwrap();
        assert_eq!(workers[0], WORKERS);
    }
}
