//! The files of a writable layer: opening and making them.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    LayerFile, LogLimits, UpperError, WriteMetrics,
    error::{failed, wrong},
    layer::Layer,
    log::{LogFiles, LogLayer},
    medium::Medium,
    sparse::SparseLayer,
};
use crate::{
    format::{
        lsmt::{Header, LsmtError, SLOT_BYTES, data_header, decode_data_header, index_header},
        uuid::Uuid,
    },
    reactor::Reactor,
};

/// What a new layer says of itself.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// Its own UUID.
    pub uuid: Uuid,
    /// The UUID of the layer below, where there is one.
    pub parent_uuid: Option<Uuid>,
    /// Size of the device in bytes; 0 takes that of the layers below.
    pub virtual_size_bytes: u64,
    /// Whether it is one sparse file instead of a log.
    pub sparse: bool,
}

/// The two files of a layer. The data file says of which kind the layer is; a sparse one has nothing in its index file, which
/// need not be there.
#[derive(Debug)]
pub struct LayerFiles<M = LayerFile> {
    pub(super) data: M,
    /// Or why it cannot be had.
    pub(super) index: Result<M, UpperError>,
    /// The folder of the journals, where this layer is to have one.
    pub(super) journals: Option<PathBuf>,
}

impl LayerFiles {
    /// Opens the files at these paths, and keeps others from opening them so. May wait for the disk. Each file is locked as it is
    /// open, so that nothing that a dead process has begun is under way any more when it can be had, which may take as long as a disk.
    ///
    /// # Errors
    /// [`UpperError::Io`] and [`UpperError::Busy`]. Whether the index file is needed is not known yet.
    pub fn open(data: &Path, index: &Path) -> Result<Self, UpperError> {
        let data = LayerFile::open(data)?;
        // The index file may be replaced by whoever has the lock, so it is not opened before.
        data.lock()?;
        let index = match LayerFile::open(index).and_then(LayerFile::locked) {
            Err(busy @ UpperError::Busy(_)) => return Err(busy),
            index => index,
        };
        Ok(Self { data, index, journals: None })
    }

    /// Makes files at these paths, where there must be none, and keeps others from opening them. May wait for the disk.
    ///
    /// # Errors
    /// [`UpperError::Io`] and [`UpperError::Busy`].
    pub fn create(data: &Path, index: &Path) -> Result<Self, UpperError> {
        let data = LayerFile::create(data)?;
        data.lock()?;
        Ok(Self { data, index: Ok(LayerFile::create(index)?.locked()?), journals: None })
    }
}

impl<M: Medium> LayerFiles<M> {
    /// Has what the layer completes outlive the process, in a journal in `folder`, which is to lie in memory, and to be the same for
    /// whoever opens the layer: see [`JOURNAL_FOLDER`](crate::format::lsmt::JOURNAL_FOLDER).
    #[must_use]
    pub fn with_journal(self, folder: &Path) -> Self {
        Self { journals: Some(folder.to_owned()), ..self }
    }

    /// Makes an empty layer of two new files, durably.
    ///
    /// # Errors
    /// [`UpperError::Io`].
    pub async fn format(self, reactor: &Reactor, identity: &Identity) -> Result<(), UpperError> {
        let Identity { uuid, parent_uuid, virtual_size_bytes, sparse } = *identity;
        let header = data_header(sparse, uuid, parent_uuid, virtual_size_bytes);
        let index = self.index?;
        let headers = [(&self.data, Some(header)), (&index, (!sparse).then(|| index_header(&header)))];
        for (file, header) in headers {
            let write = async {
                if let Some(header) = header {
                    file.write_at(reactor, 0, &header.encode()).await?;
                }
                if header.is_some_and(|header| header.sparse) {
                    file.set_size(virtual_size_bytes.saturating_add(SLOT_BYTES as u64))?;
                }
                file.sync(reactor).await?;
                file.sync_name(reactor).await
            };
            write.await.map_err(|error| failed(file, "write", error))?;
        }
        Ok(())
    }

    /// Makes durable what a dead process has left of the layer, also in its journal, which goes.
    ///
    /// # Errors
    /// Where it cannot be opened, or not be made durable: then it is as it was.
    pub async fn settle(self, reactor: &Reactor) -> Result<(), UpperError> {
        let layer = self.load(reactor, LogLimits::default(), Arc::default()).await?;
        let settled = layer.give_back(reactor).await;
        settled.map_err(|source| UpperError::Unsettled { name: layer.data().to_string(), source })?;
        layer.end_journal();
        Ok(())
    }

    /// Reads what the layer has, and mends what a crash has torn.
    pub(super) async fn load(
        self,
        reactor: &Reactor,
        limits: LogLimits,
        metrics: Arc<WriteMetrics>,
    ) -> Result<Layer<M>, UpperError> {
        let Self { data, index, journals } = self;
        let header = read_header(reactor, &data, decode_data_header).await?;
        if header.sparse {
            let layer = SparseLayer::load(reactor, data, header, metrics).await?;
            return Ok(Layer::Sparse(Arc::new(layer)));
        }
        let files = LogFiles { data, index: index?, header, journals };
        let layer = Arc::new(LogLayer::load(reactor, files, limits, metrics).await?);
        if layer.is_behind() {
            layer.await_idleness(reactor);
        }
        Ok(Layer::Log(layer))
    }
}

pub(super) async fn read_header<M: Medium>(
    reactor: &Reactor,
    file: &M,
    decode: impl FnOnce(&[u8]) -> Result<Header, LsmtError>,
) -> Result<Header, UpperError> {
    let mut slot = [0; SLOT_BYTES];
    file.read_at(reactor, 0, &mut slot).await.map_err(|error| failed(file, "read the header of", error))?;
    decode(&slot).map_err(|error| wrong(file, error))
}

pub(super) fn size_of<M: Medium>(file: &M) -> Result<u64, UpperError> {
    file.size_bytes().map_err(|error| failed(file, "ask for the size of", error))
}
