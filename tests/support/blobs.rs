//! Blobs in memory that behave as a test wants: warm, cold, damaged until forgotten, or hung.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::Poll,
};

use stratabd::{
    block::ByteRange,
    reactor::Reactor,
    source::{BlobSource, LocalFuture, Readiness, Refutation, SourceError, check_bounds},
};

/// Bytes in memory.
#[derive(Debug)]
pub(crate) struct MemoryBlob {
    name: String,
    good: Vec<u8>,
    behaviour: Behaviour,
    /// Contents that are served, one after the other, before `good`; each call of `invalidate` drops one.
    damaged: Mutex<VecDeque<Vec<u8>>>,
    /// Everything that was asked of it.
    pub(crate) log: Mutex<Vec<Asked>>,
    pub(crate) hanging: AtomicBool,
    /// Of one that remembers: whether it does now.
    near: AtomicBool,
    pub(crate) invalidations: AtomicUsize,
    /// How many of those that watch are told at once that it was another blob.
    pub(crate) refuted_from_the_start: AtomicUsize,
    watching: Mutex<Vec<Arc<Refutation>>>,
}

/// One call.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Asked {
    Fetch(Vec<ByteRange>),
    Read(ByteRange),
}

/// How a blob answers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Behaviour {
    /// Everything is near.
    Warm,
    /// Nothing is ever near, so that every read waits.
    Cold,
    /// What is served is wrong however often it is forgotten.
    Liar,
    /// The same, and what was forgotten is near again only after a fetch that is waited for.
    FarLiar,
}

impl MemoryBlob {
    pub(crate) fn new(name: &str, good: Vec<u8>, behaviour: Behaviour) -> Arc<Self> {
        Arc::new(Self {
            name: name.to_owned(),
            good,
            behaviour,
            damaged: Mutex::default(),
            log: Mutex::default(),
            hanging: AtomicBool::new(false),
            near: AtomicBool::new(true),
            invalidations: AtomicUsize::new(0),
            refuted_from_the_start: AtomicUsize::new(0),
            watching: Mutex::default(),
        })
    }

    /// Serves this instead until it is told to forget.
    pub(crate) fn damage(&self, content: Vec<u8>) {
        self.damaged.lock().unwrap().push_back(content);
    }

    /// As if all of it had been fetched.
    pub(crate) fn bring_near(&self) {
        self.near.store(true, Ordering::Relaxed);
    }

    /// Turns out to have been another blob.
    pub(crate) fn refute(&self) {
        self.watching.lock().unwrap().iter().for_each(|watching| watching.raise(&self.name));
    }

    fn copy(&self, offset: u64, dest: &mut [u8]) -> Result<(), SourceError> {
        let range = check_bounds(&self.name, self.size_bytes(), offset, dest.len())?;
        let damaged = self.damaged.lock().unwrap();
        let content = damaged.front().unwrap_or(&self.good);
        let start = usize::try_from(range.start()).unwrap();
        dest.copy_from_slice(&content[start..start + dest.len()]);
        Ok(())
    }
}

impl BlobSource for MemoryBlob {
    fn watch(&self, refutation: &Arc<Refutation>) {
        self.watching.lock().unwrap().push(Arc::clone(refutation));
        let left = |left: usize| left.checked_sub(1);
        if self.refuted_from_the_start.fetch_update(Ordering::SeqCst, Ordering::SeqCst, left).is_ok() {
            self.refute();
        }
    }

    fn size_bytes(&self) -> u64 {
        self.good.len() as u64
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn try_read(&self, offset: u64, dest: &mut [u8]) -> Result<Readiness, SourceError> {
        if self.behaviour == Behaviour::Cold || !self.near.load(Ordering::Relaxed) {
            dest.fill(0xee);
            return Ok(Readiness::WouldWait);
        }
        self.copy(offset, dest).map(|()| Readiness::Done)
    }

    fn read<'a>(
        &'a self,
        reactor: &'a Reactor,
        offset: u64,
        dest: &'a mut [u8],
    ) -> LocalFuture<'a, Result<(), SourceError>> {
        self.log.lock().unwrap().push(Asked::Read(ByteRange::new(offset, dest.len() as u64).unwrap()));
        Box::pin(async move {
            reactor.sleep(std::time::Duration::from_micros(10)).await;
            self.copy(offset, dest)
        })
    }

    fn fetch<'a>(&'a self, ranges: &'a [ByteRange]) -> LocalFuture<'a, Result<(), SourceError>> {
        self.log.lock().unwrap().push(Asked::Fetch(ranges.to_vec()));
        Box::pin(std::future::poll_fn(|cx| {
            let was_near = self.near.swap(true, Ordering::Relaxed);
            if !was_near || self.hanging.load(Ordering::Relaxed) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Ready(Ok(()))
        }))
    }

    fn invalidate(&self, _range: ByteRange) -> bool {
        self.invalidations.fetch_add(1, Ordering::Relaxed);
        if self.behaviour == Behaviour::FarLiar {
            self.near.store(false, Ordering::Relaxed);
            return true;
        }
        self.behaviour == Behaviour::Liar || self.damaged.lock().unwrap().pop_front().is_some()
    }
}
