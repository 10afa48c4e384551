//! `layer resize --ext4`: makes a device larger, and the ext4 on it.
//!
//! resize2fs knows nothing of layers. It works on a copy of the device, and what it has changed there goes to the writable layer when
//! it has ended well. Until then nothing is touched; what a crash leaves after that, [`amend`](super::amend) says.

use std::{
    fs::File,
    io::Write,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use super::{
    Difference, OfflineError, Stack, Upper, Watch,
    amend::amend,
    content::Content,
    create::check_size,
    diff::compare_sources,
    e2fs, flat,
    hold::Hold,
    resize::set_size,
    source::{Kind, Source},
    window::Side,
};
use crate::format::ext4::Superblock;

/// What is written to the layer is made of blocks of so many bytes, as nearly every ext4 is.
const BLOCK_BYTES: u64 = 4096;
/// The exit status of e2fsck is a set of bits: that it has mended something, and that who has it mounted should start anew.
const MENDED: i32 = 3;
/// What e2fsck may mend unasked beyond what it does by itself: it may drop the index of a directory that does not name all of its
/// blocks (problems of pass 2, 0x34 and 0x38), whose entries stay. `lost+found` has such a one in every ext4 that upstream makes.
const CHECK_SETTINGS: &[u8] =
    b"[problems]\n0x020034 = {\npreen_ok = true\n}\n0x020038 = {\npreen_ok = true\n}\n";

/// What has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrownExt4 {
    /// Size of the device in bytes.
    pub before_bytes: u64,
    /// Size now.
    pub after_bytes: u64,
    /// Size of the file system in bytes.
    pub ext4_before_bytes: u64,
    /// Size now: it may be smaller than the device by less than a group of blocks, of which resize2fs makes none that is too small.
    pub ext4_after_bytes: u64,
    /// Bytes of the device that were written.
    pub written_bytes: u64,
}

/// Makes the device of a stack of the sealed layers `lowers`, the lowest first, and `upper` over them as large as `after_bytes`, and
/// the ext4 on it too. What has that size already is left as it is, so that what was interrupted can be done again. Only `upper` is
/// written to, and held all the time.
///
/// The file system is checked by `e2fsck -p` when it has grown, and before where it was mounted since it was checked last, as
/// resize2fs wants it: that replays its journal, mends what is safe to mend, and refuses the rest. One without a UUID gets one.
///
/// # Errors
/// [`OfflineError`]; but for one of reading or writing files, the layer is as it was.
pub fn grow_ext4<P: Fn(u64, u64) + Sync>(
    lowers: &[PathBuf],
    upper: &Upper,
    after_bytes: u64,
    threads: NonZeroUsize,
    watch: &Watch<P>,
) -> Result<GrownExt4, OfflineError> {
    let path = upper.data.as_path();
    check_size(path, after_bytes)?;
    let stack = Stack { lowers: lowers.to_vec(), upper: Some(upper.clone()) };
    let mut device = Source::open_stack(&stack, Hold::Exclusive)?;
    if device.kind == Kind::Sealed {
        return Err(OfflineError::Sealed(path.to_owned()));
    }
    device.require_whole(false)?;
    let before_bytes = device.identity.virtual_size_bytes;
    let before = superblock(&device, path)?;
    check_growth(path, before_bytes, &before, after_bytes)?;
    device.identity.virtual_size_bytes = after_bytes;
    let mut done = GrownExt4 {
        before_bytes,
        after_bytes,
        ext4_before_bytes: before.size_bytes(),
        ext4_after_bytes: before.size_bytes(),
        written_bytes: 0,
    };
    if before.fills(after_bytes) {
        if before_bytes < after_bytes {
            set_size(&device, upper, after_bytes)?;
        }
        return Ok(done);
    }
    let image = flat::copy(&device, path, threads, watch)?;
    if before.wants_check {
        check(&image, path, watch)?;
    }
    let grown = tool("resize2fs", Command::new("resize2fs"), &image, path, watch)?;
    require(grown.code == Some(0), "resize2fs", grown, path)?;
    // Of an ext4 with sparse_super2, as upstream and `layer create` make it, resize2fs 1.47 gives back one block too many when
    // it removes the last copy of the superblock, and the next file would be written over what is there.
    check(&image, path, watch)?;
    let sources = [device, Source::of_device(Content::of_file(image, path)?)?];
    let changed = blocks(&compare_sources(&sources, threads, watch)?.ranges, after_bytes);
    let [device, image] = sources;
    done.ext4_after_bytes = superblock(&image, path)?.size_bytes();
    done.written_bytes = changed.iter().fold(0, |sum, range| range.len_bytes.saturating_add(sum));
    amend(&device, upper, &image, &changed, watch)?;
    Ok(done)
}

/// Makes sure that nothing would become smaller.
fn check_growth(path: &Path, before: u64, ext4: &Superblock, after: u64) -> Result<(), OfflineError> {
    let path = path.to_owned();
    if ext4.size_bytes() > after {
        return Err(OfflineError::Ext4Shrinks { path, has: ext4.size_bytes(), wanted: after });
    }
    if before > after { Err(OfflineError::Shrinks { path, before, after }) } else { Ok(()) }
}

/// The superblock of the device.
fn superblock(device: &Source, path: &Path) -> Result<Superblock, OfflineError> {
    let mut side = Side::new(device);
    side.read_window(0)?;
    Superblock::of(side.bytes()).ok_or_else(|| OfflineError::NotExt4(path.to_owned()))
}

/// Has a copy of the device checked, and mended as far as that is safe.
fn check<P>(image: &File, path: &Path, watch: &Watch<P>) -> Result<(), OfflineError> {
    let settings = memfd_create("e2fsck.conf", MemfdFlags::CLOEXEC).map_err(|errno| errno.into());
    let written = settings.map(File::from).and_then(|mut file| file.write_all(CHECK_SETTINGS).map(|()| file));
    let settings = written.map_err(OfflineError::io(path, "write settings for e2fsck on"))?;
    let mut command = Command::new("e2fsck");
    command.args(["-f", "-p"]).env("E2FSCK_CONFIG", e2fs::path_of(&settings));
    let checked = tool("e2fsck", command, image, path, watch)?;
    require(checked.code.is_some_and(|code| code & !MENDED == 0), "e2fsck", checked, path)
}

/// Runs a program on a copy of the device.
fn tool<P>(
    program: &'static str,
    command: Command,
    image: &File,
    path: &Path,
    watch: &Watch<P>,
) -> Result<e2fs::Ended, OfflineError> {
    let failed = |said| OfflineError::Ext4Tool { path: path.to_owned(), program, said };
    e2fs::run(command, image, &watch.cancelled, failed)
}

fn require(
    is_well: bool,
    program: &'static str,
    ended: e2fs::Ended,
    path: &Path,
) -> Result<(), OfflineError> {
    let failed = || OfflineError::Ext4Tool { path: path.to_owned(), program, said: ended.said };
    if is_well { Ok(()) } else { Err(failed()) }
}

/// Whole blocks around `ranges`, up to the end of the device.
fn blocks(ranges: &[Difference], end_bytes: u64) -> Vec<Difference> {
    let mut blocks: Vec<Difference> = Vec::new();
    for range in ranges {
        let end = range.offset_bytes.saturating_add(range.len_bytes).next_multiple_of(BLOCK_BYTES);
        let (start, end) = (range.offset_bytes / BLOCK_BYTES * BLOCK_BYTES, end.min(end_bytes));
        match blocks.last_mut() {
            Some(last) if last.offset_bytes.saturating_add(last.len_bytes) >= start => {
                last.len_bytes = end.saturating_sub(last.offset_bytes);
            }
            _ => blocks.push(Difference { offset_bytes: start, len_bytes: end.saturating_sub(start) }),
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::{Difference, blocks};

    #[test]
    fn what_differs_becomes_whole_blocks_within_the_device() {
        let of = |ranges: &[(u64, u64)]| -> Vec<Difference> {
            let range = |(offset_bytes, len_bytes): &(u64, u64)| Difference {
                offset_bytes: *offset_bytes,
                len_bytes: *len_bytes,
            };
            ranges.iter().map(range).collect()
        };
        let ranges = of(&[(512, 512), (2048, 512), (4096, 512), (20_480, 512), (100_352, 512)]);
        assert_eq!(blocks(&ranges, 100_864), of(&[(0, 8192), (20_480, 4096), (98_304, 2560)]));
    }
}
