//! What changes a sparse file as a whole: another size of the device, and the end that makes it a read-only layer.

use std::sync::Arc;

use super::{BLOCK_BYTES, BLOCK_SECTORS, SparseLayer, in_memory};
use crate::{
    block::{BlockError, BlockQueue, SECTOR_BYTES},
    format::lsmt::{Header, LsmtError, seal},
    reactor::Reactor,
    upper::{UpperError, error::failed, extents::Piece, medium::Medium, segments::push_segments, view::View},
};

impl<M: Medium> SparseLayer<M> {
    /// Appends index and trailer, durably. Nothing may be written meanwhile, nor before [`SparseLayer::unseal`].
    ///
    /// # Errors
    /// [`UpperError::Seal`] where the layer has too many runs of data, and [`UpperError::Io`]. [`UpperError::Unsealed`] after a failed
    /// sync: nothing is written any more.
    pub(in crate::upper) async fn seal(self: &Arc<Self>, reactor: &Reactor) -> Result<(), UpperError> {
        let unsealed = |source| UpperError::Seal { name: self.data.to_string(), source };
        let mut segments = Vec::new();
        for extent in self.map().from(0) {
            let offset = extent.sectors.start;
            push_segments(&extent, &mut segments)
                .map_err(|_| unsealed(LsmtError::Unnamed { offset, length: 0, place: 0 }))?;
        }
        let end = seal(&self.header.get(), &segments, self.end_bytes()).map_err(unsealed)?;
        let lost = |source| UpperError::Unsealed { name: self.data.to_string(), source };
        let mut round = self.round().await.map_err(lost)?;
        if let Err(error) = self.data.write_at(reactor, self.end_bytes(), &end).await {
            self.unseal();
            round.end(Ok(()));
            return Err(failed(&self.data, "write the end of", error));
        }
        round.end(self.data.sync(reactor).await);
        self.rounds.check().map_err(lost)
    }

    /// Cuts off what was appended, the end of a sealed layer or of a larger one. What is written from now on is not in the
    /// index that is there.
    pub(in crate::upper) fn unseal(&self) {
        self.map_mut().remove(&(self.size_sectors()..u64::MAX));
        if let Err(error) = self.data.set_size(self.end_bytes()) {
            tracing::error!(layer = %self.data, %error, "cannot cut off what follows the device: no more writes");
            self.rounds.fail(error);
        }
    }

    /// Makes the device larger, durably. What is new holds what lies below.
    ///
    /// # Errors
    /// [`UpperError::Io`], which changes nothing. [`UpperError::Unresized`] where what lies below cannot be read, or after a
    /// failed sync: then nobody knows which size is durable, and nothing is written any more.
    pub(in crate::upper) async fn resize<Q: BlockQueue>(
        self: &Arc<Self>,
        view: &View<'_, Q, M>,
        size_bytes: u64,
    ) -> Result<(), UpperError> {
        let unresized = |source| UpperError::Unresized { name: self.data.to_string(), source };
        let mut round = self.round().await.map_err(unresized)?;
        let resized = match self.complete_end(view, size_bytes / SECTOR_BYTES).await {
            Ok(()) => self.set_size(&view.reader.reactor, size_bytes).await,
            Err(error) => {
                self.unseal();
                Err(unresized(error))
            }
        };
        // A sync that has failed is noted already.
        round.end(Ok(()));
        resized
    }

    /// Writes the size into the header, durably, and gives the file its own before: a crash leaves a file that is too long,
    /// which is cut, and never one that is too short.
    pub(in crate::upper) async fn set_size(
        &self,
        reactor: &Reactor,
        size_bytes: u64,
    ) -> Result<(), UpperError> {
        let data = &self.data;
        let refused = |error| {
            self.unseal();
            failed(data, "give another size to", error)
        };
        let lost = |error| UpperError::Unresized { name: data.to_string(), source: self.rounds.fail(error) };
        data.set_size(size_bytes.saturating_add(BLOCK_BYTES)).map_err(refused)?;
        data.sync(reactor).await.map_err(lost)?;
        let bytes = size_bytes.to_le_bytes();
        data.write_at(reactor, Header::VIRTUAL_SIZE_OFFSET, &bytes).await.map_err(refused)?;
        data.sync(reactor).await.map_err(lost)?;
        self.header.has_size(size_bytes);
        Ok(())
    }

    /// Completes the block in which the device ends now, if the file has it, with what lies below: the rest of it would be taken
    /// for zeroes of the layer.
    async fn complete_end<Q: BlockQueue>(
        &self,
        view: &View<'_, Q, M>,
        size_sectors: u64,
    ) -> Result<(), BlockError> {
        let end = self.size_sectors();
        let start = end - end % BLOCK_SECTORS;
        let block = start..start.saturating_add(BLOCK_SECTORS).min(size_sectors);
        let is_here = self.pieces(start..end).iter().any(|piece| matches!(piece, Piece::Extent(_)));
        if !is_here {
            return Ok(());
        }
        let mut bytes = vec![0; in_memory(&block)];
        view.read(start, &mut bytes).await?;
        self.store(&view.reader.reactor, block, &bytes).await
    }
}
