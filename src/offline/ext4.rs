//! An empty ext4 for a new layer: made by mke2fs in memory, of which only what is not zero goes into the layer.

use std::{
    fs::File,
    io::{self, Read},
    os::{fd::AsRawFd, unix::fs::FileExt},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::{
    fs::{MemfdFlags, SeekFrom, memfd_create, seek},
    io::Errno,
};

use super::{OfflineError, Patient};

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
    let path = format!("/proc/{}/fd/{}", std::process::id(), image.as_raw_fd());
    let mut command = Command::new("mke2fs");
    command.args(MKE2FS).arg(path).env("E2FSPROGS_FAKE_TIME", MADE_AT).env("LC_ALL", "C");
    let pipes = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = pipes.spawn().map_err(failed)?;
    let mut said = Vec::new();
    // It says nothing until it ends.
    let heard =
        child.stderr.take().map_or(Ok(0), |stderr| Patient::of(stderr, cancelled)?.read_to_end(&mut said));
    if heard.is_err() {
        // One that has ended just now need not be.
        let _ = child.kill();
    }
    let status = child.wait().map_err(failed)?;
    if cancelled.load(Ordering::Relaxed) {
        return Err(OfflineError::Cancelled);
    }
    heard.map_err(failed)?;
    if !status.success() {
        return Err(OfflineError::Mkfs(String::from_utf8_lossy(&said).trim().to_owned()));
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
        let mut start = 0_usize;
        let is_zero = |block: &[u8]| block.iter().all(|byte| *byte == 0);
        for blocks in chunk.chunks(BLOCK).collect::<Vec<_>>().chunk_by(|a, b| is_zero(a) == is_zero(b)) {
            let run_len: usize = blocks.iter().map(|block| block.len()).sum();
            let run = chunk.get(start..start.saturating_add(run_len)).unwrap_or_default();
            if !is_zero(run) {
                each(at.saturating_add(start as u64), run)?;
            }
            start = start.saturating_add(run_len);
        }
        at = at.saturating_add(len as u64);
    }
    Ok(())
}
