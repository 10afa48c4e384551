//! An empty ext4 for a new layer: made by mke2fs in memory, of which only what is not zero goes into the layer.

use std::{fs::File, io, os::unix::fs::FileExt, process::Command, sync::atomic::AtomicBool};

use rustix::{
    fs::{MemfdFlags, SeekFrom, memfd_create, seek},
    io::Errno,
};

use super::{OfflineError, e2fs};

/// Bytes of a block of the file system, and of what is looked at for zeroes.
const BLOCK: usize = 4096;
/// Bytes that are read at once, a multiple of [`BLOCK`].
const CHUNK: usize = 1 << 20;

/// What upstream's tool makes: no journal and no checksums, and nothing that differs from one time to the next.
const MKE2FS: [&str; 14] = [
    "-q",
    "-F",
    "-t",
    "ext4",
    "-b",
    "4096",
    "-I",
    "256",
    "-O",
    "^has_journal,^metadata_csum,64bit,sparse_super2",
    "-E",
    "nodiscard,assume_storage_prezeroed=1,hash_seed=00000000-0000-0000-0000-000000000001,lazy_itable_init=0",
    "-U",
    "bdf7bb2e-c231-43ce-87c2-299792458ef5",
];
/// The time that the file system says it was made at, in seconds since 1970: a constant, since layers are told by their bytes.
const MADE_AT: &str = "1";

/// The blocks of an empty file system on a device of `size_bytes` that are not zero.
///
/// # Errors
/// [`OfflineError::Mkfs`], and [`OfflineError::Cancelled`] when `cancelled` is set.
pub(super) fn blank(size_bytes: u64, cancelled: &AtomicBool) -> Result<File, OfflineError> {
    let failed = |error: io::Error| OfflineError::Mkfs(error.to_string());
    let memory = memfd_create("ext4", MemfdFlags::CLOEXEC).map_err(|errno| failed(errno.into()))?;
    let image = File::from(memory);
    image.set_len(size_bytes).map_err(failed)?;
    let mut command = Command::new("mke2fs");
    command.args(MKE2FS).arg(e2fs::path_of(&image)).env("E2FSPROGS_FAKE_TIME", MADE_AT);
    let ended = e2fs::run(command, cancelled, OfflineError::Mkfs)?;
    if ended.code != Some(0) {
        return Err(OfflineError::Mkfs(ended.said));
    }
    Ok(image)
}

/// Gives `each` the runs of blocks of `image` that are not zero, with their offset in bytes.
pub(super) fn each_run(
    image: &File,
    mut each: impl FnMut(u64, &[u8]) -> Result<(), OfflineError>,
) -> Result<(), OfflineError> {
    let failed = |error: io::Error| OfflineError::Mkfs(error.to_string());
    let size = image.metadata().map_err(failed)?.len();
    let (mut at, mut chunk) = (0, vec![0; CHUNK]);
    while at < size {
        at = match seek(image, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break,
            found => found.map_err(|errno| failed(errno.into()))? / BLOCK as u64 * BLOCK as u64,
        };
        let len = CHUNK.min(usize::try_from(size.saturating_sub(at)).unwrap_or(CHUNK));
        let chunk = chunk.get_mut(..len).unwrap_or_default();
        image.read_exact_at(chunk, at).map_err(failed)?;
        for (offset, run, is_zero) in runs(at, chunk) {
            if !is_zero {
                each(offset, run)?;
            }
        }
        at = at.saturating_add(len as u64);
    }
    Ok(())
}

/// The runs of blocks of `bytes`, which lie at `at`, that are all zero or all not: where a run lies, its bytes, and whether they are
/// zero.
pub(super) fn runs(at: u64, bytes: &[u8]) -> impl Iterator<Item = (u64, &[u8], bool)> {
    let is_zero = |block: &[u8]| block.iter().all(|byte| *byte == 0);
    let mut start = 0_usize;
    std::iter::from_fn(move || {
        let rest = bytes.get(start..).filter(|rest| !rest.is_empty())?;
        let mut blocks = rest.chunks(BLOCK);
        let is_all_zero = blocks.next().is_some_and(is_zero);
        let alike = blocks.take_while(|block| is_zero(block) == is_all_zero).count();
        let run = rest.get(..alike.saturating_add(1).saturating_mul(BLOCK)).unwrap_or(rest);
        let offset = at.saturating_add(start as u64);
        start = start.saturating_add(run.len());
        Some((offset, run, is_all_zero))
    })
}
