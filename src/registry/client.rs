//! The client: what it can be asked for, and how its answers come back to any executor.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::header;
use sha2::{Digest as _, Sha256};
use tokio::{runtime::Handle, task::JoinHandle};
use url::Url;

use super::{
    Arrival, FoundDocument, HostLoad, ImageDocuments, ImageManifest, ImageReference, Limits, LocationError,
    NewBlob, NewDocument, Priority, Reason, RegistryConfig, RegistryError, RegistryMetrics, RemoteBlob,
    Repository,
    authorize::Authorizer,
    blob,
    call::{Call, Clock},
    connection::Authorities,
    credentials::CredentialSource,
    draft::Draft,
    exchange::{Answer, Exchange},
    location, manifest, push,
    scope::Scope,
};
use crate::{
    block::ByteRange,
    format::oci::{Digest, Platform},
};

/// Redirects followed for one request. Registries answer with one; storage behind a content network adds another.
pub const MAX_REDIRECTS: usize = 5;

/// A client of OCI registries. Cheap to clone; all clones share connections, tokens and limits.
///
/// All its work runs on the tokio runtime that it is given. What it returns may be awaited on any executor, and stops
/// when it is dropped.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

/// What the tasks of one client share.
pub(super) struct Shared {
    pub(super) exchange: Exchange,
    authorizer: Authorizer,
    runtime: Handle,
}

/// An answer on its way. Await it on any executor; dropping it stops the work.
#[must_use = "dropping it stops the request"]
pub struct Reply<T> {
    task: JoinHandle<Result<T, RegistryError>>,
}

/// An answer and how it was come by.
pub(super) struct Followed {
    pub(super) answer: Answer,
    /// Where it came from, if that is not the registry itself.
    pub(super) storage: Option<Url>,
}

impl Client {
    /// A client that works on `runtime`, which must have time and I/O enabled.
    ///
    /// # Errors
    /// [`Reason::Configuration`] where files that `config` names are missing or unusable.
    pub fn new(config: &RegistryConfig, runtime: Handle) -> Result<Self, RegistryError> {
        let _entered = runtime.enter();
        let trusted = match &config.ca_file {
            Some(file) => Authorities::of_system().with_file(file)?,
            None => Authorities::of_system(),
        };
        let exchange = Exchange::new(config, &trusted)?;
        let authorizer = Authorizer::new(CredentialSource::new(&config.credentials, &trusted)?);
        Ok(Self { shared: Arc::new(Shared { exchange, authorizer, runtime: runtime.clone() }) })
    }

    /// The repository that `reference` lies in, by plain HTTP where its host is configured so.
    ///
    /// # Errors
    /// Where the reference's parts cannot be part of a URL.
    pub fn repository(&self, reference: &ImageReference) -> Result<Repository, RegistryError> {
        let host = reference.registry_host();
        let is_plain = self.shared.exchange.connections.is_plain_host(host);
        Repository::new(host, reference.repository(), is_plain)
            .map_err(|error| RegistryError::new(reference.to_string(), Reason::Location(error)))
    }

    /// The repository of upstream's `repoBlobUrl`, `scheme://host/v2/<repository>/blobs`.
    ///
    /// # Errors
    /// Where it has another form, or is plain HTTP to a host that is not configured so.
    pub fn repository_of_blob_url(&self, blob_url: &str) -> Result<Repository, RegistryError> {
        let repository = Repository::from_blob_url(blob_url).map_err(|error| {
            let what = error.to_string();
            RegistryError::new("repoBlobUrl", Reason::Configuration { what, source: None })
        })?;
        let host = repository.host();
        if repository.is_plain_http() && !self.shared.exchange.connections.is_plain_host(&host) {
            return Err(RegistryError::new("repoBlobUrl", Reason::PlainHttp { host }));
        }
        Ok(repository)
    }

    /// A blob whose size is known from a manifest or configuration. Asks nobody.
    #[must_use]
    pub fn blob(&self, repository: &Repository, digest: Digest, size_bytes: u64) -> RemoteBlob {
        RemoteBlob::new(self.shared.clone(), repository, digest, size_bytes)
    }

    /// A blob whose size must be asked for, by a request for its first byte.
    pub fn blob_of_unknown_size(&self, repository: &Repository, digest: Digest) -> Reply<RemoteBlob> {
        let (shared, repository) = (self.shared.clone(), repository.clone());
        self.shared.spawn(blob::probe(shared, repository, digest))
    }

    /// The manifest that `reference` names; out of an index, the one for `platform`.
    pub fn manifest(&self, reference: &ImageReference, platform: &Platform) -> Reply<ImageManifest> {
        let (shared, reference, platform) = (self.shared.clone(), reference.clone(), platform.clone());
        let repository = self.repository(&reference);
        self.shared
            .spawn(async move { manifest::resolve(&shared, &repository?, &reference, &platform).await })
    }

    /// What `reference` names, a manifest or an index.
    pub fn document(&self, reference: &ImageReference) -> Reply<FoundDocument> {
        let (shared, reference) = (self.shared.clone(), reference.clone());
        let repository = self.repository(&reference);
        self.shared.spawn(async move { manifest::find(&shared, &repository?, &reference).await })
    }

    /// The configuration that the manifest `bytes`, found in `repository`, names; its digest is checked.
    pub fn image_config(&self, repository: &Repository, bytes: Bytes) -> Reply<Bytes> {
        let (client, repository) = (self.clone(), repository.clone());
        self.shared.spawn(async move {
            let named = ImageDocuments::config_of(&bytes);
            let (expected, size_bytes) =
                named.map_err(|error| RegistryError::new(repository.name(), Reason::NextImage(error)))?;
            let blob = client.blob(&repository, expected, size_bytes);
            let bytes = blob.read_range(ByteRange::between(0, size_bytes), Priority::Demand).await?;
            let got = Digest::from_hash(Sha256::digest(&bytes).into());
            let mismatch = || RegistryError::new(blob.name(), Reason::DigestMismatch { expected, got });
            if got == expected { Ok(bytes) } else { Err(mismatch()) }
        })
    }

    /// Makes sure that `repository` has `blob`, and says how it came by it.
    pub fn ensure_blob(&self, repository: &Repository, blob: NewBlob) -> Reply<Arrival> {
        let (shared, repository) = (self.shared.clone(), repository.clone());
        self.shared.spawn(async move { push::ensure_blob(&shared, &repository, &blob).await })
    }

    /// Lets `name` of `repository`, a tag or its own digest, mean `document`. All that it names must be there.
    pub fn put_document(&self, repository: &Repository, name: &str, document: &NewDocument) -> Reply<()> {
        let (shared, repository, name) = (self.shared.clone(), repository.clone(), name.to_owned());
        let document = document.clone();
        self.shared.spawn(async move { push::put_document(&shared, &repository, &name, &document).await })
    }

    /// Its bounds of time and number.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.shared.exchange.limits
    }

    /// How busy each host is that was asked, in the order of their names.
    #[must_use]
    pub fn loads(&self) -> Vec<HostLoad> {
        self.shared.exchange.hosts.loads()
    }

    /// What the client has counted.
    #[must_use]
    pub fn metrics(&self) -> Arc<RegistryMetrics> {
        self.shared.exchange.metrics.clone()
    }
}

impl Shared {
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, RegistryError>> + Send + 'static,
    ) -> Reply<T> {
        Reply { task: self.runtime.spawn(work) }
    }

    /// Starts the clock of a call.
    pub(super) fn clock(&self) -> Clock {
        Clock::start(&self.exchange.limits)
    }

    /// Sends `draft` to `url` of the repository of `scope` and follows redirects. Only the registry's own origin sees the
    /// credential, and none does after another one has been visited.
    pub(super) async fn follow(
        &self,
        call: Call<'_>,
        scope: &Scope,
        mut url: Url,
        draft: &Draft,
    ) -> Result<Followed, RegistryError> {
        let repository = &scope.repository;
        if url.scheme() == "http" && !self.exchange.connections.may_be_plain(&url) {
            let host = location::authority(&url);
            return Err(RegistryError::new(location::shown(&url), Reason::PlainHttp { host }));
        }
        let mut is_home = url.origin() == repository.origin();
        for _ in 0..=MAX_REDIRECTS {
            let answer = if is_home {
                self.authorizer.send(&self.exchange, call, scope, &url, draft).await?
            } else {
                self.exchange.send(call, &url, draft).await?
            };
            if !is_redirect(&answer) || !is_repeatable(draft, &answer) {
                return Ok(Followed { answer, storage: (!is_home).then_some(url) });
            }
            let next =
                self.redirect_target(&answer).map_err(|error| answer.error(Reason::Location(error)))?;
            self.exchange.metrics.redirects.inc();
            is_home = is_home && next.origin() == repository.origin();
            url = next;
        }
        Err(RegistryError::new(location::shown(&url), Reason::TooManyRedirects(MAX_REDIRECTS)))
    }

    /// Where `answer` leads, never from TLS to plain HTTP unless the operator has said so.
    pub(super) fn redirect_target(&self, answer: &Answer) -> Result<Url, LocationError> {
        let text = answer.header(header::LOCATION).ok_or(LocationError::Missing)?;
        let next = location::resolve_location(&answer.url, text)?;
        let is_downgrade = answer.url.scheme() == "https" && next.scheme() == "http";
        if is_downgrade && !self.exchange.connections.may_be_plain(&next) {
            return Err(LocationError::Downgrade { to: location::shown(&next) });
        }
        Ok(next)
    }
}

/// Whether what was sent may be sent again where the answer leads: 301 to 303 would make a GET of it, as browsers do.
pub(super) fn is_repeatable(draft: &Draft, answer: &Answer) -> bool {
    draft.method.is_safe() || matches!(answer.status().as_u16(), 307 | 308)
}

pub(super) fn is_redirect(answer: &Answer) -> bool {
    matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308)
}

impl<T> Future for Reply<T> {
    type Output = Result<T, RegistryError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.task).poll(context).map(|joined| {
            joined.unwrap_or_else(|_| Err(RegistryError::new("registry client", Reason::Closed)))
        })
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<T> fmt::Debug for Reply<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reply")
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}
