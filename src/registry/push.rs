//! Puts blobs and manifests into a repository. What the repository has is not sent again, and any step may be repeated.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use url::Url;

use super::{
    BlobContent, FileContent, NewDocument, Priority, Reason, RegistryError, Repository,
    call::{Call, Clock},
    client::Shared,
    draft::{Content, Draft},
    exchange::Answer,
    location,
    manifest::promised_digest,
    retry,
    scope::Scope,
};
use crate::format::oci::Digest;

/// What registries answer when they have taken a manifest: the specification's 201, and what others send. A blob that is accepted only
/// (202) is not there yet.
const TAKEN: [StatusCode; 4] =
    [StatusCode::OK, StatusCode::CREATED, StatusCode::ACCEPTED, StatusCode::NO_CONTENT];

/// A blob that a repository is to have.
#[derive(Debug, Clone)]
pub struct NewBlob {
    /// Its name.
    pub digest: Digest,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Where the bytes come from if the repository has not got them.
    pub origin: BlobOrigin,
}

/// Where the bytes of a blob are.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum BlobOrigin {
    /// In memory.
    Bytes(Bytes),
    /// In a file, whose content must have the blob's digest.
    File(FileContent),
    /// In another repository. One of the same registry is asked to be shared, and copied where that is refused.
    Blob(BlobContent),
    /// Only where it is to be.
    Nowhere,
}

/// How a repository came by a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Arrival {
    /// It had it.
    Present,
    /// The registry took it over from another repository.
    Mounted,
    /// It was sent from memory or a file.
    Uploaded,
    /// It was sent as it came from another repository.
    Copied,
}

/// What the registry has made of a request for an upload.
enum Begun {
    Mounted,
    /// The bytes are awaited here.
    Session(Url),
}

/// One try of putting one thing.
struct Push<'a> {
    shared: &'a Shared,
    call: Call<'a>,
    target: &'a Repository,
    scope: Scope,
}

/// Makes sure that `target` has `blob`.
pub(super) async fn ensure_blob(
    shared: &Shared,
    target: &Repository,
    blob: &NewBlob,
) -> Result<Arrival, RegistryError> {
    let exchange = &shared.exchange;
    let clock = Clock::start_for(&exchange.limits, blob.size_bytes);
    let call = Call::new(&clock, Priority::Demand);
    let mounted = blob.origin.neighbour_of(target);
    let name = location::shown(&target.blob_url(blob.digest));
    retry::run(&exchange.limits, &exchange.metrics, call, &name, || async {
        let push = Push { shared, call, target, scope: Scope::push(target, None) };
        // Also at the second try: the answer to an upload may have been lost when all of it was there.
        if push.has(blob).await? { Ok(Arrival::Present) } else { push.bring(blob, mounted, &name).await }
    })
    .await
}

/// Lets `name` mean `document`, all of whose content must be there.
pub(super) async fn put_document(
    shared: &Shared,
    target: &Repository,
    name: &str,
    document: &NewDocument,
) -> Result<(), RegistryError> {
    let exchange = &shared.exchange;
    let clock = shared.clock();
    let call = Call::new(&clock, Priority::Demand);
    let url = target.manifest_url(name);
    let name = location::shown(&url);
    let content_type = HeaderValue::from_str(&document.media_type)
        .map_err(|_| RegistryError::new(&name, Reason::MediaType))?;
    retry::run(&exchange.limits, &exchange.metrics, call, &name, || async {
        let push = Push { shared, call, target, scope: Scope::push(target, None) };
        let draft = draft(Method::PUT, &content_type, Content::Bytes(document.bytes.clone()));
        let answer = push.send(url.clone(), &draft).await?.into_one_of(&TAKEN).await?;
        agreeing(&answer, document.digest)
    })
    .await
}

impl BlobOrigin {
    /// The repository of `target`'s registry that has the blob.
    fn neighbour_of(&self, target: &Repository) -> Option<&Repository> {
        match self {
            Self::Blob(content) if content.repository().shares_registry_with(target) => {
                Some(content.repository())
            }
            _ => None,
        }
    }
}

impl Push<'_> {
    async fn has(&self, blob: &NewBlob) -> Result<bool, RegistryError> {
        let draft = Draft { method: Method::HEAD, ..Draft::get(HeaderMap::new()) };
        let answer = self.send(self.target.blob_url(blob.digest), &draft).await?;
        let is_refused = matches!(
            answer.status(),
            StatusCode::FORBIDDEN | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED
        );
        // Who may not ask, or cannot, may still send.
        let can_be_sent = !matches!(blob.origin, BlobOrigin::Nowhere);
        if answer.status() == StatusCode::NOT_FOUND || (is_refused && can_be_sent) {
            return Ok(false);
        }
        let answer = answer.into_one_of(&[StatusCode::OK]).await?;
        agreeing(&answer, blob.digest)?;
        let sent = answer.header(header::CONTENT_LENGTH).and_then(|text| text.parse().ok());
        match sent {
            Some(len) if len != blob.size_bytes => {
                Err(answer.error(Reason::WrongLength { expected: blob.size_bytes, sent }))
            }
            _ => Ok(true),
        }
    }

    async fn bring(
        &self,
        blob: &NewBlob,
        mounted: Option<&Repository>,
        name: &str,
    ) -> Result<Arrival, RegistryError> {
        let (content, sent) = match &blob.origin {
            BlobOrigin::Bytes(bytes) => (Content::Bytes(bytes.clone()), Arrival::Uploaded),
            BlobOrigin::File(file) => (Content::File(file.clone()), Arrival::Uploaded),
            BlobOrigin::Blob(blob) => (Content::Blob(blob.clone()), Arrival::Copied),
            BlobOrigin::Nowhere => return Err(RegistryError::new(name, Reason::NotFound)),
        };
        let begun = match mounted {
            Some(source) => self.mount(blob.digest, source).await,
            None => self.begin(None).await,
        };
        match begun? {
            Begun::Mounted => Ok(Arrival::Mounted),
            Begun::Session(url) => self.upload(url, blob.digest, content).await.map(|()| sent),
        }
    }

    /// Asks for the blob to be taken over from `source`. However that is refused, there is another way: no credential may be good
    /// for both repositories, or the registry may know no such thing.
    async fn mount(&self, digest: Digest, source: &Repository) -> Result<Begun, RegistryError> {
        let both = Push { scope: Scope::push(self.target, Some(source)), ..*self };
        match both.begin(Some((digest, source))).await {
            Ok(begun) => Ok(begun),
            Err(_) => self.begin(None).await,
        }
    }

    /// Asks for a place to send a blob to, or for one to be taken over.
    async fn begin(&self, mount: Option<(Digest, &Repository)>) -> Result<Begun, RegistryError> {
        let mut url = self.target.uploads_url();
        if let Some((digest, source)) = mount {
            url.query_pairs_mut()
                .append_pair("mount", &digest.to_string())
                .append_pair("from", source.name());
        }
        let octets = HeaderValue::from_static("application/octet-stream");
        let draft = draft(Method::POST, &octets, Content::Bytes(Bytes::new()));
        let answer = self.send(url, &draft).await?;
        match mount {
            Some((digest, _)) if answer.status() == StatusCode::CREATED => {
                agreeing(&answer, digest)?;
                Ok(Begun::Mounted)
            }
            _ => {
                let answer = answer.into_one_of(&[StatusCode::ACCEPTED]).await?;
                let session = self.shared.redirect_target(&answer);
                session.map(Begun::Session).map_err(|error| answer.error(Reason::Location(error)))
            }
        }
    }

    /// Sends all of a blob in one request. `session` may lie at another host, which gets no credential, and its query is the
    /// registry's own.
    async fn upload(&self, mut session: Url, digest: Digest, content: Content) -> Result<(), RegistryError> {
        let place = session.clone();
        session.query_pairs_mut().append_pair("digest", &digest.to_string());
        let octets = HeaderValue::from_static("application/octet-stream");
        let answer = self.send(session, &draft(Method::PUT, &octets, content)).await;
        let answer = answer.map_err(|error| self.lost_port(&place, error))?;
        if answer.status() == StatusCode::NOT_FOUND {
            // The registry has forgotten the session, and the next try begins another.
            return Err(answer.error(Reason::LocationExpired { status: 404 }));
        }
        let answer =
            answer.into_one_of(&[StatusCode::OK, StatusCode::CREATED, StatusCode::NO_CONTENT]).await?;
        agreeing(&answer, digest)
    }

    /// What `error` of the session at `place` means where that is at the registry's host and at another port.
    fn lost_port(&self, place: &Url, error: RegistryError) -> RegistryError {
        let host = self.target.host();
        let is_at_host = place.host_str() == self.target.host_name() && location::authority(place) != host;
        match error.reason() {
            Reason::Connect { .. } if is_at_host => {
                let reason =
                    Reason::LostPort { place: location::authority(place), host, source: error.into() };
                RegistryError::new(location::shown(place), reason)
            }
            _ => error,
        }
    }

    async fn send(&self, url: Url, draft: &Draft) -> Result<Answer, RegistryError> {
        Ok(self.shared.follow(self.call, &self.scope, url, draft).await?.answer)
    }
}

fn draft(method: Method, content_type: &HeaderValue, content: Content) -> Draft {
    let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, content_type.clone())]);
    Draft { method, headers, content }
}

/// Refuses an answer that speaks of another digest than `expected`.
fn agreeing(answer: &Answer, expected: Digest) -> Result<(), RegistryError> {
    match promised_digest(answer) {
        Some(got) if got != expected => Err(answer.error(Reason::DigestMismatch { expected, got })),
        _ => Ok(()),
    }
}
