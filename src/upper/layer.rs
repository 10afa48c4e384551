//! A writable layer of either kind.

use std::{
    io,
    ops::{Deref, Range},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    LayerLink, UpperError,
    claims::Claim,
    extents::Piece,
    gate::Gate,
    log::{LogLayer, Pieces, Pin},
    medium::Medium,
    sparse::SparseLayer,
    view::View,
};
use crate::{
    block::{BlockError, BlockQueue},
    format::lsmt::Header,
    reactor::Reactor,
};

/// An open layer, shared by all queues and threads. Cloning gives another handle to the same one.
#[derive(Debug)]
pub(super) enum Layer<M> {
    /// Writes go to the end of a file.
    Log(Arc<LogLayer<M>>),
    /// Writes go to their place in a file.
    Sparse(Arc<SparseLayer<M>>),
}

/// What keeps bytes of a layer as they were found until it is dropped.
#[derive(Debug)]
#[expect(dead_code, reason = "they are held, not looked at")]
pub(super) enum ReadGuard<'a> {
    /// Nothing is punched out of a log.
    Room(Pin<'a>),
    /// Nothing is written over blocks of a sparse file.
    Blocks(Claim<'a>),
}

/// The header of a data file: as it was found, but for the size of the device.
#[derive(Debug)]
pub(super) struct LiveHeader {
    found: Header,
    virtual_size_bytes: AtomicU64,
}

impl LiveHeader {
    pub(super) fn new(found: Header) -> Self {
        Self { virtual_size_bytes: AtomicU64::new(found.virtual_size_bytes), found }
    }

    /// What it says now.
    pub(super) fn get(&self) -> Header {
        Header { virtual_size_bytes: self.virtual_size_bytes.load(Ordering::Relaxed), ..self.found }
    }

    /// It says from now on that the device has this size.
    pub(super) fn has_size(&self, size_bytes: u64) {
        self.virtual_size_bytes.store(size_bytes, Ordering::Relaxed);
    }
}

impl<M: Medium> Layer<M> {
    pub(super) fn data(&self) -> &M {
        match self {
            Self::Log(layer) => &layer.data,
            Self::Sparse(layer) => &layer.data,
        }
    }

    /// The header of the data file.
    pub(super) fn header(&self) -> Header {
        match self {
            Self::Log(layer) => layer.header.get(),
            Self::Sparse(layer) => layer.header.get(),
        }
    }

    /// What the layer says of itself and of the one that it was made over.
    pub(super) fn link(&self) -> LayerLink {
        let Header { uuid, parent_uuid, .. } = self.header();
        LayerLink { name: self.data().to_string(), uuid, parent_uuid }
    }

    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Log(layer) => layer.is_empty(),
            Self::Sparse(layer) => layer.is_empty(),
        }
    }

    /// Looks up sectors of the device for somebody who reads what was found, which stays as it is until what comes with it is
    /// dropped.
    pub(super) async fn look(&self, sectors: Range<u64>) -> (Vec<Piece>, ReadGuard<'_>) {
        match self {
            Self::Log(layer) => {
                let (pieces, pin) = layer.find(sectors);
                (pieces, ReadGuard::Room(pin))
            }
            Self::Sparse(layer) => {
                let claim = layer.still(sectors.clone()).await;
                (layer.pieces(sectors), ReadGuard::Blocks(claim))
            }
        }
    }

    /// Looks up sectors of the device, in a layer that takes no writes, or for somebody who keeps them away by himself.
    pub(super) fn pieces(&self, sectors: Range<u64>) -> Vec<Piece> {
        match self {
            Self::Log(layer) => layer.pieces(sectors),
            Self::Sparse(layer) => layer.pieces(sectors),
        }
    }

    /// Writes the bytes of `sectors` that `take` gives, which is asked when only the medium is left to wait for; `view` is of the
    /// device.
    ///
    /// # Errors
    /// Those of the kind, and of `take`.
    pub(super) async fn write<Q: BlockQueue, D: Deref<Target = [u8]>>(
        &self,
        view: &View<'_, Q, M>,
        sectors: Range<u64>,
        take: impl AsyncFnOnce() -> Result<D, BlockError>,
    ) -> Result<(), BlockError> {
        match self {
            Self::Log(layer) => {
                layer.admit(&view.reader.reactor).await?;
                layer.write(&view.reader.reactor, sectors.start, &take().await?).await
            }
            Self::Sparse(layer) => layer.write(view, sectors, take).await,
        }
    }

    /// Makes sectors read as zeroes; `view` is of the device.
    ///
    /// # Errors
    /// Those of the kind.
    pub(super) async fn write_zeroes<Q: BlockQueue>(
        &self,
        view: &View<'_, Q, M>,
        sectors: Range<u64>,
    ) -> Result<(), BlockError> {
        match self {
            Self::Log(layer) => layer.write_zeroes(&view.reader.reactor, sectors).await,
            Self::Sparse(layer) => layer.write_zeroes(view, sectors).await,
        }
    }

    /// Makes durable what completed before.
    ///
    /// # Errors
    /// Those of the kind.
    pub(super) async fn flush(&self, reactor: &Reactor) -> Result<(), BlockError> {
        match self {
            Self::Log(layer) => layer.flush(reactor).await,
            Self::Sparse(layer) => layer.flush(reactor).await,
        }
    }

    /// Makes the pieces of the device that a log has as few as `pieces` says, if it can. What a sparse file has cannot be moved.
    ///
    /// # Errors
    /// Those of reads and writes.
    pub(super) async fn compact<Q: BlockQueue>(
        &self,
        view: &View<'_, Q, M>,
        gate: &Gate,
        pieces: Pieces,
    ) -> Result<(), UpperError> {
        match self {
            Self::Log(layer) => layer.compact(view, gate, pieces).await,
            Self::Sparse(_) => Ok(()),
        }
    }

    /// In how many pieces it has what it has of the device.
    pub(super) fn piece_count(&self) -> usize {
        match self {
            Self::Log(layer) => layer.piece_count(),
            Self::Sparse(layer) => layer.piece_count(),
        }
    }

    /// Appends what makes the data file a read-only layer, durably. Nothing may be written meanwhile.
    ///
    /// # Errors
    /// [`UpperError::Seal`] where the layer has too many segments, and [`UpperError::Io`].
    pub(super) async fn seal(&self, reactor: &Reactor) -> Result<(), UpperError> {
        match self {
            Self::Log(layer) => layer.seal(reactor).await,
            Self::Sparse(layer) => layer.seal(reactor).await,
        }
    }

    /// It was sealed, and takes no writes any more.
    pub(super) fn end_journal(&self) {
        if let Self::Log(layer) = self {
            layer.end_journal();
        }
    }

    /// Takes back what [`Layer::seal`] has appended, where that would be in the way of writes.
    pub(super) fn unseal(&self) {
        match self {
            // What is appended next follows it, and the index file does not know it.
            Self::Log(_) => {}
            Self::Sparse(layer) => layer.unseal(),
        }
    }

    /// Takes no more writes, as after a failed sync: nobody knows whether a crash leaves the layer to the device.
    pub(super) fn fail(&self, cause: io::Error) {
        match self {
            Self::Log(layer) => layer.fail(cause),
            Self::Sparse(layer) => layer.fail(cause),
        }
    }

    /// Writes another size of the device, durably. What is new holds what lies below. Nothing may be written meanwhile.
    ///
    /// # Errors
    /// [`UpperError::Io`], which changes nothing, and [`UpperError::Unresized`].
    pub(super) async fn resize<Q: BlockQueue>(
        &self,
        view: &View<'_, Q, M>,
        size_bytes: u64,
    ) -> Result<(), UpperError> {
        match self {
            Self::Log(layer) => layer.resize(&view.reader.reactor, size_bytes).await,
            Self::Sparse(layer) => layer.resize(view, size_bytes).await,
        }
    }

    /// The device has this size. Where the header leaves it to the layers below, and the file depends on it, the header says it
    /// from now on, durably, as upstream has it.
    ///
    /// # Errors
    /// [`UpperError::Io`].
    pub(super) async fn has_device(&self, reactor: &Reactor, size_bytes: u64) -> Result<(), UpperError> {
        match self {
            Self::Sparse(layer) if layer.header.get().virtual_size_bytes == 0 => {
                layer.set_size(reactor, size_bytes).await
            }
            _ => Ok(()),
        }
    }

    /// Makes durable what completed before, and gives back what room it takes for nothing.
    ///
    /// # Errors
    /// Those of a flush.
    pub(super) async fn give_back(&self, reactor: &Reactor) -> Result<(), BlockError> {
        match self {
            Self::Log(layer) => layer.give_back(reactor).await,
            Self::Sparse(layer) => layer.flush(reactor).await,
        }
    }

    /// Bytes that can still be written to a log; see [`LogLayer::room_bytes`].
    pub(super) fn room_bytes(&self) -> Option<u64> {
        match self {
            Self::Log(layer) => Some(layer.room_bytes()),
            Self::Sparse(_) => None,
        }
    }

    /// Whether somebody else has a handle too, a round for instance.
    pub(super) fn is_shared(&self) -> bool {
        match self {
            Self::Log(layer) => Arc::strong_count(layer) > 1,
            Self::Sparse(layer) => Arc::strong_count(layer) > 1,
        }
    }
}

impl<M> Clone for Layer<M> {
    fn clone(&self) -> Self {
        match self {
            Self::Log(layer) => Self::Log(Arc::clone(layer)),
            Self::Sparse(layer) => Self::Sparse(Arc::clone(layer)),
        }
    }
}
