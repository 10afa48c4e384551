//! What decides the bytes of a converted image, and the making of one, which only one process does at a time.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

use super::{FoundImage, Hold, ImageStore};
use crate::{
    format::{oci::Digest, zfile::BlockFormat},
    server::failure::Failure,
};

/// Raised when what was made before is not to be used any more.
const VERSION: u32 = 1;

/// How an image is converted, as far as that decides the bytes of its layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conversion {
    /// Size of the device in bytes.
    pub virtual_size_bytes: u64,
    /// The blocks of its layers.
    pub format: BlockFormat,
    /// Whether media types are OCI's, whatever the image's are.
    pub oci: bool,
}

impl Default for Conversion {
    fn default() -> Self {
        Self { virtual_size_bytes: 64 << 30, format: BlockFormat::default(), oci: true }
    }
}

impl Conversion {
    /// The name of what is made so of the image whose manifest has the digest `source`.
    pub(super) fn key(&self, source: Digest) -> String {
        let Self { virtual_size_bytes, format, oci } = self;
        let how = format!("{VERSION} {virtual_size_bytes} {format:?} {oci}");
        let how = Digest::from_hash(Sha256::digest(how).into()).hex();
        format!("{}-{}", source.hex(), how.get(..16).unwrap_or_default())
    }
}

/// An image that is to be made. Nothing in the store goes as long as this lives.
#[derive(Debug)]
pub struct Preparation {
    store: ImageStore,
    source: Digest,
    folder: PathBuf,
    /// Of the folder: who has it makes the image.
    lock: File,
    hold: Hold,
}

/// Whose turn it is to make an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// The caller's.
    Own,
    /// Another's, who has not ended yet.
    Others,
    /// Nobody's: it is there.
    Over,
}

impl ImageStore {
    /// Prepares a place for what is made of the image whose manifest has the digest `source`, and makes the store where it is missing.
    ///
    /// # Errors
    /// What the file system says.
    pub fn prepare(&self, source: Digest) -> Result<Preparation, Failure> {
        let prepare = || {
            let hold = self.hold()?;
            let folder = self.image(&Conversion::default().key(source));
            fs::create_dir_all(&folder)?;
            let lock = File::open(&folder)?;
            Ok(Preparation { store: self.clone(), source, folder, lock, hold })
        };
        prepare().map_err(|error| self.failed(error))
    }
}

impl Preparation {
    /// Takes the turn to make the image, unless somebody has it, or has made it meanwhile. One who dies has it no more.
    ///
    /// # Errors
    /// What the file system says.
    pub fn try_begin(&self) -> Result<Turn, Failure> {
        let failed = |error| self.store.failed(error);
        match self.lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(Turn::Others),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        if self.store.layers_of(self.source)?.is_some() {
            return Ok(Turn::Over);
        }
        clear(&self.folder).map_err(failed)?;
        Ok(Turn::Own)
    }

    /// The folder of an OCI layout that gets the image.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where files may lie until they are there.
    #[must_use]
    pub fn spool(&self) -> PathBuf {
        self.store.spool()
    }

    /// The image, which is there now.
    ///
    /// # Errors
    /// Where it is not.
    pub fn finish(self) -> Result<FoundImage, Failure> {
        let missing =
            || self.store.failed(io::Error::other(format!("{} is not whole", self.folder.display())));
        let layers = self.store.layers_of(self.source)?.ok_or_else(missing)?;
        Ok(FoundImage { layers, hold: self.hold })
    }
}

/// Removes what one who died has left in an image's folder, and has it share the blobs of all.
fn clear(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        fs::remove_file(entry?.path())?;
    }
    symlink("../../blobs", folder.join("blobs"))
}
