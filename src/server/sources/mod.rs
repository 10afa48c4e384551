//! From the place of a layer to a source of its bytes: a local file, or a blob behind the cache.

use std::{fmt, sync::Arc};

use tokio::sync::OnceCell;

use super::{
    blocking::{BUSY_PATIENCE, blocking, blocking_while_busy},
    config::CacheSection,
    failure::{Failure, FailureClass, full_text},
    layers::{self, LayerPlace},
    network::failure_of_registry,
};
use crate::{
    cache::{Cache, CacheConfig, CacheMetrics},
    format::{oci::Digest, verity::Verity},
    reactor::{ReactorConfig, ReactorThread},
    registry::{Client, Limits, RemoteBlob, Repository},
    source::{BlobSource, Origin, Proof, ProofMetrics, RegistryOrigin, Uncached, VerifiedOrigin},
};

/// Opens sources.
pub(super) struct Sources {
    client: Client,
    section: CacheSection,
    /// Opened for the first remote layer, and tried again for the next where it cannot be used.
    cache: OnceCell<OpenCache>,
    proofs: Arc<ProofMetrics>,
}

/// The cache and the thread that works for it. In this order: the thread ends last.
struct OpenCache {
    cache: Cache,
    _thread: ReactorThread,
}

impl Sources {
    pub(super) fn new(client: Client, section: CacheSection) -> Self {
        Self { client, section, cache: OnceCell::new(), proofs: Arc::default() }
    }

    /// A source of the layer at `place`, and what counts the requests for it where it is remote. A blob whose size neither its description nor the cache tells costs one request.
    pub(super) async fn open(
        &self,
        place: &LayerPlace,
    ) -> Result<(Arc<dyn BlobSource>, Option<RemoteBlob>), Failure> {
        match place {
            LayerPlace::Local { path, .. } => {
                let path = path.clone();
                let place = path.clone();
                let opening = blocking_while_busy(&place, BUSY_PATIENCE, move || layers::open_file(&path));
                Ok((Arc::new(opening.await?), None))
            }
            LayerPlace::Remote { repository, digest, size_bytes, verity } => {
                let (source, blob) = self.remote(repository, *digest, *size_bytes, *verity).await?;
                Ok((source, Some(blob)))
            }
        }
    }

    /// What the cache has counted, if it is open.
    pub(super) fn cache_metrics(&self) -> Option<(&CacheMetrics, u64)> {
        let open = self.cache.get()?;
        Some((open.cache.metrics(), open.cache.used_bytes()))
    }

    /// What was held against Merkle trees.
    pub(super) fn proof_metrics(&self) -> &ProofMetrics {
        &self.proofs
    }

    /// Bytes that the cache may have on disk; 0 where there is none.
    pub(super) fn cache_limit_bytes(&self) -> u64 {
        if self.section.enabled { limit_bytes(&self.section) } else { 0 }
    }

    /// Makes durable what was fetched so far.
    pub(super) async fn sync(&self) {
        if let Some(open) = self.cache.get()
            && let Err(error) = open.cache.sync().await
        {
            tracing::warn!(error = full_text(&error), "the cache may have to fetch some bytes again");
        }
    }

    /// The cache; an image can be served without, only slower.
    async fn cache(&self) -> Option<&Cache> {
        let open = async || {
            let (section, limits) = (self.section.clone(), self.client.limits().clone());
            blocking(move || open_cache(&section, &limits)).await
        };
        if !self.section.enabled {
            return None;
        }
        let opened = self.cache.get_or_try_init(open).await.inspect_err(|failure| {
            let (dir, error) = (self.section.dir.display(), failure.full_text());
            tracing::warn!(%dir, error, "the cache cannot be used: everything is fetched again and again");
        });
        opened.ok().map(|open| &open.cache)
    }

    async fn remote(
        &self,
        repository: &Repository,
        digest: Digest,
        size_bytes: Option<u64>,
        verity: Option<Verity>,
    ) -> Result<(Arc<dyn BlobSource>, RemoteBlob), Failure> {
        let cache = self.cache().await;
        let name = digest.to_string();
        let size_bytes = match (size_bytes, cache) {
            (None, Some(cache)) => cache.known_size(&name).await.ok().flatten(),
            (known, _) => known,
        };
        let blob = match size_bytes {
            Some(size_bytes) => self.client.blob(repository, digest, size_bytes),
            None => self
                .client
                .blob_of_unknown_size(repository, digest)
                .await
                .map_err(|error| failure_of_registry("cannot ask for the size of a layer", error))?,
        };
        let origin = self.origin(&blob, digest, verity)?;
        let Some(cache) = cache else { return Ok((Arc::new(Uncached::new(origin)), blob)) };
        match cache.blob(&name, Arc::clone(&origin)).await {
            Ok(cached) => Ok((cached, blob)),
            Err(error) => {
                tracing::warn!(error = full_text(&error), "a layer is read without the cache for now");
                Ok((cache.without_entry(&name, origin, &error), blob))
            }
        }
    }

    /// Where the bytes of a blob come from: what has a Merkle tree goes to nobody before it is proven.
    fn origin(
        &self,
        blob: &RemoteBlob,
        digest: Digest,
        verity: Option<Verity>,
    ) -> Result<Arc<dyn Origin>, Failure> {
        let origin = Arc::new(RegistryOrigin::new(blob.clone()));
        let Some(verity) = verity else { return Ok(origin) };
        let proof = Proof::new(verity, blob.size_bytes()).map_err(|error| {
            Failure::with_source(FailureClass::Image, format!("{digest} has no such Merkle tree"), error)
        })?;
        Ok(Arc::new(VerifiedOrigin::new(origin, proof, Arc::clone(&self.proofs))))
    }
}

fn limit_bytes(section: &CacheSection) -> u64 {
    section.size_mib.saturating_mul(1 << 20)
}

fn open_cache(section: &CacheSection, limits: &Limits) -> Result<OpenCache, Failure> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
        Failure::new(FailureClass::Internal, full_text(error.as_ref()))
    };
    let thread = ReactorThread::start("cache", ReactorConfig::default(), || Ok(()))
        .map_err(|error| failed(Box::new(error)))?;
    let config = CacheConfig {
        fetch_deadline: limits.total_deadline(),
        lane_patience: 2 * limits.deadline(),
        ..CacheConfig::new(&section.dir, limit_bytes(section))
    };
    let cache = Cache::open(config, thread.handle()).map_err(|error| failed(Box::new(error)))?;
    Ok(OpenCache { cache, _thread: thread })
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").field("section", &self.section).finish_non_exhaustive()
    }
}
