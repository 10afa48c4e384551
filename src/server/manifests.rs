//! Manifests that were resolved once, so that an image that is cached can be attached without its registry.
//!
//! A document is stored by its digest and checked against it when it is read. What a name meant is stored by the name.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::PathBuf,
};

use rustix::fs::OFlags;
use sha2::{Digest as _, Sha256};

use crate::cache::PrivateFolder;

/// Registries cap manifests at 4 MiB.
const MAX_BYTES: u64 = 4 << 20;

/// Their folder in the cache's.
const FOLDER: &str = "manifests";

/// Documents and names in a folder of the cache's.
#[derive(Debug)]
pub struct ManifestStore {
    cache_dir: PathBuf,
}

impl ManifestStore {
    /// A store in the cache's folder, which is made when it is needed.
    #[must_use]
    pub fn new(cache_dir: PathBuf) -> Self {
        Self { cache_dir }
    }

    /// Stores `body` under its digest.
    ///
    /// # Errors
    /// What the file system says.
    pub fn put(&self, body: &[u8]) -> io::Result<()> {
        self.write(&hex(body), body)
    }

    /// The document whose digest is `sha256:` and `hex`; `None` where it is not there or not whole.
    #[must_use]
    pub fn get(&self, digest: &str) -> Option<Vec<u8>> {
        let wanted = digest.strip_prefix("sha256:")?;
        // The digest becomes a file's name.
        if wanted.len() != 64 || !wanted.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let body = self.read(wanted)?;
        (hex(&body) == wanted).then_some(body)
    }

    /// Remembers that `name` meant the document of `digest`.
    ///
    /// # Errors
    /// What the file system says.
    pub fn remember(&self, name: &str, digest: &str) -> io::Result<()> {
        self.write(&name_file(name), format!("{digest} {name}\n").as_bytes())
    }

    /// The digest that `name` meant when it was last asked for.
    #[must_use]
    pub fn recall(&self, name: &str) -> Option<String> {
        let line = String::from_utf8(self.read(&name_file(name))?).ok()?;
        let (digest, stored) = line.trim_end().split_once(' ')?;
        (stored == name).then(|| digest.to_owned())
    }

    fn read(&self, file: &str) -> Option<Vec<u8>> {
        let opened = self.folder().and_then(|folder| folder.file(file, OFlags::RDONLY));
        let opened = opened.inspect_err(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(%error, dir = %self.cache_dir.display(), "cannot read a stored manifest");
            }
        });
        let mut bytes = Vec::new();
        File::from(opened.ok()?).take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    fn write(&self, file: &str, bytes: &[u8]) -> io::Result<()> {
        let folder = self.folder()?;
        let hidden = format!(".{file}.{}.{:x}", std::process::id(), fastrand::u64(..));
        let written =
            write_durably(&folder, &hidden, bytes).and_then(|()| folder.rename(&hidden, &folder, file));
        written.inspect_err(|_| {
            // A part is of no use, and one that cannot be removed does no harm.
            let _ = folder.remove(&hidden);
        })
    }

    fn folder(&self) -> io::Result<PrivateFolder> {
        Ok(PrivateFolder::open_root(&self.cache_dir)?.open_or_make(FOLDER)?.0)
    }
}

fn write_durably(folder: &PrivateFolder, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::from(folder.file(name, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?);
    file.write_all(bytes)?;
    file.sync_all()
}

fn name_file(name: &str) -> String {
    format!("name-{}", hex(name.as_bytes()))
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_comes_back_by_its_digest_and_a_name_by_its_last_meaning() {
        let dir = tempfile::tempdir().unwrap();
        let store = ManifestStore::new(dir.path().join("manifests"));
        let digest = format!("sha256:{}", hex(b"body"));
        assert_eq!(store.get(&digest), None);
        store.put(b"body").unwrap();
        assert_eq!(store.get(&digest).as_deref(), Some(&b"body"[..]));
        store.remember("r/a:latest", "sha256:0").unwrap();
        store.remember("r/a:latest", &digest).unwrap();
        assert_eq!(store.recall("r/a:latest"), Some(digest));
        assert_eq!(store.recall("r/a:other"), None);
        assert_eq!(store.get("sha256:../../etc/passwd"), None);
    }

    #[test]
    fn a_damaged_document_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let store = ManifestStore::new(dir.path().to_owned());
        store.put(b"body").unwrap();
        std::fs::write(dir.path().join(FOLDER).join(hex(b"body")), b"bodY").unwrap();
        assert_eq!(store.get(&format!("sha256:{}", hex(b"body"))), None);
    }
}
