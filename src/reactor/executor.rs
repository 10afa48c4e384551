//! The local executor: tasks in a slab, a queue of ready ones, wakers that any thread may call.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use slab::Slab;

use super::{
    contain::contain,
    inbox::{Inbox, Message},
};

type Ready = Rc<RefCell<VecDeque<usize>>>;

thread_local! {
    /// Ready queues of the reactors of this thread, so that a waker called here need not go through the inbox.
    /// (The reactor itself is never taken from here.)
    static LOCAL: RefCell<Vec<(*const Inbox, Ready)>> = const { RefCell::new(Vec::new()) };
}

/// Whether the calling thread is that of the reactor with this inbox.
pub(super) fn is_own_thread(inbox: &Arc<Inbox>) -> bool {
    let found = LOCAL.try_with(|local| local.borrow().iter().any(|(other, _)| *other == Arc::as_ptr(inbox)));
    found.unwrap_or(false)
}

pub(super) struct Executor {
    tasks: RefCell<Slab<Task>>,
    closed: Cell<bool>,
    ready: Ready,
    inbox: Arc<Inbox>,
}

struct Task {
    /// Taken out while it is polled.
    future: Option<Pin<Box<dyn Future<Output = ()>>>>,
    wake: Arc<TaskWake>,
    waker: Waker,
}

struct TaskWake {
    index: usize,
    /// Set while the task is in a ready queue or in the inbox.
    queued: AtomicBool,
    inbox: Arc<Inbox>,
}

impl Wake for TaskWake {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        let here = LOCAL.try_with(|local| {
            let local = local.borrow();
            let ready = local.iter().find(|(inbox, _)| *inbox == Arc::as_ptr(&self.inbox));
            ready.map(|(_, ready)| ready.borrow_mut().push_back(self.index)).is_some()
        });
        if !here.unwrap_or(false) {
            self.inbox.post(Message::Wake(self.index));
        }
    }
}

impl Executor {
    pub(super) fn new(inbox: Arc<Inbox>) -> Self {
        let ready = Ready::default();
        LOCAL.with_borrow_mut(|local| local.push((Arc::as_ptr(&inbox), ready.clone())));
        Self { tasks: RefCell::default(), closed: Cell::new(false), ready, inbox }
    }

    /// Takes a task; drops it at once when the reactor has ended.
    pub(super) fn spawn(&self, future: Pin<Box<dyn Future<Output = ()>>>) {
        if self.closed.get() {
            return;
        }
        let mut tasks = self.tasks.borrow_mut();
        let entry = tasks.vacant_entry();
        let index = entry.key();
        let wake =
            Arc::new(TaskWake { index, queued: AtomicBool::new(true), inbox: Arc::clone(&self.inbox) });
        let waker = Waker::from(Arc::clone(&wake));
        entry.insert(Task { future: Some(future), wake, waker });
        self.ready.borrow_mut().push_back(index);
    }

    pub(super) fn wake(&self, index: usize) {
        self.ready.borrow_mut().push_back(index);
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.ready.borrow().is_empty()
    }

    /// Polls each task that was ready at the call once; those that become ready meanwhile wait for the next
    /// turn, so that completions are reaped in between.
    pub(super) fn run_ready(&self) {
        let count = self.ready.borrow().len();
        for _ in 0..count {
            let Some(index) = self.ready.borrow_mut().pop_front() else { return };
            self.poll(index);
        }
    }

    /// A wake-up may be older than the task that now has its place: polling once too often does no harm.
    fn poll(&self, index: usize) {
        let taken = {
            let mut tasks = self.tasks.borrow_mut();
            tasks.get_mut(index).and_then(|task| {
                // Reads what the last wake-up wrote: a plain store could pass the reads of the poll that follows,
                // and a wake-up between them would be lost.
                task.wake.queued.swap(false, Ordering::AcqRel);
                task.future.take().map(|future| (future, task.waker.clone()))
            })
        };
        let Some((mut future, waker)) = taken else { return };
        let polled = contain("a task", || future.as_mut().poll(&mut Context::from_waker(&waker)));
        let mut tasks = self.tasks.borrow_mut();
        if matches!(polled, Some(Poll::Pending)) {
            if let Some(task) = tasks.get_mut(index) {
                task.future = Some(future);
                return;
            }
            // The reactor ended inside the poll.
        } else {
            let _ = tasks.try_remove(index);
        }
        drop(tasks);
        // Only now: dropping a future may wake or spawn others.
        contain("the end of a task", || drop(future));
    }

    /// Drops all tasks and takes no more.
    pub(super) fn close(&self) {
        self.closed.set(true);
        for task in std::mem::take(&mut *self.tasks.borrow_mut()) {
            contain("the end of a task", || drop(task));
        }
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        let inbox = Arc::as_ptr(&self.inbox);
        let _ = LOCAL.try_with(|local| local.borrow_mut().retain(|(other, _)| *other != inbox));
    }
}
