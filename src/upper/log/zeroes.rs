//! Discards of a log, in stretches, so that one over many extents keeps nobody waiting.

use std::{ops::Range, sync::Arc};

use super::{LogLayer, lacks_room};
use crate::{
    block::BlockError,
    reactor::Reactor,
    upper::{
        extents::{Extent, Place},
        medium::Medium,
    },
};

/// Extents that one stretch takes out of the map, while the ledger is locked and the thread does nothing else: 0.1 ms.
const EXTENTS_AT_ONCE: usize = 512;

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
            self.with_room(reactor, lacks_room, async || self.admit(reactor).await).await?;
            rest.start = self.zero_stretch(rest.clone())?;
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
    fn zero_stretch(&self, sectors: Range<u64>) -> Result<u64, BlockError> {
        let mut ledger = self.ledger_mut();
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
