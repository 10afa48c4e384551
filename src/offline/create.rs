//! `layer create`: the files of a new writable layer.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::FileExt,
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::{
    OfflineError, PartFile, Upper, Watch, ext4,
    part_file::{hidden_beside, keep},
};
use crate::{
    block::SECTOR_BYTES,
    format::{
        lsmt::{self, DATA_START_SECTOR, DEVICE_SECTOR_LIMIT, SLOT_BYTES, Segment},
        uuid::Uuid,
    },
};

/// What the layer is to be.
#[derive(Debug, Clone, Copy)]
pub struct CreateOptions {
    /// One sparse file instead of a log. Its index file, if one is named, is empty.
    pub sparse: bool,
    /// Size of the device in bytes; 0 is the size of the layer below.
    pub virtual_size_bytes: u64,
    /// Its UUID; a random one where none is given.
    pub uuid: Option<Uuid>,
    /// UUID of the layer below.
    pub parent_uuid: Option<Uuid>,
    /// Whether there is to be an empty ext4 on it, which needs mke2fs. The same size makes the same one every time.
    pub ext4: bool,
    /// Whether existing files are replaced.
    pub overwrite: bool,
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Created {
    /// The layer's UUID.
    pub uuid: String,
}

/// Makes the files of an empty layer.
///
/// # Errors
/// As [`create_watched`].
pub fn create(upper: &Upper, options: &CreateOptions) -> Result<Created, OfflineError> {
    create_watched(upper, options, &Watch { progress: |_, _| {}, cancelled: false.into() })
}

/// Makes the files of an empty layer, unless `watch` ends it.
///
/// # Errors
/// [`OfflineError`]; then neither file is there, or both that were to be replaced.
pub fn create_watched<P: Fn(u64, u64) + Sync>(
    upper: &Upper,
    options: &CreateOptions,
    watch: &Watch<P>,
) -> Result<Created, OfflineError> {
    let size_bytes = options.virtual_size_bytes;
    let index = match (&upper.index, options.sparse) {
        (None, false) => return Err(OfflineError::IndexMissing(upper.data.clone())),
        (index, _) => index.as_deref(),
    };
    if size_bytes != 0 || options.ext4 {
        check_size(&upper.data, size_bytes)?;
    }
    let uuid = options.uuid.unwrap_or_else(random_uuid);
    let header = lsmt::data_header(options.sparse, uuid, options.parent_uuid, size_bytes);
    if index == Some(&upper.data) {
        return Err(OfflineError::SameFile(upper.data.clone()));
    }
    let data_part = PartFile::create_private(&upper.data, options.overwrite)?;
    let index_part =
        index.map(|path| PartFile::create_index(path, options.overwrite, &data_part)).transpose()?;
    let written = OfflineError::io(&upper.data, "write it");
    let mut data = data_part.file();
    data.write_all(&header.encode()).map_err(&written)?;
    if options.sparse {
        data.set_len(size_bytes.saturating_add(SLOT_BYTES as u64)).map_err(&written)?;
    }
    let mut entries = Vec::new();
    if options.ext4 {
        let mut place = DATA_START_SECTOR;
        ext4::each_run(&ext4::blank(size_bytes, &watch.cancelled)?, |offset, run| {
            if options.sparse {
                return data.write_all_at(run, offset.saturating_add(SLOT_BYTES as u64)).map_err(&written);
            }
            let sectors = run.len() as u64 / SECTOR_BYTES;
            let length = u32::try_from(sectors).unwrap_or(u32::MAX);
            entries.extend(Segment::new(offset / SECTOR_BYTES, length, place, false, 0).map(Segment::encode));
            place = place.saturating_add(sectors);
            data.write_all(run).map_err(&written)
        })?;
    }
    if let (Some(part), false) = (&index_part, options.sparse) {
        let bytes = [&lsmt::index_header(&header).encode(), entries.as_flattened()].concat();
        part.file().write_all(&bytes).map_err(OfflineError::io(part.path(), "write it"))?;
    }
    watch.go_on()?;
    finish(index_part, data_part)?;
    Ok(Created { uuid: uuid.to_string() })
}

/// Gives the files their names, or neither.
fn finish(index_part: Option<PartFile>, data_part: PartFile) -> Result<(), OfflineError> {
    let Some(index_part) = index_part else { return data_part.finish() };
    let index = index_part.path().to_owned();
    // What is to be replaced stays under a second name until both files have theirs.
    let old = match hidden_beside(&index, |hidden| keep(&index, hidden)) {
        Err(OfflineError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => None,
        made => Some(made?.1),
    };
    let index_named = index_part.finish();
    let named = index_named.and_then(|()| {
        data_part.finish().inspect_err(|_| {
            // An index file without its data file would only be in the way. Where this fails too, the error says enough.
            let _ = match &old {
                Some(old) => fs::rename(old, &index),
                None => fs::remove_file(&index),
            };
        })
    });
    if let Some(old) = &old {
        // It is gone where it has its name again.
        let _ = fs::remove_file(old);
    }
    named
}

/// Makes sure that a device can have this size.
pub(super) fn check_size(path: &Path, size_bytes: u64) -> Result<(), OfflineError> {
    let sectors = size_bytes / SECTOR_BYTES;
    let sound = size_bytes.is_multiple_of(SECTOR_BYTES) && (1..=DEVICE_SECTOR_LIMIT).contains(&sectors);
    if sound { Ok(()) } else { Err(OfflineError::DeviceSize(path.to_owned(), size_bytes)) }
}

/// A UUID of version 4.
fn random_uuid() -> Uuid {
    let bits = fastrand::u128(..) & !(0xf << 76) & !(0b11 << 62) | 4 << 76 | 0b10 << 62;
    let text = format!("{bits:032x}");
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|place| text.get(place).unwrap_or_default());
    parts.join("-").parse().unwrap_or(Uuid::NULL)
}
