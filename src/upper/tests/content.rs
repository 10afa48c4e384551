//! Sectors that say who wrote them, and a model of what they hold.

use std::ops::Range;

use super::{
    super::{Overlay, OverlayQueue, tests::disk::SimulatedFile},
    crash_image::SECTOR,
};
use crate::{
    block::{BlockDevice, BlockQueue, Geometry},
    device::{MemoryDevice, MemoryQueue},
};

pub(super) type Device = Overlay<MemoryDevice, SimulatedFile>;
pub(super) type Queue = OverlayQueue<MemoryQueue, SimulatedFile>;

/// Who wrote a sector: 0 for zeroes, 1 for the device below, others for operations.
pub(super) type Writer = u32;

pub(super) const ZERO: Writer = 0;
pub(super) const BELOW: Writer = 1;

/// A finished write or discard.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub(super) writer: Writer,
    pub(super) sectors: Range<u64>,
}

impl Change {
    pub(super) fn apply(&self, model: &mut [Writer]) {
        model[self.sectors.start as usize..self.sectors.end as usize].fill(self.writer);
    }
}

/// The bytes of sectors by one writer: each repeats the writer and the sector's own number.
pub(super) fn bytes_of(writer: Writer, sectors: Range<u64>) -> Vec<u8> {
    let word = |sector: u64| if writer == ZERO { 0 } else { u64::from(writer) << 32 | sector };
    sectors.flat_map(|sector| word(sector).to_le_bytes().repeat(SECTOR as usize / 8)).collect()
}

/// Who wrote each sector of `bytes`, which begin at `first`; panics where a sector is torn or in the wrong place.
pub(super) fn writers(bytes: &[u8], first: u64) -> Vec<Writer> {
    let writer = |(bytes, sector): (&[u8], u64)| {
        let word = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        assert!(bytes.chunks(8).all(|other| other == &bytes[..8]), "sector {sector} is torn");
        assert!(word == 0 || word & 0xffff_ffff == sector, "sector {sector} has bytes of another: {word:x}");
        (word >> 32) as Writer
    };
    bytes.chunks(SECTOR as usize).zip(first..).map(writer).collect()
}

/// A device below of so many sectors.
pub(super) fn below(sectors: u64, block_bytes: u32) -> MemoryDevice {
    let geometry = Geometry::read_only(sectors * SECTOR, block_bytes);
    MemoryDevice::with_bytes(geometry, bytes_of(BELOW, 0..sectors)).unwrap()
}

/// A model of a device of `sectors` over one of `below`.
pub(super) fn model(sectors: u64, below: u64) -> Vec<Writer> {
    (0..sectors).map(|sector| if sector < below { BELOW } else { ZERO }).collect()
}

/// Who wrote each sector of the device.
pub(super) async fn read_all(device: &Device, queue: &Queue) -> Vec<Writer> {
    let mut bytes = vec![0; device.geometry().size_bytes as usize];
    queue.read(0, &mut bytes).await.unwrap();
    writers(&bytes, 0)
}
