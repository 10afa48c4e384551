//! The life of one read inside the engine.
//!
//! A request is served in steps of at most [`STEP_BYTES`] and [`STEP_EXTENTS`]. A step first does, without waiting, all that
//! needs no waiting: holes, raw bytes in the page cache, decoded blocks, and runs of compressed blocks in the page cache.
//! What is left is then fetched, all of it at once, and read. A block is decoded once a step.

mod blocks;
mod piece;
mod scratch;
mod step;
mod wait;

use std::{cell::Cell, sync::Arc, time::Instant};

use super::{
    LayerError,
    index::Cursor,
    metrics::{ReadMetrics, SourceClass},
    stack::Stack,
};
use crate::{
    block::{BlockError, ByteRange, ErrorKind},
    reactor::Reactor,
};
use scratch::with_scratch;
use step::Step;

/// Bytes of a request that are served together; the block layer's requests end at 1 MiB.
const STEP_BYTES: u64 = 1 << 20;

/// Extents of a request that are served together. With [`STEP_BYTES`] it bounds the pieces of a step: an extent begins or
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

/// Reads one image on one reactor.
#[derive(Debug)]
pub(super) struct Reader {
    stack: Arc<Stack>,
    metrics: Arc<ReadMetrics>,
    reactor: Reactor,
    cursor: Cell<Cursor>,
}

impl Reader {
    pub(super) fn new(stack: Arc<Stack>, metrics: Arc<ReadMetrics>, reactor: Reactor) -> Self {
        Self { stack, metrics, reactor, cursor: Cell::default() }
    }

    /// Fills `dest` with the bytes at `offset` of the device.
    pub(super) async fn read(&self, offset: u64, dest: &mut [u8]) -> Result<(), BlockError> {
        let began = Instant::now();
        let len = dest.len() as u64;
        match self.read_steps(offset, dest).await {
            Ok(class) => {
                self.metrics.served(class, len, began.elapsed());
                Ok(())
            }
            Err(error) => {
                self.metrics.errors.inc();
                Err(error)
            }
        }
    }

    async fn read_steps(&self, offset: u64, dest: &mut [u8]) -> Result<SourceClass, BlockError> {
        let len = dest.len() as u64;
        let range = ByteRange::new(offset, len)
            .ok()
            .filter(|range| range.end() <= self.stack.index.size_bytes())
            .ok_or_else(|| BlockError::new(ErrorKind::Invalid, "a read past the end of the device"))?;
        let keep_whole = len <= CACHED_REQUEST_BYTES;
        let mut class = SourceClass::Zero;
        let (mut at, mut rest) = (range.start(), dest);
        while !rest.is_empty() {
            let step_range = ByteRange::between(at, range.end().min(at + STEP_BYTES));
            let mut step = Step::new(&self.stack, keep_whole);
            let mut cursor = self.cursor.take();
            let served = with_scratch(|scratch| step.serve(scratch, &mut cursor, step_range, rest));
            self.cursor.set(cursor);
            let served = served.map_err(|failure| failure.into_block_error(&self.stack))?;
            let (part, left) = rest.split_at_mut_checked(served).unwrap_or_default();
            if part.is_empty() {
                return Err(BlockError::new(ErrorKind::Io, "a read that makes no progress"));
            }
            if step.has_missing() {
                // Boxed, so that the future of a read that never waits stays small.
                Box::pin(step.wait(&self.reactor, part))
                    .await
                    .map_err(|failure| failure.into_block_error(&self.stack))?;
            }
            class = class.max(step.class());
            at += served as u64;
            rest = left;
        }
        Ok(class)
    }
}

/// A layer that could not be read, and why.
#[derive(Debug)]
struct Failure {
    layer: u8,
    error: LayerError,
}

impl Failure {
    fn into_block_error(self, stack: &Stack) -> BlockError {
        let name = stack.layer(self.layer).map_or("", |layer| layer.source.name());
        self.error.in_blob(name)
    }
}
