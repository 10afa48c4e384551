//! Where a converted image goes: its layers as they are made, its manifest last.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    sync::{Arc, atomic::AtomicU64},
};

use serde_json::{Value, json};
use stratabd::{
    format::oci::{Layer, Platform},
    registry::{Arrival, BlobOrigin, Client, Digest, FileContent, NewBlob, NextImage, Repository},
    server::{
        failure::{Failure, FailureClass},
        network::failure_of_registry,
    },
};

use crate::{layout::Layout, place::Place};

/// A place that takes an image.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    Registry { client: Client, repository: Repository, tag: String, name: String },
    Layout { layout: Layout, name: Option<String> },
}

/// A file that is read from its start by whoever has it, at the same time as by others.
struct FromStart {
    file: Arc<File>,
    offset: u64,
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
                let (tag, name) = (reference.tag_or_digest().to_owned(), reference.to_string());
                Ok(Self::Registry { client: client.clone(), repository, tag, name })
            }
            Place::Layout { folder, name } => {
                Ok(Self::Layout { layout: Layout::open_or_make(folder)?, name: name.clone() })
            }
        }
    }

    /// Makes sure that it has `layer`, whose bytes are in `file`; says whether it had it. What is on its way is counted in `sent_bytes`.
    pub(crate) async fn put_layer(
        &self,
        layer: Layer,
        file: Arc<File>,
        sent_bytes: Arc<AtomicU64>,
    ) -> Result<bool, Failure> {
        match self {
            Self::Registry { client, repository, .. } => {
                let origin = BlobOrigin::File(FileContent::new(file, layer.size_bytes, sent_bytes));
                ensure(
                    client,
                    repository,
                    NewBlob { digest: layer.digest, size_bytes: layer.size_bytes, origin },
                )
                .await
            }
            Self::Layout { layout, .. } => {
                let layout = layout.clone();
                let putting = move || match layout.has(layer.digest, layer.size_bytes) {
                    true => Ok(true),
                    false => layout.put(layer.digest, FromStart { file, offset: 0 }).map(|()| false),
                };
                tokio::task::spawn_blocking(putting).await.unwrap_or_else(|error| {
                    Err(Failure::with_source(FailureClass::Internal, "a thread has failed", error))
                })
            }
        }
    }

    /// Puts the documents of `image` there, all of whose layers it has; returns the reference that will always mean it.
    pub(crate) async fn put_image(&self, image: &NextImage, platform: &Platform) -> Result<String, Failure> {
        let config = &image.documents.config;
        match self {
            Self::Registry { client, repository, tag, name } => {
                let size_bytes = config.len() as u64;
                let origin = BlobOrigin::Bytes(config.clone());
                ensure(client, repository, NewBlob { digest: image.config_digest, size_bytes, origin })
                    .await?;
                let put = client.put_manifest(repository, tag, image).await;
                put.map_err(|error| {
                    failure_of_registry(format!("cannot push the manifest of {name}"), error)
                })?;
                Ok(format!("{name}@{}", image.digest))
            }
            Self::Layout { layout, name } => {
                layout.put(image.config_digest, &config[..])?;
                let manifest = (image.digest, image.media_type.as_str(), &image.documents.manifest[..]);
                layout.put_manifest(name.as_deref(), manifest, &platform_value(platform))?;
                let place = Place::Layout { folder: layout.folder().to_owned(), name: name.clone() };
                Ok(format!("{place}@{}", image.digest))
            }
        }
    }
}

impl Read for FromStart {
    fn read(&mut self, dest: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(dest, self.offset)?;
        self.offset = self.offset.saturating_add(count as u64);
        Ok(count)
    }
}

async fn ensure(client: &Client, repository: &Repository, blob: NewBlob) -> Result<bool, Failure> {
    let digest: Digest = blob.digest;
    let arrival = client.ensure_blob(repository, blob).await;
    let arrival = arrival.map_err(|error| {
        failure_of_registry(format!("cannot push the blob {digest} to {}", repository.host()), error)
    })?;
    Ok(arrival == Arrival::Present)
}

fn platform_value(platform: &Platform) -> Value {
    let mut value = json!({"os": platform.os, "architecture": platform.architecture});
    if let (Some(members), Some(variant)) = (value.as_object_mut(), &platform.variant) {
        members.insert("variant".to_owned(), Value::from(variant.as_str()));
    }
    value
}
