//! Opening a sparse layer: what the file system keeps of the file is what the layer has.

use std::{
    io,
    ops::Range,
    sync::{Arc, RwLock, atomic::AtomicU64},
    time::Duration,
};

use super::{BLOCK_BYTES, EXTENT_LIMIT, SparseLayer, place_of};
use crate::{
    block::{ByteRange, SECTOR_BYTES},
    format::lsmt::{DATA_START_SECTOR, DEVICE_SECTOR_LIMIT, Header, SLOT_BYTES},
    reactor::Reactor,
    upper::{
        UpperError, WriteMetrics,
        claims::Claims,
        error::failed,
        extents::{Extent, ExtentMap, Place},
        files::size_of,
        layer::LiveHeader,
        medium::Medium,
        rounds::Rounds,
    },
};

/// Runs of data that are found before others have their turn on the thread.
const RUNS_AT_ONCE: usize = 4096;

impl<M: Medium> SparseLayer<M> {
    /// Finds out what the file has.
    ///
    /// A file that is longer than its device was being made larger, or was sealed, when there was a crash: it is cut.
    pub(in crate::upper) async fn load(
        reactor: &Reactor,
        data: M,
        header: Header,
        metrics: Arc<WriteMetrics>,
    ) -> Result<Self, UpperError> {
        let block_bytes = data.block_bytes();
        if block_bytes > BLOCK_BYTES {
            return Err(UpperError::FileBlocks { name: data.to_string(), block_bytes });
        }
        let size_bytes = header.virtual_size_bytes;
        if !size_bytes.is_multiple_of(SECTOR_BYTES) || size_bytes / SECTOR_BYTES > DEVICE_SECTOR_LIMIT {
            return Err(UpperError::Size { name: data.to_string(), size_bytes });
        }
        let layer = Self {
            data,
            header: LiveHeader::new(header),
            map: RwLock::new(ExtentMap::default()),
            claims: Claims::default(),
            completed: AtomicU64::new(0),
            rounds: Rounds::new(()),
            metrics,
        };
        layer.make_true(reactor).await?;
        layer.find_all(reactor).await?;
        Ok(layer)
    }

    /// One past the last byte of the file.
    pub(super) fn end_bytes(&self) -> u64 {
        self.header.get().virtual_size_bytes.saturating_add(SLOT_BYTES as u64)
    }

    /// Makes durable what is believed from now on, and makes sure that holes are what they are taken for.
    async fn make_true(&self, reactor: &Reactor) -> Result<(), UpperError> {
        let (data, end_bytes) = (&self.data, self.end_bytes());
        let size_bytes = size_of(data)?;
        if size_bytes > end_bytes {
            let cut_bytes = size_bytes - end_bytes;
            tracing::warn!(layer = %data, end_bytes, cut_bytes, "cut what follows the device; it is not sealed now");
        }
        if size_bytes != end_bytes {
            data.set_size(end_bytes).map_err(|error| failed(data, "give its size to", error))?;
        }
        data.sync(reactor).await.map_err(|error| failed(data, "sync", error))?;
        // Room that a crash has left without its data reads as zeroes, and is a hole unless somebody has read it since.
        data.forget_cached().map_err(|error| failed(data, "drop the pages of", error))?;
        // A file system that makes no holes cannot name them either, and would say that all of the file is data.
        let beyond = end_bytes.next_multiple_of(BLOCK_BYTES);
        let probe = ByteRange::between(beyond, beyond.saturating_add(BLOCK_BYTES));
        data.punch(reactor, probe).await.map_err(|error| failed(data, "make a hole in", error))
    }

    async fn find_all(&self, reactor: &Reactor) -> Result<(), UpperError> {
        let mut from = SLOT_BYTES as u64;
        loop {
            let found = self.find_some(&mut from, self.end_bytes(), RUNS_AT_ONCE);
            if !found.map_err(|error| failed(&self.data, "find the holes of", error))? {
                return Ok(());
            }
            if self.map().len() >= EXTENT_LIMIT {
                return Err(UpperError::Fragmented { name: self.data.to_string(), limit: EXTENT_LIMIT });
            }
            reactor.sleep(Duration::ZERO).await;
        }
    }

    /// Puts what the file has of these sectors of the device into the map, which lacks what has got there by a change that failed.
    pub(super) fn look_again(&self, sectors: Range<u64>) -> io::Result<()> {
        let bytes = |sector| place_of(sector).saturating_mul(SECTOR_BYTES);
        let mut from = bytes(sectors.start);
        let end = bytes(sectors.end).min(self.end_bytes());
        self.find_some(&mut from, end, usize::MAX).map(drop)
    }

    /// Puts runs of data between two bytes of the file into the map, at most so many; returns whether there may be more.
    fn find_some(&self, from: &mut u64, end: u64, most: usize) -> io::Result<bool> {
        for _ in 0..most {
            let Some(run) = self.data.next_data(*from)?.filter(|run| run.start < end) else {
                return Ok(false);
            };
            let (start, stop) =
                (run.start.max(*from) / SECTOR_BYTES, run.end.min(end).div_ceil(SECTOR_BYTES));
            let sectors = start.saturating_sub(DATA_START_SECTOR)..stop.saturating_sub(DATA_START_SECTOR);
            self.map_mut().insert(Extent { sectors, place: Place::data(start) }, |_| ());
            *from = run.end.max(from.saturating_add(SECTOR_BYTES));
        }
        Ok(*from < end)
    }
}
