//! Gives the layers of an overlaybd image their Merkle trees.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::Read,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use stratabd::{
    format::{
        oci::{Descriptor, Digest, Document, Layer},
        tar::{Envelope, HEAD_BYTES},
    },
    offline::add_tree,
    registry::Client,
    server::failure::{Failure, FailureClass},
};
use tokio::runtime::Handle;

use crate::{
    choice::Platforms,
    convert::{ConvertProgress, put_root},
    place::Place,
    source::{Source, SourceImage, unusable},
    target::Target,
};

/// Bytes that are read at once.
const PART_BYTES: usize = 1 << 20;

/// Whose layers get trees, and where the image goes that has them.
#[derive(Debug, Clone)]
pub struct AddVerityOptions {
    /// Where the image lies.
    pub source: Place,
    /// Where the one with trees goes; its name is moved last.
    pub target: Place,
    /// Which images of several.
    pub platforms: Platforms,
    /// Where a file without a name lies while a layer is made.
    pub spool: PathBuf,
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerityAdded {
    /// The name that will always mean it.
    pub reference: String,
    /// Digest of its manifest, or of its index.
    pub digest: String,
    /// Digest of the manifest or index that it was made of.
    pub source_digest: String,
    /// Layers. One that several images have is there once.
    pub layers: usize,
    /// Layers that had a tree before.
    pub proven: usize,
    /// Bytes of the source's layers.
    pub source_bytes: u64,
    /// Bytes of the layers with their trees.
    pub output_bytes: u64,
    /// Layers that the target had.
    pub present: usize,
}

/// Makes of an overlaybd image one whose layers have Merkle trees and which is the same otherwise. The target's name is moved when
/// all is there: whatever fails before leaves it as it was.
///
/// To be called on a tokio runtime of several threads.
///
/// # Errors
/// When the image cannot be read or is none of overlaybd, or the target cannot take what is made.
pub async fn add_verity(
    client: &Client,
    options: &AddVerityOptions,
    progress: &Arc<ConvertProgress>,
) -> Result<VerityAdded, Failure> {
    let chosen = Source::open(&options.source, client)?.choose(&options.platforms).await?;
    let layers: Result<Vec<Vec<Layer>>, Failure> = chosen.images.iter().map(overlaybd_layers).collect();
    let layers = layers?;
    let target = Target::open(&options.target, client)?;
    let kept = match chosen.index {
        Some(_) => chosen.images.iter().filter_map(SourceImage::platform).collect(),
        None => Vec::new(),
    };
    target.check_loses_no_platform(&kept).await?;
    let all: HashMap<Digest, u64> =
        layers.iter().flatten().map(|layer| (layer.digest, layer.size_bytes)).collect();
    all.values().for_each(|size_bytes| progress.expect_layer(*size_bytes));
    let mut adding = Adding { options, progress, target: &target, made: HashMap::new(), present: 0 };
    let mut manifests = Vec::new();
    for (image, layers) in chosen.images.iter().zip(&layers) {
        let proven = adding.layers(image, layers).await?;
        let next = image.documents.with_layers_proven(&proven).map_err(unusable(&image.name))?;
        target.put_config(&next).await?;
        manifests.push((image.entry.clone(), next.manifest()));
    }
    let (root, reference, source_digest) = put_root(&chosen, &target, &manifests, false).await?;
    let known: HashSet<&Layer> = layers.iter().flatten().collect();
    Ok(VerityAdded {
        reference,
        digest: root.to_string(),
        source_digest: source_digest.to_string(),
        layers: all.len(),
        proven: known.iter().filter(|layer| layer.verity.is_some()).count(),
        source_bytes: progress.bytes().1,
        output_bytes: adding.made.values().fold(0, |sum, layer| sum.saturating_add(layer.size_bytes)),
        present: adding.present,
    })
}

/// What all images of a run share.
struct Adding<'a> {
    options: &'a AddVerityOptions,
    progress: &'a Arc<ConvertProgress>,
    target: &'a Target,
    /// What has become of layers, by their digests.
    made: HashMap<Digest, Layer>,
    present: usize,
}

impl Adding<'_> {
    /// The layers of `image` with their trees, which the target has then.
    async fn layers(&mut self, image: &SourceImage, layers: &[Layer]) -> Result<Vec<Layer>, Failure> {
        let mut proven = Vec::new();
        for (descriptor, layer) in image.layers.iter().zip(layers.iter().copied()) {
            if let Some(made) = self.made.get(&layer.digest) {
                proven.push(*made);
                continue;
            }
            let making = {
                let (image, descriptor) = (image.clone(), descriptor.clone());
                let (progress, folder) = (Arc::clone(self.progress), self.options.spool.clone());
                let runtime = Handle::current();
                move || make(&image, (&descriptor, layer), (&runtime, &progress), &folder)
            };
            let (made, file) = tokio::task::spawn_blocking(making).await.unwrap_or_else(|error| {
                Err(Failure::with_source(FailureClass::Internal, "a thread has failed", error))
            })?;
            self.progress.count_made();
            self.present += usize::from(self.target.put_layer(made, file, self.progress).await?);
            self.progress.count_sent();
            self.made.insert(layer.digest, made);
            proven.push(made);
        }
        Ok(proven)
    }
}

/// The layers of an image, all of which must be overlaybd's.
fn overlaybd_layers(image: &SourceImage) -> Result<Vec<Layer>, Failure> {
    let wrong = |error| {
        let text = format!("{} cannot be given Merkle trees", image.name);
        Failure::with_source(FailureClass::Image, text, error)
    };
    match Document::decode(&image.documents.manifest).map_err(wrong)? {
        Document::Manifest(manifest) => manifest.layers().map_err(wrong),
        Document::Index(_) => {
            Err(Failure::new(FailureClass::Image, format!("{}: it is an index", image.name)))
        }
    }
}

/// A layer with its tree, in a file without a name.
fn make(
    image: &SourceImage,
    (descriptor, layer): (&Descriptor, Layer),
    (runtime, progress): (&Handle, &Arc<ConvertProgress>),
    folder: &Path,
) -> Result<(Layer, Arc<File>), Failure> {
    let failed = |error| {
        let text = format!("{}: cannot keep a layer in it (--spool names another folder)", folder.display());
        Failure::with_source(FailureClass::Internal, text, error)
    };
    let file = tempfile::tempfile_in(folder).map_err(failed)?;
    let mut blob = progress.watched(image.open_blob(descriptor, (runtime, progress))?);
    let unread = |error| {
        let text = format!("{}: cannot read the layer {}", image.name, layer.digest);
        Failure::with_source(FailureClass::Registry, text, error)
    };
    let (mut hash, mut part, mut read_bytes, mut start) = (Sha256::new(), Vec::new(), 0_u64, 0_u64);
    loop {
        part.clear();
        if blob.by_ref().take(PART_BYTES as u64).read_to_end(&mut part).map_err(unread)? == 0 {
            break;
        }
        let head = part.get(..HEAD_BYTES).unwrap_or(&part);
        if read_bytes == 0 && matches!(Envelope::detect(head, layer.size_bytes), Ok(None)) {
            // As `image push` takes it too: the tree has to be a member of an archive.
            file.write_all_at(&Envelope::head(layer.size_bytes), 0).map_err(failed)?;
            start = Envelope::HEAD_BYTES;
        }
        hash.update(&part);
        file.write_all_at(&part, start.saturating_add(read_bytes)).map_err(failed)?;
        read_bytes = read_bytes.saturating_add(part.len() as u64);
    }
    let found = Digest::from_hash(hash.finalize().into());
    if (found, read_bytes) != (layer.digest, layer.size_bytes) {
        let text = format!(
            "{}: the layer {} has {read_bytes} bytes and the digest {found}: it was changed, or damaged on its way",
            image.name, layer.digest
        );
        return Err(Failure::new(FailureClass::Image, text));
    }
    match layer.verity {
        Some(_) => Ok((layer, Arc::new(file))),
        None => {
            let path = folder.join(layer.digest.hex());
            let proven = add_tree(&file, &path, start.saturating_add(read_bytes)).map_err(Failure::from)?;
            Ok((proven, Arc::new(file)))
        }
    }
}
