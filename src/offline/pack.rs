//! Makes one layer file of a source: reads and looks for zeroes on many threads, places in order, compresses on many threads.

use std::{
    num::NonZeroUsize,
    path::Path,
    sync::mpsc::{Receiver, Sender, channel, sync_channel},
    thread,
};

use super::{
    OfflineError, Watch,
    content::Bench,
    output::Output,
    pipeline::{in_order, workers},
    place::{Placement, Run, RunKind, SECTOR, Stream},
    source::Source,
    zfile::{CHUNK_BYTES, write_zfile},
};
use crate::{
    block::SECTOR_BYTES,
    format::{
        lsmt::{LayerIdentity, Packing, Segment},
        zfile::BlockFormat,
    },
};

/// Sectors that are read at once; a multiple of upstream's 64, by which it cuts.
const BATCH_SECTORS: u32 = 512;
const _: () = assert!(BATCH_SECTORS as usize * SECTOR <= CHUNK_BYTES);
/// Segments of a batch, so that one of many small or zeroed ones is bounded too.
const BATCH_SEGMENTS: usize = 1024;
/// Chunks between the stage that places and the one that writes.
const CHUNKS_WAITING: usize = 4;
/// Sectors of a page of the device, which is looked at for zeroes.
const PAGE_SECTORS: u64 = 8;
const PAGE_OF_ZEROES: [u8; 4096] = [0; _];

/// What the layer file is to be.
#[derive(Debug, Clone, Copy)]
pub struct PackOptions {
    /// How data is laid out. [`Packing::Aligned`] also makes zeroed segments of pages that are all zero.
    pub packing: Packing,
    /// The blocks of the ZFile, or `None` where the layer is not to be compressed.
    pub compression: Option<BlockFormat>,
    /// Whether the file gets the tar envelope that registries take for a layer.
    pub tar: bool,
    /// Whether the slot at the start of a ZFile says all that the one at its end says, which spares readers a look there.
    /// Of upstream's tools that commit does so, and that merge does not.
    pub final_header: bool,
    /// Threads that read and compress.
    pub threads: NonZeroUsize,
    /// Whether an existing file is replaced.
    pub overwrite: bool,
    /// Whether writes at the end of a writable layer's index that have lost their data are left out; without it they are an error.
    /// A crash before a flush leaves such, and so does a copy of the data file that is not whole.
    pub allow_torn: bool,
}

/// Some segments, or the parts of them that a batch has room for.
#[derive(Debug, Default)]
struct Batch {
    parts: Vec<Segment>,
    /// Segments of which this has the last part.
    ended: Vec<Segment>,
    bytes: Vec<u8>,
    runs: Vec<Run>,
}

/// Writes `source` to `output`, and returns its size in bytes.
pub(super) fn pack<P: Fn(u64, u64) + Sync>(
    source: &Source,
    identity: &LayerIdentity,
    mut output: Output,
    options: &PackOptions,
    watch: &Watch<P>,
) -> Result<u64, OfflineError> {
    let path = &output.path().to_owned();
    let (chunks, to_write) = sync_channel(CHUNKS_WAITING);
    let (written, spare) = channel();
    let stream = Stream { chunks, spare, chunk: Vec::new() };
    let header = thread::scope(|scope| {
        let writing = thread::Builder::new()
            .spawn_scoped(scope, || write(&mut output, path, options, to_write, &written))
            .map_err(OfflineError::NoThread)?;
        let placed = place(source, identity, path, stream, options, watch);
        // When it fails, the stage before it only sees that nobody listens.
        let header = writing.join().map_err(|_| OfflineError::Thread)??;
        placed.map(|()| header)
    })?;
    watch.go_on()?;
    output.finish(if options.final_header { &header } else { &[] })
}

/// The first two stages: reads the source and gives the layer's file to `stream`.
fn place<P: Fn(u64, u64) + Sync>(
    source: &Source,
    identity: &LayerIdentity,
    path: &Path,
    stream: Stream,
    options: &PackOptions,
    watch: &Watch<P>,
) -> Result<(), OfflineError> {
    let keeps_zeroes = options.packing == Packing::AsUpstream;
    let readers = workers(options.threads, || {
        let mut benches: Vec<Bench> = source.files.iter().map(|_| Bench::default()).collect();
        Ok(move |mut batch: Batch| {
            read(source, &mut benches, &mut batch)?;
            mark(&mut batch, keeps_zeroes);
            Ok(batch)
        })
    })?;
    let mut placement = Placement::new(path.to_owned(), options.packing, &source.segments, identity, stream)?;
    let (mut done_bytes, total_bytes) = (0_u64, source.data_bytes());
    let (used, spare) = channel::<Batch>();
    let batches = Batches { segments: &source.segments, done: 0, spare };
    in_order(readers, batches, |batch: Batch| {
        placement.place(&batch.runs, &batch.bytes)?;
        batch.ended.iter().for_each(|segment| placement.release(*segment));
        done_bytes = done_bytes.saturating_add(batch.bytes.len() as u64);
        // That nobody wants the memory again is no failure: all has been read then.
        drop(used.send(batch));
        watch.tell(done_bytes, total_bytes)
    })?;
    placement.finish(identity)
}

/// The last stage: writes the chunks, compressed where that is wanted.
fn write(
    output: &mut Output,
    path: &Path,
    options: &PackOptions,
    chunks: Receiver<Vec<u8>>,
    written: &Sender<Vec<u8>>,
) -> Result<Vec<u8>, OfflineError> {
    // That nobody wants its memory again is no failure: all has been placed then.
    let give_back = |chunk| drop(written.send(chunk));
    let Some(format) = options.compression else {
        for chunk in chunks {
            output.write(&chunk)?;
            give_back(chunk);
        }
        return Ok(Vec::new());
    };
    let fills = workers(options.threads, || {
        let written = written.clone();
        Ok(move |mut chunk: Vec<u8>, content: &mut Vec<u8>| {
            std::mem::swap(&mut chunk, content);
            drop(written.send(chunk));
            Ok(())
        })
    })?;
    write_zfile(|bytes: &[u8]| output.write(bytes), path, format, fills, chunks.into_iter(), |_| Ok(()))
}

/// Cuts segments into batches, which depend on nothing else: the output is the same with any number of threads.
struct Batches<'a> {
    segments: &'a [Segment],
    /// Sectors of the first segment that are in earlier batches.
    done: u32,
    spare: Receiver<Batch>,
}

impl Iterator for Batches<'_> {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        let mut batch = self.spare.try_recv().unwrap_or_default();
        batch.parts.clear();
        batch.ended.clear();
        let mut room = BATCH_SECTORS;
        while let Some((first, rest)) = self.segments.split_first()
            && batch.parts.len() < BATCH_SEGMENTS
        {
            let left = first.length().saturating_sub(self.done);
            let taken = match first.zeroed() || left <= room {
                true => left,
                // Upstream cuts a segment at every 64th sector of it.
                false => room & !63,
            };
            if taken == 0 {
                break;
            }
            let start = first.offset().saturating_add(u64::from(self.done));
            batch.parts.extend(first.within(start, start.saturating_add(u64::from(taken))));
            if taken < left {
                self.done = self.done.saturating_add(taken);
                break;
            }
            batch.ended.push(*first);
            (self.segments, self.done) = (rest, 0);
            room = room.saturating_sub(if first.zeroed() { 0 } else { taken });
        }
        (!batch.parts.is_empty()).then_some(batch)
    }
}

/// Reads the data of the batch.
fn read(source: &Source, benches: &mut [Bench], batch: &mut Batch) -> Result<(), OfflineError> {
    let data = || batch.parts.iter().filter(|part| !part.zeroed());
    let bytes_of = |part: &Segment| part.length() as usize * SECTOR;
    batch.bytes.resize(data().map(bytes_of).sum(), 0);
    let mut rest = batch.bytes.as_mut_slice();
    for part in data() {
        let (dest, after) = rest.split_at_mut_checked(bytes_of(part)).unwrap_or_default();
        rest = after;
        let number = usize::from(part.tag());
        let (Some(file), Some(bench)) = (source.files.get(number), benches.get_mut(number)) else { continue };
        file.read(bench, part.moffset().saturating_mul(SECTOR_BYTES), dest)?;
    }
    Ok(())
}

/// Says what the parts of the batch are, page by page of the device where zeroes are looked for.
fn mark(batch: &mut Batch, keeps_zeroes: bool) {
    batch.runs.clear();
    let mut rest = batch.bytes.as_slice();
    for part in &batch.parts {
        let tag = if keeps_zeroes { part.tag() } else { 0 };
        // What upstream joins depends on where a segment of the source ends, so that its parts stay apart.
        let mut note = |run| if keeps_zeroes { batch.runs.push(run) } else { add(&mut batch.runs, run) };
        if part.zeroed() {
            note(Run { offset: part.offset(), length: part.length(), kind: RunKind::Zeroed, tag });
            continue;
        }
        let mut at = part.offset();
        while at < part.end() {
            let page_end = (at | (PAGE_SECTORS - 1)).saturating_add(1);
            let end = if keeps_zeroes { part.end() } else { page_end.min(part.end()) };
            let length = u32::try_from(end.saturating_sub(at)).unwrap_or(0);
            let (bytes, after) = rest.split_at_checked(length as usize * SECTOR).unwrap_or_default();
            rest = after;
            let is_zero = !keeps_zeroes && PAGE_OF_ZEROES.get(..bytes.len()) == Some(bytes);
            let kind = if is_zero { RunKind::Zeroes } else { RunKind::Data };
            note(Run { offset: at, length, kind, tag });
            at = end;
        }
    }
}

/// Adds a run, or makes the last one longer where the new one continues it.
fn add(runs: &mut Vec<Run>, run: Run) {
    match runs.last_mut() {
        Some(last)
            if last.offset.saturating_add(u64::from(last.length)) == run.offset
                && (last.kind, last.tag) == (run.kind, run.tag)
                && last.length.saturating_add(run.length) <= BATCH_SECTORS =>
        {
            last.length = last.length.saturating_add(run.length);
        }
        _ => runs.push(run),
    }
}
