//! An open image as a block device.

use std::{pin::pin, rc::Rc, sync::Arc};

use futures_util::{StreamExt, TryStreamExt, stream};

use super::{
    ImageError,
    decoded::DecodedBlocks,
    index::Index,
    layer::{ATTEMPTS, Layer, LayerDescription},
    metrics::{ImageMetrics, ReadMetrics},
    open_image::OpenImage,
    read::Reader,
    standing::Standing,
    superblock,
};
use crate::{
    block::{BlockDevice, BlockError, BlockQueue, ByteRange, ErrorKind, Geometry, SECTOR_BYTES},
    format::lsmt::{LAYER_COUNT_LIMIT, Segment, device_bytes},
    reactor::{Buffer, BufferPool, BufferSlot, Reactor},
    source::BlobSource,
};

/// Layers that are opened at once.
const OPENING_AT_ONCE: usize = 32;

/// Blocks that files on Linux are read in.
const PAGE_BYTES: u32 = 4096;

/// Size of requests that costs least; the kernel's read-ahead takes it for a hint.
const OPTIMAL_BYTES: u32 = 64 << 10;

/// Decoded blocks that an image keeps where nobody says otherwise, in bytes.
pub const DECODED_CACHE_BYTES: u64 = 64 << 20;

/// What may be chosen about an image.
#[derive(Debug, Clone)]
pub struct ImageOptions {
    /// Bytes of decoded blocks that the image may keep; 0 keeps none.
    pub decoded_cache_bytes: u64,
    /// Segments that all layers may have together. They take 16 bytes each while they are merged and 18 afterwards.
    pub segment_limit: usize,
}

impl Default for ImageOptions {
    fn default() -> Self {
        // Upstream allows 128 million segments; the largest images seen have less than one.
        Self { decoded_cache_bytes: DECODED_CACHE_BYTES, segment_limit: 32_000_000 }
    }
}

/// A stack of read-only layers as one device. Cloning gives another handle to the same image, with the same index and
/// cache.
#[derive(Debug, Clone)]
pub struct Image {
    open: Arc<OpenImage>,
    geometry: Geometry,
    reads: Arc<ReadMetrics>,
}

impl Image {
    /// Opens the image of `layers`, the lowest first.
    ///
    /// # Errors
    /// [`ImageError`]; the first layer that cannot be opened fails all.
    pub async fn open(
        reactor: &Reactor,
        layers: Vec<Arc<dyn BlobSource>>,
        options: ImageOptions,
    ) -> Result<Self, ImageError> {
        let count = layers.len();
        if count == 0 {
            return Err(ImageError::NoLayers);
        }
        if count > LAYER_COUNT_LIMIT {
            return Err(ImageError::TooManyLayers { count, limit: LAYER_COUNT_LIMIT });
        }
        let mut attempt = 1;
        loop {
            let standing = Arc::<Standing>::default();
            let opened = Self::open_once(reactor, layers.clone(), &options, Arc::clone(&standing)).await;
            match standing.refutation.blob() {
                None => return opened,
                Some(blob) if attempt >= ATTEMPTS => {
                    return Err(ImageError::Refuted { blob: blob.to_owned() });
                }
                // Nothing that was refuted is remembered: the next time it comes from the registry.
                Some(_) => attempt += 1,
            }
        }
    }

    async fn open_once(
        reactor: &Reactor,
        layers: Vec<Arc<dyn BlobSource>>,
        options: &ImageOptions,
        standing: Arc<Standing>,
    ) -> Result<Self, ImageError> {
        let opening = open_all(reactor, layers, &standing, options.segment_limit);
        let (mut layers, segments) = opening.await?;
        let size_bytes = device_bytes(layers.iter().map(|layer| layer.description().virtual_size_bytes));
        if size_bytes < SECTOR_BYTES {
            return Err(ImageError::NoSize);
        }
        let index = Index::merge(&segments, size_bytes);
        drop(segments);
        layers.reverse();
        let open = Arc::new(OpenImage {
            layers: layers.into_boxed_slice(),
            index,
            decoded: DecodedBlocks::new(options.decoded_cache_bytes),
            metrics: ImageMetrics::default(),
            standing,
        });
        let geometry = geometry(reactor, &open).await?;
        Ok(Self { open, geometry, reads: Arc::default() })
    }

    /// What the layers say of themselves, the lowest first.
    pub fn layers(&self) -> impl DoubleEndedIterator<Item = &LayerDescription> {
        self.open.layers.iter().rev().map(Layer::description)
    }

    /// Another handle to the same image that counts its reads by itself: one for each device.
    #[must_use]
    pub fn for_device(&self) -> Self {
        Self { reads: Arc::default(), ..self.clone() }
    }

    /// Counters of the reads through this handle and its clones.
    #[must_use]
    pub fn reads(&self) -> &Arc<ReadMetrics> {
        &self.reads
    }

    /// Counters of all devices of the image.
    #[must_use]
    pub fn metrics(&self) -> &ImageMetrics {
        &self.open.metrics
    }

    /// Whether the layers are what they were when the image was opened, as far as is known. Where a digest has refuted the bytes
    /// of one since, the next read finds out.
    #[must_use]
    pub fn stands(&self) -> bool {
        self.open.stands()
    }

    /// The name of a layer that was another blob than that of its digest, if one was found to be: then all reads fail.
    #[must_use]
    pub fn refuted(&self) -> Option<&str> {
        self.open.standing.fallen()
    }

    /// Segments of the merged index.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.open.index.segments()
    }

    /// Memory of the merged index in bytes.
    #[must_use]
    pub fn index_bytes(&self) -> usize {
        self.open.index.memory_bytes()
    }

    /// Memory of the tables of compressed blocks in bytes.
    #[must_use]
    pub fn tables_bytes(&self) -> usize {
        let tables = self.open.layers.iter().filter_map(|layer| layer.content.blocks.as_ref());
        tables.map(|table| table.memory_bytes()).sum()
    }

    /// Bytes of decoded blocks that are kept now.
    #[must_use]
    pub fn decoded_bytes(&self) -> u64 {
        self.open.decoded.as_ref().map_or(0, DecodedBlocks::bytes)
    }
}

impl BlockDevice for Image {
    type Queue = ImageQueue;

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn reach_bytes(&self) -> u64 {
        self.open.index.reach_bytes()
    }

    fn reads_to_slots(&self) -> bool {
        self.open.layers.iter().any(|layer| layer.content.blocks.is_none() && layer.source.file().is_some())
    }

    fn open_queue(&self, reactor: &Reactor) -> Result<ImageQueue, BlockError> {
        Ok(ImageQueue {
            reader: Reader::new(Arc::clone(&self.open), Arc::clone(&self.reads), reactor.clone()),
        })
    }
}

/// The queue of an image on one reactor.
#[derive(Debug)]
pub struct ImageQueue {
    reader: Reader,
}

impl BlockQueue for ImageQueue {
    async fn read(&self, offset: u64, dest: &mut [u8]) -> Result<(), BlockError> {
        self.reader.read(offset, dest).await
    }

    async fn read_to_slot(&self, offset: u64, len: u32, slot: &Rc<BufferSlot>) -> bool {
        self.reader.read_to_slot(offset, len, slot).await
    }

    async fn read_pooled(&self, offset: u64, len: usize, pool: &BufferPool) -> Result<Buffer, BlockError> {
        self.reader.read_pooled(offset, len, pool).await
    }

    fn next_data(&self, range: ByteRange) -> ByteRange {
        self.reader.next_data(range)
    }

    async fn write(&self, _offset: u64, _data: &[u8]) -> Result<(), BlockError> {
        Err(BlockError::new(ErrorKind::ReadOnly, "the image is read-only"))
    }

    async fn flush(&self) -> Result<(), BlockError> {
        Ok(())
    }

    fn count_failure(&self) {
        self.reader.count_failure();
    }

    async fn write_zeroes(&self, _offset: u64, _len: u64) -> Result<(), BlockError> {
        Err(BlockError::new(ErrorKind::ReadOnly, "the image is read-only"))
    }
}

/// Opens the layers, several at once, and ends as soon as they have too many segments together.
async fn open_all(
    reactor: &Reactor,
    sources: Vec<Arc<dyn BlobSource>>,
    standing: &Standing,
    limit: usize,
) -> Result<(Vec<Layer>, Vec<Vec<Segment>>), ImageError> {
    let open = |source| Layer::open_within(reactor, source, &standing.refutation);
    let mut opening = pin!(stream::iter(sources).map(open).buffered(OPENING_AT_ONCE));
    let (mut layers, mut segments, mut count) = (Vec::new(), Vec::new(), 0_usize);
    while let Some((layer, of_layer)) = opening.try_next().await? {
        count += of_layer.len();
        if count > limit {
            return Err(ImageError::TooManySegments { count, limit });
        }
        layers.push(layer);
        segments.push(of_layer);
    }
    Ok((layers, segments))
}

/// Pages as blocks where size and file system allow it, sectors otherwise.
async fn geometry(reactor: &Reactor, open: &Arc<OpenImage>) -> Result<Geometry, ImageError> {
    let size_bytes = open.index.size_bytes();
    let mut logical = 512;
    if size_bytes.is_multiple_of(u64::from(PAGE_BYTES)) {
        let reader = Reader::new(Arc::clone(open), Arc::default(), reactor.clone());
        let mut head = [0; superblock::HEAD_BYTES];
        reader.read(0, &mut head).await?;
        let mut block_bytes = superblock::block_bytes(&head);
        if block_bytes.is_none() && size_bytes >= superblock::BTRFS_OFFSET + superblock::BTRFS_BYTES as u64 {
            let mut btrfs = [0; superblock::BTRFS_BYTES];
            reader.read(superblock::BTRFS_OFFSET, &mut btrfs).await?;
            block_bytes = superblock::btrfs_block_bytes(&btrfs);
        }
        if block_bytes.is_some_and(|bytes| bytes >= PAGE_BYTES) {
            logical = PAGE_BYTES;
        }
    }
    Ok(Geometry { optimal_io_bytes: OPTIMAL_BYTES, ..Geometry::read_only(size_bytes, logical) })
}
