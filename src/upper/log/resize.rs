//! Another size of the device, in the headers of both files.
//!
//! The data file's counts when the layer is opened, so that it comes last: a crash leaves the old size or the new one, and an
//! index file that says the new one too early is as good. The eight bytes lie in one sector, so that they are not torn.

use std::sync::Arc;

use super::{LogLayer, round::Round};
use crate::{
    format::lsmt::Header,
    reactor::Reactor,
    upper::{UpperError, medium::Medium, rounds::Trouble},
};

impl<M: Medium> LogLayer<M> {
    /// Writes the size of the device into the headers, durably, in a round of its own: no other may replace the index file
    /// meanwhile.
    ///
    /// # Errors
    /// [`UpperError::Io`] where a header cannot be written: the layer goes on as before. [`UpperError::Unresized`] after a
    /// failed sync: nobody knows which size is durable, and nothing is written any more.
    pub(in crate::upper) async fn resize(
        self: &Arc<Self>,
        reactor: &Reactor,
        size_bytes: u64,
    ) -> Result<(), UpperError> {
        let name = self.data.to_string();
        let unresized = |source| UpperError::Unresized { name: name.clone(), source };
        let mut round = self.round().await.map_err(unresized)?;
        match round.write_size(reactor, size_bytes).await {
            Err(Trouble::Refused(source)) => {
                // The log is as it was.
                round.end(Ok(()));
                Err(UpperError::Io { name, action: "write the header of", source })
            }
            ended => {
                round.end(ended);
                self.rounds.check().map_err(unresized)
            }
        }
    }
}

impl<M: Medium> Round<M> {
    async fn write_size(&mut self, reactor: &Reactor, size_bytes: u64) -> Result<(), Trouble> {
        let index = self.tail.iter().map(|tail| &tail.index);
        for file in index.chain([&self.layer.data]) {
            let bytes = size_bytes.to_le_bytes();
            let written = file.write_at(reactor, Header::VIRTUAL_SIZE_OFFSET, &bytes).await;
            written.map_err(Trouble::Refused)?;
            file.sync(reactor).await.map_err(Trouble::Failed)?;
        }
        self.layer.header.has_size(size_bytes);
        Ok(())
    }
}
