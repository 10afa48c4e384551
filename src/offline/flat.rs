//! All bytes of a device in a file that has no name, for programs that know nothing of layers.

use std::{
    fs::{File, OpenOptions, remove_file},
    num::NonZeroUsize,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    io::Errno,
};

use super::{
    OfflineError, Watch, ext4,
    part_file::hidden_beside,
    pipeline::{in_order, workers},
    source::Source,
    window::{Side, Window, Windows},
};
use crate::block::SECTOR_BYTES;

/// What is tried, for errors.
const ACTION: &str = "copy its device to a file without a name beside it";

/// Copies the first `device_bytes` of the device of `source` to a file beside `path`. Zeroes are holes, so that it takes the room of what
/// is not zero: there, since where temporary files lie that may be memory.
pub(super) fn copy<P: Fn(u64, u64) + Sync>(
    source: &Source,
    device_bytes: u64,
    path: &Path,
    threads: NonZeroUsize,
    watch: &Watch<P>,
) -> Result<File, OfflineError> {
    let failed = OfflineError::io(path, ACTION);
    let file = unnamed_beside(path)?;
    file.set_len(device_bytes).map_err(&failed)?;
    let readers = workers(threads, || {
        let mut side = Side::new(source);
        Ok(move |Window { start, end, parts: [parts, _] }: Window| {
            side.read(start, &parts)?;
            let len = usize::try_from(end.saturating_sub(start).saturating_mul(SECTOR_BYTES));
            Ok((start, side.bytes().get(..len.unwrap_or(usize::MAX)).unwrap_or_default().to_vec()))
        })
    })?;
    let windows = Windows::of([&source.segments, &[]], device_bytes.div_ceil(SECTOR_BYTES));
    let (mut done_bytes, total_bytes) = (0_u64, source.data_bytes());
    in_order(readers, windows, |(start, bytes): (u64, Vec<u8>)| {
        for (offset, run, is_zero) in ext4::runs(start.saturating_mul(SECTOR_BYTES), &bytes) {
            if !is_zero {
                file.write_all_at(run, offset).map_err(&failed)?;
            }
        }
        done_bytes = done_bytes.saturating_add(bytes.len() as u64).min(total_bytes);
        watch.tell(done_bytes, total_bytes)
    })?;
    Ok(file)
}

/// A file that is gone when it is closed, in the folder of `path`.
fn unnamed_beside(path: &Path) -> Result<File, OfflineError> {
    let failed = OfflineError::io(path, ACTION);
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match openat(CWD, parent.unwrap_or(Path::new(".")), flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => Ok(file.into()),
        // Not every file system has such files.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
            let (file, hidden) = hidden_beside(path, |hidden| {
                OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(hidden)
            })?;
            remove_file(hidden).map_err(failed)?;
            Ok(file)
        }
        Err(errno) => Err(failed(errno.into())),
    }
}
