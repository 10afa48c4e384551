//! A compressed layer whose parts come one after another, in any order, and go into the file as they come.
//!
//! Where a part lies in the file has nothing to do with where it lies on the device: what is written last lies next to the
//! indexes at the end, so that a reader finds it in the same look.
//!
//! Upstream reads it so, too. Of an index it asks, when it loads one (`do_load_index`, and `create_memory_index` in its `lsmt/index.cpp`),
//! that segments ascend on the device without an overlap (`verify_mapping_order`), and that each lies between the header and the
//! index (`verify_mapping_moffset`); how their places in the file follow one another it never asks, and it reads each segment from its
//! own place. Its own layers are such: one that was sealed where it lies, `commit --seal`, has data in the order of its writes.

use std::{
    fs::File,
    num::NonZeroUsize,
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel, sync_channel},
    },
    thread::{self, JoinHandle},
};

use super::{OfflineError, pipeline::workers, place::Stream, zfile::write_zfile};
use crate::{
    block::SECTOR_BYTES,
    format::{
        lsmt::{
            DATA_START_SECTOR, LayerIdentity, LayerWriter, LsmtError, Packing, SEGMENT_LENGTH_LIMIT,
            SEGMENTS_WRITTEN_LIMIT, Segment, SegmentMap,
        },
        tar::Envelope,
        zfile::BlockFormat,
    },
};

/// Chunks that wait to be compressed.
const CHUNKS_WAITING: usize = 4;
/// The longest segment that keeps the place of a sector in its page.
const SEGMENT_SECTORS: u64 = (SEGMENT_LENGTH_LIMIT - SEGMENT_LENGTH_LIMIT % 8) as u64;

/// A layer in the making, in a file of the caller's: a ZFile in the tar envelope that registries take. Dropping it ends the work.
#[derive(Debug)]
pub struct StreamedLayer {
    /// What errors call the file.
    path: PathBuf,
    identity: LayerIdentity,
    stream: Stream,
    next_sector: u64,
    segments: SegmentMap,
    writing: Option<JoinHandle<Result<u64, OfflineError>>>,
}

impl StreamedLayer {
    /// Begins a layer in `file`, which is empty and which errors call `path`.
    ///
    /// # Errors
    /// Where no thread can be had.
    pub fn begin(
        file: Arc<File>,
        path: PathBuf,
        identity: &LayerIdentity,
        format: BlockFormat,
        threads: NonZeroUsize,
    ) -> Result<Self, OfflineError> {
        let (chunks, to_write) = sync_channel(CHUNKS_WAITING);
        let (written, spare) = channel();
        let name = path.clone();
        let writing = thread::Builder::new()
            .spawn(move || {
                Spool { file, path: name, payload_bytes: 0 }.fill(format, threads, to_write, &written)
            })
            .map_err(OfflineError::NoThread)?;
        let mut layer = Self {
            path,
            identity: *identity,
            stream: Stream { chunks, spare, chunk: Vec::new() },
            next_sector: DATA_START_SECTOR,
            segments: SegmentMap::new(),
            writing: Some(writing),
        };
        layer.give(&identity.header())?;
        Ok(layer)
    }

    /// Puts `bytes` at `offset` of the device, in bytes, over what came before. Both are whole pages of 4096 bytes.
    ///
    /// # Errors
    /// Where the file cannot be written, or the index of the layer is full.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), OfflineError> {
        self.map(offset, bytes.len() as u64, false)?;
        self.give(bytes)
    }

    /// Has `len` bytes at `offset` of the device read as zeroes, whatever came before and lies below. Both are whole pages.
    ///
    /// # Errors
    /// Where the index of the layer is full.
    pub fn zero(&mut self, offset: u64, len: u64) -> Result<(), OfflineError> {
        self.map(offset, len, true)
    }

    /// Whether a part of the `len` bytes at `offset` has come.
    #[must_use]
    pub fn has(&self, offset: u64, len: u64) -> bool {
        let (start, end) = (offset / SECTOR_BYTES, offset.saturating_add(len).div_ceil(SECTOR_BYTES));
        self.segments.overlaps(start, end)
    }

    /// Bytes that have come so far.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        self.next_sector.saturating_sub(DATA_START_SECTOR).saturating_mul(SECTOR_BYTES)
    }

    /// Ends the layer, and returns the size of its file in bytes. The file is whole then, and not yet durable.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn finish(mut self) -> Result<u64, OfflineError> {
        let mut writer = LayerWriter::of_written(Packing::Aligned, self.next_sector);
        for segment in std::mem::take(&mut self.segments).into_segments() {
            writer.placed(segment).map_err(|source| self.full(source))?;
        }
        let end = writer.finish(&self.identity);
        let gap = end.index_sector.saturating_sub(self.next_sector);
        let sent = self.stream.zeroes(gap).and_then(|()| self.stream.push(&end.index));
        let sent = sent.and_then(|()| self.stream.push(&end.trailer)).and_then(|()| self.stream.flush());
        // The channel ends with the stream, and then the thread.
        let Self { stream, writing, .. } = self;
        drop(stream);
        let written = writing.map_or(Err(OfflineError::Thread), join);
        sent.or_else(|error| written.as_ref().map_or(Ok(()), |_| Err(error)))?;
        written
    }

    fn map(&mut self, offset: u64, len: u64, zeroed: bool) -> Result<(), OfflineError> {
        let (first, count) = (offset / SECTOR_BYTES, len / SECTOR_BYTES);
        let mut done = 0;
        while done < count {
            let length = count.saturating_sub(done).min(SEGMENT_SECTORS);
            let [at, place] = [first, self.next_sector].map(|sector| sector.saturating_add(done));
            let unnamed = LsmtError::Unnamed { offset: at, length: 0, place };
            let segment =
                u32::try_from(length).ok().and_then(|length| Segment::new(at, length, place, zeroed, 0));
            self.segments.insert(segment.ok_or(unnamed).map_err(|source| self.full(source))?);
            done = done.saturating_add(length);
        }
        if self.segments.len() as u64 > SEGMENTS_WRITTEN_LIMIT {
            return Err(self.full(LsmtError::IndexFull { limit: SEGMENTS_WRITTEN_LIMIT }));
        }
        if !zeroed {
            self.next_sector = self.next_sector.saturating_add(count);
        }
        Ok(())
    }

    fn full(&self, source: LsmtError) -> OfflineError {
        OfflineError::Unplaced { path: self.path.clone(), source }
    }

    /// Gives bytes to the thread that writes; where that has ended, its error is the one that is told.
    fn give(&mut self, bytes: &[u8]) -> Result<(), OfflineError> {
        self.stream.push(bytes).map_err(|gone| match self.writing.take().map(join) {
            Some(Err(error)) => error,
            _ => gone,
        })
    }
}

/// The file, from the side of the thread that writes it.
struct Spool {
    file: Arc<File>,
    path: PathBuf,
    payload_bytes: u64,
}

impl Spool {
    /// Compresses the chunks, and closes the envelope; returns the size of the file.
    fn fill(
        mut self,
        format: BlockFormat,
        threads: NonZeroUsize,
        chunks: Receiver<Vec<u8>>,
        written: &Sender<Vec<u8>>,
    ) -> Result<u64, OfflineError> {
        let path = self.path.clone();
        let fills = workers(threads, || {
            let written = written.clone();
            Ok(move |mut chunk: Vec<u8>, content: &mut Vec<u8>| {
                std::mem::swap(&mut chunk, content);
                // That nobody wants its memory again is no failure: all has come then.
                drop(written.send(chunk));
                Ok(())
            })
        })?;
        let header = write_zfile(
            |bytes: &[u8]| self.write(bytes),
            &path,
            format,
            fills,
            chunks.into_iter(),
            |_| Ok(()),
        )?;
        let payload_bytes = self.payload_bytes;
        self.write(&Envelope::tail(payload_bytes))?;
        let head = [Envelope::head(payload_bytes), header].concat();
        self.file.write_all_at(&head, 0).map_err(OfflineError::io(&self.path, "write it"))?;
        Ok(Envelope::HEAD_BYTES.saturating_add(self.payload_bytes))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), OfflineError> {
        let at = Envelope::HEAD_BYTES.saturating_add(self.payload_bytes);
        self.file.write_all_at(bytes, at).map_err(OfflineError::io(&self.path, "write it"))?;
        self.payload_bytes = self.payload_bytes.saturating_add(bytes.len() as u64);
        Ok(())
    }
}

fn join(writing: JoinHandle<Result<u64, OfflineError>>) -> Result<u64, OfflineError> {
    writing.join().unwrap_or(Err(OfflineError::Thread))
}
