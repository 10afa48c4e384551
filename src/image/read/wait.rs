//! The part of a step that waits: for a fetch, for the disk, for better bytes than damaged ones.

use std::{pin::pin, task::Poll};

use futures_util::{
    StreamExt, TryStreamExt,
    future::{TryFutureExt, try_join_all},
    poll, stream,
};

use super::{
    Failure,
    blocks::{Blocks, Damaged},
    piece::{Piece, outside},
    step::{Missing, Step},
};
use crate::{
    block::ByteRange,
    image::{
        LayerError,
        layer::{ATTEMPTS, Layer},
        metrics::SourceClass,
        stack::Stack,
    },
    reactor::{Buffer, Reactor},
    source::LocalFuture,
};

/// Reads of one step that are under way at once, where a fetch did not bring everything near: a disk, or a registry without
/// a cache.
const READS_AT_ONCE: usize = 8;

/// A damaged block, the pieces that are of it, and how often it has been seen damaged.
type Spoilt = (Damaged, Vec<Piece>, usize);

impl Missing {
    fn layer(&self) -> u8 {
        match self {
            Self::Raw { layer, .. } => *layer,
            Self::Blocks { run, .. } => run.layer,
        }
    }

    fn range_in_blob(&self, layer: &Layer) -> ByteRange {
        match self {
            Self::Raw { range, .. } => *range,
            Self::Blocks { run, .. } => layer.content.in_blob(run.encoded),
        }
    }
}

/// The wait for bytes that come from afar. It holds neither the step nor its destination.
pub(super) type Fetch<'a> = LocalFuture<'a, Result<(), Failure>>;

impl<'a> Step<'a> {
    /// Brings everything that is missing near, all layers and ranges at once, and then reads it. Returns the fetch
    /// instead, begun, if it has to be waited for and `leave` is set; then nothing of `dest` is to be relied on.
    pub(super) async fn wait(
        &mut self,
        reactor: &Reactor,
        dest: &mut [u8],
        leave: bool,
    ) -> Result<Option<Fetch<'a>>, Failure> {
        let mut fetch = self.fetch();
        match poll!(fetch.as_mut()) {
            Poll::Ready(fetched) => fetched?,
            Poll::Pending if leave => return Ok(Some(fetch)),
            Poll::Pending => {
                self.class = SourceClass::Registry;
                fetch.await?;
            }
        }
        let missing = std::mem::take(&mut self.missing);
        let mut spoilt = Vec::new();
        // Whoever holds a buffer here waits for none that was asked for later, and pools serve in order, so steps that
        // share a pool cannot lock one another out.
        let mut reads = pin!(
            stream::iter(missing).map(|missing| read(reactor, self.stack, missing)).buffered(READS_AT_ONCE)
        );
        while let Some((missing, bytes)) = reads.try_next().await? {
            let layer = missing.layer();
            self.take(missing, &bytes, dest, &mut spoilt).map_err(|error| Failure { layer, error })?;
        }
        for (damage, pieces, seen) in spoilt {
            let layer = damage.run.layer;
            self.mend(reactor, damage, &pieces, seen, dest)
                .await
                .map_err(|error| Failure { layer, error })?;
        }
        Ok(None)
    }

    fn fetch(&self) -> Fetch<'a> {
        let stack = self.stack;
        let mut wanted: Vec<(u8, Vec<ByteRange>)> = Vec::new();
        for missing in &self.missing {
            let rank = missing.layer();
            let Some(layer) = stack.layer(rank) else { continue };
            let range = missing.range_in_blob(layer);
            match wanted.iter_mut().find(|(other, _)| *other == rank) {
                Some((_, ranges)) => add(ranges, range),
                None => wanted.push((rank, vec![range])),
            }
        }
        Box::pin(async move {
            let fetches = wanted.iter().filter_map(|(rank, ranges)| {
                let fetched = stack.layer(*rank)?.source.fetch(ranges);
                Some(fetched.map_err(|error| Failure { layer: *rank, error: error.into() }))
            });
            try_join_all(fetches).await.map(drop)
        })
    }

    /// Fills the parts of `dest` that `bytes` are for, and lists damaged blocks.
    fn take(
        &self,
        missing: Missing,
        bytes: &[u8],
        dest: &mut [u8],
        spoilt: &mut Vec<Spoilt>,
    ) -> Result<(), LayerError> {
        match missing {
            Missing::Raw { dest: start, .. } => {
                dest.get_mut(start..start + bytes.len()).ok_or_else(outside)?.copy_from_slice(bytes);
            }
            Missing::Blocks { run, pieces, damaged } => {
                let blocks = Blocks::new(self.stack, run.layer, self.keep_whole).ok_or_else(outside)?;
                let found = blocks.decode_all(&run, bytes, &pieces, dest)?;
                spoilt
                    .extend(found.into_iter().map(|(damage, pieces)| (damage, pieces.to_vec(), damaged + 1)));
            }
        }
        Ok(())
    }

    /// Asks for a damaged block again, as long as its source may have other bytes.
    async fn mend(
        &self,
        reactor: &Reactor,
        mut damage: Damaged,
        pieces: &[Piece],
        mut seen: usize,
        dest: &mut [u8],
    ) -> Result<(), LayerError> {
        let blocks = Blocks::new(self.stack, damage.run.layer, self.keep_whole).ok_or_else(outside)?;
        loop {
            let content = &blocks.layer.content;
            if seen >= ATTEMPTS || !blocks.layer.source.invalidate(content.in_blob(damage.run.encoded)) {
                return Err(content.wrong(damage.error));
            }
            seen += 1;
            let bytes = read_range(reactor, blocks.layer, content.in_blob(damage.run.encoded)).await?;
            match blocks.decode_all(&damage.run, &bytes, pieces, dest)?.pop() {
                Some((again, _)) => damage = again,
                None => return Ok(()),
            }
        }
    }
}

/// Reads what is missing.
async fn read(reactor: &Reactor, stack: &Stack, missing: Missing) -> Result<(Missing, Buffer), Failure> {
    let rank = missing.layer();
    let failed = |error| Failure { layer: rank, error };
    let layer = stack.layer(rank).ok_or_else(|| failed(outside()))?;
    let bytes = read_range(reactor, layer, missing.range_in_blob(layer)).await.map_err(failed)?;
    Ok((missing, bytes))
}

async fn read_range(reactor: &Reactor, layer: &Layer, range: ByteRange) -> Result<Buffer, LayerError> {
    let len = usize::try_from(range.len()).map_err(|_| outside())?;
    let mut bytes = reactor.block_buffers().acquire(len).await?;
    layer.source.read(reactor, range.start(), &mut bytes).await?;
    Ok(bytes)
}

/// Adds a range to sorted or unsorted ones; joins it with the last where they meet.
fn add(ranges: &mut Vec<ByteRange>, range: ByteRange) {
    match ranges.last_mut() {
        Some(last) if last.end() == range.start() => *last = ByteRange::between(last.start(), range.end()),
        _ => ranges.push(range),
    }
}
