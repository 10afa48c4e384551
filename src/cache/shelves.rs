//! Where entries lie: a folder for each, below one for the first digits of its key, and a place for what is being removed.

use std::{ffi::OsString, io, time::Duration};

use rustix::fs::{OFlags, fstat, ftruncate};

use super::{folder::PrivateFolder, key::BlobKey};
use crate::reactor::Reactor;

/// Bytes that a file loses at once: the file system takes some time for each extent, and what else the thread has to do
/// waits for that.
const CUT_BYTES: u64 = 64 << 20;

#[derive(Debug)]
pub(super) struct Shelves {
    pub(super) blobs: PrivateFolder,
    trash: PrivateFolder,
}

impl Shelves {
    /// Opens or makes the shelves in the cache's folder.
    pub(super) fn open(root: &PrivateFolder) -> io::Result<Self> {
        Ok(Self { blobs: root.open_or_make("blobs")?.0, trash: root.open_or_make("trash")?.0 })
    }

    /// The folder of an entry; [`io::ErrorKind::NotFound`] where there is none.
    pub(super) fn entry(&self, key: &BlobKey) -> io::Result<PrivateFolder> {
        key.steps().into_iter().try_fold(self.blobs.clone(), |folder, name| folder.open(name))
    }

    /// The folder of an entry, which is made where there is none; whether it has been.
    pub(super) fn make_entry(&self, key: &BlobKey) -> io::Result<(PrivateFolder, bool)> {
        let begin = (self.blobs.clone(), false);
        key.steps().into_iter().try_fold(begin, |(folder, _), name| folder.open_or_make(name))
    }

    /// Takes an entry off its shelf at once; what it held goes when the trash is emptied.
    pub(super) fn discard(&self, key: &BlobKey) -> io::Result<()> {
        let [algorithm, fan, digits] = key.steps();
        let shelf = self.blobs.open(algorithm)?.open(fan)?;
        shelf.rename(digits, &self.trash, format!("{:016x}", fastrand::u64(..)))
    }

    /// Removes what was discarded, also by a process that has ended before it could. Others have their turn in between.
    pub(super) async fn empty_trash(&self, reactor: &Reactor) -> io::Result<()> {
        for name in self.trash.names()? {
            if let Ok(entry) = self.trash.open(&name) {
                for file in entry.names()? {
                    remove_file(reactor, &entry, &file).await?;
                }
            }
            done(self.trash.remove(&name))?;
        }
        Ok(())
    }
}

async fn remove_file(reactor: &Reactor, folder: &PrivateFolder, name: &OsString) -> io::Result<()> {
    if let Ok(file) = folder.file(name, OFlags::WRONLY) {
        let mut left = u64::try_from(fstat(&file)?.st_size).unwrap_or(0);
        while left > CUT_BYTES {
            left -= CUT_BYTES;
            ftruncate(&file, left)?;
            reactor.sleep(Duration::ZERO).await;
        }
    }
    done(folder.remove(name))
}

/// Another process may have emptied the trash as well.
fn done(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
