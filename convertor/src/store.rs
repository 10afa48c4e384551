//! A layout that takes an image: in a folder, where nothing of it can be seen before its name is moved, or in a new archive.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    io::{self, Read, Write},
    mem,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde_json::{Value, json};
use stratabd::{
    format::oci::{DOCUMENT_LIMIT_BYTES, Digest},
    offline::{OfflineError, PartFile, ReadyFile},
    registry::{FoundDocument, NewDocument},
    server::failure::{Failure, FailureClass},
};

use crate::{
    files::Files,
    layout::{INDEX, INDEX_TYPE, Layout, MARK, REF_NAME, Wanted, blob_name, ref_name},
    place::Place,
};

const MARK_TEXT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
const BLOBS: &str = "blobs/sha256";
const COPY_BYTES: usize = 1 << 20;

/// See the module. What is put there and gets no name is gone when this is dropped.
#[derive(Debug)]
pub(crate) struct Store {
    place: Place,
    name: Option<String>,
    kind: Mutex<Kind>,
}

#[derive(Debug)]
enum Kind {
    Folder(Folder),
    Archive(Archive),
}

/// A folder, and the blobs that wait to be named.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
    blobs: BTreeMap<Digest, ReadyFile>,
    /// Folders that were made for it, each in the one before it.
    made: Vec<PathBuf>,
}

/// A file that will be an archive.
struct Archive {
    path: PathBuf,
    /// `None` once it has its name.
    tar: Option<tar::Builder<PartWriter>>,
    blobs: BTreeSet<Digest>,
}

/// Writes a file that has no name yet, from its start to its end.
struct PartWriter {
    part: PartFile,
    offset: u64,
}

impl Store {
    /// The layout in `folder`, which is made where nothing or an empty folder is there. `name` is what is to mean the image.
    pub(crate) fn folder(folder: &Path, name: Option<&str>) -> Result<Self, Failure> {
        let place = Place::Layout { folder: folder.to_owned(), name: name.map(str::to_owned) };
        let kind = Mutex::new(Kind::Folder(Folder::open(folder)?));
        Ok(Self { place, name: name.map(str::to_owned), kind })
    }

    /// A new archive at `file`.
    pub(crate) fn archive(file: &Path, name: Option<&str>) -> Result<Self, Failure> {
        let place = Place::LayoutArchive { file: file.to_owned(), name: name.map(str::to_owned) };
        let part = PartFile::create(file, false).map_err(Failure::from)?;
        let tar = Some(tar::Builder::new(PartWriter { part, offset: 0 }));
        let archive = Archive { path: file.to_owned(), tar, blobs: BTreeSet::new() };
        Ok(Self { place, name: name.map(str::to_owned), kind: Mutex::new(Kind::Archive(archive)) })
    }

    /// Where it is.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// What its name means now, if that is known and anything.
    pub(crate) fn present(&self) -> Option<FoundDocument> {
        match &*self.kind() {
            Kind::Folder(folder) => {
                Layout::open(&folder.path).ok()?.root(&Wanted::from(self.name.as_deref())).ok()
            }
            Kind::Archive(_) => None,
        }
    }

    /// Puts a blob in, whose digest and size the caller knows, unless it is there; says whether it was.
    pub(crate) fn put(&self, digest: Digest, size_bytes: u64, content: impl Read) -> Result<bool, Failure> {
        match &mut *self.kind() {
            Kind::Folder(folder) => folder.put(digest, size_bytes, content),
            Kind::Archive(archive) => archive.put_blob(digest, size_bytes, content),
        }
    }

    /// Lets its name mean `root`, all of whose blobs were put in; without a name it is the only image. `platform` is what it runs on,
    /// where that is one thing.
    pub(crate) fn finish(&self, root: &NewDocument, platform: Option<&Value>) -> Result<(), Failure> {
        self.put(root.digest, root.bytes.len() as u64, &root.bytes[..])?;
        let mut entry = json!({
            "mediaType": root.media_type, "digest": root.digest.to_string(), "size": root.bytes.len(),
        });
        if let Some(members) = entry.as_object_mut() {
            if let Some(name) = &self.name {
                members.insert("annotations".to_owned(), json!({REF_NAME: name}));
            }
            if let Some(platform) = platform {
                members.insert("platform".to_owned(), platform.clone());
            }
        }
        match &mut *self.kind() {
            Kind::Folder(folder) => folder.finish(self.name.as_deref(), entry),
            Kind::Archive(archive) => archive.finish(entry),
        }
    }

    fn kind(&self) -> MutexGuard<'_, Kind> {
        self.kind.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Folder {
    fn open(path: &Path) -> Result<Self, Failure> {
        let failed = |error| unwritable(path, error);
        let mut folder = Self { path: path.to_owned(), blobs: BTreeMap::new(), made: Vec::new() };
        if !path.join(MARK).exists() && path.exists() {
            let mut found = fs::read_dir(path).map_err(failed)?;
            // A folder of blobs alone is one that was begun.
            if found.any(|entry| entry.is_ok_and(|entry| entry.file_name() != "blobs")) {
                let text = format!("{}: neither an OCI image layout nor empty", path.display());
                return Err(Failure::new(FailureClass::Conflict, text));
            }
        }
        folder.make(&path.join(BLOBS)).map_err(failed)?;
        Ok(folder)
    }

    /// Makes a folder and those above it, and remembers which.
    fn make(&mut self, path: &Path) -> io::Result<()> {
        if path.is_dir() || path.as_os_str().is_empty() {
            return Ok(());
        }
        if let Some(above) = path.parent() {
            self.make(above)?;
        }
        match fs::create_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            made => made.map(|()| self.made.push(path.to_owned())),
        }
    }

    fn put(&mut self, digest: Digest, size_bytes: u64, mut content: impl Read) -> Result<bool, Failure> {
        let path = self.path.join(blob_name(digest));
        let is_there = fs::metadata(&path).is_ok_and(|found| found.is_file() && found.len() == size_bytes);
        if is_there || self.blobs.contains_key(&digest) {
            return Ok(true);
        }
        let part = PartFile::create(&path, true).map_err(Failure::from)?;
        let mut writer = PartWriter { part, offset: 0 };
        copy(&mut content, &mut writer).map_err(|error| unwritable(&path, error))?;
        self.blobs.insert(digest, writer.part.make_ready().map_err(Failure::from)?);
        Ok(false)
    }

    fn finish(&mut self, name: Option<&str>, entry: Value) -> Result<(), Failure> {
        let files = Files::Folder(self.path.clone());
        let mut index = match files.has(INDEX)? {
            true => {
                serde_json::from_slice(&files.read(INDEX, DOCUMENT_LIMIT_BYTES as u64)?).map_err(|error| {
                    let text = format!("{}: malformed", files.shown(INDEX));
                    Failure::with_source(FailureClass::Image, text, error)
                })?
            }
            false => json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": []}),
        };
        let Some(Value::Array(manifests)) = index.get_mut("manifests") else {
            let text = format!("{}: malformed: it has no list of manifests", files.shown(INDEX));
            return Err(Failure::new(FailureClass::Image, text));
        };
        manifests.retain(|found| ref_name(found) != name);
        manifests.push(entry);
        for blob in mem::take(&mut self.blobs).into_values() {
            match blob.name() {
                Ok(named) => named.make_durable().map_err(Failure::from)?,
                // Somebody has put the same one there meanwhile.
                Err(OfflineError::Exists(_) | OfflineError::Busy(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if !files.has(MARK)? {
            write(&self.path.join(MARK), MARK_TEXT)?;
        }
        write(&self.path.join(INDEX), index.to_string().as_bytes())?;
        self.made.clear();
        Ok(())
    }
}

impl Drop for Folder {
    /// What was not finished leaves the folder as it was; after that there is nothing to be removed.
    fn drop(&mut self) {
        self.blobs.clear();
        for folder in self.made.iter().rev() {
            // One that somebody else has put something into stays.
            let _ = fs::remove_dir(folder);
        }
    }
}

impl Archive {
    fn put_blob(&mut self, digest: Digest, size_bytes: u64, content: impl Read) -> Result<bool, Failure> {
        if !self.blobs.insert(digest) {
            return Ok(true);
        }
        self.append(&blob_name(digest), size_bytes, content).map(|()| false)
    }

    /// Nothing but name and content is said of a member, so that the same image is the same archive.
    fn append(&mut self, name: &str, size_bytes: u64, content: impl Read) -> Result<(), Failure> {
        let mut header = tar::Header::new_ustar();
        header.set_size(size_bytes);
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        let failed = |error| unwritable(&self.path, error);
        let Some(tar) = &mut self.tar else { return Err(failed(io::ErrorKind::BrokenPipe.into())) };
        tar.append_data(&mut header, name, content).map_err(failed)
    }

    fn finish(&mut self, entry: Value) -> Result<(), Failure> {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [entry]}).to_string();
        self.append(MARK, MARK_TEXT.len() as u64, MARK_TEXT)?;
        self.append(INDEX, index.len() as u64, index.as_bytes())?;
        let failed = |error| unwritable(&self.path, error);
        let tar = self.tar.take().ok_or_else(|| failed(io::ErrorKind::BrokenPipe.into()))?;
        let PartWriter { part, .. } = tar.into_inner().map_err(failed)?;
        part.finish().map_err(Failure::from)
    }
}

impl fmt::Debug for Archive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Archive").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Write for PartWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.part.write_at(bytes, self.offset)?;
        self.offset = self.offset.saturating_add(bytes.len() as u64);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn copy(content: &mut impl Read, writer: &mut PartWriter) -> io::Result<()> {
    let mut chunk = vec![0; COPY_BYTES];
    loop {
        match content.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(count) => writer.write_all(chunk.get(..count).unwrap_or_default())?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let mut part = PartFile::create(path, true).map_err(Failure::from)?;
    part.write_at(bytes, 0).map_err(|error| unwritable(path, error))?;
    part.finish().map_err(Failure::from)
}

fn unwritable(path: &Path, error: io::Error) -> Failure {
    Failure::with_source(FailureClass::Internal, format!("{}: cannot write it", path.display()), error)
}
