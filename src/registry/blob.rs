//! A blob in a registry: verified reads of ranges, straight from storage once its location is known.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use tokio::time::Instant;
use url::Url;

use super::{
    BlobMetrics, Priority, Reason, RegistryError, Reply, Repository, body,
    call::Call,
    client::{Followed, Shared, is_redirect},
    draft::Draft,
    exchange::Answer,
    flight::{Flight, Turn},
    location, range_answer, retry,
    scope::Scope,
};
use crate::{block::ByteRange, format::oci::Digest};

/// The longest range of one read; it bounds what one answer can make this process allocate.
pub const MAX_READ_BYTES: u64 = 64 << 20;

/// How long a storage location is used before the registry is asked again. Signed URLs live for minutes to hours; one
/// that ends sooner is renewed when storage refuses it.
const LOCATION_LIFETIME: Duration = Duration::from_secs(300);

/// A blob of known size in a registry. Cheap to clone; clones share its discovered location.
#[derive(Clone)]
pub struct RemoteBlob(Arc<Blob>);

struct Blob {
    shared: Arc<Shared>,
    scope: Scope,
    digest: Digest,
    url: Url,
    name: String,
    host: String,
    size_bytes: u64,
    route: Flight<Route>,
    metrics: BlobMetrics,
}

/// Where the bytes are.
#[derive(Clone)]
enum Route {
    /// The registry sends them itself.
    Registry,
    /// At a URL that needs no credential but is one.
    Storage { url: Arc<Url>, expires: Instant },
}

impl RemoteBlob {
    pub(super) fn new(shared: Arc<Shared>, repository: &Repository, digest: Digest, size_bytes: u64) -> Self {
        Self(Arc::new(Blob::new(shared, repository.clone(), digest, size_bytes)))
    }

    /// Size in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.0.size_bytes
    }

    /// The digest that names it.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.0.digest
    }

    /// Its URL at the registry, for messages. Holds no credential.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its registry: host, with its port unless that is the scheme's own.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.0.host
    }

    /// What it has counted.
    #[must_use]
    pub fn metrics(&self) -> &BlobMetrics {
        &self.0.metrics
    }

    /// Reads exactly the bytes of `range`, at most [`MAX_READ_BYTES`]. Await the answer on any executor.
    ///
    /// The answer ends within the configured deadlines. Its bytes were proven by status, range, size and length to be those
    /// of the range; only a digest of the whole could prove that the registry means well.
    pub fn read_range(&self, range: ByteRange, priority: Priority) -> Reply<Bytes> {
        self.read(range, priority, false)
    }

    /// The same for bytes that make the body of another request, whose place among all requests is theirs too.
    pub(super) fn read_for_upload(&self, range: ByteRange) -> Reply<Bytes> {
        self.read(range, Priority::Demand, true)
    }

    fn read(&self, range: ByteRange, priority: Priority, has_place: bool) -> Reply<Bytes> {
        let (blob, clock) = (self.0.clone(), self.0.shared.clock());
        self.0.shared.spawn(async move {
            let call = Call { has_place, ..Call::new(&clock, priority) };
            blob.read(range, call).await
        })
    }

    /// Where it lies.
    pub(super) fn repository(&self) -> &Repository {
        &self.0.scope.repository
    }
}

impl fmt::Debug for RemoteBlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteBlob")
            .field("name", &self.name())
            .field("size_bytes", &self.size_bytes())
            .finish()
    }
}

/// Asks for the size of a blob.
pub(super) async fn probe(
    shared: Arc<Shared>,
    repository: Repository,
    digest: Digest,
) -> Result<RemoteBlob, RegistryError> {
    let clock = shared.clock();
    let call = Call::first(&clock);
    let blob = Blob::new(shared.clone(), repository, digest, 0);
    let (limits, metrics) = (&shared.exchange.limits, &shared.exchange.metrics);
    let first_byte = Draft::get(range_header(ByteRange::between(0, 1)));
    let size_bytes = retry::run(limits, metrics, call, &blob.name, || async {
        let answer = blob.open(call, &first_byte).await?;
        range_answer::size_bytes(answer.status(), answer.response.headers())
            .map_err(|reason| answer.error(reason))
    })
    .await?;
    Ok(RemoteBlob(Arc::new(Blob { size_bytes, ..blob })))
}

impl Blob {
    fn new(shared: Arc<Shared>, repository: Repository, digest: Digest, size_bytes: u64) -> Self {
        let url = repository.blob_url(digest);
        let (name, host) = (location::shown(&url), repository.host());
        let (route, metrics) = (Flight::new(), BlobMetrics::default());
        Self { shared, scope: Scope::pull(&repository), digest, url, name, host, size_bytes, route, metrics }
    }

    async fn read(&self, range: ByteRange, call: Call<'_>) -> Result<Bytes, RegistryError> {
        if range.end() > self.size_bytes || range.len() > MAX_READ_BYTES {
            let (offset, len, size_bytes) = (range.start(), range.len(), self.size_bytes);
            return Err(RegistryError::new(&self.name, Reason::OutOfBounds { offset, len, size_bytes }));
        }
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let exchange = &self.shared.exchange;
        let draft = Draft::get(range_header(range));
        self.metrics.fetches.inc();
        let mut is_first = true;
        let read = retry::run(&exchange.limits, &exchange.metrics, call, &self.name, || {
            if !std::mem::take(&mut is_first) {
                self.metrics.retries.inc();
            }
            self.attempt(call, range, &draft)
        });
        let bytes = read.await.inspect_err(|_| {
            self.metrics.failures.inc();
        })?;
        for metrics in [&exchange.metrics.bytes, &self.metrics.bytes] {
            metrics.inc_by(range.len());
        }
        Ok(bytes)
    }

    async fn attempt(&self, call: Call<'_>, range: ByteRange, draft: &Draft) -> Result<Bytes, RegistryError> {
        let answer = self.open(call, draft).await?;
        let exchange = &self.shared.exchange;
        let part = range_answer::locate(answer.status(), answer.response.headers(), range, self.size_bytes)
            .map_err(|reason| {
            // Wrong bytes from storage may come from a wrong location: the next try asks the registry.
            self.route.forget(|_| true);
            answer.error(reason)
        })?;
        body::read_part(answer, part, call, exchange).await
    }

    /// Asks for a range where the blob is known to be, or finds out where it is by asking for that very range.
    async fn open(&self, call: Call<'_>, range: &Draft) -> Result<Answer, RegistryError> {
        // Whoever finds out waits in line for a place like all others.
        match call.clock.stopped(self.route.take_turn(Route::is_alive)).await {
            Turn::Ready(Route::Storage { url, .. }) => self.ask_storage(call, &url, range).await,
            Turn::Ready(Route::Registry) => {
                let followed = self.shared.follow(call, &self.scope, self.url.clone(), range).await?;
                if followed.storage.is_some() {
                    // It has begun to redirect: the next read remembers where to.
                    self.route.forget(|route| matches!(route, Route::Registry));
                }
                followed.answer.into_success().await
            }
            Turn::Failed(error) => Err(error),
            Turn::Lead(lead) => {
                let call = call.shared();
                let followed = self.shared.follow(call, &self.scope, self.url.clone(), range).await;
                let found = match followed {
                    Ok(Followed { answer, storage }) => {
                        let route = storage.map_or(Route::Registry, Route::storage);
                        answer.into_success().await.map(|answer| (answer, route))
                    }
                    Err(error) => Err(error),
                };
                match found {
                    Ok((answer, route)) => {
                        lead.succeed(route);
                        Ok(answer)
                    }
                    Err(error) => {
                        lead.fail(&error);
                        Err(error)
                    }
                }
            }
        }
    }

    async fn ask_storage(
        &self,
        call: Call<'_>,
        url: &Arc<Url>,
        range: &Draft,
    ) -> Result<Answer, RegistryError> {
        let answer = self.shared.exchange.send(call, url, range).await?;
        let status = answer.status().as_u16();
        if is_redirect(&answer) || matches!(status, 400 | 401 | 403 | 404 | 410) {
            // Another reader may have renewed it already; only this one is forgotten.
            self.route.forget(
                |route| matches!(route, Route::Storage { url: known, .. } if Arc::ptr_eq(known, url)),
            );
            return Err(answer.error(Reason::LocationExpired { status }));
        }
        answer.into_success().await
    }
}

impl Route {
    fn storage(url: Url) -> Self {
        Self::Storage { url: Arc::new(url), expires: Instant::now() + LOCATION_LIFETIME }
    }

    fn is_alive(&self) -> bool {
        match self {
            Self::Registry => true,
            Self::Storage { expires, .. } => Instant::now() < *expires,
        }
    }
}

/// The header that asks for `range`, which is not empty.
fn range_header(range: ByteRange) -> HeaderMap {
    let text = format!("bytes={}-{}", range.start(), range.end().saturating_sub(1));
    let value = HeaderValue::from_str(&text).expect("digits and punctuation are a header value");
    HeaderMap::from_iter([(header::RANGE, value)])
}
