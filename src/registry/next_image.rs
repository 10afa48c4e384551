//! The documents of a new version of an image: those of its base with one layer more, as upstream's converter writes them.

use std::collections::HashMap;

use bytes::Bytes;
use oci_spec::{
    OciSpecError,
    image::{
        Arch, Descriptor, DescriptorBuilder, History, HistoryBuilder, ImageConfigurationBuilder,
        ImageManifest, ImageManifestBuilder, MediaType, Os, RootFs, Sha256Digest,
    },
};
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::format::oci::{DOCUMENT_LIMIT_BYTES, Digest, Document, FS_TYPE, Layer, OciError, Platform};

pub(super) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(super) const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// What the history says of the layer. No time is in it, so that the same layer over the same base is the same image.
const CREATED_BY: &str = "ublk-ctl image push";

/// The two documents of an image.
#[derive(Debug, Clone)]
pub struct ImageDocuments {
    /// The manifest.
    pub manifest: Bytes,
    /// The configuration that it names.
    pub config: Bytes,
}

/// A manifest or an index that is yet to be pushed.
#[derive(Debug, Clone)]
pub struct NewDocument {
    /// What it is.
    pub media_type: String,
    /// Digest of `bytes`.
    pub digest: Digest,
    /// As it is pushed.
    pub bytes: Bytes,
}

/// A version of an image that is yet to be pushed.
#[derive(Debug, Clone)]
pub struct NextImage {
    /// Its documents.
    pub documents: ImageDocuments,
    /// Digest of the manifest.
    pub digest: Digest,
    /// Digest of the configuration.
    pub config_digest: Digest,
    /// Media type of the manifest.
    pub media_type: String,
    /// All layers, lowest first; the last one is new.
    pub layers: Vec<Layer>,
}

/// Why an image has no next version.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NextImageError {
    /// Not the JSON that a manifest or a configuration is.
    #[error("its documents are malformed")]
    Malformed(#[source] OciSpecError),
    /// An index, or an entry of one, that is none.
    #[error("its index is no object of JSON, or an entry of it is none")]
    Entry,
    /// An index has no layers of its own.
    #[error("its manifest is an index of manifests")]
    Index,
    /// Not the JSON that a manifest or a configuration is.
    #[error("its configuration is malformed")]
    Config(#[source] serde_json::Error),
    /// The configuration lists what the layers hold.
    #[error("its configuration has no list of rootfs.diff_ids")]
    NoDiffIds,
    /// One of them for each.
    #[error("its manifest has {layers} layers, and its configuration lists {diff_ids}")]
    DiffIds {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
    /// The name of the configuration cannot be used.
    #[error("its configuration is not named by a SHA-256 digest")]
    ConfigDigest,
    /// Larger than any that is made.
    #[error("its configuration of {0} bytes is longer than {DOCUMENT_LIMIT_BYTES}")]
    ConfigTooLong(u64),
    /// What would be pushed could not be served.
    #[error("with the layer it would be no usable image")]
    Unusable(#[source] OciError),
}

impl NextImage {
    /// Its manifest.
    #[must_use]
    pub fn manifest(&self) -> NewDocument {
        NewDocument {
            media_type: self.media_type.clone(),
            digest: self.digest,
            bytes: self.documents.manifest.clone(),
        }
    }
}

impl ImageDocuments {
    /// Those of an image without a layer.
    ///
    /// # Errors
    /// None in practice: what is built is complete.
    pub fn empty(platform: &Platform) -> Result<Self, NextImageError> {
        let mut config = ImageConfigurationBuilder::default();
        if let Some(variant) = &platform.variant {
            config = config.variant(variant);
        }
        let config = config
            .architecture(Arch::from(platform.architecture.as_str()))
            .os(Os::from(platform.os.as_str()))
            .rootfs(RootFs::default())
            .history(Vec::<History>::new())
            .build()
            .map_err(NextImageError::Malformed)?;
        let config = json(&config)?;
        let manifest = ImageManifestBuilder::default()
            .schema_version(2_u32)
            .media_type(MediaType::ImageManifest)
            .config(descriptor(MediaType::ImageConfig, digest_of(&config), config.len() as u64)?)
            .layers(Vec::<Descriptor>::new())
            .build()
            .map_err(NextImageError::Malformed)?;
        Ok(Self { manifest: json(&manifest)?, config })
    }

    /// Digest and size in bytes of the configuration that `manifest` names.
    ///
    /// # Errors
    /// [`NextImageError`], also where it is longer than any that is made.
    pub fn config_of(manifest: &[u8]) -> Result<(Digest, u64), NextImageError> {
        let parsed = parse(manifest)?;
        let size_bytes = parsed.config().size();
        if size_bytes > DOCUMENT_LIMIT_BYTES as u64 {
            return Err(NextImageError::ConfigTooLong(size_bytes));
        }
        let digest =
            parsed.config().digest().to_string().parse().map_err(|_| NextImageError::ConfigDigest)?;
        Ok((digest, size_bytes))
    }

    /// The next version: this one with `layer` on top. All that is not about layers stays as it is.
    ///
    /// # Errors
    /// [`NextImageError`].
    pub fn with_layer(&self, layer: Layer) -> Result<NextImage, NextImageError> {
        let parsed = parse(&self.manifest)?;
        let config = next_config(&self.config, parsed.layers().len(), layer.digest)?;
        let config_digest = digest_of(&config);
        let media_type = parsed.media_type().as_ref().map_or(OCI_MANIFEST.to_owned(), ToString::to_string);
        let layer_type = match media_type.as_str() {
            DOCKER_MANIFEST => MediaType::Other(DOCKER_LAYER.to_owned()),
            _ => MediaType::ImageLayer,
        };
        let mut top = descriptor(layer_type, layer.digest, layer.size_bytes)?;
        let annotations = layer.annotations().map(|(key, value)| (key.to_owned(), value));
        let mut annotations: HashMap<_, _> = annotations.collect();
        // The device is the same one, and so is the file system on it.
        let below = parsed.layers().last().and_then(|below| below.annotations().as_ref());
        let fs_type = below.and_then(|below| below.get(FS_TYPE));
        annotations.extend(fs_type.map(|fs_type| (FS_TYPE.to_owned(), fs_type.clone())));
        top.set_annotations(Some(annotations));
        let config_type = parsed.config().media_type().clone();
        let config_entry = descriptor(config_type, config_digest, config.len() as u64)?;
        let mut manifest: Value = serde_json::from_slice(&self.manifest).map_err(NextImageError::Config)?;
        if let Some(members) = manifest.as_object_mut() {
            members.insert("config".to_owned(), value(&config_entry)?);
            if let Some(Value::Array(layers)) = members.get_mut("layers") {
                layers.push(value(&top)?);
            }
            // The base may be the converted form of another image; this one is not.
            members.remove("subject");
        }
        let manifest = json(&manifest)?;
        let layers = match Document::decode(&manifest).map_err(NextImageError::Unusable)? {
            Document::Manifest(manifest) => manifest.layers().map_err(NextImageError::Unusable)?,
            Document::Index(_) => return Err(NextImageError::Index),
        };
        let digest = digest_of(&manifest);
        Ok(NextImage { documents: Self { manifest, config }, digest, config_digest, media_type, layers })
    }
}

/// The configuration `base` of an image of so many layers, with one more. What the library's type does not know is kept.
fn next_config(base: &[u8], layers: usize, diff_id: Digest) -> Result<Bytes, NextImageError> {
    let mut config: Value = serde_json::from_slice(base).map_err(NextImageError::Config)?;
    let Some(Value::Array(diff_ids)) = config.pointer_mut("/rootfs/diff_ids") else {
        return Err(NextImageError::NoDiffIds);
    };
    if diff_ids.len() != layers {
        return Err(NextImageError::DiffIds { layers, diff_ids: diff_ids.len() });
    }
    diff_ids.push(Value::String(diff_id.to_string()));
    // A history tells of all layers or is not there.
    if let Some(Value::Array(history)) = config.get_mut("history") {
        let entry =
            HistoryBuilder::default().created_by(CREATED_BY).build().map_err(NextImageError::Malformed)?;
        history.push(value(&entry)?);
    }
    json(&config)
}

pub(super) fn parse(manifest: &[u8]) -> Result<ImageManifest, NextImageError> {
    ImageManifest::from_reader(manifest).map_err(NextImageError::Malformed)
}

pub(super) fn descriptor(
    media_type: MediaType,
    digest: Digest,
    size_bytes: u64,
) -> Result<Descriptor, NextImageError> {
    let digest: Sha256Digest = digest.hex().parse().map_err(NextImageError::Malformed)?;
    let built = DescriptorBuilder::default().media_type(media_type).digest(digest).size(size_bytes).build();
    built.map_err(NextImageError::Malformed)
}

pub(super) fn value(part: &impl Serialize) -> Result<Value, NextImageError> {
    serde_json::to_value(part).map_err(NextImageError::Config)
}

/// By way of a value, whose keys are sorted, so that the same document is the same bytes.
pub(super) fn json(document: &impl Serialize) -> Result<Bytes, NextImageError> {
    serde_json::to_vec(&value(document)?).map(Bytes::from).map_err(NextImageError::Config)
}

pub(super) fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_hash(Sha256::digest(bytes).into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn layer(number: u8) -> Layer {
        Layer { digest: Digest::from_hash([number; 32]), size_bytes: u64::from(number), verity: None }
    }

    fn linux() -> Platform {
        Platform { os: "linux".into(), architecture: "amd64".into(), variant: None }
    }

    #[test]
    fn layers_are_put_on_nothing_and_on_one_another() {
        let empty = ImageDocuments::empty(&linux()).unwrap();
        let first = empty.with_layer(layer(1)).unwrap();
        assert_eq!(first.layers, [layer(1)]);
        let second = first.documents.with_layer(layer(2)).unwrap();
        assert_eq!(second.layers, [layer(1), layer(2)]);
        assert_eq!(second.digest, first.documents.with_layer(layer(2)).unwrap().digest);
        let config: Value = serde_json::from_slice(&second.documents.config).unwrap();
        let digests = [1, 2].map(|number| layer(number).digest.to_string());
        assert_eq!(config["rootfs"], json!({"type": "layers", "diff_ids": digests}));
        assert_eq!((&config["os"], &config["architecture"]), (&json!("linux"), &json!("amd64")));
        assert_eq!(config["history"].as_array().unwrap().len(), 2);
        let manifest: Value = serde_json::from_slice(&second.documents.manifest).unwrap();
        assert_eq!(manifest["mediaType"], OCI_MANIFEST);
        assert_eq!(manifest["config"]["digest"], second.config_digest.to_string());
        let top = json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digests[1], "size": 2,
            "annotations": {
                "containerd.io/snapshot/overlaybd/version": "0.1.0",
                "containerd.io/snapshot/overlaybd/blob-digest": digests[1],
                "containerd.io/snapshot/overlaybd/blob-size": "2",
            },
        });
        assert_eq!(manifest["layers"][1], top);
        // The file system of the device is the one that it was.
        let mut over_xfs = manifest.clone();
        over_xfs["layers"][1]["annotations"][FS_TYPE] = json!("xfs;nouuid");
        let documents = ImageDocuments { manifest: over_xfs.to_string().into(), ..second.documents.clone() };
        let third = documents.with_layer(layer(3)).unwrap();
        let manifest: Value = serde_json::from_slice(&third.documents.manifest).unwrap();
        assert_eq!(manifest["layers"][2]["annotations"][FS_TYPE], "xfs;nouuid");
        assert_eq!(ImageDocuments::config_of(&second.documents.manifest).unwrap().0, second.config_digest);
    }

    #[test]
    fn dockers_types_and_what_nobody_here_knows_stay() {
        let empty = ImageDocuments::empty(&linux()).unwrap();
        let mut manifest: Value = serde_json::from_slice(&empty.manifest).unwrap();
        manifest["mediaType"] = json!(DOCKER_MANIFEST);
        manifest["config"]["mediaType"] = json!("application/vnd.docker.container.image.v1+json");
        manifest["config"]["data"] = json!("e30=");
        manifest["subject"] = manifest["config"].clone();
        manifest["x"] = json!(7);
        let config = json!({"config": {"Healthcheck": {"Test": ["NONE"]}}, "rootfs": {"diff_ids": []}});
        let base =
            ImageDocuments { manifest: manifest.to_string().into(), config: config.to_string().into() };
        let next = base.with_layer(layer(1)).unwrap();
        assert_eq!(next.media_type, DOCKER_MANIFEST);
        let manifest: Value = serde_json::from_slice(&next.documents.manifest).unwrap();
        assert_eq!(manifest["layers"][0]["mediaType"], DOCKER_LAYER);
        assert_eq!(manifest["config"]["mediaType"], "application/vnd.docker.container.image.v1+json");
        assert_eq!((manifest.get("subject"), manifest["config"].get("data")), (None, None));
        assert_eq!(manifest["x"], 7);
        let config: Value = serde_json::from_slice(&next.documents.config).unwrap();
        assert_eq!(config["config"]["Healthcheck"]["Test"][0], "NONE");
        assert_eq!(config.get("history"), None);
    }

    /// The fuzz target has found that it came out as an image without a layer.
    #[test]
    fn a_base_that_calls_itself_an_index_is_refused() {
        let mut base = ImageDocuments::empty(&linux()).unwrap();
        let mut manifest: Value = serde_json::from_slice(&base.manifest).unwrap();
        manifest["mediaType"] = json!("application/vnd.oci.image.index.v1+json");
        manifest["manifests"] = json!([]);
        base.manifest = manifest.to_string().into();
        assert!(matches!(base.with_layer(layer(1)), Err(NextImageError::Index)));
    }

    #[test]
    fn a_base_that_contradicts_itself_is_refused() {
        let empty = ImageDocuments::empty(&linux()).unwrap();
        let first = empty.with_layer(layer(1)).unwrap().documents;
        let mixed = ImageDocuments { config: empty.config.clone(), ..first.clone() };
        let error = mixed.with_layer(layer(2)).unwrap_err();
        assert!(matches!(error, NextImageError::DiffIds { layers: 1, diff_ids: 0 }), "{error:?}");
        for config in ["{}", "[]", r#"{"rootfs":{"diff_ids":7}}"#] {
            let error = ImageDocuments { config: config.into(), ..first.clone() }.with_layer(layer(2));
            assert!(matches!(error, Err(NextImageError::NoDiffIds)), "{error:?}");
        }
        let full = (0..=255).try_fold(empty, |documents, _| Ok(documents.with_layer(layer(3))?.documents));
        assert!(matches!(full, Err(NextImageError::Unusable(OciError::TooManyLayers(256)))), "{full:?}");
    }
}
