//! Two devices side by side, in windows of which at least one has data.

use super::{OfflineError, content::Bench, place::SECTOR, source::Source};
use crate::{block::SECTOR_BYTES, format::lsmt::Segment};

/// Sectors that a thread looks at at once.
const WINDOW_SECTORS: u64 = 512;
const WINDOW_BYTES: usize = 512 * SECTOR;

/// Some sectors of the device for which one of the two has data.
pub(super) struct Window {
    /// First sector.
    pub(super) start: u64,
    /// One past the last sector.
    pub(super) end: u64,
    /// What each of the two has data for.
    pub(super) parts: [Vec<Segment>; 2],
}

/// The windows of two lists of segments, up to sector `end`.
pub(super) struct Windows<'a> {
    sides: [&'a [Segment]; 2],
    at: u64,
    end: u64,
}

impl<'a> Windows<'a> {
    pub(super) fn of(sides: [&'a [Segment]; 2], end: u64) -> Self {
        Self { sides, at: 0, end }
    }
}

impl Iterator for Windows<'_> {
    type Item = Window;

    fn next(&mut self) -> Option<Window> {
        let at = self.at;
        for side in &mut self.sides {
            let passed = side.iter().take_while(|segment| segment.zeroed() || segment.end() <= at).count();
            *side = side.get(passed..).unwrap_or_default();
        }
        let first =
            self.sides.iter().filter_map(|side| side.first()).map(|segment| segment.offset()).min()?;
        let start = (first - first % WINDOW_SECTORS).max(at);
        let end = start.saturating_add(WINDOW_SECTORS).min(self.end);
        if start >= end {
            return None;
        }
        self.at = end;
        let parts = self.sides.map(|side| {
            let near = side.iter().take_while(|segment| segment.offset() < end);
            near.filter(|segment| !segment.zeroed()).filter_map(|it| it.within(start, end)).collect()
        });
        Some(Window { start, end, parts })
    }
}

/// What one thread reads one of the two with.
pub(super) struct Side<'a> {
    source: &'a Source,
    benches: Vec<Bench>,
    bytes: Vec<u8>,
}

impl<'a> Side<'a> {
    pub(super) fn new(source: &'a Source) -> Self {
        let benches = source.files.iter().map(|_| Bench::default()).collect();
        Self { source, benches, bytes: Vec::new() }
    }

    /// Reads the parts of a window that starts at sector `start`; the rest of it is zero.
    pub(super) fn read(&mut self, start: u64, parts: &[Segment]) -> Result<(), OfflineError> {
        self.bytes.clear();
        self.bytes.resize(WINDOW_BYTES, 0);
        for part in parts {
            let number = usize::from(part.tag());
            let from = usize::try_from(part.offset().saturating_sub(start)).unwrap_or(usize::MAX);
            let dest = self.bytes.get_mut(from * SECTOR..(from + part.length() as usize) * SECTOR);
            let places = (self.source.files.get(number), self.benches.get_mut(number), dest);
            let (Some(file), Some(bench), Some(dest)) = places else { continue };
            file.read(bench, part.moffset().saturating_mul(SECTOR_BYTES), dest)?;
        }
        Ok(())
    }

    /// Reads the window that starts at sector `start`.
    pub(super) fn read_window(&mut self, start: u64) -> Result<(), OfflineError> {
        let end = start.saturating_add(WINDOW_SECTORS);
        let data = self.source.segments.iter().filter(|segment| !segment.zeroed());
        let parts: Vec<Segment> = data.filter_map(|segment| segment.within(start, end)).collect();
        self.read(start, &parts)
    }

    /// What was read last: all of the window, also where the device has ended.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}
