//! The stage in the middle of `commit`: decides where each run of data goes, and makes the bytes of the layer's file.

use std::{
    path::PathBuf,
    sync::mpsc::{Receiver, SyncSender},
};

use super::{OfflineError, zfile::CHUNK_BYTES};
use crate::{
    block::SECTOR_BYTES,
    format::lsmt::{
        LayerIdentity, LayerWriter, LsmtError, Packing, SEGMENT_LENGTH_LIMIT, SEGMENTS_WRITTEN_LIMIT, Segment,
    },
};

/// Bytes of a sector, as the length of a slice.
pub(super) const SECTOR: usize = 512;
const _: () = assert!(SECTOR as u64 == SECTOR_BYTES);

/// Sectors in a row that are alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// First sector of the device.
    pub(super) offset: u64,
    /// Sectors.
    pub(super) length: u32,
    /// What they are.
    pub(super) kind: RunKind,
    /// The tag that the segment gets.
    pub(super) tag: u8,
}

/// What a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RunKind {
    /// It has bytes.
    Data,
    /// It has bytes, which are all zero.
    Zeroes,
    /// It is zeroed, and has no bytes.
    Zeroed,
}

/// The file as chunks of [`CHUNK_BYTES`], of which the last is shorter, to whoever writes them.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) chunks: SyncSender<Vec<u8>>,
    /// Chunks that were written and whose memory is used again.
    pub(super) spare: Receiver<Vec<u8>>,
    pub(super) chunk: Vec<u8>,
}

/// The layer in the making.
pub(super) struct Placement {
    path: PathBuf,
    writer: LayerWriter,
    stream: Stream,
    /// Entries that the rest of the source takes if none of it is split.
    reserved: u64,
}

impl Placement {
    /// The layer `path` of `segments`, which begins with the header of `identity`.
    pub(super) fn new(
        path: PathBuf,
        packing: Packing,
        segments: &[Segment],
        identity: &LayerIdentity,
        mut stream: Stream,
    ) -> Result<Self, OfflineError> {
        stream.push(&identity.header())?;
        let reserved = segments.iter().fold(0_u64, |sum, segment| sum.saturating_add(entries(*segment)));
        Ok(Self { path, writer: LayerWriter::new(packing), stream, reserved })
    }

    /// The whole of `segment` has been placed. Until then it counts twice, which errs on the safe side.
    pub(super) fn release(&mut self, segment: Segment) {
        self.reserved = self.reserved.saturating_sub(entries(segment));
    }

    /// Places runs, whose bytes are in `bytes` one after another. Zeroes become zeroed, unless the index has room for no more than
    /// what the rest of the source needs.
    pub(super) fn place(&mut self, runs: &[Run], mut bytes: &[u8]) -> Result<(), OfflineError> {
        let full = |source: LsmtError| OfflineError::Unplaced { path: self.path.clone(), source };
        for run in runs {
            let Run { offset, length, tag, .. } = *run;
            if run.kind == RunKind::Zeroed {
                self.writer.zeroed(offset, length, tag).map_err(full)?;
                continue;
            }
            let len = length as usize * SECTOR;
            let (data, rest) = bytes.split_at_checked(len).unwrap_or_default();
            bytes = rest;
            if run.kind == RunKind::Zeroes && self.has_room() {
                self.writer.zeroed(offset, length, tag).map_err(full)?;
                continue;
            }
            let end = self.writer.next_sector();
            let place = self.writer.data(offset, length, tag).map_err(full)?;
            self.stream.zeroes(place.saturating_sub(end))?;
            self.stream.push(data)?;
        }
        Ok(())
    }

    /// Ends the file.
    pub(super) fn finish(mut self, identity: &LayerIdentity) -> Result<(), OfflineError> {
        let data_end = self.writer.next_sector();
        let end = self.writer.finish(identity);
        self.stream.zeroes(end.index_sector.saturating_sub(data_end))?;
        self.stream.push(&end.index)?;
        self.stream.push(&end.trailer)?;
        self.stream.flush()
    }

    /// Whether the index has room for two entries more: a run of zeroes, and the data after it.
    fn has_room(&self) -> bool {
        let needed = self.writer.segment_count().saturating_add(self.reserved).saturating_add(2);
        needed <= SEGMENTS_WRITTEN_LIMIT
    }
}

/// Entries that a segment takes at most if it is not split at zeroes. Entries are joined from pieces of at most
/// [`CHUNK_BYTES`], so that only a segment of nearly the longest length may need two.
fn entries(segment: Segment) -> u64 {
    let piece = u32::try_from(CHUNK_BYTES as u64 / SECTOR_BYTES).unwrap_or(u32::MAX);
    if segment.length() > SEGMENT_LENGTH_LIMIT.saturating_sub(piece).saturating_sub(1) { 2 } else { 1 }
}

impl Stream {
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Result<(), OfflineError> {
        while !bytes.is_empty() {
            let room = CHUNK_BYTES.saturating_sub(self.chunk.len()).min(bytes.len());
            let (part, rest) = bytes.split_at_checked(room).unwrap_or_default();
            self.chunk.extend_from_slice(part);
            bytes = rest;
            if self.chunk.len() >= CHUNK_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    pub(super) fn zeroes(&mut self, sectors: u64) -> Result<(), OfflineError> {
        (0..sectors).try_for_each(|_| self.push(&[0; SECTOR]))
    }

    pub(super) fn flush(&mut self) -> Result<(), OfflineError> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let mut next = self.spare.try_recv().unwrap_or_default();
        next.clear();
        let full = std::mem::replace(&mut self.chunk, next);
        // Its own error, which says why it has ended, is the one that is told.
        self.chunks.send(full).map_err(|_| OfflineError::Thread)
    }
}
