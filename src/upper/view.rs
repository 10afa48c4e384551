//! What a device holds, as one request sees it: the writable layers and the device below them.

use std::{io, ops::Range};

use futures_util::{StreamExt, TryStreamExt, stream};

use super::{
    lower::Lower,
    medium::Medium,
    stack::{Found, Layers, Part, Source},
};
use crate::{
    block::{BlockError, BlockQueue, ErrorKind, SECTOR_BYTES},
    reactor::Reactor,
};

/// Pieces of one read that are waited for at once.
const READS_AT_ONCE: usize = 16;

/// Sectors that are looked at for data at once: 1 MiB, and up to 256 MiB where there was none.
const FIRST_LOOK_SECTORS: u64 = (1 << 20) / SECTOR_BYTES;
const LONGEST_LOOK_SECTORS: u64 = (256 << 20) / SECTOR_BYTES;

/// Reads what layers and the device below have, on one reactor.
#[derive(Debug)]
pub(super) struct Reader<Q> {
    pub(super) lower: Lower<Q>,
    pub(super) reactor: Reactor,
}

/// The layers as they are now, and who reads them.
#[derive(Debug)]
pub(super) struct View<'a, Q, M> {
    pub(super) layers: &'a Layers<M>,
    pub(super) reader: &'a Reader<Q>,
}

/// What to do where the layers have nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holes {
    /// The bytes are to come from below.
    Read,
    /// They are there already.
    Keep,
}

impl<Q: BlockQueue> Reader<Q> {
    /// Fills `dest`, which begins where the parts do: first what the layers have, so that their room is not held while the
    /// device below is waited for.
    ///
    /// # Errors
    /// Those of the files and of the device below.
    pub(super) async fn fill<M: Medium>(
        &self,
        found: Found<'_, M>,
        holes: Holes,
        dest: &mut [u8],
    ) -> Result<(), BlockError> {
        let Found { parts, held } = found;
        self.reactor.stretch().await;
        self.reactor.copied(dest.len());
        let (mut waiting, mut below) = (Vec::new(), Vec::new());
        let mut rest = dest;
        for Part { sectors, source } in parts {
            let (dest, after) = split(rest, &sectors);
            rest = after;
            match source {
                Source::Below => below.push((sectors.start.saturating_mul(SECTOR_BYTES), dest)),
                Source::Zeroes => dest.fill(0),
                Source::Data(data, sector) => {
                    let at = sector.saturating_mul(SECTOR_BYTES);
                    if !data.try_read(at, dest).map_err(|error| unread(data, at, error))? {
                        waiting.push((data, at, dest));
                    }
                }
            }
        }
        let reads = waiting.into_iter().map(|(data, at, dest)| async move {
            let read = data.read_at(&self.reactor, at, dest).await;
            read.map_err(|error| unread(data, at, error))
        });
        stream::iter(reads).buffer_unordered(READS_AT_ONCE).try_collect::<()>().await?;
        drop(held);
        if holes == Holes::Keep {
            return Ok(());
        }
        let reads = below.into_iter().map(|(at, part)| self.lower.read(at, part));
        stream::iter(reads).buffer_unordered(READS_AT_ONCE).try_collect().await
    }
}

impl<Q: BlockQueue, M: Medium> View<'_, Q, M> {
    /// Fills `dest` with what the device holds from `sector` on, for somebody who keeps writes away from there.
    ///
    /// # Errors
    /// Those of the files and of the device below.
    pub(super) async fn read(&self, sector: u64, dest: &mut [u8]) -> Result<(), BlockError> {
        let end = sector.saturating_add(dest.len() as u64 / SECTOR_BYTES);
        self.reader.fill(self.layers.find(sector..end), Holes::Read, dest).await
    }

    /// The runs of `sectors` under the layer that takes writes that may hold something else than zeroes, in order, as far as
    /// that is known without reading them.
    pub(super) fn data_below(&self, sectors: Range<u64>) -> Vec<Range<u64>> {
        self.runs(self.layers.below(sectors))
    }

    /// The first run of `sectors` of the device that may hold something else than zeroes, or the beginning of a long one. A long range is
    /// looked at piece by piece, so that no more of the map is copied than there is near its first data.
    pub(super) fn next_data(&self, sectors: Range<u64>) -> Option<Range<u64>> {
        let (mut at, mut look) = (sectors.start, FIRST_LOOK_SECTORS);
        while at < sectors.end {
            let end = at.saturating_add(look).min(sectors.end);
            if let Some(first) = self.runs(self.layers.find(at..end).parts).into_iter().next() {
                return Some(first);
            }
            at = end;
            look = look.saturating_mul(2).min(LONGEST_LOOK_SECTORS);
        }
        None
    }

    /// The runs of `parts` that may hold something else than zeroes.
    fn runs(&self, parts: Vec<Part<'_, M>>) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        let mut add = |run: Range<u64>| match runs.last_mut() {
            Some(last) if last.end == run.start => last.end = run.end,
            _ => runs.push(run),
        };
        for Part { mut sectors, source } in parts {
            match source {
                Source::Zeroes => {}
                Source::Data(..) => add(sectors),
                Source::Below => {
                    while let Some(run) = self.reader.lower.next_data(sectors.clone()) {
                        sectors.start = run.end;
                        add(run);
                    }
                }
            }
        }
        runs
    }
}

fn unread(data: &impl Medium, at: u64, error: io::Error) -> BlockError {
    let context = format!("{data}: cannot read what was written, at {at} of the file");
    BlockError::with_source(ErrorKind::Io, context, error)
}

/// Takes the bytes of `sectors` off the front; the pieces of a range are as long as the range together.
fn split<'a>(bytes: &'a mut [u8], sectors: &Range<u64>) -> (&'a mut [u8], &'a mut [u8]) {
    let len = sectors.end.saturating_sub(sectors.start).saturating_mul(SECTOR_BYTES);
    let len = usize::try_from(len).unwrap_or(usize::MAX).min(bytes.len());
    bytes.split_at_mut(len)
}
