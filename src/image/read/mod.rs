//! The life of one read inside the engine.
//!
//! A request is served in steps of at most [`STEP_BYTES`] and [`STEP_EXTENTS`]. A step first does, without waiting, all that
//! needs no waiting: holes, raw bytes in the page cache, decoded blocks, and runs of compressed blocks in the page cache.
//! What is left is then fetched, all of it at once, and read. A block is decoded once a step, and after each 128 KiB or so
//! others have their turn. A read into a pool's buffer gives it back while it waits for the fetch, and then begins again with
//! everything near.

mod block_part;
mod blocks;
mod damage;
mod scratch;
mod short;
mod step;
mod wait;

use std::{cell::Cell, sync::Arc, time::Instant};

use futures_util::TryFutureExt;

use super::{
    LayerError,
    index::Cursor,
    metrics::{ReadMetrics, SourceClass},
    open_image::OpenImage,
};
use crate::{
    block::{BlockError, ByteRange, ErrorKind, acquire},
    reactor::{Buffer, BufferPool, Reactor},
};
use damage::Damages;
use scratch::with_scratch;
use step::Step;
use wait::Fetch;

/// Bytes of a request that are served together; the block layer's requests end at 1 MiB.
const STEP_BYTES: u64 = 1 << 20;

/// Extents of a request that are served together. With [`STEP_BYTES`] it bounds the parts of a step: an extent begins or
/// ends in at most two blocks that others share, and the rest of 1 MiB has 256 blocks of 4 KiB.
const STEP_EXTENTS: usize = 256;

/// Compressed bytes of neighbouring blocks that are read together without waiting: few enough to stay in a processor's
/// nearest caches until they are decoded. A single block may have more.
const RUN_BYTES: u64 = 32 << 10;

/// The same of a read that waits, where fewer trips count for more.
const WAITING_RUN_BYTES: u64 = 256 << 10;

/// Requests up to this size put every block that they decode into the cache, larger ones only those of which they use a
/// part: what reads ahead in whole blocks is kept by the page cache above the device, and will not come back for them.
const CACHED_REQUEST_BYTES: u64 = 64 << 10;

/// How often a read gives its buffer back for a fetch. Each of its steps may need one, and the largest request of the driver
/// has 32 MiB; one that needs more has lost what was fetched to eviction, and ends sooner when it waits in place.
const FAR_ROUNDS: u32 = 64;

/// Reads one image on one reactor.
#[derive(Debug)]
pub(super) struct Reader {
    image: Arc<OpenImage>,
    metrics: Arc<ReadMetrics>,
    reactor: Reactor,
    cursor: Cell<Cursor>,
    /// When the last read ended, and the reactor's turn then.
    ended: Cell<Option<(u64, Instant)>>,
}

impl Reader {
    pub(super) fn new(image: Arc<OpenImage>, metrics: Arc<ReadMetrics>, reactor: Reactor) -> Self {
        Self { image, metrics, reactor, cursor: Cell::default(), ended: Cell::default() }
    }

    /// Fills `dest` with the bytes at `offset` of the device.
    pub(super) async fn read(&self, offset: u64, dest: &mut [u8]) -> Result<(), BlockError> {
        let (began, len) = (self.begin(), dest.len() as u64);
        let outcome = match self.read_steps(offset, dest, false, &mut Damages::default()).await {
            Ok(Progress::Served(class)) => Ok(((), class)),
            Ok(Progress::Far(_)) => Err(no_progress()),
            Err(error) => Err(error),
        };
        self.count(began, len, outcome)
    }

    /// As [`Reader::read`], in a buffer of `pool` that is held only while nothing far is waited for.
    pub(super) async fn read_pooled(
        &self,
        offset: u64,
        len: usize,
        pool: &BufferPool,
    ) -> Result<Buffer, BlockError> {
        let began = self.begin();
        let outcome = self.read_rounds(offset, len, pool).await;
        self.count(began, len as u64, outcome)
    }

    async fn read_rounds(
        &self,
        offset: u64,
        len: usize,
        pool: &BufferPool,
    ) -> Result<(Buffer, SourceClass), BlockError> {
        let (mut far_rounds, mut damages) = (0, Damages::default());
        loop {
            self.make_sure().await?;
            let mut dest = acquire(pool, len).await?;
            match self.read_steps(offset, &mut dest, far_rounds < FAR_ROUNDS, &mut damages).await? {
                Progress::Served(class) => {
                    let class = if far_rounds > 0 { SourceClass::Registry } else { class };
                    return Ok((dest, class));
                }
                Progress::Far(fetch) => {
                    drop(dest);
                    let near = fetch.and_then(|()| damages.mend(&self.image));
                    near.await.map_err(|failure| failure.into_block_error(&self.image))?;
                }
            }
            far_rounds += 1;
        }
    }

    /// See [`OpenImage::make_sure`].
    #[inline]
    async fn make_sure(&self) -> Result<(), BlockError> {
        // Boxed, as what is hardly ever done.
        if self.image.stands() { Ok(()) } else { Box::pin(self.image.make_sure(&self.reactor)).await }
    }

    /// When a read that starts now began. What starts after another read of the same turn was there before that turn, and has
    /// waited for it at least since the other one ended; so a full queue reads the clock once a request.
    fn begin(&self) -> Instant {
        let turn = self.reactor.turn_number();
        let ended = self.ended.get().filter(|(other, _)| *other == turn);
        ended.map_or_else(Instant::now, |(_, ended)| ended)
    }

    /// Counts a request that ends now.
    fn served(&self, began: Instant, len: u64, class: SourceClass) {
        let ended = Instant::now();
        self.ended.set(Some((self.reactor.turn_number(), ended)));
        self.metrics.served(class, len, ended.saturating_duration_since(began));
    }

    fn count<T>(
        &self,
        began: Instant,
        len: u64,
        outcome: Result<(T, SourceClass), BlockError>,
    ) -> Result<T, BlockError> {
        match outcome {
            Ok((value, class)) => {
                self.served(began, len, class);
                Ok(value)
            }
            Err(error) => {
                self.count_failure();
                Err(error)
            }
        }
    }

    /// See [`crate::block::BlockQueue::next_data`].
    pub(super) fn next_data(&self, range: ByteRange) -> ByteRange {
        if self.image.stands() { self.image.index.next_data(range) } else { range }
    }

    /// Counts a request that failed.
    pub(super) fn count_failure(&self) {
        self.metrics.errors.inc();
    }

    /// Reads step by step; with `leave`, up to the first that would wait for bytes from afar.
    async fn read_steps(
        &self,
        offset: u64,
        dest: &mut [u8],
        leave: bool,
        damages: &mut Damages,
    ) -> Result<Progress<'_>, BlockError> {
        let len = dest.len() as u64;
        let range = ByteRange::new(offset, len)
            .ok()
            .filter(|range| range.end() <= self.image.index.reach_bytes())
            .ok_or_else(|| BlockError::new(ErrorKind::Invalid, "a read past the end of the layers"))?;
        self.reactor.stretch().await;
        self.make_sure().await?;
        if let Some(class) = self.read_short(range, dest) {
            return Ok(Progress::Served(class));
        }
        let keep_whole = len <= CACHED_REQUEST_BYTES;
        let mut class = SourceClass::Zero;
        let (mut at, mut rest) = (range.start(), dest);
        while !rest.is_empty() {
            let step_range = ByteRange::between(at, range.end().min(at + STEP_BYTES));
            let mut step = Step::new(&self.image, damages, keep_whole);
            let mut cursor = self.cursor.take();
            let begun = with_scratch(|scratch| step.begin(scratch, &mut cursor, step_range, rest));
            self.cursor.set(cursor);
            let served = begun.map_err(|failure| failure.into_block_error(&self.image))?;
            let (part, left) = rest.split_at_mut_checked(served).unwrap_or_default();
            if part.is_empty() {
                return Err(no_progress());
            }
            self.reactor.copied(served);
            while step.has_parts() {
                let limit = self.reactor.stretch().await;
                let decoded = with_scratch(|scratch| step.decode(scratch, part, limit));
                self.reactor.decoded(decoded.map_err(|failure| failure.into_block_error(&self.image))?);
            }
            if step.has_missing() {
                // Boxed, so that the future of a read that never waits stays small.
                let left = Box::pin(step.wait(&self.reactor, part, leave))
                    .await
                    .map_err(|failure| failure.into_block_error(&self.image))?;
                if let Some(fetch) = left {
                    return Ok(Progress::Far(fetch));
                }
                // It may have waited for long.
                self.make_sure().await?;
            }
            class = class.max(step.class());
            at += served as u64;
            rest = left;
        }
        Ok(Progress::Served(class))
    }
}

/// How far a read has come.
enum Progress<'a> {
    /// To its end.
    Served(SourceClass),
    /// To bytes that are being fetched; it is to be begun again when they have come.
    Far(Fetch<'a>),
}

fn no_progress() -> BlockError {
    BlockError::new(ErrorKind::Io, "a read that makes no progress")
}

/// A layer that could not be read, and why.
#[derive(Debug)]
struct Failure {
    layer: u8,
    error: LayerError,
}

impl Failure {
    fn into_block_error(self, image: &OpenImage) -> BlockError {
        let name = image.layer(self.layer).map_or("", |layer| layer.source.name());
        self.error.in_blob(name)
    }
}
