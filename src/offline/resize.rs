//! `layer resize`: another size of the device of a writable layer. The file system on it is not touched.

use std::{
    fs::{File, OpenOptions},
    io::{self, Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    OfflineError, Stack, Upper,
    create::check_size,
    hold::Hold,
    source::{Kind, Source},
};
use crate::{
    block::SECTOR_BYTES,
    format::lsmt::{Header, SLOT_BYTES, Segment},
};

/// What has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resized {
    /// Size of the device in bytes; 0 where it was that of a layer below which was not named.
    pub before_bytes: u64,
    /// Size now.
    pub after_bytes: u64,
}

/// Gives the device of the layer, which lies over `lowers`, the lowest first, another size. Only where its size is that of the layer
/// below are they looked at. With `shrink` it may become smaller; then what lay past the new end is lost, and does
/// not come back when the device grows again. In every order of events that a crash leaves, the layer can be opened with the old
/// or the new size.
///
/// # Errors
/// [`OfflineError`].
pub fn resize(
    lowers: &[PathBuf],
    upper: &Upper,
    after_bytes: u64,
    shrink: bool,
) -> Result<Resized, OfflineError> {
    let path = upper.data.as_path();
    check_size(path, after_bytes)?;
    let source = Source::open(path, upper.index.as_deref(), Hold::Exclusive)?;
    let before_bytes = match (source.identity.virtual_size_bytes, lowers) {
        (0, [_, ..]) => {
            let below = Stack { lowers: lowers.to_vec(), upper: None };
            Source::open_stack(&below, Hold::Shared)?.identity.virtual_size_bytes
        }
        (own, _) => own,
    };
    if after_bytes < before_bytes && !shrink {
        return Err(OfflineError::Shrinks {
            path: path.to_owned(),
            before: before_bytes,
            after: after_bytes,
        });
    }
    set_size(&source, upper, after_bytes)?;
    Ok(Resized { before_bytes, after_bytes })
}

/// Gives the layer at the top of `source`, which is held, another size of its device.
pub(super) fn set_size(source: &Source, upper: &Upper, after_bytes: u64) -> Result<(), OfflineError> {
    let path = upper.data.as_path();
    match (source.kind, upper.index.as_deref()) {
        (Kind::Sealed, _) => Err(OfflineError::Sealed(path.to_owned())),
        (Kind::Log { index_end }, Some(index)) => {
            let cut = forget(source, after_bytes / SECTOR_BYTES);
            on(index, |file| {
                if !cut.is_empty() {
                    append(file, index_end, &cut)?;
                    file.sync_all()?;
                }
                write_size(file, after_bytes)
            })?;
            on(path, |file| write_size(file, after_bytes))
        }
        _ => on(path, |file| {
            let header = |bytes: u64| bytes.saturating_add(SLOT_BYTES as u64);
            let file_bytes = header(after_bytes);
            let before_bytes = read_size(file)?;
            // The device must never be larger than its file.
            if after_bytes > before_bytes {
                // What a seal that was cut short has left is not to become data.
                file.set_len(header(before_bytes))?;
                file.set_len(file_bytes)?;
                file.sync_all()?;
            }
            write_size(file, after_bytes)?;
            file.sync_all()?;
            file.set_len(file_bytes)
        }),
    }
}

/// Entries that hide what the log at the top of `source` has from sector `end` of the device on.
pub(super) fn forget(source: &Source, end: u64) -> Vec<Segment> {
    let data_end = source.files.last().map_or(0, |file| file.size_bytes() / SECTOR_BYTES);
    let its = source.segments.iter().filter(|segment| usize::from(segment.tag()) == source.top());
    let past = its.filter_map(|segment| segment.within(end, u64::MAX));
    let data = past.filter(|segment| !segment.zeroed());
    data.filter_map(|it| Segment::new(it.offset(), it.length(), data_end, true, 0)).collect()
}

/// Appends entries to an index file, in place of what does not count in it.
fn append(file: &mut File, index_end: u64, entries: &[Segment]) -> io::Result<()> {
    file.set_len(index_end)?;
    file.seek(SeekFrom::End(0))?;
    let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.encode()).collect();
    file.write_all(&bytes)
}

fn read_size(file: &File) -> io::Result<u64> {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, Header::VIRTUAL_SIZE_OFFSET)?;
    Ok(u64::from_le_bytes(bytes))
}

pub(super) fn write_size(file: &File, size_bytes: u64) -> io::Result<()> {
    file.write_all_at(&size_bytes.to_le_bytes(), Header::VIRTUAL_SIZE_OFFSET)
}

/// Changes the file at `path`, durably.
fn on(path: &Path, change: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), OfflineError> {
    let open = || OpenOptions::new().read(true).write(true).open(path);
    let changed = open().and_then(|mut file| change(&mut file).and_then(|()| file.sync_all()));
    changed.map_err(OfflineError::io(path, "resize it"))
}
