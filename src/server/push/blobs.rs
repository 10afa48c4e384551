//! The blobs that a repository must have before a manifest that names them: several at once, and counted.

use std::{
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};

use crate::{
    registry::{Arrival, BlobOrigin, Client, NewBlob, Reason, RegistryError, Repository},
    server::{
        failure::{Failure, FailureClass},
        network::failure_of_registry,
    },
};

/// Blobs on their way at once. What is copied from elsewhere is held in some MiB for each; more of them would share the same way.
const BLOBS_AT_ONCE: usize = 4;

/// How far a push has come, in bytes of all blobs that it needs. Shared with whoever shows it.
#[derive(Debug, Default)]
pub struct PushProgress {
    total_bytes: AtomicU64,
    /// Of each blob, the bytes that are where they are to be, or on their way.
    parts: Mutex<Vec<Arc<AtomicU64>>>,
}

impl PushProgress {
    /// Bytes in all, 0 until they are known.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes.load(Ordering::Relaxed)
    }

    /// Bytes that the registry has, or was sent. It falls when some are sent again.
    #[must_use]
    pub fn done_bytes(&self) -> u64 {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.iter().map(|part| part.load(Ordering::Relaxed)).fold(0, u64::saturating_add)
    }

    /// Where it is counted what was sent of a blob of `size_bytes` more.
    pub(super) fn part(&self, size_bytes: u64) -> Arc<AtomicU64> {
        let part = Arc::new(AtomicU64::new(0));
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&part));
        self.total_bytes.fetch_add(size_bytes, Ordering::Relaxed);
        part
    }
}

/// A blob, and where it is counted what was sent of it.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) blob: NewBlob,
    pub(super) sent_bytes: Arc<AtomicU64>,
}

/// How many blobs a repository came by, and how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Arrivals {
    pub(super) uploaded: usize,
    pub(super) uploaded_bytes: u64,
    pub(super) copied: usize,
    pub(super) copied_bytes: u64,
    pub(super) mounted: usize,
    pub(super) present: usize,
}

impl Arrivals {
    fn count(&mut self, arrival: Arrival, size_bytes: u64) {
        match arrival {
            Arrival::Present => self.present += 1,
            Arrival::Mounted => self.mounted += 1,
            Arrival::Copied => {
                self.copied += 1;
                self.copied_bytes = self.copied_bytes.saturating_add(size_bytes);
            }
            Arrival::Uploaded => {
                self.uploaded += 1;
                self.uploaded_bytes = self.uploaded_bytes.saturating_add(size_bytes);
            }
        }
    }
}

/// Makes sure that `repository` has all of them. The first failure ends the others.
pub(super) async fn send(
    client: &Client,
    repository: &Repository,
    parcels: Vec<Parcel>,
) -> Result<Arrivals, Failure> {
    let sending = parcels.into_iter().map(|Parcel { blob, sent_bytes }| async move {
        let arrival = client.ensure_blob(repository, blob.clone()).await;
        let arrival = arrival.map_err(|error| not_arrived(&blob, repository, error))?;
        sent_bytes.store(blob.size_bytes, Ordering::Relaxed);
        Ok::<_, Failure>((arrival, blob.size_bytes))
    });
    let mut arriving = pin!(stream::iter(sending).buffer_unordered(BLOBS_AT_ONCE));
    let mut arrivals = Arrivals::default();
    while let Some((arrival, size_bytes)) = arriving.try_next().await? {
        arrivals.count(arrival, size_bytes);
    }
    Ok(arrivals)
}

fn not_arrived(blob: &NewBlob, repository: &Repository, error: RegistryError) -> Failure {
    let text = format!("cannot push the blob {} to {}", blob.digest, repository.host());
    match (&blob.origin, error.reason()) {
        (BlobOrigin::Nowhere, Reason::NotFound) => {
            let text = format!("{text}: the repository has lost a layer of the base");
            Failure::with_source(FailureClass::Registry, text, error)
        }
        _ => failure_of_registry(text, error),
    }
}
