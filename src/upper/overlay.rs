//! A writable layer over a device that is only read, as one device.

use std::{
    ops::{Deref, Range},
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use futures_util::poll;

use super::{
    LayerFile, LayerFiles, LayerLink, LogLimits, MergedLayer, RequestMetrics, UpperError, WriteMetrics,
    log::Pieces,
    lower::Lower,
    medium::Medium,
    stack::{DRAIN_LIMIT, Found, Part, Sealed, Source, Stack},
    view::{Holes, Reader, View},
};
use crate::{
    block::{BlockDevice, BlockError, BlockQueue, ByteRange, ErrorKind, Geometry, SECTOR_BYTES, acquire},
    format::lsmt::{DEVICE_SECTOR_LIMIT, SEGMENT_COUNT_LIMIT},
    reactor::{Buffer, BufferPool, BufferSlot, Reactor},
};

/// How long a layer that is closed waits for what is under way, a round or the punching of a hole, and how often it looks.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);
const CLOSE_PAUSE: Duration = Duration::from_millis(1);

/// Extents that are longer than a segment can be are several of them: a tenth is left for these, and for what is written until
/// the layer is sealed.
const PIECES: Pieces = Pieces { aim: SEGMENT_COUNT_LIMIT / 2, limit: SEGMENT_COUNT_LIMIT / 10 * 9 };

/// Pages are what file systems write, and what costs least here.
const PAGE_BYTES: u32 = 4096;

/// A device whose writes go to a layer of its own. What the layer lacks is read from the device below, which may be absent or
/// smaller than this one, and reads as zeroes where it is not. Cloning gives another handle to the same device.
#[derive(Debug)]
pub struct Overlay<L, M: Medium = LayerFile> {
    pub(super) stack: Arc<Stack<M>>,
    lower: Option<L>,
    /// As it was when it was opened; the size may have grown.
    geometry: Geometry,
}

/// The queue of an [`Overlay`].
#[derive(Debug)]
pub struct OverlayQueue<Q, M: Medium = LayerFile> {
    stack: Arc<Stack<M>>,
    reader: Reader<Q>,
}

impl<L: BlockDevice, M: Medium> Overlay<L, M> {
    /// Opens the layer of `files` over `lower`. A torn tail is cut, durably and with a warning.
    ///
    /// # Errors
    /// [`UpperError`].
    pub async fn open(
        reactor: &Reactor,
        files: LayerFiles<M>,
        lower: Option<L>,
        limits: LogLimits,
    ) -> Result<Self, UpperError> {
        let metrics = Arc::default();
        let layer = files.load(reactor, limits, Arc::clone(&metrics)).await?;
        let below = lower.as_ref().map(BlockDevice::geometry);
        let size_bytes = match layer.header().virtual_size_bytes {
            0 => below.map_or(0, |below| below.size_bytes),
            size_bytes => size_bytes,
        };
        if size_bytes == 0 || !size_bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(UpperError::Size { name: layer.data().to_string(), size_bytes });
        }
        layer.has_device(reactor, size_bytes).await?;
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
        Ok(Self { stack: Arc::new(Stack::new(layer, size_bytes, limits, metrics)), lower, geometry })
    }

    /// Seals what was written so far, as a read-only layer, for `next`, an empty layer, to come over it. Writes that are under
    /// way end before; others wait until the answer is dropped, reads go on.
    ///
    /// # Errors
    /// Where that cannot be, and [`UpperError::Undrained`] where writes under way do not end: then writes go on as before.
    pub async fn seal(&self, reactor: &Reactor, next: LayerFiles<M>) -> Result<Sealed<M>, UpperError> {
        self.stack.seal(reactor, next, DRAIN_LIMIT).await
    }

    /// Puts what was written into the order of the device, before a layer of it is sealed, where it is in more pieces than such a layer
    /// may have, or in half as many and can be in far fewer. Writes go on meanwhile. No other change of the layers may be under way.
    ///
    /// # Errors
    /// Where it cannot be read or written: then writes go on as before.
    pub async fn compact(&self, reactor: &Reactor) -> Result<(), UpperError> {
        self.compact_to(reactor, PIECES).await
    }

    /// As [`Overlay::compact`], to other numbers of pieces.
    pub(super) async fn compact_to(&self, reactor: &Reactor, pieces: Pieces) -> Result<(), UpperError> {
        let layers = self.stack.layers();
        let unread = |source| UpperError::Unsealed { name: layers.top.data().to_string(), source };
        let lower = Lower::open(self.lower.as_ref(), reactor).map_err(unread)?;
        let reader = Reader { lower, reactor: reactor.clone() };
        layers.top.compact(&View { layers: &layers, reader: &reader }, &self.stack.gate, pieces).await
    }

    /// Makes the device larger, durably: afterwards [`BlockDevice::geometry`] of all its handles says the new size in bytes.
    /// What is new holds what lies below, and zeroes past its end. Changes wait meanwhile, reads go on. A crash leaves the
    /// old size or the new one. Dropped in the middle, the layer takes no more writes, as after a sync that has failed.
    ///
    /// # Errors
    /// [`UpperError::Shrinks`], [`UpperError::Size`], [`UpperError::Blocks`] and [`UpperError::Undrained`], which change nothing. [`UpperError::Io`] where a
    /// header cannot be written, and [`UpperError::Unresized`] after a failed sync: whoever opens the layer again may find
    /// either size.
    pub async fn resize(&self, reactor: &Reactor, size_bytes: u64) -> Result<(), UpperError> {
        let name = || self.stack.layers().top.data().to_string();
        let block_bytes = self.geometry.logical_block_bytes;
        if !size_bytes.is_multiple_of(block_bytes.into()) {
            return Err(UpperError::Blocks { name: name(), size_bytes, block_bytes });
        }
        if size_bytes / SECTOR_BYTES > DEVICE_SECTOR_LIMIT {
            return Err(UpperError::Size { name: name(), size_bytes });
        }
        let lower = Lower::open(self.lower.as_ref(), reactor);
        let lower = lower.map_err(|source| UpperError::Unresized { name: name(), source })?;
        self.stack.resize(&Reader { lower, reactor: reactor.clone() }, size_bytes, DRAIN_LIMIT).await
    }
}

impl<L, M: Medium> Overlay<L, M> {
    /// What its layers say of themselves and of those that they were made over, the lowest first: those that were sealed since
    /// it was opened, and the one that takes writes.
    #[must_use]
    pub fn links(&self) -> Vec<LayerLink> {
        self.stack.layers().links()
    }

    /// Has `merged` take the place of those layers that were sealed since this was opened and have the numbers `inputs`, counted
    /// from the oldest: it was made of them, and maybe of the uppermost layers of the device below. No other change of the layers
    /// may be under way. Reads that have begun go on with the layers that they have found.
    pub fn put_merged(&self, merged: MergedLayer<M>, inputs: Range<usize>) {
        self.stack.put_merged(merged, inputs);
    }

    /// Layers that were sealed since it was opened, as they are now.
    #[must_use]
    pub fn sealed_count(&self) -> usize {
        self.stack.layers().sealed_count()
    }

    /// Whether the layer that takes writes has nothing yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.stack.layers().top.is_empty()
    }

    /// In how many pieces the layer that takes writes has what it has; a sealed one may have [`SEGMENT_COUNT_LIMIT`].
    #[must_use]
    pub fn piece_count(&self) -> usize {
        self.stack.layers().top.piece_count()
    }

    /// Whether the layer that takes writes is one sparse file.
    #[must_use]
    pub fn is_sparse(&self) -> bool {
        self.stack.layers().top.header().sparse
    }

    /// Bytes that can still be written before the data file of the layer that takes writes is as large as it may be, however
    /// much room the file system has; `None` of a sparse one, in which each sector has its place.
    #[must_use]
    pub fn room_bytes(&self) -> Option<u64> {
        self.stack.layers().top.room_bytes()
    }

    /// Counters of all of them.
    #[must_use]
    pub fn metrics(&self) -> &WriteMetrics {
        &self.stack.metrics
    }

    /// Makes durable all that completed before, and gives back what room the layer takes for nothing. For a device that is not
    /// written for a while, or never again.
    ///
    /// # Errors
    /// As of a flush.
    pub async fn settle(&self, reactor: &Reactor) -> Result<(), BlockError> {
        let _inside = self.stack.gate.enter().await;
        self.stack.layers().top.give_back(reactor).await
    }

    /// Settles it, and waits until nobody uses the files any more, so that they may be opened again. All queues and all other
    /// handles are to be dropped before.
    ///
    /// # Errors
    /// As of a flush; [`ErrorKind::TimedOut`] where somebody still uses them. The files are closed when the last one goes.
    pub async fn close(self, reactor: &Reactor) -> Result<(), BlockError> {
        let layers = self.stack.layers();
        let flushed = layers.top.give_back(reactor).await;
        for _ in 0..CLOSE_LIMIT.as_millis() / CLOSE_PAUSE.as_millis() {
            // The rounds have the layer, queues and handles the stack.
            if !layers.top.is_shared() && Arc::strong_count(&self.stack) == 1 {
                return flushed;
            }
            reactor.sleep(CLOSE_PAUSE).await;
        }
        let context = format!("{}: is still in use after it was closed", layers.top.data());
        flushed.and(Err(BlockError::new(ErrorKind::TimedOut, context)))
    }
}

impl<L: Clone, M: Medium> Clone for Overlay<L, M> {
    fn clone(&self) -> Self {
        Self { stack: Arc::clone(&self.stack), lower: self.lower.clone(), geometry: self.geometry }
    }
}

impl<L: BlockDevice, M: Medium> BlockDevice for Overlay<L, M> {
    type Queue = OverlayQueue<L::Queue, M>;

    fn geometry(&self) -> Geometry {
        Geometry { size_bytes: self.stack.size_bytes(), ..self.geometry }
    }

    fn reads_to_slots(&self) -> bool {
        self.lower.as_ref().is_some_and(BlockDevice::reads_to_slots)
    }

    fn open_queue(&self, reactor: &Reactor) -> Result<Self::Queue, BlockError> {
        Ok(OverlayQueue {
            stack: Arc::clone(&self.stack),
            reader: Reader { lower: Lower::open(self.lower.as_ref(), reactor)?, reactor: reactor.clone() },
        })
    }
}

impl<Q: BlockQueue, M: Medium> OverlayQueue<Q, M> {
    /// Counts a request of one kind and how it went.
    fn counted<T>(
        &self,
        kind: impl FnOnce(&WriteMetrics) -> &RequestMetrics,
        bytes: u64,
        began: Instant,
        outcome: Result<T, BlockError>,
    ) -> Result<T, BlockError> {
        let metrics = &self.stack.metrics;
        match &outcome {
            Ok(_) => kind(metrics).served(bytes, began.elapsed()),
            Err(_) => {
                metrics.errors.inc();
            }
        }
        outcome
    }
}

impl<Q: BlockQueue, M: Medium> OverlayQueue<Q, M> {
    /// Fills `dest` with what was found. The device below counts what it is asked for.
    async fn fill(&self, found: Found<'_, M>, began: Instant, dest: &mut [u8]) -> Result<(), BlockError> {
        let (is_whole, len) = (!found.has_holes(), dest.len() as u64);
        let filled = self.reader.fill(found, Holes::Read, dest).await;
        if is_whole { self.counted(|metrics| &metrics.reads, len, began, filled) } else { filled }
    }

    /// Writes the `len` bytes that `take` gives, which is asked when only the medium is left to wait for.
    async fn write_taken<D: Deref<Target = [u8]>>(
        &self,
        offset: u64,
        len: usize,
        take: impl AsyncFnOnce() -> Result<D, BlockError>,
    ) -> Result<(), BlockError> {
        let began = Instant::now();
        let sectors = sectors(offset, len as u64)?;
        let _inside = self.stack.gate.enter().await;
        let layers = self.stack.layers();
        let view = View { layers: &layers, reader: &self.reader };
        let written = layers.top.write(&view, sectors, take).await;
        self.counted(|metrics| &metrics.writes, len as u64, began, written)
    }
}

impl<Q: BlockQueue, M: Medium> BlockQueue for OverlayQueue<Q, M> {
    async fn read(&self, offset: u64, dest: &mut [u8]) -> Result<(), BlockError> {
        let (began, len) = (Instant::now(), dest.len() as u64);
        let layers = self.stack.layers();
        let found = layers.look(sectors(offset, len)?).await;
        self.fill(found, began, dest).await
    }

    async fn read_to_slot(&self, offset: u64, len: u32, slot: &Rc<BufferSlot>) -> bool {
        let Ok(sectors) = sectors(offset, len.into()) else { return false };
        let Some(below) = self.reader.lower.whole(offset, len.into()) else { return false };
        let is_below = matches!(
            self.stack.layers().find(sectors).parts.as_slice(),
            [Part { source: Source::Below, .. }]
        );
        is_below && below.read_to_slot(offset, len, slot).await
    }

    async fn read_pooled(&self, offset: u64, len: usize, pool: &BufferPool) -> Result<Buffer, BlockError> {
        let began = Instant::now();
        let sectors = sectors(offset, len as u64)?;
        let has_holes = self.stack.layers().find(sectors.clone()).has_holes();
        let Some(below) = self.reader.lower.whole(offset, len as u64).filter(|_| has_holes) else {
            if has_holes {
                self.reader.lower.bring_near(offset, len as u64, pool).await?;
            }
            let layers = self.stack.layers();
            // Before the buffer, as in all requests: whoever changes these blocks may wait for a buffer.
            let found = layers.look(sectors).await;
            let mut dest = acquire(pool, len).await?;
            self.fill(found, began, &mut dest).await?;
            return Ok(dest);
        };
        // No buffer is held while the device below is waited for. What was written meanwhile is found afterwards.
        let mut dest = below.read_pooled(offset, len, pool).await?;
        let layers = self.stack.layers();
        let mut looking = pin!(layers.look(sectors));
        let found = match poll!(looking.as_mut()) {
            Poll::Ready(found) => found,
            Poll::Pending => {
                drop(dest);
                let found = looking.await;
                dest = below.read_pooled(offset, len, pool).await?;
                found
            }
        };
        self.reader.fill(found, Holes::Keep, &mut dest).await?;
        Ok(dest)
    }

    fn next_data(&self, range: ByteRange) -> ByteRange {
        let layers = self.stack.layers();
        let view = View { layers: &layers, reader: &self.reader };
        let found = view.next_data(range.start() / SECTOR_BYTES..range.end() / SECTOR_BYTES);
        let [start, end] =
            found.map_or([range.end(); 2], |run| [run.start, run.end].map(|it| it * SECTOR_BYTES));
        ByteRange::between(start, end)
    }

    async fn write(&self, offset: u64, data: &[u8]) -> Result<(), BlockError> {
        self.write_taken(offset, data.len(), async || Ok(data)).await
    }

    async fn write_pooled(
        &self,
        offset: u64,
        len: usize,
        pool: &BufferPool,
        collect: impl FnOnce(&mut [u8]) -> Result<(), BlockError>,
    ) -> Result<(), BlockError> {
        let take = async || {
            let mut data = acquire(pool, len).await?;
            collect(&mut data)?;
            Ok(data)
        };
        self.write_taken(offset, len, take).await
    }

    async fn flush(&self) -> Result<(), BlockError> {
        let began = Instant::now();
        let _inside = self.stack.gate.enter().await;
        let flushed = self.stack.layers().top.flush(&self.reader.reactor).await;
        self.counted(|metrics| &metrics.flushes, 0, began, flushed)
    }

    fn count_failure(&self) {
        self.stack.metrics.errors.inc();
    }

    async fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        let began = Instant::now();
        let sectors = sectors(offset, len)?;
        let _inside = self.stack.gate.enter().await;
        let layers = self.stack.layers();
        let view = View { layers: &layers, reader: &self.reader };
        let zeroed = layers.top.write_zeroes(&view, sectors).await;
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
