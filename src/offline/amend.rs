//! Puts changed blocks of a device into its writable layer, all of them or none.
//!
//! A log gets the data first, durably. The entries that make it count are in a new version of the index file, which takes the place
//! of the old one by a rename, after the new size of the device where that grows, and before it where that shrinks: a crash leaves
//! the old blocks or the new ones, and at most a device that is larger than what is on it, or some room in the data file that
//! nothing uses. A sparse file has no such moment, so that all of it is made anew and takes the place of the old one, with the new
//! size in it. Whoever opens a layer takes its lock first, and then looks whether that file still has the name.

use std::{fs::OpenOptions, io, os::unix::fs::FileExt, path::Path};

use rustix::fs::ioctl_ficlone;

use super::{
    Difference, OfflineError, PartFile, Resized, Upper, Watch,
    content::{Bench, Content},
    ext4,
    log_index::{next_index, put_index},
    resize::write_size,
    source::{Kind, Source, sparse_end},
};
use crate::{
    block::SECTOR_BYTES,
    format::lsmt::{self, DATA_START_SECTOR, SLOT_BYTES, Segment},
};

/// Bytes that are read and written at once; a segment can have as many.
const CHUNK_BYTES: u64 = 1 << 20;
const SLOT: u64 = SLOT_BYTES as u64;

/// Writes `changed` of `image` to the layer `upper` at the top of `device`, which is held, and gives its device another size.
pub(super) fn amend<P: Fn(u64, u64) + Sync>(
    device: &Source,
    upper: &Upper,
    sizes: &Resized,
    image: &Source,
    changed: &[Difference],
    watch: &Watch<P>,
) -> Result<(), OfflineError> {
    let (Some(layer), Some(image)) = (device.files.last(), image.files.last()) else {
        return Err(OfflineError::NoLayers);
    };
    match (device.kind, upper.index.as_deref()) {
        (Kind::Sealed, _) => Err(OfflineError::Sealed(upper.data.clone())),
        (Kind::Log, Some(index)) => {
            let part = prepare_log(&upper.data, image, changed, watch, |entries| {
                let part = next_index(device, index, sizes.after_bytes, &entries)?;
                watch.go_on().map(|()| part)
            })?;
            // From here on there is no way back.
            put_index(part, &upper.data, sizes)
        }
        _ => {
            let part = next_sparse(device, layer, &upper.data, sizes.after_bytes, watch)?;
            let written = |chunk: &[u8], at: u64| {
                part.file().write_all_at(chunk, at.saturating_add(SLOT)).map_err(failed(&upper.data))
            };
            // Zeroes are written too, for they hide what is below.
            each_chunk(image, changed, watch, |at, chunk| written(chunk, at))?;
            watch.go_on()?;
            part.finish()
        }
    }
}

fn failed(path: &Path) -> impl Fn(io::Error) -> OfflineError {
    OfflineError::io(path, "write what has changed to it")
}

/// Gives `each` what has changed, piece by piece.
fn each_chunk<P: Fn(u64, u64) + Sync>(
    image: &Content,
    changed: &[Difference],
    watch: &Watch<P>,
    mut each: impl FnMut(u64, &[u8]) -> Result<(), OfflineError>,
) -> Result<(), OfflineError> {
    let (mut bench, mut chunk) = (Bench::default(), Vec::new());
    for range in changed {
        let end = range.offset_bytes.saturating_add(range.len_bytes);
        let mut at = range.offset_bytes;
        while at < end {
            watch.go_on()?;
            let len = CHUNK_BYTES.min(end.saturating_sub(at));
            chunk.resize(usize::try_from(len).unwrap_or(0), 0);
            image.read(&mut bench, at, &mut chunk)?;
            each(at, &chunk)?;
            at = at.saturating_add(len);
        }
    }
    Ok(())
}

/// Appends what has changed to the data file at `path`, durably, and gives `then` the entries that are to make it count. Where either
/// fails the file is as it was.
fn prepare_log<P: Fn(u64, u64) + Sync, T>(
    path: &Path,
    image: &Content,
    changed: &[Difference],
    watch: &Watch<P>,
    then: impl FnOnce(Vec<Segment>) -> Result<T, OfflineError>,
) -> Result<T, OfflineError> {
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(failed(path))?;
    let before_bytes = file.metadata().map_err(failed(path))?.len();
    let mut place = before_bytes.div_ceil(SECTOR_BYTES).max(DATA_START_SECTOR);
    let mut entries = Vec::new();
    let appended = each_chunk(image, changed, watch, |at, chunk| {
        for (offset, run, is_zero) in ext4::runs(at, chunk) {
            let sectors = run.len() as u64 / SECTOR_BYTES;
            let length = u32::try_from(sectors).unwrap_or(u32::MAX);
            entries.extend(Segment::new(offset / SECTOR_BYTES, length, place, is_zero, 0));
            if !is_zero {
                file.write_all_at(run, place.saturating_mul(SECTOR_BYTES)).map_err(failed(path))?;
                place = place.saturating_add(sectors);
            }
        }
        Ok(())
    });
    let durable = appended.and_then(|()| file.sync_all().map_err(failed(path)));
    let prepared = durable.and_then(|()| then(entries));
    if prepared.is_err() {
        // What stays where even this fails is room that nothing uses.
        let _ = file.set_len(before_bytes);
    }
    prepared
}

/// The sparse file at `path`, whose content is `layer`, for a device of `after_bytes`.
fn next_sparse<P: Fn(u64, u64) + Sync>(
    device: &Source,
    layer: &Content,
    path: &Path,
    after_bytes: u64,
    watch: &Watch<P>,
) -> Result<PartFile, OfflineError> {
    let head = layer.head()?;
    let damaged = |source| OfflineError::Writable { path: path.to_owned(), source };
    let header = lsmt::decode_data_header(&head).map_err(damaged)?;
    let part = PartFile::replacing(path, layer.file())?;
    let to = part.file();
    // Where the file system can, both share what stays the same.
    if ioctl_ficlone(to, layer.file()).is_err() {
        to.write_all_at(&head, 0).map_err(failed(path))?;
        let its = device.of_top().filter_map(|segment| segment.within(0, after_bytes / SECTOR_BYTES));
        let bytes = |sectors: u64| sectors.saturating_mul(SECTOR_BYTES);
        let places: Vec<Difference> = its
            .map(|it| Difference { offset_bytes: bytes(it.moffset()), len_bytes: bytes(it.length().into()) })
            .collect();
        each_chunk(layer, &places, watch, |at, chunk| to.write_all_at(chunk, at).map_err(failed(path)))?;
    }
    // What a seal that was cut short has left is not to become data.
    let sized = to.set_len(sparse_end(&header)).and_then(|()| to.set_len(after_bytes.saturating_add(SLOT)));
    sized.and_then(|()| write_size(to, after_bytes)).map_err(failed(path))?;
    Ok(part)
}
