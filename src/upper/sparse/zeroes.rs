//! Discards: holes where nothing shows through them, and zeroes that are written elsewhere.

use std::ops::Range;

use super::{BLOCK_SECTORS, SparseLayer, in_memory};
use crate::{
    block::{BlockError, BlockQueue, ByteRange, SECTOR_BYTES},
    reactor::Reactor,
    upper::{extents::Piece, medium::Medium, view::View},
};

/// Sectors that are claimed at a time: a discard of a whole device keeps nobody away from all of it.
const STRETCH_SECTORS: u64 = (64 << 20) / SECTOR_BYTES;

/// Zeroes that are written at a time, in sectors.
const ZEROES_SECTORS: u64 = (256 << 10) / SECTOR_BYTES;

impl<M: Medium> SparseLayer<M> {
    /// Makes sectors read as zeroes, now and when the layer is opened again.
    ///
    /// # Errors
    /// As of [`SparseLayer::write`].
    pub(in crate::upper) async fn write_zeroes<Q: BlockQueue>(
        &self,
        view: &View<'_, Q, M>,
        sectors: Range<u64>,
    ) -> Result<(), BlockError> {
        let mut at = sectors.start;
        while at < sectors.end {
            let next = (at - at % STRETCH_SECTORS).saturating_add(STRETCH_SECTORS).min(sectors.end);
            let claim = self.claim(&(at..next)).await?;
            let zeroed = self.zero(view, at..next).await;
            self.end_change(claim, &(at..next), zeroed)?;
            at = next;
        }
        Ok(())
    }

    async fn zero<Q: BlockQueue>(
        &self,
        view: &View<'_, Q, M>,
        sectors: Range<u64>,
    ) -> Result<(), BlockError> {
        let Range { start, end } = sectors;
        // The last block of a device may be shorter, and is whole all the same.
        let ends_whole = end.is_multiple_of(BLOCK_SECTORS) || end >= self.size_sectors();
        let whole_end = if ends_whole { end } else { end - end % BLOCK_SECTORS };
        let whole_start = start.next_multiple_of(BLOCK_SECTORS);
        self.zero_part(view, start..whole_start.min(end)).await?;
        self.zero_part(view, whole_end.max(whole_start).min(end)..end).await?;
        if whole_start >= whole_end {
            return Ok(());
        }
        let mut at = whole_start;
        for data in view.data_below(whole_start..whole_end) {
            let first = (data.start - data.start % BLOCK_SECTORS).max(at);
            let last = data.end.next_multiple_of(BLOCK_SECTORS).min(whole_end).max(first);
            self.punch(&view.reader.reactor, at..first).await?;
            self.write_over(&view.reader.reactor, first..last).await?;
            at = last;
        }
        self.punch(&view.reader.reactor, at..whole_end).await
    }

    /// Zeroes sectors of one block, which has others.
    async fn zero_part<Q: BlockQueue>(
        &self,
        view: &View<'_, Q, M>,
        sectors: Range<u64>,
    ) -> Result<(), BlockError> {
        let is_here = self.pieces(sectors.clone()).iter().any(|piece| matches!(piece, Piece::Extent(_)));
        if !is_here && view.data_below(sectors.clone()).is_empty() {
            return Ok(());
        }
        let zeroes = vec![0; in_memory(&sectors)];
        self.put(view, sectors, async || Ok(zeroes)).await
    }

    /// Makes a hole of whole blocks.
    async fn punch(&self, reactor: &Reactor, sectors: Range<u64>) -> Result<(), BlockError> {
        let pieces = self.pieces(sectors);
        let mut here = pieces.iter().filter_map(|piece| match piece {
            Piece::Extent(extent) => Some(&extent.sectors),
            Piece::Hole(_) => None,
        });
        // What lies between is a hole already, and no request of its own.
        let Some(first) = here.next() else { return Ok(()) };
        let end = here.next_back().unwrap_or(first).end;
        let hole = first.start - first.start % BLOCK_SECTORS..end.next_multiple_of(BLOCK_SECTORS);
        let bytes = |sector| super::place_of(sector).saturating_mul(SECTOR_BYTES);
        let punched = self.data.punch(reactor, ByteRange::between(bytes(hole.start), bytes(hole.end))).await;
        punched.map_err(|error| self.failed("make a hole of", &hole, error))?;
        self.map_mut().remove(&hole);
        Ok(())
    }

    /// Writes zeroes to whole blocks.
    async fn write_over(&self, reactor: &Reactor, sectors: Range<u64>) -> Result<(), BlockError> {
        let zeroes = vec![0; in_memory(&sectors).min(in_memory(&(0..ZEROES_SECTORS)))];
        let mut at = sectors.start;
        while at < sectors.end {
            let next = at.saturating_add(ZEROES_SECTORS).min(sectors.end);
            let bytes = zeroes.get(..in_memory(&(at..next))).unwrap_or_default();
            self.store(reactor, at..next, bytes).await?;
            at = next;
        }
        Ok(())
    }
}
