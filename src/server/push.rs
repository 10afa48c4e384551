//! Pushes a new version of an image: what a base has, and one layer file on top.

use std::{
    fs::File,
    io::{self, Read},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    api::types::ImageSpec,
    blocking::blocking,
    failure::{Failure, FailureClass},
    layer_report::{self, LayerReport},
    layers::unreadable,
    network::failure_of_registry,
    service::Service,
};
use crate::{
    format::{
        oci::{Digest, Layer, Platform},
        uuid::Uuid,
    },
    registry::{
        Arrival, BlobOrigin, Client, FileContent, ImageDocuments, ImageReference, NewBlob, NextImage,
        NextImageError, Reason, RegistryError, Repository,
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
}

/// How far a push has come. Bytes; shared with whoever shows it.
#[derive(Debug, Default)]
pub struct PushProgress {
    /// Sent of the layer so far.
    pub sent_bytes: Arc<AtomicU64>,
    /// Size of the layer, 0 until it is known.
    pub total_bytes: AtomicU64,
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
    /// Blobs that were sent, and their bytes.
    pub uploaded: usize,
    /// Their bytes.
    pub uploaded_bytes: u64,
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
    let report = layer_report::inspect(service, &options.layer).await?;
    check_form(&report)?;
    let base = match &options.base {
        Some(text) => Some(fetch_base(client, &reference(text)?).await?),
        None => None,
    };
    if service.config().image.check_parents {
        check_parents_of(service, base.as_ref(), &report).await?;
    }
    let (file, layer) = hash(options.layer.clone()).await?;
    progress.total_bytes.store(layer.size_bytes, Ordering::Relaxed);
    let next = match &base {
        Some(base) => base.documents.with_layer(layer),
        None => ImageDocuments::empty(&Platform::host()).and_then(|empty| empty.with_layer(layer)),
    };
    let next = next.map_err(|error| unusable_base(&options.base, error))?;
    let content = FileContent::new(file, layer.size_bytes, Arc::clone(&progress.sent_bytes));
    let blobs = blobs(&next, base.as_ref(), &repository, content);
    let mut pushed = send(client, &repository, blobs).await?;
    let put = client.put_manifest(&repository, target.tag_or_digest(), &next).await;
    put.map_err(|error| failure_of_registry(format!("cannot push the manifest of {target}"), error))?;
    pushed.reference = format!("{target}@{}", next.digest);
    pushed.digest = next.digest.to_string();
    pushed.layer = layer.digest.to_string();
    pushed.layers = next.layers.len();
    Ok(pushed)
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

async fn fetch_base(client: &Client, reference: &ImageReference) -> Result<Base, Failure> {
    let repository = repository(client, reference)?;
    let failed = |error| failure_of_registry(format!("cannot read the base {reference}"), error);
    let found = client.manifest(reference, &Platform::host()).await.map_err(failed)?;
    found.manifest.layers().map_err(|source| {
        Failure::with_source(FailureClass::Image, format!("{reference} cannot be a base"), source)
    })?;
    let config = client.image_config(&repository, found.bytes.clone()).await.map_err(failed)?;
    let pinned = match reference.digest() {
        Some(_) => reference.to_string(),
        None => format!("{reference}@{}", found.digest),
    };
    Ok(Base { repository, pinned, documents: ImageDocuments { manifest: found.bytes, config } })
}

fn unusable_base(base: &Option<String>, error: NextImageError) -> Failure {
    let name = base.as_deref().unwrap_or("an empty image");
    Failure::with_source(FailureClass::Image, format!("{name} cannot be a base"), error)
}

/// Opens the layer file and finds out its name.
async fn hash(path: PathBuf) -> Result<(Arc<File>, Layer), Failure> {
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
        Ok((Arc::new(file), Layer { digest: Digest::from_hash(hash.finalize().into()), size_bytes }))
    })
    .await
}

/// All that the repository must have before the manifest.
fn blobs(next: &NextImage, base: Option<&Base>, target: &Repository, content: FileContent) -> Vec<NewBlob> {
    let config = &next.documents.config;
    let mut blobs = vec![NewBlob {
        digest: next.config_digest,
        size_bytes: u64::try_from(config.len()).unwrap_or(u64::MAX),
        origin: BlobOrigin::Bytes(config.clone()),
    }];
    let below = match base {
        Some(Base { repository, .. }) if repository != target && repository.shares_registry_with(target) => {
            BlobOrigin::Repository(repository.clone())
        }
        _ => BlobOrigin::Nowhere,
    };
    // The last layer is the file's, also where the base has the same.
    let mut origin = BlobOrigin::File(content);
    for Layer { digest, size_bytes } in next.layers.iter().rev().copied() {
        if blobs.iter().all(|blob| blob.digest != digest) {
            blobs.push(NewBlob { digest, size_bytes, origin });
        }
        origin = below.clone();
    }
    blobs
}

/// Makes sure that the repository has all of them, and counts how it came by them.
async fn send(client: &Client, repository: &Repository, blobs: Vec<NewBlob>) -> Result<Pushed, Failure> {
    let mut pushed = Pushed {
        reference: String::new(),
        digest: String::new(),
        layer: String::new(),
        layers: 0,
        uploaded: 0,
        uploaded_bytes: 0,
        mounted: 0,
        present: 0,
    };
    // All at once, within the client's limits; the first failure ends the others.
    let arriving: Vec<_> =
        blobs.into_iter().map(|blob| (blob.clone(), client.ensure_blob(repository, blob))).collect();
    for (blob, arrival) in arriving {
        let failed = |error| not_arrived(&blob, repository, error);
        match arrival.await.map_err(failed)? {
            Arrival::Present => pushed.present += 1,
            Arrival::Mounted => pushed.mounted += 1,
            Arrival::Uploaded => {
                pushed.uploaded += 1;
                pushed.uploaded_bytes += blob.size_bytes;
            }
        }
    }
    Ok(pushed)
}

fn not_arrived(blob: &NewBlob, repository: &Repository, error: RegistryError) -> Failure {
    let text = format!("cannot push the blob {} to {}", blob.digest, repository.host());
    match (&blob.origin, error.reason()) {
        (BlobOrigin::Nowhere | BlobOrigin::Repository(_), Reason::NotFound | Reason::NotMounted { .. }) => {
            let text =
                format!("{text}: a layer of the base must be copied into the target's repository first");
            Failure::with_source(FailureClass::Registry, text, error)
        }
        _ => failure_of_registry(text, error),
    }
}
