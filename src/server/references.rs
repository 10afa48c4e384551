//! From an image reference to its layers, by the registry or from memory of it.

use std::{path::Path, sync::Arc};

use bytes::Bytes;

use super::{
    blocking::blocking,
    failure::{Failure, FailureClass},
    layers::LayerPlace,
    manifests::ManifestStore,
    network::failure_of_registry,
};
use crate::{
    format::oci::{Document, Manifest, OciError, Platform},
    registry::{Client, Fault, ImageReference, Reason, RegistryError},
};

/// Resolves references.
#[derive(Debug)]
pub(super) struct References {
    client: Client,
    /// None where nothing is kept on disk.
    store: Option<Arc<ManifestStore>>,
}

impl References {
    pub(super) fn new(client: Client, cache_dir: Option<&Path>) -> Self {
        Self { client, store: cache_dir.map(|dir| Arc::new(ManifestStore::new(dir.join("manifests")))) }
    }

    /// The layers of the image that `text` names. A digest that was resolved before is not asked for again; a tag always is,
    /// and what it last meant counts only while the registry cannot be reached.
    pub(super) async fn layers(&self, text: &str) -> Result<Vec<LayerPlace>, Failure> {
        let reference: ImageReference = text.parse().map_err(|source| {
            Failure::with_source(FailureClass::Usage, format!("{text:?} is not an image reference"), source)
        })?;
        let platform = Platform::host();
        let repository = self.client.repository(&reference).map_err(|source| {
            Failure::with_source(FailureClass::Usage, format!("{text:?} is not an image reference"), source)
        })?;
        let manifest = self.manifest(&reference, &platform).await?;
        let refused = |source: OciError| {
            Failure::with_source(FailureClass::Image, format!("{reference} cannot be served"), source)
        };
        let layers = manifest.layers().map_err(refused)?;
        let place = |layer: crate::format::oci::Layer| LayerPlace::Remote {
            repository: repository.clone(),
            digest: layer.digest,
            size_bytes: Some(layer.size_bytes),
        };
        Ok(layers.into_iter().map(place).collect())
    }

    async fn manifest(&self, reference: &ImageReference, platform: &Platform) -> Result<Manifest, Failure> {
        let name = format!("{reference} {platform}");
        if reference.digest().is_some()
            && let Some(manifest) = self.recall(&name).await
        {
            tracing::debug!(%reference, "resolved from memory");
            return Ok(manifest);
        }
        let error = match self.client.manifest(reference, platform).await {
            Ok(resolved) => {
                self.remember(name, resolved.digest.to_string(), resolved.bytes).await;
                return Ok(resolved.manifest);
            }
            Err(error) => error,
        };
        if cannot_be_reached(&error)
            && let Some(manifest) = self.recall(&name).await
        {
            tracing::warn!(
                %reference, error = super::failure::full_text(&error),
                "the registry cannot be reached: the image that the tag last meant is used"
            );
            return Ok(manifest);
        }
        Err(failure_of_registry(format!("cannot resolve {reference}"), error))
    }

    async fn recall(&self, name: &str) -> Option<Manifest> {
        let (store, name) = (Arc::clone(self.store.as_ref()?), name.to_owned());
        let read = blocking(move || Ok(store.recall(&name).and_then(|digest| store.get(&digest))));
        match Document::decode(&read.await.ok()??) {
            Ok(Document::Manifest(manifest)) => Some(manifest),
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

/// Whether the way to the registry, or all of the registry, is down: then its last word counts. An answer counts, even
/// where it is a refusal.
fn cannot_be_reached(error: &RegistryError) -> bool {
    let down = matches!(error.reason(), Reason::Status { status: 429 | 500.., .. });
    down || error.is_timeout() || error.fault() == Fault::Network
}
