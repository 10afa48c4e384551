//! OCI image layouts: images in a folder or an archive, as `skopeo`, `buildctl` and `docker save` write them.

use std::{io::Read, path::Path};

use bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use stratabd::{
    format::oci::{DOCUMENT_LIMIT_BYTES, Descriptor, Digest, Document},
    registry::{FoundDocument, ImageReference},
    server::failure::{Failure, FailureClass},
};

use crate::{archive::Archive, files::Files};

/// The file that says what it is.
pub(crate) const MARK: &str = "oci-layout";
/// The file that names the images.
pub(crate) const INDEX: &str = "index.json";
pub(crate) const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
/// Says which image of a layout is meant by a name.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The same, as containerd and docker write it: a whole reference.
const IMAGE_NAME: &str = "io.containerd.image.name";
/// What docker has instead of an index, or beside one.
pub(crate) const DOCKER_MANIFEST: &str = "manifest.json";

/// A layout that is read.
#[derive(Debug, Clone)]
pub struct Layout {
    files: Files,
}

/// Which image of a layout is meant.
#[derive(Debug, Clone)]
pub(crate) enum Wanted {
    /// The only one.
    Only,
    /// The one of this name.
    Named(String),
    /// The one that docker knows by this reference.
    Tagged(ImageReference),
}

impl Layout {
    /// The layout in `folder`.
    ///
    /// # Errors
    /// Where there is none.
    pub fn open(folder: &Path) -> Result<Self, Failure> {
        Self::of(Files::Folder(folder.to_owned()))
    }

    /// The layout that `archive` is.
    pub(crate) fn in_archive(archive: Archive) -> Result<Self, Failure> {
        Self::of(Files::Archive(archive))
    }

    fn of(files: Files) -> Result<Self, Failure> {
        if files.has(MARK)? {
            return Ok(Self { files });
        }
        let place = files.place().display();
        let text = match &files {
            Files::Archive(archive) if archive.has(DOCKER_MANIFEST) => {
                format!(
                    "{place}: no OCI image layout, but what docker saves: name it as docker-archive:{place}"
                )
            }
            _ => format!("{place}: no OCI image layout: it has no file {MARK}"),
        };
        Err(Failure::new(FailureClass::NotFound, text))
    }

    /// What is meant by `wanted`. Several entries of one name, as some tools write them for several platforms, are an index.
    pub(crate) fn root(&self, wanted: &Wanted) -> Result<FoundDocument, Failure> {
        let malformed = |error| {
            Failure::with_source(
                FailureClass::Image,
                format!("{}: malformed", self.files.shown(INDEX)),
                error,
            )
        };
        let index = self.files.read(INDEX, DOCUMENT_LIMIT_BYTES as u64)?;
        let index: Value = serde_json::from_slice(&index).map_err(&malformed)?;
        let all = index.get("manifests").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let mut entries: Vec<Value> = all.iter().filter(|entry| wanted.means(entry)).cloned().collect();
        match entries.as_mut_slice() {
            [] => Err(self.no_such(wanted, all)),
            [only] => {
                let Descriptor { digest, .. } = serde_json::from_value(only.take()).map_err(malformed)?;
                self.found(digest)
            }
            several => {
                let first = several.first().and_then(ref_name).map(str::to_owned);
                if several.iter().any(|entry| ref_name(entry) != first.as_deref()) {
                    let place = self.files.place().display();
                    let text =
                        format!("{place}: it has several images: give the name of one of {:?}", names(all));
                    return Err(Failure::new(FailureClass::Usage, text));
                }
                for entry in several.iter_mut() {
                    if let Some(Value::Object(annotations)) = entry.get_mut("annotations") {
                        annotations.remove(REF_NAME);
                    }
                }
                let index = json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": several});
                decoded(Bytes::from(index.to_string()), &self.files.shown(INDEX))
            }
        }
    }

    /// A manifest or an index, its digest checked.
    pub(crate) fn found(&self, digest: Digest) -> Result<FoundDocument, Failure> {
        decoded(Bytes::from(self.document(digest)?), &self.files.shown(&blob_name(digest)))
    }

    /// A small blob, its digest checked.
    pub(crate) fn document(&self, digest: Digest) -> Result<Vec<u8>, Failure> {
        let name = blob_name(digest);
        let bytes = self.files.read(&name, DOCUMENT_LIMIT_BYTES as u64)?;
        let found = Digest::from_hash(Sha256::digest(&bytes).into());
        match found == digest {
            true => Ok(bytes),
            false => {
                let shown = self.files.shown(&name);
                let text = format!("{shown}: it has the digest {found}, and not that of its name");
                Err(Failure::new(FailureClass::Image, text))
            }
        }
    }

    /// A blob, whose digest is for the caller to check.
    pub(crate) fn open_blob(&self, digest: Digest) -> Result<Box<dyn Read + Send>, Failure> {
        self.files.open(&blob_name(digest))
    }

    fn no_such(&self, wanted: &Wanted, entries: &[Value]) -> Failure {
        let (place, others) = (self.files.place().display(), names(entries));
        let text = match wanted {
            Wanted::Only => format!("{place}: it has no image"),
            Wanted::Named(name) => format!("{place}: it has no image called {name:?}, but {others:?}"),
            Wanted::Tagged(reference) => format!("{place}: it has no image {reference}, but {others:?}"),
        };
        Failure::new(FailureClass::NotFound, text)
    }
}

impl Wanted {
    fn means(&self, entry: &Value) -> bool {
        match self {
            Self::Only => true,
            Self::Named(name) => ref_name(entry) == Some(name),
            Self::Tagged(reference) => {
                let known = annotation(entry, IMAGE_NAME).and_then(|text| text.parse().ok());
                known.is_some_and(|known: ImageReference| known == *reference)
            }
        }
    }
}

impl From<Option<&str>> for Wanted {
    fn from(name: Option<&str>) -> Self {
        name.map_or(Self::Only, |name| Self::Named(name.to_owned()))
    }
}

/// Where a layout has a blob.
pub(crate) fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The name of an image, as an entry of a layout has it.
pub(crate) fn ref_name(entry: &Value) -> Option<&str> {
    annotation(entry, REF_NAME)
}

fn annotation<'v>(entry: &'v Value, key: &str) -> Option<&'v str> {
    entry.get("annotations")?.get(key)?.as_str()
}

/// The names of entries, as far as a message can hold them.
fn names(entries: &[Value]) -> Vec<&str> {
    let name = |entry| annotation(entry, IMAGE_NAME).or_else(|| ref_name(entry));
    entries.iter().filter_map(name).take(16).collect()
}

fn decoded(bytes: Bytes, shown: &str) -> Result<FoundDocument, Failure> {
    let document = Document::decode(&bytes).map_err(|error| {
        Failure::with_source(FailureClass::Image, format!("{shown}: cannot be used"), error)
    })?;
    let digest = Digest::from_hash(Sha256::digest(&bytes).into());
    Ok(FoundDocument { digest, bytes, document })
}
