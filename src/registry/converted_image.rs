//! The documents of the overlaybd form of an image: its own, with other layers, as upstream's convertor writes them.

use std::collections::HashMap;

use bytes::Bytes;
use oci_spec::image::MediaType;
use serde_json::Value;

use super::{
    NextImage, NextImageError,
    next_image::{
        DOCKER_LAYER, DOCKER_MANIFEST, ImageDocuments, OCI_MANIFEST, descriptor, digest_of, json, parse,
        value,
    },
};
use crate::format::oci::{Digest, Document, Layer, OciError};

const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

impl ImageDocuments {
    /// This image with `layers` in place of its own, one for each. All that is not about layers stays as it is; with `oci` the media
    /// types are those of OCI, and otherwise the image's own.
    ///
    /// # Errors
    /// [`NextImageError`].
    pub fn with_layers_replaced(&self, layers: &[Layer], oci: bool) -> Result<NextImage, NextImageError> {
        let parsed = parse(&self.manifest)?;
        let own_type = parsed.media_type().as_ref().map_or(OCI_MANIFEST.to_owned(), ToString::to_string);
        let docker = own_type == DOCKER_MANIFEST && !oci;
        let (manifest_type, config_type, layer_type) = match docker {
            true => (DOCKER_MANIFEST, MediaType::from(DOCKER_CONFIG), MediaType::from(DOCKER_LAYER)),
            false => (OCI_MANIFEST, MediaType::ImageConfig, MediaType::ImageLayer),
        };
        let config = replaced_config(&self.config, parsed.layers().len(), layers)?;
        let config_digest = digest_of(&config);
        let entries: Result<Vec<Value>, _> =
            layers.iter().map(|layer| value(&layer_entry(&layer_type, *layer)?)).collect();
        let mut manifest: Value = serde_json::from_slice(&self.manifest).map_err(NextImageError::Config)?;
        let members = manifest.as_object_mut().ok_or(NextImageError::Index)?;
        members.insert("mediaType".to_owned(), Value::from(manifest_type));
        let config_entry = descriptor(config_type, config_digest, config.len() as u64)?;
        members.insert("config".to_owned(), value(&config_entry)?);
        members.insert("layers".to_owned(), Value::Array(entries?));
        // What the image was made of is not what this one is made of.
        members.remove("subject");
        Self::next(&manifest, config, config_digest, manifest_type.to_owned())
    }

    /// This overlaybd image with `layers` in place of its own, one for each: the same layers, and what proves them. All else that is
    /// said of them and of the image stays.
    ///
    /// # Errors
    /// [`NextImageError`].
    pub fn with_layers_proven(&self, layers: &[Layer]) -> Result<NextImage, NextImageError> {
        let parsed = parse(&self.manifest)?;
        let media_type = parsed.media_type().as_ref().map_or(OCI_MANIFEST.to_owned(), ToString::to_string);
        let config = replaced_config(&self.config, parsed.layers().len(), layers)?;
        let config_digest = digest_of(&config);
        let mut manifest: Value = serde_json::from_slice(&self.manifest).map_err(NextImageError::Config)?;
        let members = manifest.as_object_mut().ok_or(NextImageError::Index)?;
        let config_type = parsed.config().media_type().clone();
        members.insert(
            "config".to_owned(),
            value(&descriptor(config_type, config_digest, config.len() as u64)?)?,
        );
        let entries = members.get_mut("layers").and_then(Value::as_array_mut).ok_or(NextImageError::Index)?;
        for (entry, layer) in entries.iter_mut().zip(layers) {
            let entry = entry.as_object_mut().ok_or(NextImageError::Index)?;
            entry.insert("digest".to_owned(), Value::from(layer.digest.to_string()));
            entry.insert("size".to_owned(), Value::from(layer.size_bytes));
            let annotations = entry.get_mut("annotations").and_then(Value::as_object_mut);
            let annotations = annotations.ok_or(NextImageError::Unusable(OciError::Ordinary))?;
            annotations.extend(layer.annotations().map(|(key, value)| (key.to_owned(), Value::from(value))));
        }
        Self::next(&manifest, config, config_digest, media_type)
    }

    /// The image of these documents.
    fn next(
        manifest: &Value,
        config: Bytes,
        config_digest: Digest,
        media_type: String,
    ) -> Result<NextImage, NextImageError> {
        let manifest = json(manifest)?;
        let layers = match Document::decode(&manifest).map_err(NextImageError::Unusable)? {
            Document::Manifest(manifest) => manifest.layers().map_err(NextImageError::Unusable)?,
            Document::Index(_) => return Err(NextImageError::Index),
        };
        let digest = digest_of(&manifest);
        Ok(NextImage { digest, documents: Self { manifest, config }, config_digest, media_type, layers })
    }

    /// What the configuration says of the content of each layer, the lowest first: the digest of its tar archive, not compressed.
    ///
    /// # Errors
    /// [`NextImageError::Config`], [`NextImageError::NoDiffIds`], [`NextImageError::DiffIds`].
    pub fn diff_ids(&self) -> Result<Vec<Digest>, NextImageError> {
        let layers = parse(&self.manifest)?.layers().len();
        let config: Value = serde_json::from_slice(&self.config).map_err(NextImageError::Config)?;
        let listed = config.pointer("/rootfs/diff_ids").and_then(Value::as_array);
        let listed = listed.ok_or(NextImageError::NoDiffIds)?;
        let diff_ids: Option<Vec<Digest>> =
            listed.iter().map(|entry| entry.as_str().and_then(|text| text.parse().ok())).collect();
        let diff_ids = diff_ids.ok_or(NextImageError::NoDiffIds)?;
        match diff_ids.len() == layers {
            true => Ok(diff_ids),
            false => Err(NextImageError::DiffIds { layers, diff_ids: diff_ids.len() }),
        }
    }
}

/// The configuration `source` of an image of so many layers, whose content is now that of `layers`.
fn replaced_config(source: &[u8], count: usize, layers: &[Layer]) -> Result<Bytes, NextImageError> {
    let mut config: Value = serde_json::from_slice(source).map_err(NextImageError::Config)?;
    let Some(Value::Array(diff_ids)) = config.pointer_mut("/rootfs/diff_ids") else {
        return Err(NextImageError::NoDiffIds);
    };
    if diff_ids.len() != count || layers.len() != count {
        return Err(NextImageError::DiffIds { layers: layers.len(), diff_ids: diff_ids.len() });
    }
    *diff_ids = layers.iter().map(|layer| Value::String(layer.digest.to_string())).collect();
    json(&config)
}

fn layer_entry(media_type: &MediaType, layer: Layer) -> Result<oci_spec::image::Descriptor, NextImageError> {
    let mut entry = descriptor(media_type.clone(), layer.digest, layer.size_bytes)?;
    let annotations = layer.annotations().map(|(key, value)| (key.to_owned(), value));
    entry.set_annotations(Some(annotations.collect::<HashMap<_, _>>()));
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::format::{
        oci::Platform,
        verity::{VERITY, Verity},
    };

    fn layer(number: u8) -> Layer {
        Layer { digest: Digest::from_hash([number; 32]), size_bytes: u64::from(number), verity: None }
    }

    /// An ordinary image of two layers, in docker's types.
    fn ordinary() -> ImageDocuments {
        let linux = Platform { os: "linux".into(), architecture: "amd64".into(), variant: None };
        let empty = ImageDocuments::empty(&linux).unwrap();
        let mut manifest: Value = serde_json::from_slice(&empty.manifest).unwrap();
        let blob = |byte: &str| json!({"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "size": 9, "digest": format!("sha256:{}", byte.repeat(64))});
        manifest["mediaType"] = json!(DOCKER_MANIFEST);
        manifest["layers"] = json!([blob("a"), blob("b")]);
        manifest["annotations"] = json!({"org.opencontainers.image.version": "7"});
        let diff_ids = ["c", "d"].map(|byte| format!("sha256:{}", byte.repeat(64)));
        let config = json!({
            "config": {"Cmd": ["redis-server"]}, "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": [{"created_by": "one"}, {"created_by": "nothing", "empty_layer": true}, {"created_by": "two"}],
        });
        ImageDocuments { manifest: manifest.to_string().into(), config: config.to_string().into() }
    }

    #[test]
    fn all_but_the_layers_stays() {
        let source = ordinary();
        assert_eq!(source.diff_ids().unwrap().len(), 2);
        let next = source.with_layers_replaced(&[layer(1), layer(2)], false).unwrap();
        assert_eq!(
            (next.layers.as_slice(), next.media_type.as_str()),
            (&[layer(1), layer(2)][..], DOCKER_MANIFEST)
        );
        let manifest: Value = serde_json::from_slice(&next.documents.manifest).unwrap();
        assert_eq!(manifest["layers"][1]["mediaType"], DOCKER_LAYER);
        assert_eq!(manifest["annotations"]["org.opencontainers.image.version"], "7");
        assert_eq!(manifest["config"]["digest"], next.config_digest.to_string());
        let before: Value = serde_json::from_slice(&source.config).unwrap();
        let config: Value = serde_json::from_slice(&next.documents.config).unwrap();
        let digests = [1, 2].map(|number| layer(number).digest.to_string());
        assert_eq!(config["rootfs"], json!({"type": "layers", "diff_ids": digests}));
        assert_eq!((&config["history"], &config["config"]), (&before["history"], &before["config"]));
        let oci = source.with_layers_replaced(&[layer(1), layer(2)], true).unwrap();
        let manifest: Value = serde_json::from_slice(&oci.documents.manifest).unwrap();
        assert_eq!(manifest["mediaType"], OCI_MANIFEST);
        assert_eq!(manifest["config"]["mediaType"], "application/vnd.oci.image.config.v1+json");
        assert_eq!(manifest["layers"][0]["mediaType"], "application/vnd.oci.image.layer.v1.tar");
    }

    #[test]
    fn what_proves_layers_changes_nothing_else() {
        let native = ordinary().with_layers_replaced(&[layer(1), layer(2)], false).unwrap();
        let mut before: Value = serde_json::from_slice(&native.documents.manifest).unwrap();
        before["layers"][1]["annotations"]["containerd.io/snapshot/overlaybd/blob-fs-type"] = json!("ext4");
        before["subject"] = json!({"mediaType": "x", "digest": layer(9).digest.to_string(), "size": 1});
        let documents = ImageDocuments { manifest: before.to_string().into(), ..native.documents };
        let proven = [3_u8, 4].map(|number| {
            let verity = Verity::new(Digest::from_hash([number; 32]), 8192).unwrap();
            Layer { size_bytes: 8192 + 4096 + 1024, verity: Some(verity), ..layer(number) }
        });
        let next = documents.with_layers_proven(&proven).unwrap();
        assert_eq!(next.layers, proven);
        let mut after: Value = serde_json::from_slice(&next.documents.manifest).unwrap();
        let config: Value = serde_json::from_slice(&next.documents.config).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"], json!(proven.map(|layer| layer.digest.to_string())));
        for (number, layer) in proven.iter().enumerate() {
            let annotations = &mut after["layers"][number]["annotations"];
            assert_eq!(annotations[VERITY], layer.verity.unwrap().to_string());
            annotations.as_object_mut().unwrap().remove(VERITY);
            for (key, name) in [("digest", "blob-digest"), ("size", "blob-size")] {
                let name = format!("containerd.io/snapshot/overlaybd/{name}");
                let old = before["layers"][number][key].clone();
                let shown = after["layers"][number][key].to_string().replace('"', "");
                assert_eq!(after["layers"][number]["annotations"][&name], shown);
                after["layers"][number]["annotations"][&name] =
                    before["layers"][number]["annotations"][&name].clone();
                after["layers"][number][key] = old;
            }
        }
        after["config"] = before["config"].clone();
        assert_eq!(after, before);
        let ordinary = ordinary().with_layers_proven(&proven);
        assert!(matches!(ordinary, Err(NextImageError::Unusable(OciError::Ordinary))), "{ordinary:?}");
    }

    #[test]
    fn as_many_layers_as_the_image_has_are_asked_for() {
        let source = ordinary();
        for layers in [&[layer(1)][..], &[layer(1), layer(2), layer(3)]] {
            let refused = source.with_layers_replaced(layers, true);
            assert!(matches!(refused, Err(NextImageError::DiffIds { .. })), "{refused:?}");
        }
        let nothing = ImageDocuments { config: "{}".into(), ..source };
        assert!(matches!(nothing.diff_ids(), Err(NextImageError::NoDiffIds)));
    }
}
