//! `layer resize`: another size of the device of a writable layer. The file system on it is not touched.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    Difference, OfflineError, Upper,
    create::check_size,
    lock::LockMode,
    log_index::{next_index, put_index},
    source::{Kind, Source},
    window::Side,
};
use crate::{
    block::SECTOR_BYTES,
    format::lsmt::{Header, SLOT_BYTES},
};

/// What a sparse file is made of, in bytes: whole blocks of the file system, of which none has more.
const BLOCK_BYTES: u64 = 4096;

/// What has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resized {
    /// Size of the device in bytes; 0 where it was that of a layer below which was not named.
    pub before_bytes: u64,
    /// Size now.
    pub after_bytes: u64,
}

/// Gives the device of the layer, which lies over `lowers`, the lowest first, another size. They are looked at where the size is that
/// of the layer below, and where the device ends within a block of a sparse file. With `shrink` it may become smaller: then what the
/// layer has past the new end is lost, and when the device grows again, what lies below shows there. In every order of events
/// that a crash leaves, the layer can be opened with the old or the new size.
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
    let mut device = Source::open(path, upper.index.as_deref(), LockMode::Exclusive)?;
    let own_bytes = device.identity.virtual_size_bytes;
    if own_bytes == 0 || !own_bytes.is_multiple_of(BLOCK_BYTES) {
        device = Source::over(lowers, Some(device))?;
    }
    let before_bytes = device.identity.virtual_size_bytes;
    if after_bytes < before_bytes && !shrink {
        return Err(OfflineError::Shrinks {
            path: path.to_owned(),
            before: before_bytes,
            after: after_bytes,
        });
    }
    let sizes = Resized { before_bytes, after_bytes };
    set_size(&device, upper, &sizes)?;
    Ok(sizes)
}

/// Gives the layer at the top of `device`, which is held, another size of its device.
pub(super) fn set_size(device: &Source, upper: &Upper, sizes: &Resized) -> Result<(), OfflineError> {
    let (path, after_bytes) = (upper.data.as_path(), sizes.after_bytes);
    match (device.kind, upper.index.as_deref()) {
        (Kind::Sealed, _) => Err(OfflineError::Sealed(path.to_owned())),
        (Kind::Log, Some(index)) => {
            let reaches_past = device.of_top().any(|segment| segment.end() > after_bytes / SECTOR_BYTES);
            // Upstream leaves it there, to come back when the device grows again.
            if reaches_past && after_bytes < sizes.before_bytes {
                return put_index(next_index(device, index, after_bytes, &[])?, path, sizes);
            }
            on(index, |file| write_size(file, after_bytes))?;
            on(path, |file| write_size(file, after_bytes))
        }
        _ => {
            let rest = rest_of_block(device, sizes)?;
            on(path, |file| {
                let end = |bytes: u64| bytes.saturating_add(SLOT_BYTES as u64);
                let own_bytes = read_size(file)?;
                // The device must never be larger than its file.
                if after_bytes > own_bytes {
                    // What a seal that was cut short has left is not to become data.
                    file.set_len(end(own_bytes))?;
                    file.set_len(end(after_bytes))?;
                    if let Some((offset_bytes, rest)) = &rest {
                        file.write_all_at(rest, end(*offset_bytes))?;
                    }
                    file.sync_all()?;
                }
                write_size(file, after_bytes)?;
                file.sync_all()?;
                file.set_len(end(after_bytes))
            })
        }
    }
}

/// Where a sparse layer has the block in which its device ends, what lies below the rest of that block, as far as the device is to
/// grow: the file has whole blocks, and would have zeroes there.
fn rest_of_block(device: &Source, sizes: &Resized) -> Result<Option<(u64, Vec<u8>)>, OfflineError> {
    let Some(Difference { offset_bytes, len_bytes }) = rest_of_last_block(sizes) else { return Ok(None) };
    let start = offset_bytes / BLOCK_BYTES * BLOCK_BYTES;
    let [first, end] = [start, offset_bytes].map(|bytes| bytes / SECTOR_BYTES);
    if !device.of_top().any(|segment| segment.within(first, end).is_some()) {
        return Ok(None);
    }
    let mut side = Side::new(device);
    side.read_window(end)?;
    let len = usize::try_from(len_bytes).unwrap_or(0);
    Ok(side.bytes().get(..len).map(|rest| (offset_bytes, rest.to_vec())))
}

/// The part of the device that is new, as far as it lies in the block in which the device ended.
pub(super) fn rest_of_last_block(sizes: &Resized) -> Option<Difference> {
    let offset_bytes = sizes.before_bytes.next_multiple_of(SECTOR_BYTES);
    let end = offset_bytes.next_multiple_of(BLOCK_BYTES).min(sizes.after_bytes);
    let len_bytes = end.checked_sub(offset_bytes).filter(|len| *len > 0)?;
    Some(Difference { offset_bytes, len_bytes })
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
pub(super) fn on(path: &Path, change: impl FnOnce(&File) -> io::Result<()>) -> Result<(), OfflineError> {
    let open = || OpenOptions::new().read(true).write(true).open(path);
    let changed = open().and_then(|file| change(&file).and_then(|()| file.sync_all()));
    changed.map_err(OfflineError::io(path, "resize it"))
}
