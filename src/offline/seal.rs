//! `layer commit --seal`: makes a read-only layer of a writable one, in its place.

use std::{fs::OpenOptions, io::Write, path::Path};

use serde::{Deserialize, Serialize};

use super::{
    OfflineError,
    content::Content,
    lock::LockMode,
    source::{Kind, Source, has_its_trailer, sparse_end, writable},
};
use crate::{block::SECTOR_BYTES, format::lsmt};

/// What was sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedLayer {
    /// Bytes of the file.
    pub output_bytes: u64,
    /// Entries at the end of the index that have lost their data, and that do not count.
    pub torn_entries: u64,
}

/// Makes sure that the layer in the file `data` is not one that may be written.
///
/// # Errors
/// [`OfflineError::Unsealed`], and those of reading.
pub fn require_sealed(data: &Path) -> Result<(), OfflineError> {
    match writable(&Content::open(data)?, None)? {
        Some(_) => Err(OfflineError::Unsealed(data.to_owned())),
        None => Ok(()),
    }
}

/// Appends an index and a trailer to the data file `data` of a writable layer, durably. Until that is done the file is the data file
/// that it was, and `index` is not changed at all. Entries that have lost their data are left out only with `allow_torn`.
///
/// # Errors
/// [`OfflineError`]; then the file is as it was.
pub fn seal(data: &Path, index: Option<&Path>, allow_torn: bool) -> Result<SealedLayer, OfflineError> {
    let source = Source::open(data, index, LockMode::Exclusive)?;
    let sealed = || OfflineError::Sealed(data.to_owned());
    let content = source.files.first().filter(|_| source.kind != Kind::Sealed).ok_or_else(sealed)?;
    source.require_whole(allow_torn)?;
    let damaged = |source| OfflineError::Writable { path: data.to_owned(), source };
    let header = lsmt::decode_data_header(&content.head()?).map_err(damaged)?;
    if !header.sparse && has_its_trailer(content, &header)? {
        return Err(sealed());
    }
    let size_bytes = content.size_bytes();
    let data_end = match header.sparse {
        // Where a seal goes that can be told from data, whether the file is shorter yet or an earlier seal was cut short.
        true => sparse_end(&header),
        false => size_bytes.next_multiple_of(SECTOR_BYTES),
    };
    let unplaced = |source| OfflineError::Unplaced { path: data.to_owned(), source };
    let end = lsmt::seal(&header, &source.segments, data_end).map_err(unplaced)?;
    let failed = OfflineError::io(data, "seal it");
    let mut file = OpenOptions::new().append(true).open(data).map_err(&failed)?;
    let appended = file.set_len(data_end).and_then(|()| file.write_all(&end));
    if let Err(error) = appended.and_then(|()| file.sync_all()) {
        // What stays where even this fails is past the end of the data, and harmless.
        let _ = file.set_len(size_bytes);
        return Err(failed(error));
    }
    let output_bytes = data_end.saturating_add(end.len() as u64);
    Ok(SealedLayer { output_bytes, torn_entries: source.torn_entries })
}
