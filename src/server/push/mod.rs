//! Pushes a new version of an image: what a base has, and one layer file on top.
//!
//! What is pushed is one image, also where the base is an index of images for several platforms: the one for a platform gets the
//! layer, and the others are not in it. What the target's repository lacks is taken over from the base's, where both lie in one registry that does so, and
//! copied otherwise.

mod blobs;
mod upload;

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

pub use blobs::PushProgress;
use blobs::{Parcel, send};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use super::references::check_platform;
pub use upload::upload;

use super::{
    api::types::ImageSpec,
    blocking::blocking,
    failure::{Failure, FailureClass},
    layer_report::{self, LayerReport},
    layers::{FileIdentity, unreadable},
    network::failure_of_registry,
    service::Service,
};
use crate::{
    format::{
        oci::{Digest, Document, Index, Layer, Platform},
        uuid::Uuid,
    },
    registry::{
        BlobContent, BlobOrigin, Client, FileContent, FoundDocument, ImageDocuments, ImageReference, NewBlob,
        NextImage, NextImageError, Repository,
    },
    upper::{LayerLink, check_parents},
};

/// Bytes that are hashed at once.
const PIECE_BYTES: usize = 1 << 20;

/// What to push where.
#[derive(Debug, Clone)]
pub struct PushOptions {
    /// The layer file: a ZFile in a tar envelope.
    pub layer: PathBuf,
    /// Reference of the image that the layer lies over; none where it lies over nothing.
    pub base: Option<String>,
    /// Reference of what is made; its tag is moved last.
    pub target: String,
    /// What the image is for, where a base has images for several platforms, or none; `None` for this machine's. Where it is given, a
    /// base that is for another one is refused.
    pub platform: Option<Platform>,
}

/// What was pushed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pushed {
    /// The reference that will always mean it: tag and digest.
    pub reference: String,
    /// Digest of the manifest.
    pub digest: String,
    /// Digest of the new layer.
    pub layer: String,
    /// Layers in all.
    pub layers: usize,
    /// The platform of the image, where the base has images for others too, which are not in what was pushed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// Blobs that were sent from here.
    pub uploaded: usize,
    /// Their bytes.
    pub uploaded_bytes: u64,
    /// Blobs that were copied from the base's repository.
    pub copied: usize,
    /// Their bytes.
    pub copied_bytes: u64,
    /// Blobs that the registry took over from the base's repository.
    pub mounted: usize,
    /// Blobs that were there.
    pub present: usize,
}

/// An image of a registry that a layer is to lie over.
struct Base {
    repository: Repository,
    /// The reference that always means it.
    pinned: String,
    documents: ImageDocuments,
    /// Whether there are others beside it, for other platforms.
    is_of_index: bool,
}

/// Pushes what `options` say. The tag is moved when all blobs are there: whatever fails before leaves it as it was.
///
/// # Errors
/// When the layer file is of another form, the base cannot be built upon, or a registry refuses.
pub async fn push(
    service: &Service,
    options: &PushOptions,
    progress: &PushProgress,
) -> Result<Pushed, Failure> {
    let client = service.factory().client();
    let target = reference(&options.target)?;
    if target.digest().is_some() {
        let text = format!("{target} has a digest, which follows from what is pushed: give a tag alone");
        return Err(Failure::new(FailureClass::Usage, text));
    }
    let repository = repository(client, &target)?;
    let seen = seen(&options.layer)?;
    let report = layer_report::inspect(service, &options.layer).await?;
    check_form(&report)?;
    let platform = options.platform.clone().unwrap_or_else(Platform::host);
    let base = match &options.base {
        Some(text) => {
            let base = reference(text)?;
            let found = fetch_base(client, &base, &platform).await?;
            if options.platform.is_some() {
                check_platform(&base, &found.documents.config, &platform)?;
            }
            Some(found)
        }
        None => None,
    };
    check_loses_no_platform(client, &target, &[]).await?;
    if service.config().image.check_parents {
        check_parents_of(service, base.as_ref(), &report).await?;
    }
    let (file, layer) = hash(options.layer.clone(), seen).await?;
    let next = match &base {
        Some(base) => base.documents.with_layer(layer),
        None => ImageDocuments::empty(&platform).and_then(|empty| empty.with_layer(layer)),
    };
    let next = next.map_err(|error| unusable_base(&options.base, error))?;
    let parcels = parcels(&next, base.as_ref(), (client, &repository), &file, progress);
    let arrivals = send(client, &repository, parcels).await?;
    let put = client.put_document(&repository, target.tag_or_digest(), &next.manifest()).await;
    put.map_err(|error| failure_of_registry(format!("cannot push the manifest of {target}"), error))?;
    Ok(Pushed {
        reference: format!("{target}@{}", next.digest),
        digest: next.digest.to_string(),
        layer: layer.digest.to_string(),
        layers: next.layers.len(),
        platform: base.filter(|base| base.is_of_index).map(|_| platform.to_string()),
        uploaded: arrivals.uploaded,
        uploaded_bytes: arrivals.uploaded_bytes,
        copied: arrivals.copied,
        copied_bytes: arrivals.copied_bytes,
        mounted: arrivals.mounted,
        present: arrivals.present,
    })
}

fn reference(text: &str) -> Result<ImageReference, Failure> {
    text.parse().map_err(|source| {
        Failure::with_source(FailureClass::Usage, format!("{text:?} is not an image reference"), source)
    })
}

fn repository(client: &Client, reference: &ImageReference) -> Result<Repository, Failure> {
    client.repository(reference).map_err(|source| {
        Failure::with_source(FailureClass::Usage, format!("{reference} is not an image reference"), source)
    })
}

/// Makes sure that the file is what registries and upstream's snapshotter take for a layer.
fn check_form(report: &LayerReport) -> Result<(), Failure> {
    let lacks = match (report.compression.is_some(), report.tar_envelope) {
        (true, true) => return Ok(()),
        (true, false) => "has no tar envelope",
        (false, true) => "is not compressed",
        (false, false) => "is neither compressed nor in a tar envelope",
    };
    let text = format!(
        "{}: the layer {lacks}, and a registry's layer is both: make it with `ublk-ctl layer commit --tar`, or \
         `ublk-ctl layer compress --tar` of a sealed one",
        report.name
    );
    Err(Failure::new(FailureClass::Usage, text))
}

/// Makes sure that `target` means no index with images for platforms that are not among `kept`: they would be lost. What means one image
/// keeps none of an index.
///
/// # Errors
/// Where one would be.
pub async fn check_loses_no_platform(
    client: &Client,
    target: &ImageReference,
    kept: &[Platform],
) -> Result<(), Failure> {
    match client.document(target).await {
        Ok(FoundDocument { document: Document::Index(index), .. }) => {
            require_platforms(&target.to_string(), &index, kept)
        }
        // What else keeps it from being read keeps nobody from writing it, or will be said when it is written.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Makes sure that all platforms of `index`, which `name` means now, are among `kept`, and that there are any.
///
/// # Errors
/// Where one is not.
pub fn require_platforms(name: &str, index: &Index, kept: &[Platform]) -> Result<(), Failure> {
    let lost = index
        .manifests
        .iter()
        .filter_map(|entry| entry.platform.as_ref())
        .find(|platform| !platform.is_unknown() && !kept.iter().any(|kept| kept.accepts(platform)));
    let which = match lost {
        Some(platform) => format!(", such as {platform}"),
        None if kept.is_empty() => String::new(),
        None => return Ok(()),
    };
    let text = format!(
        "{name} has images for other platforms too{which}, which would not be in what is pushed: give another tag"
    );
    Err(Failure::new(FailureClass::Conflict, text))
}

/// Makes sure that the layer was made over the base, as far as it says so: over another one it would be damage.
async fn check_parents_of(
    service: &Service,
    base: Option<&Base>,
    report: &LayerReport,
) -> Result<(), Failure> {
    let uuid_of = |text: &Option<String>| text.as_deref().and_then(|text| text.parse().ok());
    let parent_uuid: Option<Uuid> = uuid_of(&report.parent_uuid);
    let top = LayerLink { name: report.name.clone(), uuid: uuid_of(&report.uuid), parent_uuid };
    let Some(base) = base else {
        return match parent_uuid {
            None => Ok(()),
            Some(parent) => {
                let text =
                    format!("{}: the layer was made over layer {parent}: name its image by --base", top.name);
                Err(Failure::new(FailureClass::Usage, text))
            }
        };
    };
    let (below, _) = service.open(&ImageSpec::Reference(base.pinned.clone())).await?;
    check_parents(below.links().into_iter().chain([top])).map_err(|source| {
        let text = format!("the layer does not belong over {}", base.pinned);
        Failure::with_source(FailureClass::Image, text, source)
    })
}

async fn fetch_base(
    client: &Client,
    reference: &ImageReference,
    platform: &Platform,
) -> Result<Base, Failure> {
    let repository = repository(client, reference)?;
    let failed = |error| failure_of_registry(format!("cannot read the base {reference}"), error);
    let found = client.manifest(reference, platform).await.map_err(failed)?;
    found.manifest.layers().map_err(|source| {
        Failure::with_source(FailureClass::Image, format!("{reference} cannot be a base"), source)
    })?;
    let config = client.image_config(&repository, found.bytes.clone()).await.map_err(failed)?;
    let pinned = reference.pinned(found.digest);
    let documents = ImageDocuments { manifest: found.bytes, config };
    Ok(Base { repository, pinned, documents, is_of_index: found.is_of_index })
}

fn unusable_base(base: &Option<String>, error: NextImageError) -> Failure {
    let name = base.as_deref().unwrap_or("an empty image");
    Failure::with_source(FailureClass::Image, format!("{name} cannot be a base"), error)
}

/// What the file at `path` is now.
fn seen(path: &Path) -> Result<FileIdentity, Failure> {
    fs::metadata(path).map(|found| FileIdentity::of(&found)).map_err(|source| unreadable(path, source))
}

/// Opens the layer file, which is to be the one that was `seen` before it was looked into, and finds out its name.
async fn hash(path: PathBuf, seen: FileIdentity) -> Result<(Arc<File>, Layer), Failure> {
    blocking(move || {
        let fail = |source: io::Error| unreadable(&path, source);
        let mut file = File::open(&path).map_err(fail)?;
        let (mut hash, mut size_bytes) = (Sha256::new(), 0_u64);
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let count = match file.read(&mut piece) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(fail(error)),
            };
            let Some(read) = piece.get(..count).filter(|read| !read.is_empty()) else { break };
            hash.update(read);
            size_bytes = size_bytes.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        }
        if FileIdentity::of(&file.metadata().map_err(fail)?) != seen {
            let text = format!("{}: it has changed while it was looked at: push it again", path.display());
            return Err(Failure::new(FailureClass::Conflict, text));
        }
        let digest = Digest::from_hash(hash.finalize().into());
        Ok((Arc::new(file), Layer { digest, size_bytes, verity: None }))
    })
    .await
}

/// All that the repository must have before the manifest.
fn parcels(
    next: &NextImage,
    base: Option<&Base>,
    (client, target): (&Client, &Repository),
    file: &Arc<File>,
    progress: &PushProgress,
) -> Vec<Parcel> {
    let mut parcels: Vec<Parcel> = Vec::new();
    let config = &next.documents.config;
    let config_bytes = u64::try_from(config.len()).unwrap_or(u64::MAX);
    let blob = NewBlob {
        digest: next.config_digest,
        size_bytes: config_bytes,
        origin: BlobOrigin::Bytes(config.clone()),
    };
    parcels.push(Parcel { blob, sent_bytes: progress.part(config_bytes) });
    // The last layer is the file's, also where the base has the same.
    let mut is_new = true;
    for Layer { digest, size_bytes, .. } in next.layers.iter().rev().copied() {
        if parcels.iter().all(|parcel| parcel.blob.digest != digest) {
            let sent_bytes = progress.part(size_bytes);
            let origin = match base {
                _ if is_new => {
                    let content = FileContent::new(Arc::clone(file), size_bytes, Arc::clone(&sent_bytes));
                    BlobOrigin::File(content)
                }
                Some(Base { repository, .. }) if repository != target => {
                    let blob = client.blob(repository, digest, size_bytes);
                    BlobOrigin::Blob(BlobContent::new(blob, Arc::clone(&sent_bytes)))
                }
                _ => BlobOrigin::Nowhere,
            };
            parcels.push(Parcel { blob: NewBlob { digest, size_bytes, origin }, sent_bytes });
        }
        is_new = false;
    }
    parcels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_that_has_changed_since_it_was_looked_into_is_not_pushed() {
        let dir = tempfile::tempdir().unwrap();
        let [path, other] = ["layer", "other"].map(|name| dir.path().join(name));
        fs::write(&path, "one").unwrap();
        fs::write(&other, "two").unwrap();
        let looked_into = seen(&path).unwrap();
        hash(path.clone(), looked_into.clone()).await.unwrap();
        fs::rename(&other, &path).unwrap();
        let refused = hash(path.clone(), looked_into).await.unwrap_err();
        assert_eq!(refused.class(), FailureClass::Conflict);
    }
}
