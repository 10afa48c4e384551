//! Where a converted image goes: its layers as they are made, its manifest last.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    sync::Arc,
};

use serde_json::Value;
use stratabd::{
    format::oci::{Document, Layer, Platform},
    registry::{
        Arrival, BlobOrigin, Client, Digest, FileContent, FoundDocument, ImageReference, NewBlob,
        NewDocument, NextImage, RegistryError, Repository,
    },
    server::{
        failure::{Failure, FailureClass},
        network::failure_of_registry,
        push::{check_loses_no_platform, require_platforms},
    },
};

use crate::{convert::ConvertProgress, place::Place, store::Store};

/// A place that takes an image.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "a conversion has one")]
pub(crate) enum Target {
    Registry { client: Client, repository: Repository, reference: ImageReference },
    Store(Arc<Store>),
}

/// A file that is read from its start by whoever has it, at the same time as by others.
struct FromStart {
    file: Arc<File>,
    offset: u64,
    progress: Arc<ConvertProgress>,
}

impl Target {
    /// Looks whether `place` can take an image.
    pub(crate) fn open(place: &Place, client: &Client) -> Result<Self, Failure> {
        match place {
            Place::Registry(reference) if reference.digest().is_some() => {
                let text =
                    format!("{reference} has a digest, which follows from what is made: give a tag alone");
                Err(Failure::new(FailureClass::Usage, text))
            }
            Place::Registry(reference) => {
                let repository = client
                    .repository(reference)
                    .map_err(|error| failure_of_registry(format!("cannot push to {reference}"), error))?;
                Ok(Self::Registry { client: client.clone(), repository, reference: reference.clone() })
            }
            Place::Layout { folder, name } => {
                Ok(Self::Store(Arc::new(Store::folder(folder, name.as_deref())?)))
            }
            Place::LayoutArchive { file, name } => {
                Ok(Self::Store(Arc::new(Store::archive(file, name.as_deref())?)))
            }
            Place::DockerArchive { .. } => {
                let text =
                    format!("{place}: docker's archives are read only: oci-archive:FILE[:NAME] is written");
                Err(Failure::new(FailureClass::Usage, text))
            }
        }
    }

    /// Makes sure that it has `layer`, whose bytes are in `file`; says whether it had it. It gives up when `progress` is to end.
    pub(crate) async fn put_layer(
        &self,
        layer: Layer,
        file: Arc<File>,
        progress: &Arc<ConvertProgress>,
    ) -> Result<bool, Failure> {
        match self {
            Self::Registry { client, repository, .. } => {
                let Layer { digest, size_bytes, .. } = layer;
                let origin = BlobOrigin::File(FileContent::new(file, size_bytes, Arc::default()));
                let blob = NewBlob { digest, size_bytes, origin };
                progress.unless_cancelled(ensure(client, repository, blob)).await
            }
            Self::Store(store) => {
                let (store, progress) = (Arc::clone(store), Arc::clone(progress));
                // It ends by itself, and is waited for: what it has begun is to be gone then.
                let content = FromStart { file, offset: 0, progress };
                blocking(move || store.put(layer.digest, layer.size_bytes, content)).await
            }
        }
    }

    /// Makes sure that what its name means now has no platforms that are not among `kept`, which would be lost.
    pub(crate) async fn check_loses_no_platform(&self, kept: &[Platform]) -> Result<(), Failure> {
        match self {
            Self::Registry { client, reference, .. } => {
                check_loses_no_platform(client, reference, kept).await
            }
            Self::Store(store) => match store.present() {
                Some(FoundDocument { document: Document::Index(index), .. }) => {
                    require_platforms(&self.to_string(), &index, kept)
                }
                Some(_) | None => Ok(()),
            },
        }
    }

    /// Puts the configuration of an image there, all of whose layers it has.
    pub(crate) async fn put_config(&self, image: &NextImage) -> Result<(), Failure> {
        let config = &image.documents.config;
        match self {
            Self::Registry { client, repository, .. } => {
                let size_bytes = config.len() as u64;
                let origin = BlobOrigin::Bytes(config.clone());
                let blob = NewBlob { digest: image.config_digest, size_bytes, origin };
                ensure(client, repository, blob).await.map(drop)
            }
            Self::Store(store) => {
                let (store, digest, config) = (Arc::clone(store), image.config_digest, config.clone());
                blocking(move || store.put(digest, config.len() as u64, &config[..])).await.map(drop)
            }
        }
    }

    /// Puts a manifest there that an index is to name.
    pub(crate) async fn put_manifest(&self, manifest: &NewDocument) -> Result<(), Failure> {
        match self {
            Self::Registry { client, repository, .. } => {
                let put = client.put_document(repository, &manifest.digest.to_string(), manifest).await;
                put.map_err(|error| self.refused(error))
            }
            Self::Store(store) => {
                let (store, manifest) = (Arc::clone(store), manifest.clone());
                let put =
                    move || store.put(manifest.digest, manifest.bytes.len() as u64, &manifest.bytes[..]);
                blocking(put).await.map(drop)
            }
        }
    }

    /// Lets the name mean `root`, all of whose content is there; returns the reference that will always mean it.
    pub(crate) async fn name(&self, root: &NewDocument, platform: Option<&Value>) -> Result<String, Failure> {
        match self {
            Self::Registry { client, repository, reference } => {
                let put = client.put_document(repository, reference.tag_or_digest(), root).await;
                put.map_err(|error| self.refused(error))?;
            }
            Self::Store(store) => {
                let (store, root, platform) = (Arc::clone(store), root.clone(), platform.cloned());
                blocking(move || store.finish(&root, platform.as_ref())).await?;
            }
        }
        Ok(format!("{self}@{}", root.digest))
    }

    fn refused(&self, error: RegistryError) -> Failure {
        failure_of_registry(format!("cannot push the manifest of {self}"), error)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry { reference, .. } => write!(f, "{reference}"),
            Self::Store(store) => write!(f, "{}", store.place()),
        }
    }
}

impl Read for FromStart {
    fn read(&mut self, dest: &mut [u8]) -> io::Result<usize> {
        self.progress.require_going_on()?;
        let count = self.file.read_at(dest, self.offset)?;
        self.offset = self.offset.saturating_add(count as u64);
        Ok(count)
    }
}

/// Runs what waits for a disk.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(Failure::with_source(FailureClass::Internal, "a thread has failed", error))
    })
}

async fn ensure(client: &Client, repository: &Repository, blob: NewBlob) -> Result<bool, Failure> {
    let digest: Digest = blob.digest;
    let arrival = client.ensure_blob(repository, blob).await;
    let arrival = arrival.map_err(|error| {
        failure_of_registry(format!("cannot push the blob {digest} to {}", repository.host()), error)
    })?;
    Ok(arrival == Arrival::Present)
}
