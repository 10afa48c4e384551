//! The part of a step that waits: for a fetch, for the disk, for better bytes than damaged ones.

use std::{pin::pin, task::Poll};

use futures_util::{
    future::{TryFutureExt, try_join_all},
    poll,
};

use super::{
    Failure,
    blocks::{BlockRun, Blocks, Damaged},
    piece::{Piece, outside},
    scratch::with_scratch,
    step::{Missing, Step},
};
use crate::{
    block::ByteRange,
    image::{
        LayerError,
        layer::{ATTEMPTS, Layer},
        metrics::SourceClass,
    },
    reactor::Reactor,
};

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

impl Step<'_> {
    /// Brings everything that is missing near, all layers and ranges at once, and then reads it in order.
    pub(super) async fn wait(&mut self, reactor: &Reactor, dest: &mut [u8]) -> Result<(), Failure> {
        self.fetch_all().await?;
        for missing in std::mem::take(&mut self.missing) {
            let layer = missing.layer();
            self.read_one(reactor, missing, dest).await.map_err(|error| Failure { layer, error })?;
        }
        Ok(())
    }

    async fn fetch_all(&mut self) -> Result<(), Failure> {
        let mut wanted: Vec<(u8, Vec<ByteRange>)> = Vec::new();
        for missing in &self.missing {
            let rank = missing.layer();
            let Some(layer) = self.stack.layer(rank) else { continue };
            let range = missing.range_in_blob(layer);
            match wanted.iter_mut().find(|(other, _)| *other == rank) {
                Some((_, ranges)) => add(ranges, range),
                None => wanted.push((rank, vec![range])),
            }
        }
        let fetches = wanted.iter().filter_map(|(rank, ranges)| {
            let fetched = self.stack.layer(*rank)?.source.fetch(ranges);
            Some(fetched.map_err(|error| Failure { layer: *rank, error: error.into() }))
        });
        let mut fetches = pin!(try_join_all(fetches));
        match poll!(fetches.as_mut()) {
            Poll::Ready(fetched) => fetched.map(drop),
            Poll::Pending => {
                self.class = SourceClass::Registry;
                fetches.await.map(drop)
            }
        }
    }

    async fn read_one(&self, reactor: &Reactor, missing: Missing, dest: &mut [u8]) -> Result<(), LayerError> {
        let layer = self.stack.layer(missing.layer()).ok_or_else(outside)?;
        match missing {
            Missing::Raw { range, dest: start, .. } => {
                let len = usize::try_from(range.len()).map_err(|_| outside())?;
                let part = dest.get_mut(start..start + len).ok_or_else(outside)?;
                Ok(layer.source.read(reactor, range.start(), part).await?)
            }
            Missing::Blocks { run, pieces, damaged } => {
                let blocks = Blocks::new(self.stack, run.layer, self.keep_whole).ok_or_else(outside)?;
                for of_block in read_run(reactor, blocks, &run, &pieces, dest).await? {
                    let (mut damage, pieces) = of_block;
                    let mut seen = damaged + 1;
                    loop {
                        let range = layer.content.in_blob(damage.run.encoded);
                        if seen >= ATTEMPTS || !layer.source.invalidate(range) {
                            return Err(layer.content.wrong(damage.error));
                        }
                        seen += 1;
                        match read_run(reactor, blocks, &damage.run, pieces, dest).await?.pop() {
                            Some((again, _)) => damage = again,
                            None => break,
                        }
                    }
                }
                Ok(())
            }
        }
    }
}

/// Adds a range to sorted or unsorted ones; joins it with the last where they meet.
fn add(ranges: &mut Vec<ByteRange>, range: ByteRange) {
    match ranges.last_mut() {
        Some(last) if last.end() == range.start() => *last = ByteRange::between(last.start(), range.end()),
        _ => ranges.push(range),
    }
}

/// Reads a run and decodes its blocks; returns the damaged ones with their pieces.
async fn read_run<'p>(
    reactor: &Reactor,
    blocks: Blocks<'_>,
    run: &BlockRun,
    pieces: &'p [Piece],
    dest: &mut [u8],
) -> Result<Vec<(Damaged, &'p [Piece])>, LayerError> {
    let len = usize::try_from(run.encoded.len()).map_err(|_| outside())?;
    let mut encoded = reactor.block_buffers().acquire(len).await?;
    let start = blocks.layer.content.in_blob(run.encoded).start();
    blocks.layer.source.read(reactor, start, &mut encoded).await?;
    let mut damaged = Vec::new();
    with_scratch(|scratch| {
        let mut count = 0;
        for of_block in pieces.chunk_by(|a, b| a.key.block == b.key.block) {
            count += 1;
            let damage = blocks.decode(run, &encoded, of_block, &mut scratch.workbench, dest)?;
            damaged.extend(damage.map(|damage| (damage, of_block)));
        }
        blocks.count(count - damaged.len());
        Ok(damaged)
    })
}
