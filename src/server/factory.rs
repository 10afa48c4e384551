//! The one place that opens things: from an image's name or description to an engine over sources.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use futures_util::future::try_join_all;
use sha2::{Digest as _, Sha256};

use super::{
    api::types::{FetchCount, ImageSpec, LayerInfo},
    config::Config,
    failure::{Failure, FailureClass, class_of_data_error},
    image_config::UpperFiles,
    image_store::{Hold, note_user},
    layer_report,
    layers::{self, LayerIdentity, LayerPlace},
    mounts::file_system_work,
    network::{failure_of_registry, registry_config},
    next_config::upper_of,
    references::{References, Resolved},
    sources::Sources,
};
use crate::{
    cache::CacheMetrics,
    image::{Image, ImageMetrics, ImageOptions, LayerDescription},
    reactor::ReactorHandle,
    registry::{BlobMetrics, Client, Digest, RegistryMetrics, RemoteBlob},
    source::{BlobSource, ProofMetrics},
    telemetry::Counter,
};

/// An image that is open, shared by all devices made of the same layers.
#[derive(Debug)]
pub struct OpenImage {
    /// What it was named by when it was opened, for metrics.
    pub name: String,
    /// A short text that follows from the layers, for metrics: other images may have had the same name.
    pub id: String,
    /// The engine.
    pub image: Image,
    /// Layers, lowest first, with nothing counted.
    layers: Vec<LayerInfo>,
    /// In the same order, what counts the requests for them.
    remote: Vec<Option<RemoteBlob>>,
    retired: Arc<ImageMetrics>,
}

impl OpenImage {
    /// Layers, lowest first, with what was fetched of each so far.
    #[must_use]
    pub fn layers(&self) -> Vec<LayerInfo> {
        let counted = self
            .layers
            .iter()
            .zip(&self.remote)
            .map(|(layer, remote)| LayerInfo { fetched: remote.as_ref().map(fetched), ..layer.clone() });
        let mut layers: Vec<LayerInfo> = counted.collect();
        if let Some(blob) = self.image.refuted() {
            for layer in layers.iter_mut().filter(|layer| layer.name.contains(blob)) {
                layer
                    .description
                    .push_str(", another blob than that of its digest: reads fail, attach the image again");
            }
        }
        layers
    }

    /// What was fetched so far of all layers.
    #[must_use]
    pub fn fetched(&self) -> FetchCount {
        self.remote.iter().flatten().map(fetched).fold(FetchCount::default(), |sum, blob| FetchCount {
            fetches: sum.fetches + blob.fetches,
            retries: sum.retries + blob.retries,
            failures: sum.failures + blob.failures,
            bytes: sum.bytes + blob.bytes,
        })
    }
}

fn fetched(blob: &RemoteBlob) -> FetchCount {
    let BlobMetrics { fetches, retries, failures, bytes } = blob.metrics();
    let [fetches, retries, failures, bytes] = [fetches, retries, failures, bytes].map(Counter::get);
    FetchCount { fetches, retries, failures, bytes }
}

impl Drop for OpenImage {
    fn drop(&mut self) {
        self.retired.absorb(self.image.metrics());
    }
}

/// Where what a specification names lies.
#[derive(Debug)]
pub(super) struct Placed {
    /// The read-only layers, lowest first.
    pub(super) places: Vec<LayerPlace>,
    upper: Option<UpperFiles>,
    pinned: ImageSpec,
    /// What keeps the layers of a store of images, until they are open.
    _hold: Option<Hold>,
}

/// What a specification means.
#[derive(Debug)]
pub struct Opened {
    /// The read-only layers; `None` where there is only a writable one.
    pub image: Option<Arc<OpenImage>>,
    /// The writable layer, which is not opened yet.
    pub upper: Option<UpperFiles>,
    /// A specification that means these very bytes when the tag of the one given has moved on.
    pub pinned: ImageSpec,
}

/// The lock makes those wait who want an image that is being opened.
type Shelf = Arc<tokio::sync::Mutex<Weak<OpenImage>>>;

/// Opens images.
#[derive(Debug)]
pub struct Factory {
    client: Client,
    references: References,
    sources: Sources,
    options: ImageOptions,
    /// Whether a layer of a registry must have a Merkle tree.
    require_merkle: bool,
    /// What closed images had counted.
    retired: Arc<ImageMetrics>,
    shelves: Mutex<HashMap<Vec<LayerIdentity>, Shelf>>,
    /// Where the records are of the devices that are made of these images.
    state_dir: PathBuf,
}

impl Factory {
    /// A factory as `config` says. The network is used on `runtime`.
    ///
    /// # Errors
    /// When the configuration of registries or cache cannot be used.
    pub fn new(config: &Config, runtime: tokio::runtime::Handle) -> Result<Self, Failure> {
        let client = Client::new(&registry_config(config), runtime)
            .map_err(|error| failure_of_registry("cannot use the configuration of registries", error))?;
        let dir = config.cache.enabled.then_some(config.cache.dir.as_path());
        Ok(Self {
            references: References::new(client.clone(), dir, &config.store.dir),
            sources: Sources::new(client.clone(), config.cache.clone()),
            client,
            options: ImageOptions {
                decoded_cache_bytes: u64::from(config.image.decoded_cache_mib) << 20,
                ..ImageOptions::default()
            },
            require_merkle: config.image.require_merkle,
            retired: Arc::default(),
            shelves: Mutex::default(),
            state_dir: config.daemon.state_dir.clone(),
        })
    }

    /// Opens an image on `reactor`, or returns one with the same layers that is open already.
    ///
    /// # Errors
    /// When its description or a layer cannot be used.
    pub async fn open(&self, reactor: &ReactorHandle, spec: &ImageSpec) -> Result<Opened, Failure> {
        let Placed { places, upper, pinned, _hold } = self.places(spec).await?;
        self.note_use(&places).await?;
        let image = match places.is_empty() {
            true => None,
            false => Some(self.open_places(reactor, spec, places).await?),
        };
        Ok(Opened { image, upper, pinned })
    }

    /// A specification of nothing but the image of `spec` for `platform`.
    ///
    /// # Errors
    /// When `spec` is no reference, or has no such image.
    pub(super) async fn for_platform(&self, spec: &ImageSpec, platform: &str) -> Result<ImageSpec, Failure> {
        match spec {
            ImageSpec::Reference(text) => {
                Ok(ImageSpec::Reference(self.references.pinned(text, platform).await?))
            }
            ImageSpec::Config(_) | ImageSpec::Layers(_) | ImageSpec::Converted { .. } => {
                let text = "only an image of a registry has images for several platforms";
                Err(Failure::new(FailureClass::Usage, text))
            }
        }
    }

    /// Looks for the layers that `spec` names, and opens none.
    pub(super) async fn places(&self, spec: &ImageSpec) -> Result<Placed, Failure> {
        let (places, upper, pinned, hold) = match spec {
            ImageSpec::Reference(text) => {
                let Resolved { places, pinned, hold } = self.references.layers(text).await?;
                (places, None, pinned, hold)
            }
            ImageSpec::Layers(paths) | ImageSpec::Converted { layers: paths, .. } => {
                let paths = paths.clone();
                let place = paths.first().cloned().unwrap_or_default();
                let places = file_system_work(&place, move || layers::of_files(&paths)).await?;
                (places, None, spec.clone(), None)
            }
            ImageSpec::Config(path) => {
                let (place, path) = (path, path.clone());
                let client = self.client.clone();
                let read = file_system_work(place, move || {
                    let config = layers::read_config(&path)?;
                    let places = layers::of_config(&config, |url| {
                        client
                            .repository_of_blob_url(url)
                            .map_err(|error| failure_of_registry("cannot use repoBlobUrl", error))
                    });
                    Ok((places?, config.upper))
                });
                let (places, upper) = read.await?;
                (places, upper, spec.clone(), None)
            }
        };
        if self.require_merkle {
            layers::check_proven(spec, &places)?;
        }
        Ok(Placed { places, upper, pinned, _hold: hold })
    }

    /// Has stores of images keep those of these layers that are theirs for as long as a record of a device names them.
    async fn note_use(&self, places: &[LayerPlace]) -> Result<(), Failure> {
        let local = |place: &LayerPlace| match place {
            LayerPlace::Local { path, .. } => Some(path.clone()),
            LayerPlace::Remote { .. } => None,
        };
        let paths: Vec<PathBuf> = places.iter().filter_map(local).collect();
        let Some(place) = paths.first().cloned() else { return Ok(()) };
        let state_dir = self.state_dir.clone();
        file_system_work(&place, move || note_user(paths.iter().map(PathBuf::as_path), &state_dir)).await
    }

    /// The digest of the manifest of the ordinary image that `reference` names, of several that for `platform`, else this machine's, and a
    /// reference that will always mean it.
    ///
    /// # Errors
    /// When it cannot be resolved.
    pub async fn digest_of(
        &self,
        reference: &str,
        platform: Option<&str>,
    ) -> Result<(Digest, String), Failure> {
        self.references.digest(reference, platform).await
    }

    /// Whether `upper` is still the writable layer of what `spec` names. Once it is open it stays so: only who has it open may put
    /// another over it.
    pub(super) async fn is_upper_of(&self, spec: &ImageSpec, upper: UpperFiles) -> Result<bool, Failure> {
        let ImageSpec::Config(path) = spec else { return Ok(true) };
        let (place, path) = (path, path.clone());
        file_system_work(place, move || Ok(upper_of(&path)?.as_ref() == Some(&upper))).await
    }

    /// What talks to registries.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// What the registry client has counted.
    #[must_use]
    pub fn registry_metrics(&self) -> Arc<RegistryMetrics> {
        self.client.metrics()
    }

    pub(super) fn retired_images(&self) -> &ImageMetrics {
        &self.retired
    }

    /// What the cache has counted and the bytes that it has on disk, once a remote layer was opened.
    #[must_use]
    pub fn cache_metrics(&self) -> Option<(&CacheMetrics, u64)> {
        self.sources.cache_metrics()
    }

    /// What was held against Merkle trees.
    #[must_use]
    pub fn proof_metrics(&self) -> &ProofMetrics {
        self.sources.proof_metrics()
    }

    /// Bytes that the cache may have on disk; 0 where there is none.
    #[must_use]
    pub fn cache_limit_bytes(&self) -> u64 {
        self.sources.cache_limit_bytes()
    }

    /// Makes durable what the cache has fetched so far.
    pub async fn sync_cache(&self) {
        self.sources.sync().await;
    }

    async fn open_places(
        &self,
        reactor: &ReactorHandle,
        named: &ImageSpec,
        places: Vec<LayerPlace>,
    ) -> Result<Arc<OpenImage>, Failure> {
        let key: Vec<_> = places.iter().map(LayerPlace::identity).collect();
        let id = id_of(&key);
        let shelf = self.shelf(key);
        let mut shelf = shelf.lock().await;
        // One of whose layers a digest has refuted gets no more devices.
        if let Some(open) = shelf.upgrade().filter(|open| open.image.stands()) {
            return Ok(open);
        }
        let opened = try_join_all(places.iter().map(|place| self.sources.open(place))).await?;
        let (sources, remote) = opened.into_iter().unzip();
        let image = self.open_image(reactor, sources).await?;
        let layers = image.layers().map(describe).collect();
        let (name, retired) = (named.to_string(), Arc::clone(&self.retired));
        let open = Arc::new(OpenImage { name, id, image, layers, remote, retired });
        *shelf = Arc::downgrade(&open);
        Ok(open)
    }

    async fn open_image(
        &self,
        reactor: &ReactorHandle,
        sources: Vec<Arc<dyn BlobSource>>,
    ) -> Result<Image, Failure> {
        let options = self.options.clone();
        let opened = reactor
            .call(move |reactor| async move { Image::open(&reactor, sources, options).await })
            .await
            .map_err(|_| Failure::new(FailureClass::Internal, "the reactor has stopped"))?;
        opened.map_err(|error| {
            Failure::with_source(class_of_data_error(&error), "cannot open the image", error)
        })
    }

    fn shelf(&self, key: Vec<LayerIdentity>) -> Shelf {
        let mut shelves = self.shelves.lock().unwrap_or_else(PoisonError::into_inner);
        // One that nobody holds and whose image has gone is swept here, so that their number is bounded by open images.
        shelves.retain(|_, shelf| {
            Arc::strong_count(shelf) > 1 || shelf.try_lock().is_ok_and(|image| image.strong_count() > 0)
        });
        Arc::clone(shelves.entry(key).or_default())
    }
}

/// The first digits of a hash of what tells the layers from others.
fn id_of(key: &[LayerIdentity]) -> String {
    let hash = Sha256::digest(format!("{key:?}"));
    hash.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

fn describe(layer: &LayerDescription) -> LayerInfo {
    let mut words = Vec::new();
    if layer.tar_envelope {
        words.push("tar".to_owned());
    }
    if let Some(compression) = &layer.compression {
        let name = layer_report::algorithm(compression.algorithm);
        words.push(format!("{name} in blocks of {} bytes", compression.block_bytes));
    }
    words.push(format!("{} segments", layer.segments));
    LayerInfo {
        name: layer.name.clone(),
        size_bytes: layer.blob_bytes,
        description: words.join(", "),
        fetched: None,
    }
}
