//! `layer resize --ext4`: another size of a device, and of the ext4 on it.
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
    Difference, OfflineError, Resized, Stack, Upper, Watch,
    amend::{Amendment, each_chunk},
    content::Content,
    create::check_size,
    diff::compare_sources,
    e2fs, flat,
    lock::LockMode,
    resize::{rest_of_last_block, set_size},
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
pub struct ResizedExt4 {
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
/// the ext4 on it too; smaller only with `shrink`. What has that size already is left as it is, so that what was interrupted can be
/// done again. Only `upper` is written to, and held all the time.
///
/// The file system is checked by `e2fsck -p` when it has another size, and before where it is to be smaller or was mounted since it
/// was checked last, as resize2fs wants it: that replays its journal, mends what is safe to mend, and refuses the rest. One without a
/// UUID gets one.
///
/// # Errors
/// [`OfflineError`]; but for one of reading or writing files, the layer is as it was.
pub fn resize_ext4<P: Fn(u64, u64) + Sync>(
    lowers: &[PathBuf],
    upper: &Upper,
    after_bytes: u64,
    shrink: bool,
    threads: NonZeroUsize,
    watch: &Watch<P>,
) -> Result<ResizedExt4, OfflineError> {
    let path = upper.data.as_path();
    check_size(path, after_bytes)?;
    let stack = Stack { lowers: lowers.to_vec(), upper: Some(upper.clone()) };
    let mut device = Source::open_stack(&stack, LockMode::Exclusive)?;
    if device.kind == Kind::Sealed {
        return Err(OfflineError::Sealed(path.to_owned()));
    }
    device.require_whole(false)?;
    let sizes = Resized { before_bytes: device.identity.virtual_size_bytes, after_bytes };
    let before = superblock(&device, path)?;
    if !shrink {
        check_growth(path, &sizes, &before)?;
    }
    let mut done = ResizedExt4 {
        before_bytes: sizes.before_bytes,
        after_bytes,
        ext4_before_bytes: before.size_bytes(),
        ext4_after_bytes: before.size_bytes(),
        written_bytes: 0,
    };
    let shrinks = before.size_bytes() > after_bytes;
    if !shrinks && before.fills(after_bytes) {
        if sizes.before_bytes != after_bytes {
            set_size(&device, upper, &sizes)?;
        }
        return Ok(done);
    }
    let image = flat::copy(&device, after_bytes.max(before.size_bytes()), path, threads, watch)?;
    if shrinks || before.wants_check {
        check(&image, path, watch)?;
    }
    let blocks = shrinks.then(|| after_bytes / u64::from(before.block_bytes));
    change(&image, blocks, path, watch)?;
    // Of an ext4 with sparse_super2, as upstream and `layer create` make it, resize2fs 1.47 gives back one block too many when
    // it removes the last copy of the superblock, and the next file would be written over what is there.
    check(&image, path, watch)?;
    image.set_len(after_bytes).map_err(OfflineError::io(path, "give its size to a copy of"))?;
    device.identity.virtual_size_bytes = after_bytes;
    let image = Content::of_file(image, path)?;
    let sources = [device, Source::of_device(image.clone())?];
    let changed = changed_blocks(compare_sources(&sources, threads, watch)?.ranges, &sizes);
    let [device, copy] = sources;
    done.ext4_after_bytes = superblock(&copy, path)?.size_bytes();
    done.written_bytes = changed.iter().fold(0, |sum, range| range.len_bytes.saturating_add(sum));
    let mut amendment = Amendment::over(device, upper, sizes, watch)?;
    each_chunk(&image, &changed, watch, |at, chunk| amendment.write(at, chunk))?;
    amendment.finish(watch)?;
    Ok(done)
}

/// Makes sure that nothing would become smaller.
fn check_growth(path: &Path, sizes: &Resized, ext4: &Superblock) -> Result<(), OfflineError> {
    let path = path.to_owned();
    let Resized { before_bytes: before, after_bytes: after } = *sizes;
    if ext4.size_bytes() > after {
        return Err(OfflineError::Ext4Shrinks { path, has: ext4.size_bytes(), wanted: after });
    }
    if before > after { Err(OfflineError::Shrinks { path, before, after }) } else { Ok(()) }
}

/// Has resize2fs make the file system on a copy of the device as large as the copy, or have so many blocks.
fn change<P>(image: &File, blocks: Option<u64>, path: &Path, watch: &Watch<P>) -> Result<(), OfflineError> {
    let mut command = Command::new("resize2fs");
    command.arg(e2fs::path_of(image)).args(blocks.map(|count| count.to_string()));
    let changed = tool("resize2fs", command, path, watch)?;
    require(changed.code == Some(0), "resize2fs", changed, path)
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
    command.args(["-f", "-p"]).arg(e2fs::path_of(image)).env("E2FSCK_CONFIG", e2fs::path_of(&settings));
    let checked = tool("e2fsck", command, path, watch)?;
    require(checked.code.is_some_and(|code| code & !MENDED == 0), "e2fsck", checked, path)
}

/// Runs a program on a copy of the device.
fn tool<P>(
    program: &'static str,
    command: Command,
    path: &Path,
    watch: &Watch<P>,
) -> Result<e2fs::Ended, OfflineError> {
    let failed = |said| OfflineError::Ext4Tool { path: path.to_owned(), program, said };
    e2fs::run(command, &watch.cancelled, failed)
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

/// The blocks to write where `ranges` differ: that in which the device ended too, which a sparse file would have to its end.
fn changed_blocks(mut ranges: Vec<Difference>, sizes: &Resized) -> Vec<Difference> {
    ranges.extend(rest_of_last_block(sizes));
    ranges.sort_unstable_by_key(|range| range.offset_bytes);
    blocks(&ranges, sizes.after_bytes)
}

/// Whole blocks around `ranges`, up to the end of the device.
fn blocks(ranges: &[Difference], end_bytes: u64) -> Vec<Difference> {
    let mut blocks: Vec<Difference> = Vec::new();
    for range in ranges {
        let end = range.offset_bytes.saturating_add(range.len_bytes).next_multiple_of(BLOCK_BYTES);
        let (start, end) = (range.offset_bytes / BLOCK_BYTES * BLOCK_BYTES, end.min(end_bytes));
        match blocks.last_mut() {
            Some(last) if last.offset_bytes.saturating_add(last.len_bytes) >= start => {
                last.len_bytes = last.len_bytes.max(end.saturating_sub(last.offset_bytes));
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
