//! Discards of a log, in stretches, so that one over many extents keeps nobody waiting.

use std::{ops::Range, sync::Arc};

use super::{LogLayer, lacks_room};
use crate::{
    block::BlockError,
    reactor::Reactor,
    upper::{
        extents::{Extent, Place},
        medium::Medium,
        segments::{ENTRY_SECTORS, entries_for},
    },
};

/// Extents that one stretch takes out of the map, while the ledger is locked and the thread does nothing else: 0.1 ms.
const EXTENTS_AT_ONCE: usize = 512;

/// Sectors of one stretch: few entries, so that the journal has room for them, 512 MiB.
const STRETCH_SECTORS: u64 = 64 * ENTRY_SECTORS;

impl<M: Medium> LogLayer<M> {
    /// Makes sectors read as zeroes.
    ///
    /// # Errors
    /// As of [`LogLayer::write`].
    pub(in crate::upper) async fn write_zeroes(
        self: &Arc<Self>,
        reactor: &Reactor,
        sectors: Range<u64>,
    ) -> Result<(), BlockError> {
        let mut rest = sectors;
        let mut turn = None;
        loop {
            let stretch = async || self.zero_stretch(reactor, rest.clone()).await;
            rest.start = self.with_room(reactor, lacks_room, stretch).await?;
            if rest.is_empty() {
                break;
            }
            // Of those that take longer one goes on at a time, or a stretch of each would be a long one.
            if turn.is_none() {
                turn = Some(self.zeroing.lock().await);
            }
            reactor.yield_now().await;
        }
        self.await_idleness(reactor);
        Ok(())
    }

    /// Returns where the stretch has ended.
    async fn zero_stretch(
        self: &Arc<Self>,
        reactor: &Reactor,
        sectors: Range<u64>,
    ) -> Result<u64, BlockError> {
        self.admit(reactor).await?;
        let sectors = sectors.start..sectors.end.min(sectors.start.saturating_add(STRETCH_SECTORS));
        let mut ledger = self.ledger_with_room(reactor, entries_for(STRETCH_SECTORS)).await?;
        let end = ledger.map.reach(&sectors, EXTENTS_AT_ONCE);
        self.record(&mut ledger, Extent { sectors: sectors.start..end, place: Place::ZEROES })?;
        Ok(end)
    }

    /// Extents of the map.
    #[cfg(test)]
    pub(in crate::upper) fn extents(&self) -> usize {
        self.ledger().map.len()
    }
}
