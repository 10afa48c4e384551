//! From an image reference to its layers, by the registry or from memory of it.

use std::{fmt, path::Path, sync::Arc};

use bytes::Bytes;

use super::{
    api::types::ImageSpec,
    blocking::blocking,
    failure::{Failure, FailureClass},
    image_store::{Hold, ImageStore},
    layers::{self, LayerPlace},
    manifests::ManifestStore,
    mounts::file_system_work,
    network::failure_of_registry,
};
use crate::{
    format::oci::{Document, Manifest, OciError, Platform},
    registry::{Client, Digest, Fault, ImageReference, Reason, RegistryError},
};

/// Resolves references.
#[derive(Debug)]
pub(super) struct References {
    client: Client,
    /// None where nothing is kept on disk.
    store: Option<Arc<ManifestStore>>,
    converted: ImageStore,
}

/// What a reference means.
#[derive(Debug)]
pub(super) struct Resolved {
    /// The layers, lowest first.
    pub(super) places: Vec<LayerPlace>,
    /// A specification that will always mean these.
    pub(super) pinned: ImageSpec,
    /// What keeps those of an image that was converted, until they are open.
    pub(super) hold: Option<Hold>,
}

impl References {
    /// With what was resolved before in the folder of a cache, and what was converted in that of a store.
    pub(super) fn new(client: Client, cache_dir: Option<&Path>, store_dir: &Path) -> Self {
        let store = cache_dir.map(|dir| Arc::new(ManifestStore::new(dir.to_owned())));
        Self { client, store, converted: ImageStore::new(store_dir) }
    }

    /// The layers of the image that `text` names; of an ordinary one, those that were made of it. A digest that was resolved
    /// before is not asked for again; a tag always is, and what it last meant counts only while the registry cannot be
    /// reached.
    ///
    /// # Errors
    /// Also [`Failure::is_of_ordinary_image`].
    pub(super) async fn layers(&self, text: &str) -> Result<Resolved, Failure> {
        let reference = parse(text)?;
        let platform = Platform::host();
        let repository = self.client.repository(&reference).map_err(|source| {
            Failure::with_source(FailureClass::Usage, format!("{text:?} is not an image reference"), source)
        })?;
        let (manifest, digest) = self.manifest(&reference, &platform).await?;
        let refused = |source: OciError| {
            Failure::with_source(FailureClass::Image, format!("{reference} cannot be served"), source)
        };
        let pinned = match reference.digest() {
            Some(_) => reference.to_string(),
            None => reference.pinned(&digest),
        };
        let layers = match manifest.layers() {
            Err(OciError::Ordinary) => {
                let converted = self.converted(&digest, pinned).await?;
                return converted.ok_or_else(|| refused(OciError::Ordinary));
            }
            layers => layers.map_err(refused)?,
        };
        let place = |layer: crate::format::oci::Layer| LayerPlace::Remote {
            repository: repository.clone(),
            digest: layer.digest,
            size_bytes: Some(layer.size_bytes),
            verity: layer.verity,
        };
        let places = layers.into_iter().map(place).collect();
        Ok(Resolved { places, pinned: ImageSpec::Reference(pinned), hold: None })
    }

    /// What was made of the ordinary image `reference`, whose manifest has this digest.
    async fn converted(&self, digest: &str, reference: String) -> Result<Option<Resolved>, Failure> {
        let Ok(digest) = digest.parse::<Digest>() else { return Ok(None) };
        let store = self.converted.clone();
        let place = store.dir().to_owned();
        file_system_work(&place, move || {
            let Some(found) = store.find(digest)? else { return Ok(None) };
            let places = layers::of_files(&found.layers)?;
            let pinned = ImageSpec::Converted { reference, layers: found.layers };
            Ok(Some(Resolved { places, pinned, hold: Some(found.hold) }))
        })
        .await
    }

    /// The digest of the manifest of the image that `text` names, of several that for `platform`, else this machine's, as [`References::layers`]
    /// finds it, and a reference that will always mean it.
    ///
    /// # Errors
    /// As of [`References::layers`], but for those that say what the image is.
    pub(super) async fn digest(
        &self,
        text: &str,
        platform: Option<&str>,
    ) -> Result<(Digest, String), Failure> {
        let text = match platform {
            Some(platform) => self.pinned(text, platform).await?,
            None => text.to_owned(),
        };
        let reference = parse(&text)?;
        let (_, digest) = self.manifest(&reference, &Platform::host()).await?;
        let pinned = reference.pinned(&digest);
        let digest = digest.parse().map_err(|source| {
            Failure::with_source(FailureClass::Internal, "a manifest has no digest", source)
        })?;
        Ok((digest, pinned))
    }

    /// A reference that always means the image of `text` for `platform`, which must be there, also where it is the only one.
    ///
    /// # Errors
    /// When there is none, or it is for another platform.
    pub(super) async fn pinned(&self, text: &str, platform: &str) -> Result<String, Failure> {
        let usage = |text: String, source| Failure::with_source(FailureClass::Usage, text, source);
        let reference = parse(text)?;
        let platform: Platform = platform.parse().map_err(|source| usage(format!("{platform:?}"), source))?;
        // Not the name that the image is remembered by otherwise: there nobody looks whether it is for the platform.
        let name = format!("{reference} for {platform}");
        let found = match self.client.manifest(&reference, &platform).await {
            Ok(found) => found,
            Err(error) if cannot_be_reached(&error) => {
                let known = self.recall(&name, None).await;
                let failed = || failure_of_registry(format!("cannot resolve {reference}"), error);
                return known.map(|(_, digest)| reference.pinned(digest)).ok_or_else(failed);
            }
            Err(error) => return Err(failure_of_registry(format!("cannot resolve {reference}"), error)),
        };
        if !found.is_of_index {
            let failed = |error| failure_of_registry(format!("cannot read what {reference} is for"), error);
            let repository = self.client.repository(&reference).map_err(failed)?;
            let config = self.client.image_config(&repository, found.bytes.clone()).await.map_err(failed)?;
            check_platform(&reference, &config, &platform)?;
        }
        let digest = found.digest.to_string();
        let pinned = reference.pinned(&digest);
        self.remember(name, digest, found.bytes).await;
        Ok(pinned)
    }

    async fn manifest(
        &self,
        reference: &ImageReference,
        platform: &Platform,
    ) -> Result<(Manifest, String), Failure> {
        let name = format!("{reference} {platform}");
        // What was resolved by a tag is not known by the name that pins it, but by its digest.
        if let Some(digest) = reference.digest()
            && let Some(known) = self.recall(&name, Some(digest)).await
        {
            tracing::debug!(%reference, "resolved from memory");
            return Ok(known);
        }
        let error = match self.client.manifest(reference, platform).await {
            Ok(resolved) => {
                let digest = resolved.digest.to_string();
                self.remember(name, digest.clone(), resolved.bytes).await;
                return Ok((resolved.manifest, digest));
            }
            Err(error) => error,
        };
        if cannot_be_reached(&error)
            && let Some(known) = self.recall(&name, None).await
        {
            tracing::warn!(
                %reference, error = super::failure::full_text(&error),
                "the registry cannot be reached: the image that the tag last meant is used"
            );
            return Ok(known);
        }
        Err(failure_of_registry(format!("cannot resolve {reference}"), error))
    }

    /// What `name` last meant, or else what `digest` is of, and its digest.
    async fn recall(&self, name: &str, digest: Option<&str>) -> Option<(Manifest, String)> {
        let (store, name) = (Arc::clone(self.store.as_ref()?), name.to_owned());
        let digest = digest.map(str::to_owned);
        let read = blocking(move || {
            let known = store.recall(&name).and_then(|known| Some((store.get(&known)?, known)));
            Ok(known.or_else(|| digest.and_then(|digest| Some((store.get(&digest)?, digest)))))
        });
        let (bytes, digest) = read.await.ok()??;
        match Document::decode(&bytes) {
            Ok(Document::Manifest(manifest)) => Some((manifest, digest)),
            _ => None,
        }
    }

    async fn remember(&self, name: String, digest: String, bytes: Bytes) {
        let Some(store) = self.store.clone() else { return };
        let written = blocking(move || {
            store.put(&bytes).and_then(|()| store.remember(&name, &digest)).map_err(|source| {
                Failure::with_source(FailureClass::Internal, "cannot remember a manifest", source)
            })
        });
        if let Err(failure) = written.await {
            // The image works; only without its registry it will not be found again.
            tracing::warn!("{}", failure.full_text());
        }
    }
}

fn parse(text: &str) -> Result<ImageReference, Failure> {
    text.parse().map_err(|source| {
        Failure::with_source(FailureClass::Usage, format!("{text:?} is not an image reference"), source)
    })
}

/// Makes sure that the image `reference`, whose configuration is `config`, is for `wanted`.
///
/// # Errors
/// Where it is not, or does not say what it is for.
pub fn check_platform(
    reference: &impl fmt::Display,
    config: &[u8],
    wanted: &Platform,
) -> Result<(), Failure> {
    let text = match serde_json::from_slice::<Platform>(config) {
        Ok(offered) if wanted.accepts(&offered) => return Ok(()),
        Ok(offered) => format!("{reference} is for {offered}, and not for {wanted}"),
        Err(_) => format!("{reference} does not say what it is for, and may not be for {wanted}"),
    };
    Err(Failure::new(FailureClass::Usage, text))
}

/// Whether the way to the registry, or all of the registry, is down: then its last word counts. An answer counts, even
/// where it is a refusal.
fn cannot_be_reached(error: &RegistryError) -> bool {
    let down = matches!(error.reason(), Reason::Status { status: 429 | 500.., .. });
    down || error.is_timeout() || error.fault() == Fault::Network
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::{config::Config, network::registry_config};

    #[tokio::test]
    async fn what_a_tag_was_resolved_to_needs_no_registry_by_its_digest() {
        let digest = format!("sha256:{}", "1".repeat(64));
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": 2},
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": digest,
                "size": 4096,
                "annotations": {
                    "containerd.io/snapshot/overlaybd/version": "0.1.0",
                    "containerd.io/snapshot/overlaybd/blob-digest": digest,
                    "containerd.io/snapshot/overlaybd/blob-size": "4096",
                },
            }],
        })
        .to_string();
        let dir = tempfile::tempdir().unwrap();
        let client =
            Client::new(&registry_config(&Config::default()), tokio::runtime::Handle::current()).unwrap();
        let references = References::new(client, Some(dir.path()), &dir.path().join("store"));
        // As after resolving the tag; nobody listens on that port.
        references.store.as_ref().unwrap().put(manifest.as_bytes()).unwrap();
        let hash: String = <sha2::Sha256 as sha2::Digest>::digest(manifest.as_bytes())
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let pinned = format!("localhost:1/team/app:v1@sha256:{hash}");
        let Resolved { places, pinned: again, .. } = references.layers(&pinned).await.unwrap();
        assert_eq!((places.len(), again), (1, ImageSpec::Reference(pinned)));
    }
}
