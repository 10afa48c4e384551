//! The device that layers make, read by a program without a device.

use std::path::PathBuf;

use super::{OfflineError, content::Bench, place::SECTOR, source::Source};
use crate::{block::SECTOR_BYTES, format::lsmt::Segment};

/// A stack of layers in any form, open. Reads decode what they need and keep one block of each layer.
#[derive(Debug)]
pub struct StackReader {
    source: Source,
    benches: Vec<Bench>,
}

impl StackReader {
    /// Opens the layers, the lowest first.
    ///
    /// # Errors
    /// Where one cannot be read or is no sealed layer, and where there is none, or more than the format allows.
    pub fn open(lowers: &[PathBuf]) -> Result<Self, OfflineError> {
        Source::over(lowers, None).map(Self::of)
    }

    /// Reads what is open.
    pub(super) fn of(source: Source) -> Self {
        let benches = source.files.iter().map(|_| Bench::default()).collect();
        Self { source, benches }
    }

    /// What it reads.
    pub(super) fn source(&self) -> &Source {
        &self.source
    }

    /// Size of the device in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.source.identity.virtual_size_bytes
    }

    /// Fills `dest` with what lies at `offset` of the device, both whole sectors. What no layer has, and what lies past the end, reads
    /// as zeroes.
    ///
    /// # Errors
    /// Where a layer cannot be read, or a block of it is damaged.
    pub fn read(&mut self, offset: u64, dest: &mut [u8]) -> Result<(), OfflineError> {
        dest.fill(0);
        let start = offset / SECTOR_BYTES;
        let end = start.saturating_add((dest.len() / SECTOR) as u64);
        let segments = &self.source.segments;
        let first = segments.partition_point(|segment| segment.end() <= start);
        let near = segments.iter().skip(first).take_while(|segment| segment.offset() < end);
        for part in near.filter(|segment| !segment.zeroed()).filter_map(|segment| segment.within(start, end))
        {
            let Some(place) = place(&part, start, dest) else { continue };
            let number = usize::from(part.tag());
            if let (Some(file), Some(bench)) = (self.source.files.get(number), self.benches.get_mut(number)) {
                file.read(bench, part.moffset().saturating_mul(SECTOR_BYTES), place)?;
            }
        }
        Ok(())
    }
}

/// The part of `dest`, which begins at sector `start`, that is for `part`.
pub(super) fn place<'a>(part: &Segment, start: u64, dest: &'a mut [u8]) -> Option<&'a mut [u8]> {
    let from = usize::try_from(part.offset().checked_sub(start)?).ok()?.checked_mul(SECTOR)?;
    dest.get_mut(from..from.checked_add((part.length() as usize).checked_mul(SECTOR)?)?)
}
