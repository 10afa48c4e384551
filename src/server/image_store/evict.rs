//! What goes: what nobody finished, and what was used least recently, as long as there is more than there may be.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::{self, TryLockError},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use serde::{Deserialize, Serialize};

use super::{
    ImageStore, StoredImage,
    users::{Named, is_open},
};
use crate::server::failure::Failure;

/// How long those who hold the store are waited for. Whoever converts holds it for minutes, and tidies it himself when he is done.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(20);

/// What has become of a store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tidied {
    /// Images that went.
    pub removed_images: usize,
    /// Bytes that went.
    pub removed_bytes: u64,
    /// Bytes that are left.
    pub left_bytes: u64,
    /// Whether nothing was done, since somebody makes an image.
    pub busy: bool,
}

/// An image of a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedImage {
    /// What it was asked for as, when it was made.
    pub reference: String,
    /// Its layers.
    pub layers: usize,
    /// Bytes of these, which other images may share.
    pub bytes: u64,
    /// Whether a device, or what may become one again, has one of its layers.
    pub used: bool,
    /// When it was last asked for, in seconds since 1970.
    pub last_used_s: u64,
}

impl ImageStore {
    /// Removes what was never finished, and then images, the least recently used first, until all takes at most `limit_bytes`. What is
    /// used stays.
    ///
    /// # Errors
    /// What the file system says, and where nobody knows what is used.
    #[expect(clippy::disallowed_methods, reason = "it runs where waiting for files is allowed, as it does")]
    pub fn tidy(&self, limit_bytes: u64) -> Result<Tidied, Failure> {
        let Some(lock) = self.open_lock()? else { return Ok(Tidied::default()) };
        let began = Instant::now();
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if began.elapsed() < PATIENCE => std::thread::sleep(PAUSE),
                Err(TryLockError::WouldBlock) => return Ok(Tidied { busy: true, ..Tidied::default() }),
                Err(TryLockError::Error(error)) => return Err(self.failed(error)),
            }
        }
        let named = self.named()?;
        self.tidy_alone(&named, limit_bytes).map_err(|error| self.failed(error))
    }

    /// All images, the most recently used first.
    ///
    /// # Errors
    /// What the file system says, and where nobody knows what is used.
    pub fn list(&self) -> Result<Vec<ListedImage>, Failure> {
        let Some(lock) = self.open_lock()? else { return Ok(Vec::new()) };
        let list = || {
            lock.lock_shared()?;
            self.all()
        };
        let mut images = list().map_err(|error| self.failed(error))?;
        images.reverse();
        let named = self.named()?;
        let listed = images.iter().map(|image| {
            let paths: Vec<PathBuf> = image.layers.iter().map(|layer| self.blob(layer.digest)).collect();
            let since_1970 = image.used.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            ListedImage {
                reference: image.name.clone(),
                layers: paths.len(),
                bytes: image.layers.iter().fold(0, |sum, layer| sum.saturating_add(layer.size_bytes)),
                used: paths.iter().any(|path| named.has(path) || is_open(path).unwrap_or(true)),
                last_used_s: since_1970.as_secs(),
            }
        });
        Ok(listed.collect())
    }

    /// All images that are whole, the least recently used first.
    fn all(&self) -> io::Result<Vec<StoredImage>> {
        let mut images = Vec::new();
        for entry in fs::read_dir(self.images())? {
            images.extend(self.read(entry?.path())?);
        }
        images.sort_by_key(|image| image.used);
        Ok(images)
    }

    fn tidy_alone(&self, named: &Named, limit_bytes: u64) -> io::Result<Tidied> {
        let mut images = self.all()?;
        let whole: BTreeSet<&Path> = images.iter().map(|image| image.folder.as_path()).collect();
        for entry in fs::read_dir(self.images())? {
            let folder = entry?.path();
            if !whole.contains(folder.as_path()) {
                fs::remove_dir_all(&folder)?;
            }
        }
        for entry in fs::read_dir(self.spool())? {
            fs::remove_file(entry?.path())?;
        }
        let mut tidied = Tidied::default();
        loop {
            let (left, removed) = self.remove_blobs(named, &images)?;
            tidied.removed_bytes = tidied.removed_bytes.saturating_add(removed);
            tidied.left_bytes = left;
            if left <= limit_bytes {
                return Ok(tidied);
            }
            // One all of whose layers are used, or another's too, takes no room of its own.
            let mut oldest = None;
            for (number, image) in images.iter().enumerate() {
                if self.takes_room(image, named)? {
                    oldest = Some(number);
                    break;
                }
            }
            let Some(oldest) = oldest else { return Ok(tidied) };
            fs::remove_dir_all(&images.remove(oldest).folder)?;
            tidied.removed_images += 1;
        }
    }

    /// Whether there is a layer of `image` that nobody uses.
    fn takes_room(&self, image: &StoredImage, named: &Named) -> io::Result<bool> {
        for layer in &image.layers {
            let path = self.blob(layer.digest);
            if !named.has(&path) && !is_open(&path)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Removes blobs that are no image's and not used; returns the bytes of those that are left, and of those that went.
    fn remove_blobs(&self, named: &Named, images: &[StoredImage]) -> io::Result<(u64, u64)> {
        let wanted: BTreeSet<OsString> = images
            .iter()
            .flat_map(|image| {
                image.documents.iter().copied().chain(image.layers.iter().map(|layer| layer.digest))
            })
            .map(|digest| digest.hex().into())
            .collect();
        let (mut left, mut removed) = (0_u64, 0_u64);
        for entry in fs::read_dir(self.blobs())? {
            let entry = entry?;
            let (path, bytes) = (entry.path(), entry.metadata()?.blocks().saturating_mul(512));
            if wanted.contains(&entry.file_name()) || named.has(&path) || is_open(&path)? {
                left = left.saturating_add(bytes);
            } else {
                fs::remove_file(&path)?;
                removed = removed.saturating_add(bytes);
            }
        }
        Ok((left, removed))
    }
}
