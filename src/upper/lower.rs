//! The device below a writable layer, as the layer reads it: of any size, in sectors, or not there at all.

use std::ops::Range;

use crate::{
    block::{BlockDevice, BlockError, BlockQueue, ByteRange, SECTOR_BYTES},
    reactor::{BufferPool, Reactor},
};

/// A queue of the device below.
#[derive(Debug)]
pub(super) struct Lower<Q> {
    queue: Option<Q>,
    /// How far it goes, which may be past its own end.
    reach_bytes: u64,
    block_bytes: u64,
}

impl<Q: BlockQueue> Lower<Q> {
    /// A queue of `device`, if there is one.
    pub(super) fn open<D>(device: Option<&D>, reactor: &Reactor) -> Result<Self, BlockError>
    where
        D: BlockDevice<Queue = Q>,
    {
        let Some(device) = device else {
            return Ok(Self { queue: None, reach_bytes: 0, block_bytes: SECTOR_BYTES });
        };
        let geometry = device.geometry();
        Ok(Self {
            queue: Some(device.open_queue(reactor)?),
            reach_bytes: device.reach_bytes(),
            block_bytes: geometry.logical_block_bytes.into(),
        })
    }

    /// The queue, where the device has all of the range and takes a request for it.
    pub(super) fn whole(&self, offset: u64, len: u64) -> Option<&Q> {
        let end = offset.checked_add(len)?;
        let fits = end <= self.reach_bytes
            && offset.is_multiple_of(self.block_bytes)
            && end.is_multiple_of(self.block_bytes);
        self.queue.as_ref().filter(|_| fits)
    }

    /// The first run of `sectors` that may hold something else than zeroes, if any may.
    pub(super) fn next_data(&self, sectors: Range<u64>) -> Option<Range<u64>> {
        let [start, end] = [sectors.start, sectors.end].map(|sector| sector.saturating_mul(SECTOR_BYTES));
        let range = ByteRange::between(start, end.min(self.reach_bytes));
        let queue = self.queue.as_ref().filter(|_| !range.is_empty())?;
        let found = queue.next_data(range).intersect(range);
        let run = found.start() / SECTOR_BYTES..found.end().div_ceil(SECTOR_BYTES);
        (!found.is_empty()).then_some(run)
    }

    /// Waits for what the device has of a range that it has not all of, or not in whole blocks, and so takes no request for: it
    /// is near afterwards, if it ever is, and no buffer of `pool` is held for it.
    ///
    /// # Errors
    /// Those of the device.
    pub(super) async fn bring_near(
        &self,
        offset: u64,
        len: u64,
        pool: &BufferPool,
    ) -> Result<(), BlockError> {
        let present = ByteRange::between(offset, offset.saturating_add(len).min(self.reach_bytes));
        let whole = present.align_out(self.block_bytes, self.reach_bytes);
        let Some(queue) = self.queue.as_ref().filter(|_| !present.is_empty()) else { return Ok(()) };
        let len = usize::try_from(whole.len()).unwrap_or(usize::MAX);
        queue.read_pooled(whole.start(), len, pool).await.map(drop)
    }

    /// Fills `dest`, whole sectors; zeroes where there is nothing.
    ///
    /// # Errors
    /// Those of the device.
    pub(super) async fn read(&self, offset: u64, dest: &mut [u8]) -> Result<(), BlockError> {
        let present = self.reach_bytes.saturating_sub(offset).min(dest.len() as u64);
        let (dest, past) = dest.split_at_mut(usize::try_from(present).unwrap_or(dest.len()));
        past.fill(0);
        let Some(queue) = self.queue.as_ref().filter(|_| !dest.is_empty()) else { return Ok(()) };
        if self.whole(offset, present).is_some() {
            return queue.read(offset, dest).await;
        }
        // Blocks of the device below are larger than sectors, and the layer has a part of one.
        let range = ByteRange::between(offset, offset.saturating_add(present));
        let whole = range.align_out(self.block_bytes, self.reach_bytes);
        let mut bytes = vec![0; usize::try_from(whole.len()).unwrap_or(0)];
        queue.read(whole.start(), &mut bytes).await?;
        let skip = usize::try_from(offset - whole.start()).unwrap_or(usize::MAX);
        if let Some(wanted) = bytes.get(skip..).and_then(|rest| rest.get(..dest.len())) {
            dest.copy_from_slice(wanted);
        }
        Ok(())
    }
}
