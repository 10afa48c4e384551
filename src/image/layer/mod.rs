//! One read-only layer: a blob with an LSMT file in it, perhaps compressed, perhaps in a tar envelope.

mod content;
mod nearby;
mod verify;

use std::sync::Arc;

use super::{ImageError, LayerError, index::LAYER_BYTES_LIMIT};
use crate::{
    block::ByteRange,
    format::{
        lsmt::{LayerLayout, ReadOnlyLayer, SLOT_BYTES, Segment},
        uuid::Uuid,
        zfile::{Algorithm, Decoder},
    },
    reactor::Reactor,
    source::BlobSource,
};
pub(super) use content::Content;
use nearby::Nearby;
pub use verify::{DamagedBlock, VerifyReport};

/// How often bytes that break a rule are asked for in all, when the source can ask its origin again.
pub(super) const ATTEMPTS: usize = 3;

/// An open layer. Immutable, and shared by all queues.
#[derive(Debug)]
pub struct Layer {
    pub(super) source: Arc<dyn BlobSource>,
    pub(super) content: Content,
    description: LayerDescription,
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
        match Self::open_retrying(reactor, &source).await {
            Ok((content, lsmt)) => {
                let description = describe(&*source, &content, &lsmt);
                Ok((Self { source, content, description }, lsmt.into_segments()))
            }
            Err(error) => Err(ImageError::Layer { name: source.name().to_owned(), source: error }),
        }
    }

    async fn open_retrying(
        reactor: &Reactor,
        source: &Arc<dyn BlobSource>,
    ) -> Result<(Content, ReadOnlyLayer), LayerError> {
        let mut attempt = 1;
        loop {
            let mut near = Nearby::new(&**source, reactor).await?;
            match open_once(&mut near).await {
                Err(error) if error.is_about_content() && attempt < ATTEMPTS && near.invalidate() => {
                    tracing::warn!(blob = source.name(), %error, "read again while opening");
                    attempt += 1;
                }
                ended => return ended,
            }
        }
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
    let trailer = LayerLayout::trailer_range(content_bytes)?;
    let header = content.read(near, &mut decoder, ByteRange::between(0, SLOT_BYTES as u64)).await?;
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
