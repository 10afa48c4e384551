//! A blob whose entry cannot be had yet: it is read from its origin, and through the cache as soon as the entry is there.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Mutex, OnceLock, Weak},
    time::Duration,
};

use super::{blob::CachedBlob, guard::lock, holdings::Holdings, key::BlobKey, open::open_entry};
use crate::{
    block::ByteRange,
    reactor::Reactor,
    source::{
        BlobSource, DirectMark, LocalFuture, Origin, Place, Readiness, Refutation, SourceError, Uncached,
    },
};

/// Pauses between tries for the entry grow up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

#[derive(Debug)]
pub(super) struct LateBlob {
    cached: OnceLock<CachedBlob>,
    uncached: Uncached,
    origin: Arc<dyn Origin>,
    /// To be handed on to the entry.
    refutations: Mutex<Vec<Weak<Refutation>>>,
}

impl LateBlob {
    /// Tries for the entry of `key` again and again, on the cache's thread, as long as somebody has the blob.
    pub(super) fn new(shared: &Arc<Holdings>, key: BlobKey, origin: Arc<dyn Origin>) -> Arc<Self> {
        let blob = Arc::new(Self {
            cached: OnceLock::new(),
            uncached: Uncached::new(Arc::clone(&origin)),
            origin,
            refutations: Mutex::default(),
        });
        let (waiting, held) = (Arc::downgrade(&blob), Arc::downgrade(shared));
        shared.handle.spawn(move |reactor| wait_for_entry(reactor.clone(), held, key, waiting));
        blob
    }

    fn now(&self) -> &dyn BlobSource {
        self.cached.get().map_or(&self.uncached as &dyn BlobSource, |cached| cached)
    }

    /// From now on it is read through `cached`.
    fn arrive(&self, cached: CachedBlob) {
        // Who watches from now on waits for the lock, and finds it there.
        let mut waiting = lock(&self.refutations);
        waiting
            .drain(..)
            .filter_map(|refutation| refutation.upgrade())
            .for_each(|refutation| cached.watch(&refutation));
        let _ = self.cached.set(cached);
    }
}

async fn wait_for_entry(reactor: Reactor, shared: Weak<Holdings>, key: BlobKey, blob: Weak<LateBlob>) {
    let Some(mut pause) = shared.upgrade().map(|shared| shared.config.disk_rest) else { return };
    loop {
        reactor.sleep(pause).await;
        let (Some(shared), Some(blob)) = (shared.upgrade(), blob.upgrade()) else { return };
        match open_entry(&shared, &reactor, key.clone(), &*blob.origin).await {
            Ok(entry) => {
                tracing::info!(blob = %key, "a layer is read through the cache from now on");
                blob.arrive(CachedBlob::new(entry, Arc::clone(&blob.origin)));
                return;
            }
            Err(error) if error.may_pass() => pause = (pause * 2).min(LONGEST_PAUSE),
            Err(error) => {
                tracing::warn!(%error, "a layer is read without the cache as long as it is open");
                return;
            }
        }
    }
}

impl BlobSource for LateBlob {
    fn size_bytes(&self) -> u64 {
        self.now().size_bytes()
    }

    fn content_bytes(&self) -> u64 {
        self.now().content_bytes()
    }

    fn name(&self) -> &str {
        self.now().name()
    }

    fn place(&self) -> Place {
        self.now().place()
    }

    fn try_read(&self, offset: u64, dest: &mut [u8]) -> Result<Readiness, SourceError> {
        self.now().try_read(offset, dest)
    }

    fn file(&self) -> Option<&Arc<OwnedFd>> {
        self.now().file()
    }

    fn begin_direct(&self, range: ByteRange) -> Option<DirectMark> {
        self.now().begin_direct(range)
    }

    fn end_direct(&self, range: ByteRange, mark: DirectMark) -> bool {
        self.now().end_direct(range, mark)
    }

    fn read<'a>(
        &'a self,
        reactor: &'a Reactor,
        offset: u64,
        dest: &'a mut [u8],
    ) -> LocalFuture<'a, Result<(), SourceError>> {
        self.now().read(reactor, offset, dest)
    }

    fn fetch<'a>(&'a self, ranges: &'a [ByteRange]) -> LocalFuture<'a, Result<(), SourceError>> {
        self.now().fetch(ranges)
    }

    fn invalidate(&self, range: ByteRange) -> bool {
        self.now().invalidate(range)
    }

    fn watch(&self, refutation: &Arc<Refutation>) {
        let mut waiting = lock(&self.refutations);
        match self.cached.get() {
            Some(cached) => cached.watch(refutation),
            None => waiting.push(Arc::downgrade(refutation)),
        }
    }
}
