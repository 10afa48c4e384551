//! The next version of a log's index file: what the log has up to the end of the device, and what is to come over that.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

use super::{
    OfflineError, PartFile, Resized,
    content::Content,
    resize::{on, write_size},
    source::Source,
};
use crate::{
    block::SECTOR_BYTES,
    format::lsmt::{LOG_ENTRY_LIMIT, Segment},
};

/// Begins the next version of the file `index` of the log at the top of `device`, for a device of `after_bytes`, with `entries` over
/// what it has. What the log has past that end is left out, so that it never comes back.
pub(super) fn next_index(
    device: &Source,
    index: &Path,
    after_bytes: u64,
    entries: &[Segment],
) -> Result<PartFile, OfflineError> {
    let failed = OfflineError::io(index, "make a new version of it");
    let old = Content::open(index)?;
    let end = after_bytes / SECTOR_BYTES;
    let its: Vec<Segment> = device.of_top().filter_map(|segment| segment.within(0, end)).collect();
    if its.len().saturating_add(entries.len()) as u64 > LOG_ENTRY_LIMIT {
        return Err(OfflineError::TooManySegments);
    }
    let part = PartFile::replacing(index, old.file())?;
    let write = |to: &File| {
        let mut to = BufWriter::new(to);
        to.write_all(&old.head()?).map_err(&failed)?;
        for entry in its.iter().chain(entries) {
            to.write_all(&entry.with_tag(0).encode()).map_err(&failed)?;
        }
        to.flush().map_err(&failed)
    };
    write(part.file())?;
    write_size(part.file(), after_bytes).and_then(|()| part.file().sync_all()).map_err(&failed)?;
    Ok(part)
}

/// Puts `part` in the place of the index file, and the size of the device into the data file. A device that is larger than what is
/// on it does no harm: so one that grows does so before, and one that shrinks after.
pub(super) fn put_index(part: PartFile, data: &Path, sizes: &Resized) -> Result<(), OfflineError> {
    let resize = || on(data, |file| write_size(file, sizes.after_bytes));
    if sizes.after_bytes < sizes.before_bytes {
        part.finish()?;
        resize()
    } else {
        resize()?;
        part.finish()
    }
}
