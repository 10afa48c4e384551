//! OCI image layouts: images in a folder, as `skopeo`, `buildctl` and `docker save` write them.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use stratabd::{
    format::oci::{DOCUMENT_LIMIT_BYTES, Descriptor, Digest, Document},
    offline::PartFile,
    registry::{FoundDocument, NewDocument},
    server::failure::{Failure, FailureClass},
};

const MARK: &str = "oci-layout";
const MARK_TEXT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
const INDEX: &str = "index.json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
/// Says which image of a layout is meant by a name.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// A folder that is a layout.
#[derive(Debug, Clone)]
pub struct Layout {
    folder: PathBuf,
}

impl Layout {
    /// The layout in `folder`.
    ///
    /// # Errors
    /// Where there is none.
    pub fn open(folder: &Path) -> Result<Self, Failure> {
        let layout = Self { folder: folder.to_owned() };
        let mark = folder.join(MARK);
        match fs::symlink_metadata(&mark) {
            Ok(_) => Ok(layout),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let text = format!("{}: no OCI image layout: it has no file {MARK}", folder.display());
                Err(Failure::new(FailureClass::NotFound, text))
            }
            Err(error) => Err(unreadable(&mark, error)),
        }
    }

    /// The layout in `folder`, which is made where nothing or an empty folder is there.
    ///
    /// # Errors
    /// Where something else is there.
    pub fn open_or_make(folder: &Path) -> Result<Self, Failure> {
        let unwritable = |error| unwritable(folder, error);
        let layout = Self { folder: folder.to_owned() };
        let is_new = !folder.join(MARK).exists();
        if is_new {
            fs::create_dir_all(folder).map_err(unwritable)?;
            let mut found = fs::read_dir(folder).map_err(unwritable)?;
            // A folder of blobs alone is one that was begun.
            if found.any(|entry| entry.is_ok_and(|entry| entry.file_name() != "blobs")) {
                let text = format!("{}: neither an OCI image layout nor empty", folder.display());
                return Err(Failure::new(FailureClass::Conflict, text));
            }
        }
        fs::create_dir_all(folder.join("blobs/sha256")).map_err(unwritable)?;
        if is_new {
            layout.write(&layout.folder.join(MARK), MARK_TEXT.as_bytes())?;
        }
        Ok(layout)
    }

    /// What is called `name`, or the only image where no name is given. Several entries of one name, as some tools write them
    /// for several platforms, are an index.
    pub(crate) fn root(&self, name: Option<&str>) -> Result<FoundDocument, Failure> {
        let path = self.folder.join(INDEX);
        let malformed = |error| {
            Failure::with_source(FailureClass::Image, format!("{}: malformed", path.display()), error)
        };
        let index: Value =
            serde_json::from_slice(&self.read(&path, DOCUMENT_LIMIT_BYTES as u64)?).map_err(&malformed)?;
        let all = index.get("manifests").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let named = all.iter().filter(|entry| name.is_none() || ref_name(entry) == name);
        let mut entries: Vec<Value> = named.cloned().collect();
        let first = entries.first().map(ref_name).map(|name| name.map(str::to_owned));
        match entries.as_mut_slice() {
            [] => Err(self.no_such(name, all)),
            [only] => {
                let Descriptor { digest, .. } = serde_json::from_value(only.take()).map_err(malformed)?;
                self.found(digest)
            }
            several => {
                if several.iter().any(|entry| ref_name(entry) != first.as_ref().and_then(Option::as_deref)) {
                    let text = format!(
                        "{}: it has several images: give the name of one of {:?}",
                        self.folder.display(),
                        names(all)
                    );
                    return Err(Failure::new(FailureClass::Usage, text));
                }
                for entry in several.iter_mut() {
                    if let Some(Value::Object(annotations)) = entry.get_mut("annotations") {
                        annotations.remove(REF_NAME);
                    }
                }
                let index = json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": several});
                self.decoded(Bytes::from(index.to_string()), &path)
            }
        }
    }

    /// A manifest or an index, its digest checked.
    pub(crate) fn found(&self, digest: Digest) -> Result<FoundDocument, Failure> {
        self.decoded(Bytes::from(self.document(digest)?), &self.blob_path(digest))
    }

    fn decoded(&self, bytes: Bytes, path: &Path) -> Result<FoundDocument, Failure> {
        let document = Document::decode(&bytes).map_err(|error| {
            Failure::with_source(FailureClass::Image, format!("{}: cannot be used", path.display()), error)
        })?;
        let digest = Digest::from_hash(Sha256::digest(&bytes).into());
        Ok(FoundDocument { digest, bytes, document })
    }

    /// A small blob, its digest checked.
    pub(crate) fn document(&self, digest: Digest) -> Result<Vec<u8>, Failure> {
        let path = self.blob_path(digest);
        let bytes = self.read(&path, DOCUMENT_LIMIT_BYTES as u64)?;
        let found = Digest::from_hash(Sha256::digest(&bytes).into());
        match found == digest {
            true => Ok(bytes),
            false => {
                let text = format!("{}: it has the digest {found}, and not that of its name", path.display());
                Err(Failure::new(FailureClass::Image, text))
            }
        }
    }

    /// A blob, whose digest is for the caller to check.
    pub(crate) fn open_blob(&self, digest: Digest) -> Result<File, Failure> {
        let path = self.blob_path(digest);
        File::open(&path).map_err(|error| unreadable(&path, error))
    }

    /// Whether it has a blob of this size.
    pub(crate) fn has(&self, digest: Digest, size_bytes: u64) -> bool {
        fs::metadata(self.blob_path(digest)).is_ok_and(|found| found.is_file() && found.len() == size_bytes)
    }

    /// Puts a blob in, whose digest the caller knows.
    pub(crate) fn put(&self, digest: Digest, mut content: impl Read) -> Result<(), Failure> {
        let path = self.blob_path(digest);
        let mut part = PartFile::create(&path, true).map_err(Failure::from)?;
        let (mut chunk, mut offset) = (vec![0; 1 << 20], 0_u64);
        loop {
            let count = content.read(&mut chunk).map_err(|error| unwritable(&path, error))?;
            let Some(bytes) = chunk.get(..count).filter(|bytes| !bytes.is_empty()) else { break };
            part.write_at(bytes, offset).map_err(|error| unwritable(&path, error))?;
            offset = offset.saturating_add(count as u64);
        }
        part.finish().map_err(Failure::from)
    }

    /// Puts a manifest or an index in, and lets `name` mean it; without one it is the layout's only image. `platform` is what it runs on,
    /// where that is one thing.
    pub(crate) fn put_root(
        &self,
        name: Option<&str>,
        root: &NewDocument,
        platform: Option<&Value>,
    ) -> Result<(), Failure> {
        self.put(root.digest, &root.bytes[..])?;
        let path = self.folder.join(INDEX);
        let mut index = match fs::symlink_metadata(&path) {
            Ok(_) => {
                serde_json::from_slice(&self.read(&path, DOCUMENT_LIMIT_BYTES as u64)?).map_err(|error| {
                    Failure::with_source(FailureClass::Image, format!("{}: malformed", path.display()), error)
                })?
            }
            Err(_) => json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": []}),
        };
        let mut entry = json!({
            "mediaType": root.media_type, "digest": root.digest.to_string(), "size": root.bytes.len(),
        });
        if let Some(members) = entry.as_object_mut() {
            if let Some(name) = name {
                members.insert("annotations".to_owned(), json!({REF_NAME: name}));
            }
            if let Some(platform) = platform {
                members.insert("platform".to_owned(), platform.clone());
            }
        }
        let Some(Value::Array(manifests)) = index.get_mut("manifests") else {
            let text = format!("{}: malformed: it has no list of manifests", path.display());
            return Err(Failure::new(FailureClass::Image, text));
        };
        manifests.retain(|found| ref_name(found) != name);
        manifests.push(entry);
        let text = serde_json::to_vec(&index)
            .map_err(|error| Failure::with_source(FailureClass::Internal, "cannot write JSON", error))?;
        self.write(&path, &text)
    }

    /// The layout's name for messages.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    fn blob_path(&self, digest: Digest) -> PathBuf {
        self.folder.join("blobs/sha256").join(digest.hex())
    }

    fn read(&self, path: &Path, limit_bytes: u64) -> Result<Vec<u8>, Failure> {
        let file = File::open(path).map_err(|error| unreadable(path, error))?;
        let mut bytes = Vec::new();
        file.take(limit_bytes + 1).read_to_end(&mut bytes).map_err(|error| unreadable(path, error))?;
        match bytes.len() as u64 > limit_bytes {
            true => {
                let text = format!("{}: longer than {limit_bytes} bytes", path.display());
                Err(Failure::new(FailureClass::Image, text))
            }
            false => Ok(bytes),
        }
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), Failure> {
        let mut part = PartFile::create(path, true).map_err(Failure::from)?;
        part.write_at(bytes, 0).map_err(|error| unwritable(path, error))?;
        part.finish().map_err(Failure::from)
    }

    fn no_such(&self, name: Option<&str>, entries: &[Value]) -> Failure {
        let text = match name {
            None => format!("{}: it has no image", self.folder.display()),
            Some(name) => {
                let others = names(entries);
                format!("{}: it has no image called {name:?}, but {others:?}", self.folder.display())
            }
        };
        Failure::new(FailureClass::NotFound, text)
    }
}

fn ref_name(entry: &Value) -> Option<&str> {
    entry.get("annotations")?.get(REF_NAME)?.as_str()
}

/// The names of entries, as far as a message can hold them.
fn names(entries: &[Value]) -> Vec<&str> {
    entries.iter().filter_map(ref_name).take(16).collect()
}

fn unreadable(path: &Path, error: io::Error) -> Failure {
    let class = match error.kind() {
        io::ErrorKind::NotFound => FailureClass::NotFound,
        _ => FailureClass::Internal,
    };
    Failure::with_source(class, format!("{}: cannot read it", path.display()), error)
}

fn unwritable(path: &Path, error: io::Error) -> Failure {
    Failure::with_source(FailureClass::Internal, format!("{}: cannot write it", path.display()), error)
}
