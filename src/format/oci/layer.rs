//! Overlaybd's layers among the blobs of a manifest, recognised by their annotations.

use super::{Descriptor, Digest, LAYER_COUNT_LIMIT, LayerRule, Manifest, OciError, Unsupported};
use crate::format::verity::{VERITY, Verity};

const BLOB_DIGEST: &str = "containerd.io/snapshot/overlaybd/blob-digest";
const BLOB_SIZE: &str = "containerd.io/snapshot/overlaybd/blob-size";
const VERSION: &str = "containerd.io/snapshot/overlaybd/version";
const ACCELERATION: &str = "containerd.io/snapshot/overlaybd/acceleration-layer";
/// The annotation that says the file system on the device, with options of mounting and making it. Upstream's snapshotter takes it
/// from the top layer.
pub const FS_TYPE: &str = "containerd.io/snapshot/overlaybd/blob-fs-type";
/// What TurboOCI adds, under today's name and the one it had before.
const TURBO_PREFIXES: [&str; 2] =
    ["containerd.io/snapshot/overlaybd/turbo-oci/", "containerd.io/snapshot/overlaybd/fastoci/"];
const TURBO_VERSIONS: [&str; 2] = ["0.1.0-turbo.ociv1", "0.1.0-fastoci"];
const NATIVE_VERSION: &str = "0.1.0";
const TURBO_ARTIFACT: &str = "application/vnd.containerd.overlaybd.turbo.v1+json";
/// With a suffix for the compression, or without one: ZFile compresses, so converters name the plain types.
const LAYER_MEDIA_TYPES: [&str; 3] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
];

/// The blob of one overlaybd layer: an optional tar envelope, an optional ZFile, and LSMT inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layer {
    /// The blob's name.
    pub digest: Digest,
    /// Size of the blob in bytes.
    pub size_bytes: u64,
    /// What proves parts of it, where it has a Merkle tree.
    pub verity: Option<Verity>,
}

impl Layer {
    /// The annotations of its descriptor, by which it is recognised.
    pub fn annotations(&self) -> impl Iterator<Item = (&'static str, String)> {
        let known = [
            (VERSION, NATIVE_VERSION.to_owned()),
            (BLOB_DIGEST, self.digest.to_string()),
            (BLOB_SIZE, self.size_bytes.to_string()),
        ];
        known.into_iter().chain(self.verity.map(|verity| (VERITY, verity.to_string())))
    }
}

/// What a descriptor describes.
enum Kind {
    Native,
    Ordinary,
    Unsupported(Unsupported),
}

impl Manifest {
    /// The overlaybd layers, bottom first.
    ///
    /// # Errors
    /// [`OciError::Ordinary`] where no layer is overlaybd's, [`OciError::Unsupported`], [`OciError::Layer`],
    /// [`OciError::NoLayers`] and [`OciError::TooManyLayers`].
    pub fn layers(&self) -> Result<Vec<Layer>, OciError> {
        if self.artifact_type.as_deref() == Some(TURBO_ARTIFACT) {
            return Err(OciError::Unsupported(Unsupported::TurboOci));
        }
        if self.layers.is_empty() {
            return Err(OciError::NoLayers);
        }
        let kinds: Vec<Kind> = self.layers.iter().map(kind).collect();
        if kinds.iter().all(|kind| matches!(kind, Kind::Ordinary)) {
            return Err(OciError::Ordinary);
        }
        if kinds.len() > LAYER_COUNT_LIMIT {
            return Err(OciError::TooManyLayers(kinds.len()));
        }
        let layers = self.layers.iter().zip(kinds).enumerate();
        layers
            .map(|(number, (descriptor, kind))| match kind {
                Kind::Native => native(descriptor).map_err(|rule| OciError::Layer { number, rule }),
                Kind::Ordinary => Err(OciError::Layer { number, rule: LayerRule::Ordinary }),
                Kind::Unsupported(what) => Err(OciError::Unsupported(what)),
            })
            .collect()
    }
}

fn kind(descriptor: &Descriptor) -> Kind {
    let annotation = |key: &str| descriptor.annotations.get(key).map(String::as_str);
    let is_turbo = |key: &String| TURBO_PREFIXES.iter().any(|prefix| key.starts_with(prefix));
    let turbo_version = annotation(VERSION).is_some_and(|version| TURBO_VERSIONS.contains(&version));
    if turbo_version || descriptor.annotations.keys().any(is_turbo) {
        Kind::Unsupported(Unsupported::TurboOci)
    } else if annotation(ACCELERATION) == Some("yes") {
        Kind::Unsupported(Unsupported::Acceleration)
    } else if annotation(BLOB_DIGEST).is_some() {
        Kind::Native
    } else {
        Kind::Ordinary
    }
}

/// The layer that the descriptor and its annotations agree on.
fn native(descriptor: &Descriptor) -> Result<Layer, LayerRule> {
    let annotation = |key: &str| descriptor.annotations.get(key).map(String::as_str);
    let digest: Digest = annotation(BLOB_DIGEST)
        .unwrap_or_default()
        .parse()
        .map_err(|_| LayerRule::NotDigest { annotation: BLOB_DIGEST })?;
    if digest != descriptor.digest {
        return Err(LayerRule::Contradiction { annotation: BLOB_DIGEST });
    }
    if let Some(size) = annotation(BLOB_SIZE) {
        let size: u64 = size.parse().map_err(|_| LayerRule::NotSize { annotation: BLOB_SIZE })?;
        if size != descriptor.size_bytes {
            return Err(LayerRule::Contradiction { annotation: BLOB_SIZE });
        }
    }
    if let Some(version) = annotation(VERSION).filter(|version| *version != NATIVE_VERSION) {
        return Err(LayerRule::Version(version.chars().take(64).collect()));
    }
    if !LAYER_MEDIA_TYPES.iter().any(|known| descriptor.media_type.starts_with(known)) {
        return Err(LayerRule::MediaType(descriptor.media_type.chars().take(128).collect()));
    }
    let rule = |rule| LayerRule::Verity { annotation: VERITY, rule };
    let verity = annotation(VERITY).map(str::parse::<Verity>).transpose().map_err(rule)?;
    if let Some(verity) = verity {
        verity.shape_in(descriptor.size_bytes).map_err(rule)?;
    }
    Ok(Layer { digest, size_bytes: descriptor.size_bytes, verity })
}
