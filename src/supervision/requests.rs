//! The requests that one queue has at this moment, and the looks at them.

use std::{
    cell::{Cell, RefCell},
    pin::Pin,
    rc::{Rc, Weak},
    sync::Arc,
    time::{Duration, Instant},
};

use slab::Slab;

use super::{Overdue, OverdueRequest};
use crate::reactor::{Reactor, WaitsFor};

/// So often a request is looked at until it counts as overdue: it is named at most half of the limit too late.
const LOOKS: u32 = 4;

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    Flush,
    Discard,
}

/// The requests of one queue.
#[derive(Debug)]
pub(super) struct Requests {
    reactor: Reactor,
    overdue: Arc<Overdue>,
    /// Among the queues that tell `overdue`.
    number: u64,
    entries: RefCell<Slab<Entry>>,
    /// What entries had that have ended, to be used again.
    pub(super) spare: RefCell<Vec<Rc<WaitsFor>>>,
    is_looking: Cell<bool>,
}

#[derive(Debug)]
struct Entry {
    kind: Kind,
    offset: u64,
    len: u64,
    waits_for: Rc<WaitsFor>,
    /// When it was first looked at, if it was.
    seen: Option<Instant>,
    /// Whether the log has named it.
    is_named: bool,
}

/// One of them, until it is dropped.
#[derive(Debug)]
#[must_use]
pub(super) struct Request<'a> {
    requests: &'a Requests,
    key: usize,
    waits_for: Rc<WaitsFor>,
}

impl Requests {
    pub(super) fn new(reactor: &Reactor, overdue: &Arc<Overdue>) -> Rc<Self> {
        Rc::new(Self {
            reactor: reactor.for_queue(),
            number: overdue.add_queue(),
            overdue: Arc::clone(overdue),
            entries: RefCell::default(),
            spare: RefCell::default(),
            is_looking: Cell::new(false),
        })
    }

    pub(super) fn begin(self: &Rc<Self>, kind: Kind, offset: u64, len: u64) -> Request<'_> {
        let waits_for = self.spare.borrow_mut().pop().unwrap_or_default();
        let entry =
            Entry { kind, offset, len, waits_for: Rc::clone(&waits_for), seen: None, is_named: false };
        let key = self.entries.borrow_mut().insert(entry);
        self.overdue.begin();
        if !self.is_looking.replace(true) {
            let looks =
                look_until_idle(self.reactor.clone(), Rc::downgrade(self), self.overdue.limit() / LOOKS);
            self.reactor.spawn(looks);
        }
        Request { requests: self, key, waits_for }
    }

    /// Looks at all requests; whether there are any.
    fn look(&self, now: Instant) -> bool {
        let mut entries = self.entries.borrow_mut();
        let limit = self.overdue.limit();
        let overdue = entries.iter_mut().filter_map(|(_, entry)| {
            let since = *entry.seen.get_or_insert(now);
            let age = now.duration_since(since);
            if age < limit {
                return None;
            }
            let found = entry.describe(age);
            if !std::mem::replace(&mut entry.is_named, true) {
                self.overdue.name(&found);
            }
            Some(found)
        });
        self.overdue.tell(self.number, overdue.collect());
        !entries.is_empty()
    }
}

/// Looks at the requests of a queue until it has none, or is gone.
async fn look_until_idle(reactor: Reactor, requests: Weak<Requests>, interval: Duration) {
    loop {
        reactor.sleep(interval).await;
        let Some(requests) = requests.upgrade() else { return };
        if !requests.look(Instant::now()) {
            requests.is_looking.set(false);
            return;
        }
    }
}

impl Entry {
    fn describe(&self, age: Duration) -> OverdueRequest {
        let kind = match self.kind {
            Kind::Read => "read",
            Kind::Write => "write",
            Kind::Flush => "flush",
            Kind::Discard => "discard",
        };
        let waits_for = self.waits_for.text();
        OverdueRequest { kind, offset: self.offset, len: self.len, age, waits_for }
    }
}

impl Request<'_> {
    pub(super) async fn drive<F: Future>(self, work: Pin<&mut F>) -> F::Output {
        self.waits_for.drive(work).await
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        let requests = self.requests;
        requests.overdue.end();
        let Some(entry) = requests.entries.borrow_mut().try_remove(self.key) else { return };
        if entry.is_named
            && let Some(seen) = entry.seen
        {
            requests.overdue.ended(requests.number, &entry.describe(seen.elapsed()));
        }
        requests.spare.borrow_mut().push(entry.waits_for);
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        self.overdue.tell(self.number, Vec::new());
    }
}
