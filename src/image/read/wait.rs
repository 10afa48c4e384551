//! The part of a step that waits: for a fetch, and for the disk.

use std::{pin::pin, task::Poll};

use futures_util::{
    StreamExt, TryStreamExt,
    future::{TryFutureExt, try_join_all},
    poll, stream,
};

use super::{
    Failure,
    block_part::outside,
    blocks::Blocks,
    scratch::with_scratch,
    step::{Missing, Step},
};
use crate::{
    block::ByteRange,
    image::{LayerError, layer::Layer, metrics::SourceClass, open_image::OpenImage},
    reactor::{Buffer, Reactor},
    source::LocalFuture,
};

/// Reads of one step that are under way at once, where a fetch did not bring everything near: a disk, or a registry without
/// a cache.
const READS_AT_ONCE: usize = 8;

impl Missing {
    fn layer(&self) -> u8 {
        match self {
            Self::Raw { layer, .. } => *layer,
            Self::Blocks { run, .. } => run.first.layer,
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

impl<'a> Step<'a, '_> {
    /// Brings everything that is missing near, all layers and ranges at once, and then reads it; what turns out to be damaged
    /// is missing again. Returns the fetch instead, begun, if it has to be waited for and `leave` is set; then nothing of
    /// `dest` is to be relied on.
    pub(super) async fn wait(
        &mut self,
        reactor: &Reactor,
        dest: &mut [u8],
        leave: bool,
    ) -> Result<Option<Fetch<'a>>, Failure> {
        while self.has_missing() {
            let mut fetch = self.fetch();
            match poll!(fetch.as_mut()) {
                Poll::Ready(fetched) => fetched?,
                Poll::Pending if leave => return Ok(Some(fetch)),
                Poll::Pending => {
                    self.class = SourceClass::Registry;
                    fetch.await?;
                }
            }
            let (missing, image) = (std::mem::take(&mut self.missing), self.image);
            // Whoever holds a buffer here waits for none that was asked for later, and a share serves in order, so steps
            // that have the same cannot lock one another out.
            let mut reads = pin!(
                stream::iter(missing).map(|missing| read(reactor, image, missing)).buffered(READS_AT_ONCE)
            );
            while let Some((missing, bytes)) = reads.try_next().await? {
                let layer = missing.layer();
                self.take(reactor, missing, &bytes, dest).await.map_err(|error| Failure { layer, error })?;
            }
        }
        Ok(None)
    }

    fn fetch(&self) -> Fetch<'a> {
        let image = self.image;
        let mut wanted: Vec<(u8, Vec<ByteRange>)> = Vec::new();
        for missing in &self.missing {
            let rank = missing.layer();
            let Some(layer) = image.layer(rank) else { continue };
            let range = missing.range_in_blob(layer);
            match wanted.iter_mut().find(|(other, _)| *other == rank) {
                Some((_, ranges)) => add(ranges, range),
                None => wanted.push((rank, vec![range])),
            }
        }
        Box::pin(async move {
            let fetches = wanted.iter().filter_map(|(rank, ranges)| {
                let fetched = image.layer(*rank)?.source.fetch(ranges);
                Some(fetched.map_err(|error| Failure { layer: *rank, error: error.into() }))
            });
            try_join_all(fetches).await.map(drop)
        })
    }

    /// Fills the parts of `dest` that `bytes` are for, and lists damaged blocks.
    async fn take(
        &mut self,
        reactor: &Reactor,
        missing: Missing,
        bytes: &[u8],
        dest: &mut [u8],
    ) -> Result<(), LayerError> {
        match missing {
            Missing::Raw { dest: start, .. } => {
                dest.get_mut(start..start + bytes.len()).ok_or_else(outside)?.copy_from_slice(bytes);
            }
            Missing::Blocks { run, parts } => {
                let blocks = Blocks::new(self.image, run.first.layer, self.keep_whole).ok_or_else(outside)?;
                let mut rest = &*parts;
                while !rest.is_empty() {
                    let limit = reactor.stretch().await;
                    let decoded = with_scratch(|scratch| {
                        blocks.decode_some(&run, bytes, rest, &mut scratch.workbench, dest, limit)
                    })?;
                    reactor.decoded(decoded.bytes);
                    self.add_damaged(blocks.layer, decoded.damaged)?;
                    rest = decoded.rest;
                }
            }
        }
        Ok(())
    }
}

/// Reads what is missing.
async fn read(reactor: &Reactor, image: &OpenImage, missing: Missing) -> Result<(Missing, Buffer), Failure> {
    let rank = missing.layer();
    let failed = |error| Failure { layer: rank, error };
    let layer = image.layer(rank).ok_or_else(|| failed(outside()))?;
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
