//! The lock of a file that a device may be writing to.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::Arc,
};

use rustix::io::Errno;

use super::OfflineError;

/// What a tool does with a file that a device may be writing to. Whoever serves the device holds the lock of its data file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LockMode {
    /// Reads it: so may others.
    Shared,
    /// Changes it.
    Exclusive,
}

/// A file that is kept from others as a [`LockMode`] says, for as long as this lives.
#[derive(Debug)]
pub(super) struct LockedFile(Arc<File>);

impl LockMode {
    /// Locks `file`, whose name is `path`.
    pub(super) fn take(self, file: &Arc<File>, path: &Path) -> Result<LockedFile, OfflineError> {
        let locked = match self {
            Self::Shared => file.try_lock_shared(),
            Self::Exclusive => file.try_lock(),
        };
        match locked {
            Ok(()) => {
                let held = LockedFile(Arc::clone(file));
                // Whoever had it may have put another in its place, which then is the one to lock.
                held.require_name(path)?;
                Ok(held)
            }
            Err(TryLockError::WouldBlock) => Err(OfflineError::Busy(path.to_owned())),
            // Where the file system has no locks no device has one, and reading harms nobody.
            Err(TryLockError::Error(source)) if self == Self::Shared && has_no_locks(&source) => {
                Ok(LockedFile(Arc::clone(file)))
            }
            Err(TryLockError::Error(source)) => Err(OfflineError::io(path, "lock it")(source)),
        }
    }
}

impl LockedFile {
    /// The file.
    pub(super) fn file(&self) -> &File {
        &self.0
    }

    /// Makes sure that `path` still means this very file.
    pub(super) fn require_name(&self, path: &Path) -> Result<(), OfflineError> {
        let found = fs::metadata(path).and_then(|named| Ok([named, self.0.metadata()?]));
        let [named, own] = found.map_err(OfflineError::io(path, "lock it"))?.map(|it| (it.dev(), it.ino()));
        if named == own { Ok(()) } else { Err(OfflineError::Busy(path.to_owned())) }
    }
}

impl Drop for LockedFile {
    /// Closing the file would end the lock too, but not while a program that another thread is just starting still has the files of
    /// this one.
    fn drop(&mut self) {
        // One that cannot be given back goes with the file.
        let _ = self.0.unlock();
    }
}

fn has_no_locks(error: &io::Error) -> bool {
    let known = [Errno::NOLCK, Errno::OPNOTSUPP, Errno::NOSYS, Errno::INVAL];
    Errno::from_io_error(error).is_some_and(|errno| known.contains(&errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_ends_with_its_holder_whoever_else_has_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        fs::write(&path, b"layer").unwrap();
        let file = Arc::new(File::open(&path).unwrap());
        let other = Arc::new(File::open(&path).unwrap());
        let held = LockMode::Exclusive.take(&file, &path).unwrap();
        // What a child has between fork and exec: another descriptor of the same opening.
        let inherited = file.try_clone().unwrap();
        drop(file);
        assert!(
            matches!(LockMode::Shared.take(&other, &path), Err(OfflineError::Busy(busy)) if busy == path)
        );
        drop(held);
        let _held = LockMode::Exclusive.take(&other, &path).unwrap();
        drop(inherited);
    }

    #[test]
    fn a_file_that_was_replaced_is_not_held() {
        let dir = tempfile::tempdir().unwrap();
        let [path, next] = ["data", "next"].map(|name| dir.path().join(name));
        fs::write(&path, b"old").unwrap();
        fs::write(&next, b"new").unwrap();
        let file = Arc::new(File::open(&path).unwrap());
        let inherited = file.try_clone().unwrap();
        fs::rename(&next, &path).unwrap();
        assert!(matches!(LockMode::Shared.take(&file, &path), Err(OfflineError::Busy(_))));
        inherited.try_lock().unwrap();
    }
}
