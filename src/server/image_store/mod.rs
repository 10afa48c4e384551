//! Images that were converted on this machine: the layers that were made of ordinary ones, shared by all images and devices that have them.
//!
//! Each image is an OCI layout of its own in a folder whose name says what it was made of and how; all have the same folder of blobs. An
//! image is there when its index is, which is written last. Whoever looks for one, makes one, or is about to use one, holds the store,
//! and nothing goes as long as anybody does. `users` says what devices still use.

mod conversion;
mod evict;
#[cfg(test)]
mod tests;
mod users;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{
    failure::{Failure, FailureClass},
    layers::make_absolute,
};
use crate::{
    cache::PrivateFolder,
    format::oci::{DOCUMENT_LIMIT_BYTES, Digest, Document, Index, Layer},
};
pub use conversion::{Conversion, Preparation, Turn};
pub use evict::{ListedImage, Tidied};
pub(super) use users::note_user;

/// What is in the folder that the settings name. Another arrangement of files would have another name.
const FOLDER: &str = "v1";
/// Beside it in an image's folder are a mark of layouts, and a link to the blobs of all.
const INDEX: &str = "index.json";
/// What the image was asked for as, in its index.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// See the module. Nothing is made before it is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageStore {
    dir: PathBuf,
}

/// Keeps everything in the store there for as long as it lives.
#[derive(Debug)]
pub struct Hold {
    _lock: File,
}

/// An image that is there, and stays there for as long as this lives.
#[derive(Debug)]
pub struct FoundImage {
    /// The files of its layers, the lowest first.
    pub layers: Vec<PathBuf>,
    /// What keeps it.
    pub hold: Hold,
}

/// An image as its folder has it.
#[derive(Debug)]
struct StoredImage {
    folder: PathBuf,
    name: String,
    /// Its manifest and its configuration.
    documents: Vec<Digest>,
    layers: Vec<Layer>,
    used: SystemTime,
}

impl ImageStore {
    /// The store in the folder `dir`.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        let mut dir = dir.join(FOLDER);
        make_absolute(&mut dir);
        Self { dir }
    }

    /// Where it is.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The store that has the layer file at `path`, if one has.
    fn of_layer(path: &Path) -> Option<Self> {
        let folder = path.parent()?;
        let dir = folder.parent()?.parent()?;
        let store = Self { dir: dir.to_owned() };
        (folder == store.blobs() && store.users().is_dir()).then_some(store)
    }

    /// What was made, as this program would, of the image whose manifest has the digest `source`. It was used just now, from then on.
    ///
    /// # Errors
    /// Where the store is there and cannot be used.
    pub fn find(&self, source: Digest) -> Result<Option<FoundImage>, Failure> {
        let Some(lock) = self.open_lock()? else { return Ok(None) };
        let hold = held(lock).map_err(|error| self.failed(error))?;
        Ok(self.layers_of(source)?.map(|layers| FoundImage { layers, hold }))
    }

    /// As [`ImageStore::find`], for who holds the store.
    fn layers_of(&self, source: Digest) -> Result<Option<Vec<PathBuf>>, Failure> {
        let folder = self.image(&Conversion::default().key(source));
        let Some(image) = self.read(folder).map_err(|error| self.failed(error))? else { return Ok(None) };
        // Where this fails the image only goes sooner.
        let _ = File::open(image.folder.join(INDEX)).and_then(|index| index.set_modified(SystemTime::now()));
        Ok(Some(image.layers.iter().map(|layer| self.blob(layer.digest)).collect()))
    }

    /// The lock of a store that is there.
    fn open_lock(&self) -> Result<Option<File>, Failure> {
        match File::open(self.lock()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            lock => lock.map(Some).map_err(|error| self.failed(error)),
        }
    }

    /// Holds the store, which is made where it is missing, durably: what lies over its images is to find it after a crash.
    fn hold(&self) -> io::Result<Hold> {
        let folders = [self.dir.clone(), self.blobs(), self.images(), self.users(), self.spool()];
        for folder in self.dir.parent().map(Path::to_owned).into_iter().chain(folders) {
            let is_new = !folder.is_dir();
            PrivateFolder::open_root(&folder)?;
            for above in folder.ancestors().skip(1).take_while(|_| is_new).take(2) {
                File::open(above)?.sync_all()?;
            }
        }
        let mut options = OpenOptions::new();
        held(options.create(true).truncate(false).write(true).mode(0o600).open(self.lock())?)
    }

    /// The image in `folder`; `None` where it is not whole.
    fn read(&self, folder: PathBuf) -> io::Result<Option<StoredImage>> {
        let path = folder.join(INDEX);
        let (index, used) =
            match document(&path).and_then(|index| Ok((index, fs::metadata(&path)?.modified()?))) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                read => read?,
            };
        let listed =
            serde_json::from_slice::<Index>(&index).ok().and_then(|index| index.manifests.into_iter().next());
        let Some(listed) = listed else { return Ok(None) };
        let Ok(manifest) = document(&self.blob(listed.digest)) else { return Ok(None) };
        let is_it = Digest::from_hash(Sha256::digest(&manifest).into()) == listed.digest;
        let Ok(Document::Manifest(decoded)) = Document::decode(&manifest) else { return Ok(None) };
        let Some(layers) = decoded.layers().ok().filter(|layers| is_it && self.has(layers)) else {
            return Ok(None);
        };
        let config = serde_json::from_slice::<Value>(&manifest).ok();
        let config = config.and_then(|it| it.pointer("/config/digest")?.as_str()?.parse().ok());
        let name = listed.annotations.get(REF_NAME).cloned().unwrap_or_default();
        Ok(Some(StoredImage {
            folder,
            name,
            documents: [listed.digest].into_iter().chain(config).collect(),
            layers,
            used,
        }))
    }

    /// Whether all of `layers` are there: a crash of the machine may have taken what was not durable yet.
    fn has(&self, layers: &[Layer]) -> bool {
        layers.iter().all(|layer| {
            fs::metadata(self.blob(layer.digest))
                .is_ok_and(|found| found.is_file() && found.len() == layer.size_bytes)
        })
    }

    fn failed(&self, source: io::Error) -> Failure {
        let text = format!("{}: cannot use the store of converted images", self.dir.display());
        Failure::with_source(FailureClass::Internal, text, source)
    }

    fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }

    fn blobs(&self) -> PathBuf {
        self.dir.join("blobs/sha256")
    }

    fn blob(&self, digest: Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    fn images(&self) -> PathBuf {
        self.dir.join("images")
    }

    fn image(&self, key: &str) -> PathBuf {
        self.images().join(key)
    }

    fn users(&self) -> PathBuf {
        self.dir.join("users")
    }

    fn spool(&self) -> PathBuf {
        self.dir.join("spool")
    }
}

/// Waits for those who remove something, which is soon done.
fn held(lock: File) -> io::Result<Hold> {
    lock.lock_shared()?;
    Ok(Hold { _lock: lock })
}

fn document(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(DOCUMENT_LIMIT_BYTES as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}
