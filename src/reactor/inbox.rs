//! What other threads may ask of a reactor: wake a task, run a closure, stop.

use std::{
    fmt, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use futures_channel::oneshot;
use rustix::event::{EventfdFlags, eventfd};

use super::Reactor;

pub(super) enum Message {
    Wake(usize),
    Run(Box<dyn FnOnce(&Reactor) + Send>),
    Stop,
    /// Nothing but a turn of the loop.
    Poll,
}

/// The part of a reactor that all threads share.
pub(super) struct Inbox {
    /// None once the reactor has ended.
    messages: Mutex<Option<Vec<Message>>>,
    /// Set by the reactor just before it sleeps; whoever clears it writes the eventfd.
    sleeping: AtomicBool,
    /// Spares the reactor the lock while there is nothing to fetch.
    waiting: AtomicBool,
    event: OwnedFd,
}

impl Inbox {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            messages: Mutex::new(Some(Vec::new())),
            sleeping: AtomicBool::new(false),
            waiting: AtomicBool::new(false),
            event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// Hands over a message; drops it if the reactor has ended.
    pub(super) fn post(&self, message: Message) {
        match self.messages().as_mut() {
            Some(messages) => messages.push(message),
            None => return,
        }
        self.waiting.store(true, Ordering::SeqCst);
        if self.sleeping.swap(false, Ordering::SeqCst) {
            // Fails only when the counter is full, and then the reactor is being woken already.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    /// Moves all messages to the end of `into`.
    pub(super) fn fetch(&self, into: &mut Vec<Message>) {
        if self.waiting.swap(false, Ordering::SeqCst)
            && let Some(messages) = self.messages().as_mut()
        {
            into.append(messages);
        }
    }

    /// Refuses all messages from now on; returns those that nobody will fetch.
    pub(super) fn close(&self) -> Vec<Message> {
        self.messages().take().unwrap_or_default()
    }

    fn messages(&self) -> MutexGuard<'_, Option<Vec<Message>>> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Announces sleep; returns whether there is nothing to do, so that sleeping is right.
    pub(super) fn may_sleep(&self) -> bool {
        self.sleeping.store(true, Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) {
            self.sleeping.store(false, Ordering::SeqCst);
            return false;
        }
        true
    }

    pub(super) fn awake(&self) {
        self.sleeping.store(false, Ordering::SeqCst);
    }

    /// Takes the eventfd's count back to zero, so that it can announce the next message.
    pub(super) fn acknowledge(&self) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.event, &mut count);
    }

    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// A reactor as seen from other threads. What is handed to a reactor that has ended is dropped.
#[derive(Clone)]
pub struct ReactorHandle {
    pub(super) inbox: Arc<Inbox>,
}

impl ReactorHandle {
    /// Runs `make` on the reactor's thread and drives the future it returns there.
    pub fn spawn<M, F>(&self, make: M)
    where
        M: FnOnce(&Reactor) -> F + Send + 'static,
        F: Future<Output = ()> + 'static,
    {
        self.inbox.post(Message::Run(Box::new(move |reactor| {
            let future = make(reactor);
            reactor.spawn(future);
        })));
    }

    /// As [`ReactorHandle::spawn`], and hands the future's output to the receiver, which any executor may await.
    /// The receiver is cancelled if the work panics, or if the reactor ends first or has ended.
    pub fn call<M, F, T>(&self, make: M) -> oneshot::Receiver<T>
    where
        M: FnOnce(Reactor) -> F + Send + 'static,
        F: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        self.spawn(move |reactor| {
            let future = make(reactor.clone());
            async move {
                // The caller may have gone; the work was still to be done.
                let _ = sender.send(future.await);
            }
        });
        receiver
    }

    pub(super) fn stop(&self) {
        self.inbox.post(Message::Stop);
    }
}

impl fmt::Debug for ReactorHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReactorHandle")
    }
}
