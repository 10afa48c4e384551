//! A device below that knows where it has nothing, as an image does, and takes its time.

use std::{future::poll_fn, ops::Range, sync::Arc, task::Poll};

use super::crash_image::{CrashImage, SECTOR};
use crate::{
    block::{BlockDevice, BlockError, BlockQueue, ByteRange, ErrorKind, Geometry},
    format::lsmt::{LayerLayout, SLOT_BYTES},
    reactor::Reactor,
};

/// The device and its queue.
#[derive(Debug, Clone)]
pub(super) struct Patchwork(Arc<Content>);

#[derive(Debug, Clone)]
struct Content {
    block_bytes: u32,
    bytes: Vec<u8>,
    /// Whether a sector is not known to be zeroes.
    data: Vec<bool>,
}

impl Patchwork {
    /// A device of `bytes`; of each sector of zeroes `is_known` says whether that is known.
    pub(super) fn new(block_bytes: u32, bytes: Vec<u8>, mut is_known: impl FnMut() -> bool) -> Self {
        let sectors = bytes.chunks(SECTOR as usize);
        let data = sectors.map(|sector| sector.iter().any(|byte| *byte != 0) || !is_known()).collect();
        Self(Arc::new(Content { block_bytes, bytes, data }))
    }

    /// This device under the sealed layer in file `name` of `disk`, with the size that the layer says.
    pub(super) fn under(&self, disk: &CrashImage, name: &str) -> Self {
        let file = disk.cached(disk.file(name).unwrap());
        let size = file.len() as u64;
        let slot = |at: u64| &file[at as usize..][..SLOT_BYTES];
        let trailer = LayerLayout::trailer_range(size).unwrap();
        let layout = LayerLayout::decode(slot(0), slot(trailer.start()), size).unwrap();
        let index = layout.index_range();
        let layer = layout.decode_index(&file[index.start() as usize..index.end() as usize]).unwrap();
        let mut content = Content::clone(&self.0);
        let device_bytes = layer.virtual_size_bytes().max(content.bytes.len() as u64);
        content.bytes.resize(device_bytes as usize, 0);
        content.data.resize((device_bytes / SECTOR) as usize, false);
        for segment in layer.into_segments() {
            let bytes =
                |sectors: Range<u64>| (sectors.start * SECTOR) as usize..(sectors.end * SECTOR) as usize;
            let sectors = segment.offset()..segment.end();
            content.data[sectors.start as usize..sectors.end as usize].fill(!segment.zeroed());
            let dest = &mut content.bytes[bytes(sectors)];
            match segment.zeroed() {
                true => dest.fill(0),
                false => dest.copy_from_slice(&file[bytes(segment.moffset()..segment.mend())]),
            }
        }
        Self(Arc::new(content))
    }
}

impl BlockDevice for Patchwork {
    type Queue = Self;

    fn geometry(&self) -> Geometry {
        Geometry::read_only(self.0.bytes.len() as u64, self.0.block_bytes)
    }

    fn open_queue(&self, _reactor: &Reactor) -> Result<Self, BlockError> {
        Ok(self.clone())
    }
}

impl BlockQueue for Patchwork {
    async fn read(&self, offset: u64, dest: &mut [u8]) -> Result<(), BlockError> {
        let mut turns = offset / SECTOR % 5;
        poll_fn(|context| {
            if turns == 0 {
                return Poll::Ready(());
            }
            turns -= 1;
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
        dest.copy_from_slice(&self.0.bytes[offset as usize..][..dest.len()]);
        Ok(())
    }

    fn next_data(&self, range: ByteRange) -> ByteRange {
        let is_data = |sector: &u64| self.0.data[*sector as usize];
        let (first, end) = (range.start() / SECTOR, range.end() / SECTOR);
        let start = (first..end).find(is_data).unwrap_or(end);
        // Cut short now and then.
        let stop = (start..end.min(start + 5)).find(|sector| !is_data(sector)).unwrap_or(end.min(start + 5));
        ByteRange::between(start * SECTOR, stop * SECTOR)
    }

    async fn write(&self, _offset: u64, _data: &[u8]) -> Result<(), BlockError> {
        Err(BlockError::new(ErrorKind::ReadOnly, "nobody writes below"))
    }

    async fn flush(&self) -> Result<(), BlockError> {
        Err(BlockError::new(ErrorKind::ReadOnly, "nobody flushes below"))
    }

    async fn write_zeroes(&self, _offset: u64, _len: u64) -> Result<(), BlockError> {
        Err(BlockError::new(ErrorKind::ReadOnly, "nobody writes below"))
    }
}
