//! A layer that was made of several sealed ones and takes their place: it shows the same bytes.

use std::{ops::Range, sync::Arc};

use super::{
    LayerFile, LayerLink, UpperError,
    error::{failed, wrong},
    extents::{ExtentMap, Piece},
    files::size_of,
    layer::Layer,
    medium::Medium,
    segments::extent_of,
};
use crate::{
    block::ByteRange,
    format::lsmt::{LayerLayout, SLOT_BYTES},
    reactor::Reactor,
};

/// Bytes of an index that are read at a time.
const READ_BYTES: usize = 1 << 20;

/// A layer that takes no writes any more.
#[derive(Debug)]
pub(super) enum Below<M> {
    /// As it was when it took writes.
    Sealed(Layer<M>),
    /// Made of such layers.
    Merged(Arc<MergedLayer<M>>),
}

/// A read-only layer that lies in a file as it is.
#[derive(Debug)]
pub struct MergedLayer<M = LayerFile> {
    data: M,
    link: LayerLink,
    map: ExtentMap,
}

impl<M: Medium> MergedLayer<M> {
    /// Reads the index of the layer in `data`.
    ///
    /// # Errors
    /// [`UpperError::Io`], and [`UpperError::Format`] where it is no such layer.
    pub async fn load(reactor: &Reactor, data: M) -> Result<Self, UpperError> {
        let unread = |error| failed(&data, "read the index of", error);
        let refused = |error| wrong(&data, error);
        let size_bytes = size_of(&data)?;
        let end = LayerLayout::trailer_range(size_bytes).map_err(refused)?;
        let (mut header, mut trailer) = ([0; SLOT_BYTES], [0; SLOT_BYTES]);
        data.read_at(reactor, 0, &mut header).await.map_err(unread)?;
        data.read_at(reactor, end.start(), &mut trailer).await.map_err(unread)?;
        let layout = LayerLayout::decode(&header, &trailer, size_bytes).map_err(refused)?;
        let index = read_index(reactor, &data, layout.index_range()).await?;
        let mut map = ExtentMap::default();
        for segment in layout.decode_index(&index).map_err(refused)?.into_segments() {
            map.insert(extent_of(segment), |_| ());
        }
        let trailer = layout.trailer();
        let (uuid, parent_uuid) = (trailer.uuid, trailer.parent_uuid);
        Ok(Self { link: LayerLink { name: data.to_string(), uuid, parent_uuid }, data, map })
    }
}

/// The index at `range`, whose length the layout has checked.
async fn read_index<M: Medium>(reactor: &Reactor, data: &M, range: ByteRange) -> Result<Vec<u8>, UpperError> {
    let mut index = vec![0; usize::try_from(range.len()).unwrap_or(0)];
    let mut at = range.start();
    for piece in index.chunks_mut(READ_BYTES) {
        data.read_at(reactor, at, piece).await.map_err(|error| failed(data, "read the index of", error))?;
        at = at.saturating_add(piece.len() as u64);
    }
    Ok(index)
}

impl<M: Medium> Below<M> {
    pub(super) fn data(&self) -> &M {
        match self {
            Self::Sealed(layer) => layer.data(),
            Self::Merged(layer) => &layer.data,
        }
    }

    /// Looks up sectors of the device.
    pub(super) fn pieces(&self, sectors: Range<u64>) -> Vec<Piece> {
        match self {
            Self::Sealed(layer) => layer.pieces(sectors),
            Self::Merged(layer) => layer.map.pieces(sectors),
        }
    }

    /// What the layer says of itself and of the one that it was made over.
    pub(super) fn link(&self) -> LayerLink {
        match self {
            Self::Sealed(layer) => layer.link(),
            Self::Merged(layer) => layer.link.clone(),
        }
    }
}

impl<M> Clone for Below<M> {
    fn clone(&self) -> Self {
        match self {
            Self::Sealed(layer) => Self::Sealed(layer.clone()),
            Self::Merged(layer) => Self::Merged(Arc::clone(layer)),
        }
    }
}
