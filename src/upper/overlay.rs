//! A writable layer over a device that is only read, as one device.

use std::{
    io,
    ops::Range,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, TryStreamExt, stream};

use super::{
    LayerFile, LayerLink, LogFiles, LogLimits, RequestMetrics, UpperError, WriteMetrics,
    extents::Piece,
    layer::{Found, LogLayer},
    lower::Lower,
    medium::Medium,
};
use crate::{
    block::{BlockDevice, BlockError, BlockQueue, ErrorKind, Geometry, SECTOR_BYTES, acquire},
    format::lsmt::Header,
    reactor::{Buffer, BufferPool, BufferSlot, Reactor},
};

/// Pieces of one read that are waited for at once.
const READS_AT_ONCE: usize = 16;

/// How long a layer that is closed waits for what is under way, a round or the punching of a hole, and how often it looks.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);
const CLOSE_PAUSE: Duration = Duration::from_millis(1);

/// Pages are what file systems write, and what costs least here.
const PAGE_BYTES: u32 = 4096;

/// A device whose writes go to a layer of its own. What the layer lacks is read from the device below, which may be absent or
/// smaller than this one, and reads as zeroes where it is not. Cloning gives another handle to the same device.
#[derive(Debug)]
pub struct Overlay<L, M: Medium = LayerFile> {
    layer: Arc<LogLayer<M>>,
    lower: Option<L>,
    geometry: Geometry,
}

/// The queue of an [`Overlay`].
#[derive(Debug)]
pub struct OverlayQueue<Q, M: Medium = LayerFile> {
    layer: Arc<LogLayer<M>>,
    lower: Lower<Q>,
    reactor: Reactor,
}

impl<L: BlockDevice, M: Medium> Overlay<L, M> {
    /// Opens the layer of `files` over `lower`. A torn tail is cut, durably and with a warning.
    ///
    /// # Errors
    /// [`UpperError`].
    pub async fn open(
        reactor: &Reactor,
        files: LogFiles<M>,
        lower: Option<L>,
        limits: LogLimits,
    ) -> Result<Self, UpperError> {
        let layer = files.load(reactor, limits).await?;
        let below = lower.as_ref().map(BlockDevice::geometry);
        let size_bytes = match layer.header.virtual_size_bytes {
            0 => below.map_or(0, |below| below.size_bytes),
            size_bytes => size_bytes,
        };
        if size_bytes == 0 || !size_bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(UpperError::Size { name: layer.data.to_string(), size_bytes });
        }
        let logical = below.map_or(512, |below| below.logical_block_bytes);
        let fits = size_bytes.is_multiple_of(u64::from(logical));
        let logical_block_bytes = if fits { logical } else { 512 };
        let geometry = Geometry {
            size_bytes,
            logical_block_bytes,
            physical_block_bytes: logical_block_bytes.max(PAGE_BYTES),
            optimal_io_bytes: below.map_or(0, |below| below.optimal_io_bytes),
            read_only: false,
            discard: true,
        };
        Ok(Self { layer: Arc::new(layer), lower, geometry })
    }
}

impl<L, M: Medium> Overlay<L, M> {
    /// What the layer says of itself and of the one that it was made over.
    #[must_use]
    pub fn link(&self) -> LayerLink {
        let Header { uuid, parent_uuid, .. } = self.layer.header;
        LayerLink { name: self.layer.data.to_string(), uuid, parent_uuid }
    }

    /// Counters of the layer.
    #[must_use]
    pub fn metrics(&self) -> &WriteMetrics {
        &self.layer.metrics
    }

    /// Extents of the layer, the zeroed ones among them.
    #[must_use]
    pub fn extents(&self) -> usize {
        self.layer.ledger().map.len()
    }

    /// Flushes, and waits until nobody uses the files any more, so that they may be opened again. All queues and all other
    /// handles are to be dropped before.
    ///
    /// # Errors
    /// As of a flush; [`ErrorKind::TimedOut`] where somebody still uses them. The files are closed when the last one goes.
    pub async fn close(self, reactor: &Reactor) -> Result<(), BlockError> {
        let flushed = self.layer.flush(reactor).await;
        self.layer.closing.store(true, Ordering::Relaxed);
        for _ in 0..CLOSE_LIMIT.as_millis() / CLOSE_PAUSE.as_millis() {
            if Arc::strong_count(&self.layer) == 1 {
                return flushed;
            }
            reactor.sleep(CLOSE_PAUSE).await;
        }
        let context = format!("{}: is still in use after it was closed", self.layer.data);
        flushed.and(Err(BlockError::new(ErrorKind::TimedOut, context)))
    }
}

impl<L: Clone, M: Medium> Clone for Overlay<L, M> {
    fn clone(&self) -> Self {
        Self { layer: Arc::clone(&self.layer), lower: self.lower.clone(), geometry: self.geometry }
    }
}

impl<L: BlockDevice, M: Medium> BlockDevice for Overlay<L, M> {
    type Queue = OverlayQueue<L::Queue, M>;

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn reads_to_slots(&self) -> bool {
        self.lower.as_ref().is_some_and(BlockDevice::reads_to_slots)
    }

    fn open_queue(&self, reactor: &Reactor) -> Result<Self::Queue, BlockError> {
        Ok(OverlayQueue {
            layer: Arc::clone(&self.layer),
            lower: Lower::open(self.lower.as_ref(), reactor)?,
            reactor: reactor.clone(),
        })
    }
}

/// What to do where the layer has nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holes {
    /// The bytes are to come from below.
    Read,
    /// They are there already.
    Keep,
}

impl<Q: BlockQueue, M: Medium> OverlayQueue<Q, M> {
    /// Fills `dest`, which begins where the pieces do: first what the layer has, so that its room is not held while the
    /// device below is waited for.
    async fn fill(&self, found: Found<'_>, holes: Holes, dest: &mut [u8]) -> Result<(), BlockError> {
        let Found { pieces, pin } = found;
        let (mut waiting, mut below) = (Vec::new(), Vec::new());
        let mut rest = dest;
        for piece in pieces {
            let sectors = piece.sectors();
            let (part, after) = split(rest, sectors);
            rest = after;
            let Piece::Extent(extent) = &piece else {
                below.push((sectors.start.saturating_mul(SECTOR_BYTES), part));
                continue;
            };
            let Some(sector) = extent.place.sector() else {
                part.fill(0);
                continue;
            };
            let at = sector.saturating_mul(SECTOR_BYTES);
            if !self.layer.data.try_read(at, part).map_err(|error| self.unread(at, error))? {
                waiting.push((at, part));
            }
        }
        let reads = waiting.into_iter().map(|(at, part)| async move {
            let read = self.layer.data.read_at(&self.reactor, at, part).await;
            read.map_err(|error| self.unread(at, error))
        });
        stream::iter(reads).buffer_unordered(READS_AT_ONCE).try_collect::<()>().await?;
        drop(pin);
        if holes == Holes::Keep {
            return Ok(());
        }
        let reads = below.into_iter().map(|(at, part)| self.lower.read(at, part));
        stream::iter(reads).buffer_unordered(READS_AT_ONCE).try_collect().await
    }

    /// Counts a request of one kind and how it went.
    fn counted<T>(
        &self,
        kind: impl FnOnce(&WriteMetrics) -> &RequestMetrics,
        bytes: u64,
        began: Instant,
        outcome: Result<T, BlockError>,
    ) -> Result<T, BlockError> {
        let metrics = &self.layer.metrics;
        match &outcome {
            Ok(_) => kind(metrics).served(bytes, began.elapsed()),
            Err(_) => {
                metrics.errors.inc();
            }
        }
        outcome
    }

    fn unread(&self, at: u64, error: io::Error) -> BlockError {
        let context = format!("{}: cannot read what was written, at {at} of the file", self.layer.data);
        BlockError::with_source(ErrorKind::Io, context, error)
    }
}

impl<Q: BlockQueue, M: Medium> BlockQueue for OverlayQueue<Q, M> {
    async fn read(&self, offset: u64, dest: &mut [u8]) -> Result<(), BlockError> {
        let (began, len) = (Instant::now(), dest.len() as u64);
        let found = self.layer.find(sectors(offset, len)?);
        let is_whole = !found.has_holes();
        let filled = self.fill(found, Holes::Read, dest).await;
        if is_whole { self.counted(|metrics| &metrics.reads, len, began, filled) } else { filled }
    }

    async fn read_to_slot(&self, offset: u64, len: u32, slot: &Rc<BufferSlot>) -> bool {
        let Ok(sectors) = sectors(offset, len.into()) else { return false };
        let Some(below) = self.lower.whole(offset, len.into()) else { return false };
        let is_below = matches!(self.layer.find(sectors).pieces.as_slice(), [Piece::Hole(_)]);
        is_below && below.read_to_slot(offset, len, slot).await
    }

    async fn read_pooled(&self, offset: u64, len: usize, pool: &BufferPool) -> Result<Buffer, BlockError> {
        let sectors = sectors(offset, len as u64)?;
        let found = self.layer.find(sectors.clone());
        match self.lower.whole(offset, len as u64).filter(|_| found.has_holes()) {
            Some(below) => {
                // No buffer is held while the device below is waited for. What was written meanwhile is found afterwards.
                drop(found);
                let mut dest = below.read_pooled(offset, len, pool).await?;
                self.fill(self.layer.find(sectors), Holes::Keep, &mut dest).await?;
                Ok(dest)
            }
            None => {
                drop(found);
                let mut dest = acquire(pool, len).await?;
                self.read(offset, &mut dest).await?;
                Ok(dest)
            }
        }
    }

    async fn write(&self, offset: u64, data: &[u8]) -> Result<(), BlockError> {
        let (began, len) = (Instant::now(), data.len() as u64);
        let sectors = sectors(offset, len)?;
        let written = self.layer.write(&self.reactor, sectors.start, data).await;
        self.counted(|metrics| &metrics.writes, len, began, written)
    }

    async fn flush(&self) -> Result<(), BlockError> {
        let began = Instant::now();
        let flushed = self.layer.flush(&self.reactor).await;
        self.counted(|metrics| &metrics.flushes, 0, began, flushed)
    }

    fn count_failure(&self) {
        self.layer.metrics.errors.inc();
    }

    async fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        let began = Instant::now();
        let zeroed = self.layer.write_zeroes(&self.reactor, sectors(offset, len)?).await;
        self.counted(|metrics| &metrics.zeroes, len, began, zeroed)
    }
}

/// The sectors of a request. Frontends check this already; a request that is askew would end in the wrong place.
fn sectors(offset: u64, len: u64) -> Result<Range<u64>, BlockError> {
    match offset.checked_add(len) {
        Some(end) if offset.is_multiple_of(SECTOR_BYTES) && end.is_multiple_of(SECTOR_BYTES) => {
            Ok(offset / SECTOR_BYTES..end / SECTOR_BYTES)
        }
        _ => {
            let context = format!("a request of {len} bytes at {offset} is not made of sectors");
            Err(BlockError::new(ErrorKind::Invalid, context))
        }
    }
}

/// Takes the bytes of `sectors` off the front; the pieces of a range are as long as the range together.
fn split<'a>(bytes: &'a mut [u8], sectors: &Range<u64>) -> (&'a mut [u8], &'a mut [u8]) {
    let len = sectors.end.saturating_sub(sectors.start).saturating_mul(SECTOR_BYTES);
    let len = usize::try_from(len).unwrap_or(usize::MAX).min(bytes.len());
    bytes.split_at_mut(len)
}
