//! `layer create`: the files of a new writable layer.

use std::{fs, io::Write, path::Path};

use serde::{Deserialize, Serialize};

use super::{OfflineError, PartFile, Upper};
use crate::{
    block::SECTOR_BYTES,
    format::{
        lsmt::{self, DEVICE_SECTOR_LIMIT, SLOT_BYTES},
        uuid::Uuid,
    },
};

/// What the layer is to be.
#[derive(Debug, Clone, Copy)]
pub struct CreateOptions {
    /// One sparse file instead of a log. Its index file, if one is named, is empty.
    pub sparse: bool,
    /// Size of the device in bytes; of a log it may be 0, which is the size of the layer below.
    pub virtual_size_bytes: u64,
    /// Its UUID; a random one where none is given.
    pub uuid: Option<Uuid>,
    /// UUID of the layer below.
    pub parent_uuid: Option<Uuid>,
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
/// [`OfflineError`]; then neither file is there, but that one may have been replaced.
pub fn create(upper: &Upper, options: &CreateOptions) -> Result<Created, OfflineError> {
    let size_bytes = options.virtual_size_bytes;
    let index = match (&upper.index, options.sparse) {
        (None, false) => return Err(OfflineError::IndexMissing(upper.data.clone())),
        (index, _) => index.as_deref(),
    };
    if size_bytes != 0 || options.sparse {
        check_size(&upper.data, size_bytes)?;
    }
    let uuid = options.uuid.unwrap_or_else(random_uuid);
    let header = lsmt::data_header(options.sparse, uuid, options.parent_uuid, size_bytes);
    let index_part = match index {
        Some(path) if options.sparse => Some(part(path, &[], options)?),
        Some(path) => Some(part(path, &lsmt::index_header(&header).encode(), options)?),
        None => None,
    };
    let data_part = part(&upper.data, &header.encode(), options)?;
    if options.sparse {
        let file_bytes = size_bytes.saturating_add(SLOT_BYTES as u64);
        data_part.file().set_len(file_bytes).map_err(OfflineError::io(&upper.data, "write it"))?;
    }
    index_part.map_or(Ok(()), PartFile::finish)?;
    data_part.finish().inspect_err(|_| {
        if let Some(index) = index {
            // An index file without a data file would only be in the way.
            let _ = fs::remove_file(index);
        }
    })?;
    Ok(Created { uuid: uuid.to_string() })
}

/// Makes sure that a device can have this size.
pub(super) fn check_size(path: &Path, size_bytes: u64) -> Result<(), OfflineError> {
    let sectors = size_bytes / SECTOR_BYTES;
    let sound = size_bytes.is_multiple_of(SECTOR_BYTES) && (1..=DEVICE_SECTOR_LIMIT).contains(&sectors);
    if sound { Ok(()) } else { Err(OfflineError::DeviceSize(path.to_owned(), size_bytes)) }
}

fn part(path: &Path, bytes: &[u8], options: &CreateOptions) -> Result<PartFile, OfflineError> {
    let part = PartFile::create(path, options.overwrite)?;
    part.file().write_all(bytes).map_err(OfflineError::io(path, "write it"))?;
    Ok(part)
}

/// A UUID of version 4.
fn random_uuid() -> Uuid {
    let bits = fastrand::u128(..) & !(0xf << 76) & !(0b11 << 62) | 4 << 76 | 0b10 << 62;
    let text = format!("{bits:032x}");
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|place| text.get(place).unwrap_or_default());
    parts.join("-").parse().unwrap_or(Uuid::NULL)
}
