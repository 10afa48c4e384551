//! Sectors that say who wrote them, and a model of what they hold.

use std::ops::Range;

use super::{
    super::{Overlay, OverlayQueue, tests::disk::SimulatedFile},
    crash_image::SECTOR,
    patchwork::Patchwork,
};
use crate::block::{BlockDevice, BlockQueue};

pub(super) type Device = Overlay<Patchwork, SimulatedFile>;
pub(super) type Queue = OverlayQueue<Patchwork, SimulatedFile>;

/// Who wrote a sector: 0 for zeroes, 1 for the device below, others for operations.
pub(super) type Writer = u32;

pub(super) const ZERO: Writer = 0;
pub(super) const BELOW: Writer = 1;

/// A finished write or discard.
#[derive(Debug, Clone)]
pub(super) struct Change {
    /// Counts those that began.
    pub(super) number: usize,
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

/// Sectors of the device below that are zeroes: a part of a block, and whole ones.
const HOLES: [Range<u64>; 2] = [12..18, 30..50];

/// A device below of so many sectors, which does not know of all its zeroes.
pub(super) fn below(sectors: u64, block_bytes: u32) -> Patchwork {
    let bytes = (0..sectors).zip(model(sectors, sectors));
    let bytes = bytes.flat_map(|(sector, writer)| bytes_of(writer, sector..sector + 1)).collect();
    let mut zeroes = 0;
    Patchwork::new(block_bytes, bytes, || {
        zeroes += 1;
        zeroes % 20 != 0
    })
}

/// A model of a device of `sectors` over one of `below`.
pub(super) fn model(sectors: u64, below: u64) -> Vec<Writer> {
    let is_there = |sector| sector < below && !HOLES.iter().any(|hole| hole.contains(&sector));
    (0..sectors).map(|sector| if is_there(sector) { BELOW } else { ZERO }).collect()
}

/// Who wrote each sector of the device.
pub(super) async fn read_all(device: &Device, queue: &Queue) -> Vec<Writer> {
    let mut bytes = vec![0; device.geometry().size_bytes as usize];
    queue.read(0, &mut bytes).await.unwrap();
    writers(&bytes, 0)
}
