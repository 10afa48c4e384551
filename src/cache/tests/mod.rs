//! The whole cache over real files, with an origin that can be slow, fail, cheat and hang.

mod concurrency;
mod eviction;
mod faults;
mod opening;
mod origin;
mod processes;
mod proofs;
mod reading;
mod rot;

use std::{io::Write, path::Path, sync::Arc, time::Duration};

use self::origin::TestOrigin;
use super::{Cache, CacheConfig, CachedBlob};
use crate::{
    reactor::{Reactor, ReactorConfig, ReactorThread},
    source::{BlobSource, SourceError},
};

const MIB: usize = 1 << 20;

/// A cache with its reactor, and a reactor for this thread to read on.
struct Bench {
    cache: Cache,
    reactor: Reactor,
    _thread: ReactorThread,
}

fn config(dir: &Path) -> CacheConfig {
    CacheConfig {
        // No sync behind the back of a test unless it asks for one.
        sync_interval: Duration::from_secs(3600),
        disk_rest: Duration::from_millis(100),
        ..CacheConfig::new(dir, 1 << 30)
    }
}

/// Says what was not tested, past the capture of a test's output: a skip that nobody sees is taken for a success.
fn skipped(reason: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {reason}");
}

impl Bench {
    fn new(config: CacheConfig) -> Self {
        let thread = ReactorThread::start("cache", ReactorConfig::default(), || Ok(())).unwrap();
        let cache = Cache::open(config, thread.handle()).unwrap();
        Self { cache, reactor: Reactor::new(&ReactorConfig::default()).unwrap(), _thread: thread }
    }

    fn blob(&self, origin: &Arc<TestOrigin>) -> Arc<CachedBlob> {
        self.reactor.block_on(self.cache.blob(&origin.digest, Arc::clone(origin) as _)).unwrap().unwrap()
    }

    fn read(&self, blob: &CachedBlob, offset: usize, len: usize) -> Result<Vec<u8>, SourceError> {
        let mut dest = vec![0xEE; len];
        self.reactor.block_on(blob.read(&self.reactor, offset as u64, &mut dest)).unwrap().map(|()| dest)
    }

    fn sync(&self) {
        self.reactor.block_on(self.cache.sync()).unwrap().unwrap();
    }

    /// Runs the reactor until `done` says so; fails after a time that is far more than any test needs.
    fn until(&self, what: &str, done: impl Fn() -> bool) {
        for _ in 0..4000 {
            if done() {
                return;
            }
            self.reactor.block_on(self.reactor.sleep(Duration::from_millis(5))).unwrap();
        }
        panic!("never came to be: {what}");
    }

    /// Waits until `origin` was asked for so many ranges.
    async fn until_asked(&self, origin: &TestOrigin, count: usize) {
        while origin.asked().len() < count {
            self.reactor.sleep(Duration::from_millis(1)).await;
        }
    }

    /// Waits until nothing is under way for `blob`.
    fn settle(&self, blob: &CachedBlob) {
        self.until("all fetches have ended", || blob.in_flight() == 0);
    }
}
