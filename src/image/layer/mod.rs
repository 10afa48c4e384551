//! One read-only layer: a blob with an LSMT file in it, perhaps compressed, perhaps in a tar envelope.

mod basis;
mod content;
mod nearby;
mod verify;

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use super::{ImageError, LayerError, index::LAYER_BYTES_LIMIT};
use crate::{
    block::ByteRange,
    format::{
        lsmt::{LayerLayout, ReadOnlyLayer, SLOT_BYTES, Segment},
        uuid::Uuid,
        zfile::{Algorithm, Decoder},
    },
    reactor::Reactor,
    source::{BlobSource, Refutation, SourceError},
};
use basis::Basis;
pub(super) use content::Content;
use nearby::Nearby;
pub use verify::{DamagedBlock, VerifyReport};

/// How often bytes that break a rule are asked for in all, when the source can ask its origin again.
pub(super) const ATTEMPTS: usize = 3;

/// An open layer. Immutable but for what is known of its blob, and shared by all queues.
#[derive(Debug)]
pub struct Layer {
    pub(super) source: Arc<dyn BlobSource>,
    pub(super) content: Content,
    description: LayerDescription,
    /// What it was made of.
    basis: Basis,
    /// Raised when the digest of the blob refutes bytes that were read since the layer was opened.
    refutation: Arc<Refutation>,
    /// The generation in which the blob still had what the layer was made of.
    founded: AtomicU32,
}

/// What a layer says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerDescription {
    /// Name of the blob.
    pub name: String,
    /// Size of the blob in bytes.
    pub blob_bytes: u64,
    /// Size of the LSMT file, decompressed, in bytes.
    pub content_bytes: u64,
    /// Size of the device in bytes; 0 where the layers below decide.
    pub virtual_size_bytes: u64,
    /// Segments of its index, padding left out.
    pub segments: usize,
    /// The layer's identity, where it has a readable one.
    pub uuid: Option<Uuid>,
    /// The identity of the layer that it was made on.
    pub parent_uuid: Option<Uuid>,
    /// Free text that its maker left.
    pub user_tag: String,
    /// The blob has a tar envelope.
    pub tar_envelope: bool,
    /// How it is compressed, if it is.
    pub compression: Option<Compression>,
}

impl LayerDescription {
    /// Whether all that is read of it has a checksum.
    #[must_use]
    pub fn has_checksums(&self) -> bool {
        self.compression.is_some_and(|compression| compression.checksums)
    }
}

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compression {
    /// The compressor.
    pub algorithm: Algorithm,
    /// Size of a block in bytes.
    pub block_bytes: u32,
    /// Number of blocks.
    pub blocks: u32,
    /// A checksum follows every block.
    pub checksums: bool,
}

impl Layer {
    /// Opens the layer in `source` and returns it with its segments, by offset.
    ///
    /// Head and tail of the blob are read at once; what they do not hold takes one more read, rarely two. Bytes that
    /// break a rule are asked for again, three times in all, if the source can have other ones.
    ///
    /// # Errors
    /// [`ImageError::Layer`].
    pub async fn open(
        reactor: &Reactor,
        source: Arc<dyn BlobSource>,
    ) -> Result<(Self, Vec<Segment>), ImageError> {
        Self::open_within(reactor, source, &Arc::default()).await
    }

    /// As [`Layer::open`]; `refutation` counts those of all layers of the image.
    pub(super) async fn open_within(
        reactor: &Reactor,
        source: Arc<dyn BlobSource>,
        refutation: &Arc<Refutation>,
    ) -> Result<(Self, Vec<Segment>), ImageError> {
        let refutation = Refutation::within(refutation);
        source.watch(&refutation);
        match Self::open_retrying(reactor, &source).await {
            Ok((content, lsmt, basis)) => {
                let description = describe(&*source, &content, &lsmt);
                let founded = AtomicU32::new(0);
                let layer = Self { source, content, description, basis, refutation, founded };
                Ok((layer, lsmt.into_segments()))
            }
            Err(error) => Err(ImageError::Layer { name: source.name().to_owned(), source: error }),
        }
    }

    async fn open_retrying(
        reactor: &Reactor,
        source: &Arc<dyn BlobSource>,
    ) -> Result<(Content, ReadOnlyLayer, Basis), LayerError> {
        let mut attempt = 1;
        loop {
            let mut near = Nearby::new(&**source, reactor).await?;
            match open_once(&mut near).await {
                Err(error) if error.is_about_content() && attempt < ATTEMPTS && near.invalidate() => {
                    tracing::warn!(blob = source.name(), %error, "read again while opening");
                    attempt += 1;
                }
                ended => return ended.map(|(content, lsmt)| (content, lsmt, near.into_basis())),
            }
        }
    }

    /// Counts how often the blob's digest has refuted its bytes, for what is made of them. So often, a whole blob was fetched.
    #[inline]
    pub(super) fn generation(&self) -> u32 {
        self.refutation.generation()
    }

    /// Whether the layer may be used, though bytes of its blob were wrong: it may if the blob still has, in what comes from the
    /// origin now, the very bytes that the layer was made of. One without checksums has to be right in three attempts.
    ///
    /// # Errors
    /// When the bytes cannot be had.
    pub(super) async fn is_founded(&self, reactor: &Reactor) -> Result<bool, SourceError> {
        let generation = self.generation();
        if generation == self.founded.load(Ordering::Acquire) {
            return Ok(true);
        }
        let attempts = usize::try_from(generation).unwrap_or(usize::MAX);
        if attempts >= ATTEMPTS && !self.description.has_checksums() {
            return Ok(false);
        }
        let founded = self.basis.is_still_in(&*self.source, reactor).await?;
        if founded {
            self.founded.fetch_max(generation, Ordering::AcqRel);
        }
        Ok(founded)
    }

    /// What it says of itself.
    #[must_use]
    pub fn description(&self) -> &LayerDescription {
        &self.description
    }
}

async fn open_once(near: &mut Nearby<'_>) -> Result<(Content, ReadOnlyLayer), LayerError> {
    let content = Content::open(near).await?;
    let content_bytes = content.len;
    if content_bytes > LAYER_BYTES_LIMIT {
        return Err(LayerError::TooLarge { content_bytes, limit_bytes: LAYER_BYTES_LIMIT });
    }
    let mut decoder = Decoder::new();
    let head = ByteRange::between(0, content_bytes.min(SLOT_BYTES as u64));
    let header = content.read(near, &mut decoder, head).await?;
    let trailer = LayerLayout::trailer_range_of(&header, content_bytes)?;
    let trailer = content.read(near, &mut decoder, trailer).await?;
    let layout = LayerLayout::decode(&header, &trailer, content_bytes)?;
    let index = content.read(near, &mut decoder, layout.index_range()).await?;
    let lsmt = layout.decode_index(&index)?;
    Ok((content, lsmt))
}

fn describe(source: &dyn BlobSource, content: &Content, lsmt: &ReadOnlyLayer) -> LayerDescription {
    let (header, trailer) = (lsmt.layout().header(), lsmt.layout().trailer());
    LayerDescription {
        name: source.name().to_owned(),
        blob_bytes: source.size_bytes(),
        content_bytes: content.len,
        virtual_size_bytes: lsmt.virtual_size_bytes(),
        segments: lsmt.segments().len(),
        uuid: trailer.uuid,
        parent_uuid: trailer.parent_uuid.or(header.parent_uuid),
        user_tag: String::from_utf8_lossy(trailer.user_tag.text()).into_owned(),
        tar_envelope: content.enveloped,
        compression: content.blocks.as_ref().map(|table| Compression {
            algorithm: table.layout().algorithm(),
            block_bytes: table.layout().block_size(),
            blocks: table.layout().block_count(),
            checksums: table.layout().verify(),
        }),
    }
}
