//! Words of memory that are those of a file too, so that they outlive the process.
#![expect(unsafe_code, reason = "a mapping of a file")]

use std::{
    fmt, io,
    ops::Deref,
    os::fd::{AsFd, OwnedFd},
    ptr::{self, NonNull},
    slice,
    sync::atomic::AtomicU64,
};

use rustix::mm::{MapFlags, ProtFlags};

/// The first words of a file that lies in memory. A store is in the file at once, and stays there when the process dies.
///
/// Who shortens the file meanwhile ends the process at its next access (SIGBUS), so it is to be one that nobody else has.
pub struct MappedWords {
    start: NonNull<AtomicU64>,
    count: usize,
}

impl MappedWords {
    /// Maps the first `count` words of `file`, which is open for reading and writing.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] where it has fewer, else the system's answer.
    pub fn map(file: &OwnedFd, count: usize) -> io::Result<Self> {
        let len = count.checked_mul(size_of::<AtomicU64>()).ok_or(io::ErrorKind::InvalidInput)?;
        let has = usize::try_from(rustix::fs::fstat(file)?.st_size).unwrap_or(0);
        if has < len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // Populated, so that no request is the first to reach a page.
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: a new mapping at a place of the kernel's choice overlays nothing.
        let start = unsafe { rustix::mm::mmap(ptr::null_mut(), len, protection, flags, file.as_fd(), 0) }?;
        let start =
            NonNull::new(start.cast()).ok_or_else(|| io::Error::other("a mapping at address zero"))?;
        Ok(Self { start, count })
    }
}

impl Deref for MappedWords {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: the mapping has so many words, is readable and writable for as long as this lives, and begins with a page, so
        // that the words are aligned. Any bytes are a word, and whoever else changes them, here or in another process, does so
        // at any time, which atomics allow.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.count) }
    }
}

impl Drop for MappedWords {
    fn drop(&mut self) {
        let len = self.count.saturating_mul(size_of::<AtomicU64>());
        // SAFETY: the mapping is this one's own, and nothing borrows from it any more.
        if let Err(error) = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), len) } {
            tracing::error!(%error, "cannot unmap words that are shared with a file");
        }
    }
}

// SAFETY: it owns its mapping, which no thread has more to do with than another, and gives out nothing but atomics.
unsafe impl Send for MappedWords {}
// SAFETY: as above.
unsafe impl Sync for MappedWords {}

impl fmt::Debug for MappedWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MappedWords").field("count", &self.count).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::fs::FileExt, sync::atomic::Ordering};

    use super::*;

    #[test]
    fn a_store_is_in_the_file_and_a_write_in_the_words_and_a_short_file_is_refused() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[0; 64]).unwrap();
        let owned: OwnedFd = file.try_clone().unwrap().into();
        let words = MappedWords::map(&owned, 8).unwrap();
        words[7].store(u64::from_ne_bytes(*b"seventh!"), Ordering::Release);
        let mut found = [0; 8];
        file.read_exact_at(&mut found, 56).unwrap();
        assert_eq!(&found, b"seventh!");
        file.write_all_at(b"the 1st.", 0).unwrap();
        assert_eq!(words[0].load(Ordering::Acquire).to_ne_bytes(), *b"the 1st.");
        assert_eq!(MappedWords::map(&owned, 9).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        drop((owned, words));
        file.read_exact_at(&mut found, 56).unwrap();
        assert_eq!(&found, b"seventh!");
    }
}
