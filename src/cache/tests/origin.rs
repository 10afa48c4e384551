//! An origin for tests: bytes from memory after a delay, with faults to order, and a record of what was asked.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::{
    block::ByteRange,
    reactor::{ReactorConfig, ReactorThread},
    source::{BoxFuture, Origin, SourceError, Urgency},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mood {
    Good,
    Fails,
    Short,
    Long,
    Hangs,
    Panics,
    /// Right in length, wrong in content.
    Lies,
}

#[derive(Debug)]
pub(super) struct TestOrigin {
    pub(super) content: Bytes,
    pub(super) digest: String,
    pub(super) mood: Mutex<Mood>,
    pub(super) asked: Mutex<Vec<ByteRange>>,
    flips: Mutex<Vec<Flip>>,
    pub(super) most_at_once: AtomicUsize,
    at_once: Arc<AtomicUsize>,
    latency: Duration,
    clock: ReactorThread,
}

/// A byte that is sent wrong.
#[derive(Debug, Clone, Copy)]
struct Flip {
    at: usize,
    mask: u8,
    /// How often.
    times: usize,
}

/// Content that differs at every offset and for every `seed`, with no zero byte in it.
pub(super) fn content(len: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..len).map(|_| random.u8(1..)).collect()
}

impl TestOrigin {
    pub(super) fn new(len: usize, seed: u64, latency: Duration) -> Arc<Self> {
        Self::of(content(len, seed).into(), latency)
    }

    pub(super) fn of(content: Bytes, latency: Duration) -> Arc<Self> {
        let digest = Sha256::digest(&content);
        let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Arc::new(Self {
            content,
            digest: format!("sha256:{digits}"),
            mood: Mutex::new(Mood::Good),
            asked: Mutex::default(),
            flips: Mutex::default(),
            most_at_once: AtomicUsize::new(0),
            at_once: Arc::default(),
            latency,
            clock: ReactorThread::start("origin", ReactorConfig::default(), || Ok(())).unwrap(),
        })
    }

    pub(super) fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    /// Has the byte at `at` sent wrong so many times.
    pub(super) fn flip(&self, at: usize, mask: u8, times: usize) {
        self.flips.lock().unwrap().push(Flip { at, mask, times });
    }

    pub(super) fn unflip(&self) {
        self.flips.lock().unwrap().clear();
    }

    /// The bytes of a range as they are sent now.
    fn sent(&self, start: usize, end: usize) -> Bytes {
        let mut bytes = self.content[start..end].to_vec();
        for flip in self.flips.lock().unwrap().iter_mut().filter(|flip| flip.times > 0) {
            if (start..end).contains(&flip.at) {
                flip.times -= 1;
                bytes[flip.at - start] ^= flip.mask;
            }
        }
        bytes.into()
    }

    pub(super) fn asked(&self) -> Vec<ByteRange> {
        self.asked.lock().unwrap().clone()
    }

    pub(super) fn bytes_asked(&self) -> u64 {
        self.asked().iter().map(|range| range.len()).sum()
    }
}

impl Origin for TestOrigin {
    fn size_bytes(&self) -> u64 {
        self.content.len() as u64
    }

    fn name(&self) -> &str {
        "test/origin"
    }

    /// Each is a registry of its own.
    fn lane(&self) -> &str {
        &self.digest
    }

    fn read_range(&self, range: ByteRange, _: Urgency) -> BoxFuture<'static, Result<Bytes, SourceError>> {
        // Before the record, so that who has seen this request in it may change the mood for the next.
        let mood = *self.mood.lock().unwrap();
        self.asked.lock().unwrap().push(range);
        let now = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_at_once.fetch_max(now, Ordering::SeqCst);
        let (latency, at_once) = (self.latency, Arc::clone(&self.at_once));
        let waited = self.clock.handle().call(move |reactor| async move {
            reactor.sleep(latency).await;
            at_once.fetch_sub(1, Ordering::SeqCst);
        });
        let content = self.content.clone();
        let ends = [range.start(), range.end()].map(|end| usize::try_from(end).unwrap());
        let sent = self.sent(ends[0], ends[1]);
        Box::pin(async move {
            waited.await.unwrap();
            let [start, end] = ends;
            match mood {
                Mood::Good => Ok(sent),
                Mood::Short => Ok(content.slice(start..end - 1)),
                Mood::Long => Ok(content.slice(start - 1..end)),
                Mood::Lies => Ok(vec![0x55; end - start].into()),
                Mood::Hangs => std::future::pending().await,
                Mood::Panics => panic!("an origin with a bug"),
                Mood::Fails => Err(SourceError::Remote {
                    name: "test/origin".into(),
                    offset: range.start(),
                    len: range.len(),
                    timed_out: false,
                    source: Arc::new(std::io::Error::other("out of order")),
                }),
            }
        })
    }
}
