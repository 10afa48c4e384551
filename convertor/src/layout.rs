//! OCI image layouts: images in a folder, as `skopeo`, `buildctl` and `docker save` write them.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use stratabd::{
    format::oci::{DOCUMENT_LIMIT_BYTES, Descriptor, Digest, Document, Index, Platform},
    offline::PartFile,
    server::failure::{Failure, FailureClass},
};

const MARK: &str = "oci-layout";
const MARK_TEXT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
const INDEX: &str = "index.json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
/// Says which image of a layout is meant by a name.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// An index may name an index; more levels are not made by any tool.
const INDEX_DEPTH_LIMIT: usize = 3;

/// A folder that is a layout.
#[derive(Debug, Clone)]
pub struct Layout {
    folder: PathBuf,
}

/// A manifest of a layout, its digest checked.
#[derive(Debug, Clone)]
pub(crate) struct FoundManifest {
    pub(crate) bytes: Vec<u8>,
    pub(crate) digest: Digest,
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

    /// The manifest called `name`, or the only one where no name is given; of an index, the one for `platform`.
    pub(crate) fn manifest(&self, name: Option<&str>, platform: &Platform) -> Result<FoundManifest, Failure> {
        let path = self.folder.join(INDEX);
        let bytes = self.read(&path, DOCUMENT_LIMIT_BYTES as u64)?;
        let wrong = |error| {
            Failure::with_source(FailureClass::Image, format!("{}: cannot be used", path.display()), error)
        };
        // Tools write it without a media type.
        let index: Index = serde_json::from_slice(&bytes).map_err(|error| {
            Failure::with_source(FailureClass::Image, format!("{}: malformed", path.display()), error)
        })?;
        let named = |entry: &&Descriptor| {
            name.is_none_or(|name| entry.annotations.get(REF_NAME).is_some_and(|found| found == name))
        };
        let entries: Vec<Descriptor> = index.manifests.iter().filter(named).cloned().collect();
        if entries.is_empty() {
            return Err(self.no_such(name, &index));
        }
        let mut wanted = Index { manifests: entries }.select(platform).map_err(wrong)?.clone();
        for _ in 0..INDEX_DEPTH_LIMIT {
            let bytes = self.document(wanted.digest)?;
            match Document::decode(&bytes).map_err(wrong)? {
                Document::Manifest(_) => return Ok(FoundManifest { bytes, digest: wanted.digest }),
                Document::Index(index) => wanted = index.select(platform).map_err(wrong)?.clone(),
            }
        }
        let text = format!("{}: indexes name indexes more than {INDEX_DEPTH_LIMIT} deep", path.display());
        Err(Failure::new(FailureClass::Image, text))
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

    /// Puts a manifest in, and lets `name` mean it; without one it is the layout's only image.
    pub(crate) fn put_manifest(
        &self,
        name: Option<&str>,
        (digest, media_type, bytes): (Digest, &str, &[u8]),
        platform: &Value,
    ) -> Result<(), Failure> {
        self.put(digest, bytes)?;
        let path = self.folder.join(INDEX);
        let mut index = match fs::symlink_metadata(&path) {
            Ok(_) => {
                serde_json::from_slice(&self.read(&path, DOCUMENT_LIMIT_BYTES as u64)?).map_err(|error| {
                    Failure::with_source(FailureClass::Image, format!("{}: malformed", path.display()), error)
                })?
            }
            Err(_) => json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": []}),
        };
        let mut entry = json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()});
        if let Some(members) = entry.as_object_mut() {
            if let Some(name) = name {
                members.insert("annotations".to_owned(), json!({REF_NAME: name}));
            }
            members.insert("platform".to_owned(), platform.clone());
        }
        let Some(Value::Array(manifests)) = index.get_mut("manifests") else {
            let text = format!("{}: malformed: it has no list of manifests", path.display());
            return Err(Failure::new(FailureClass::Image, text));
        };
        manifests.retain(|found| {
            found.pointer(&format!("/annotations/{REF_NAME}")).and_then(Value::as_str) != name
        });
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

    fn no_such(&self, name: Option<&str>, index: &Index) -> Failure {
        let names: Vec<&str> = index
            .manifests
            .iter()
            .filter_map(|it| it.annotations.get(REF_NAME).map(String::as_str))
            .take(16)
            .collect();
        let text = match name {
            None => format!("{}: it has no image", self.folder.display()),
            Some(name) => {
                format!("{}: it has no image called {name:?}, but {names:?}", self.folder.display())
            }
        };
        Failure::new(FailureClass::NotFound, text)
    }
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
