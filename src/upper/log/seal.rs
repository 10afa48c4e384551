//! The end of a log-structured layer that makes its data file a read-only one.

use std::{ops::Range, sync::Arc};

use super::{LogLayer, push_segments, round::Round};
use crate::{
    block::{BlockError, ErrorKind, SECTOR_BYTES},
    format::lsmt::{LsmtError, Segment, seal},
    reactor::Reactor,
    upper::{
        UpperError,
        error::{failed, kind_of},
        medium::Medium,
        rounds::Trouble,
    },
};

impl<M: Medium> LogLayer<M> {
    /// Appends what makes the data file a read-only layer, durably, and what the index file lacks: both have everything then,
    /// so that a crash may leave the layer as either of the two. Nothing may be written meanwhile. The layer can be written
    /// afterwards as before; then it is not sealed any more.
    ///
    /// # Errors
    /// [`UpperError::Seal`] where the layer has too many segments; [`UpperError::Io`] and [`UpperError::Unsealed`] where there is
    /// no room. After a failed sync nothing is written any more: the kernel tells of it once, so that a later flush would not
    /// know.
    pub(in crate::upper) async fn seal(self: &Arc<Self>, reactor: &Reactor) -> Result<(), UpperError> {
        let lacks_room = |error: &UpperError| match error {
            UpperError::Io { source, .. } => kind_of(source) == ErrorKind::NoSpace,
            _ => false,
        };
        self.with_room(reactor, lacks_room, async || self.append_end(reactor).await).await
    }

    async fn append_end(self: &Arc<Self>, reactor: &Reactor) -> Result<(), UpperError> {
        let unsealed = |source| UpperError::Unsealed { name: self.data.to_string(), source };
        let mut round = self.round().await.map_err(unsealed)?;
        if let Err(error) = round.write_end(reactor).await {
            // Nothing points to what has been written of it, and the log is as it was.
            round.end(Ok(()));
            return Err(error);
        }
        let ended = round.write(reactor).await;
        let refused = match &ended {
            Err(Trouble::Refused(error)) => {
                Err(BlockError::new(kind_of(error), format!("cannot write the index file: {error}")))
            }
            _ => Ok(()),
        };
        round.end(ended);
        self.rounds.check().and(refused).map_err(unsealed)
    }

    /// All that the layer has.
    fn segments(&self) -> Result<Vec<Segment>, LsmtError> {
        let mut segments = Vec::new();
        for extent in self.ledger().map.from(0) {
            let Range { start, .. } = extent.sectors;
            push_segments(&extent, &mut segments).map_err(|_| LsmtError::Unnamed {
                offset: start,
                length: 0,
                place: 0,
            })?;
        }
        Ok(segments)
    }
}

impl<M: Medium> Round<M> {
    /// Writes the end of the sealed layer, which is not durable yet.
    async fn write_end(&self, reactor: &Reactor) -> Result<(), UpperError> {
        let layer = &self.layer;
        let unsealed = |source| UpperError::Seal { name: layer.data.to_string(), source };
        let (header, segments) = (layer.header.get(), layer.segments().map_err(unsealed)?);
        let end_at = |at| seal(&header, &segments, at).map_err(unsealed);
        let length = end_at(0)?.len() as u64 / SECTOR_BYTES;
        let room = layer.reserve_end(length);
        let room = room.map_err(|error| failed(&layer.data, "write the end of", error))?;
        let at = room.sectors.start.saturating_mul(SECTOR_BYTES);
        let written = layer.data.write_at(reactor, at, &end_at(at)?).await;
        let dead = if written.is_ok() { room.gap } else { room.gap.start..room.sectors.end };
        layer.ledger_mut().has_died(dead);
        written.map_err(|error| failed(&layer.data, "write the end of", error))
    }
}
