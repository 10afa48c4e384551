//! Fetches manifests: by tag or digest, verified, and out of an index the one for a platform.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use sha2::{Digest as _, Sha256};

use super::{
    ImageReference, Reason, RegistryError, Repository, body, call::Call, client::Shared, draft::Draft,
    exchange::Answer, location, retry, scope::Scope,
};
use crate::format::oci::{
    self, DOCUMENT_LIMIT_BYTES, Descriptor, Digest, Document, MANIFEST_MEDIA_TYPES, Platform,
};

/// An index may point to an index; more levels than this are not made by any tool.
const MAX_INDEX_DEPTH: usize = 3;

/// An image manifest, its digest checked.
#[derive(Debug, Clone)]
pub struct ImageManifest {
    /// Digest of `bytes`, to pin the image that a tag stands for at this moment.
    pub digest: Digest,
    /// The document as the registry sent it.
    pub bytes: Bytes,
    /// The same, read.
    pub manifest: oci::Manifest,
    /// Whether it was chosen out of an index, which has others beside it.
    pub is_of_index: bool,
}

/// What a registry has under a name, its digest checked.
#[derive(Debug, Clone)]
pub struct FoundDocument {
    /// Digest of `bytes`.
    pub digest: Digest,
    /// The document as the registry sent it.
    pub bytes: Bytes,
    /// The same, read.
    pub document: Document,
}

/// Fetches the one that `reference` names, whatever it is.
pub(super) async fn find(
    shared: &Shared,
    repository: &Repository,
    reference: &ImageReference,
) -> Result<FoundDocument, RegistryError> {
    let wanted = wanted_digest(reference)?;
    let clock = shared.clock();
    fetch(shared, Call::first(&clock), repository, reference.tag_or_digest(), wanted).await
}

fn wanted_digest(reference: &ImageReference) -> Result<Option<Digest>, RegistryError> {
    let parsed = reference.digest().map(str::parse).transpose();
    parsed.map_err(|error| RegistryError::new(reference.to_string(), Reason::Digest(error)))
}

pub(super) async fn resolve(
    shared: &Shared,
    repository: &Repository,
    reference: &ImageReference,
    platform: &Platform,
) -> Result<ImageManifest, RegistryError> {
    let fail = |reason| RegistryError::new(reference.to_string(), reason);
    let mut wanted = wanted_digest(reference)?;
    let mut name = reference.tag_or_digest().to_owned();
    let clock = shared.clock();
    let call = Call::first(&clock);
    for depth in 0..MAX_INDEX_DEPTH {
        let FoundDocument { digest, bytes, document } =
            fetch(shared, call, repository, &name, wanted).await?;
        match document {
            Document::Manifest(manifest) => {
                return Ok(ImageManifest { digest, bytes, manifest, is_of_index: depth > 0 });
            }
            Document::Index(index) => {
                let chosen: &Descriptor =
                    index.select(platform).map_err(|error| fail(Reason::Manifest(error)))?;
                wanted = Some(chosen.digest);
                name = chosen.digest.to_string();
            }
        }
    }
    Err(fail(Reason::IndexDepth(MAX_INDEX_DEPTH)))
}

async fn fetch(
    shared: &Shared,
    call: Call<'_>,
    repository: &Repository,
    name: &str,
    wanted: Option<Digest>,
) -> Result<FoundDocument, RegistryError> {
    let url = repository.manifest_url(name);
    let accept = MANIFEST_MEDIA_TYPES.join(", ");
    let accept = HeaderValue::from_str(&accept).expect("media types and commas are a header value");
    let draft = Draft::get(HeaderMap::from_iter([(header::ACCEPT, accept)]));
    let scope = Scope::pull(repository);
    let exchange = &shared.exchange;
    retry::run(&exchange.limits, &exchange.metrics, call, &location::shown(&url), || async {
        let answer = shared.follow(call, &scope, url.clone(), &draft).await?.answer;
        let answer = answer.into_one_of(&[StatusCode::OK]).await?;
        if let Some(encoding) = answer.header(header::CONTENT_ENCODING).filter(|text| *text != "identity") {
            let encoding = encoding.chars().take(32).collect();
            return Err(answer.error(Reason::ContentEncoding(encoding)));
        }
        let says_index = says_index(&answer);
        let promised = promised_digest(&answer);
        let target = location::shown(&answer.url);
        let fail = |reason| RegistryError::new(&target, reason);
        let (limit_bytes, stall) = (DOCUMENT_LIMIT_BYTES, exchange.limits.stall_timeout());
        let bytes = body::read_limited(answer, limit_bytes, stall)
            .await?
            .ok_or_else(|| fail(Reason::ManifestTooLarge { limit_bytes }))?;
        let got = Digest::from_hash(Sha256::digest(&bytes).into());
        if let Some(expected) = [wanted, promised].into_iter().flatten().find(|expected| *expected != got) {
            return Err(fail(Reason::DigestMismatch { expected, got }));
        }
        let document = decode(&bytes, says_index).map_err(fail)?;
        Ok(FoundDocument { digest: got, bytes, document })
    })
    .await
}

/// The digest that the registry says its answer has. One by an algorithm that is not known promises nothing.
pub(super) fn promised_digest(answer: &Answer) -> Option<Digest> {
    answer.header(HeaderName::from_static("docker-content-digest"))?.parse().ok()
}

/// Whether the answer's media type is that of an index, if it is one of those asked for.
fn says_index(answer: &Answer) -> Option<bool> {
    let text = answer.header(header::CONTENT_TYPE)?;
    let kind = text.split(';').next().unwrap_or_default().trim();
    MANIFEST_MEDIA_TYPES.contains(&kind).then(|| kind.contains(".index.") || kind.contains(".list."))
}

/// Reads a document, but none that is a manifest by its header and an index by its content, or the other way round: two
/// clients would take it for two images under one digest (CVE-2021-41190).
fn decode(bytes: &[u8], says_index: Option<bool>) -> Result<Document, Reason> {
    let document = Document::decode(bytes).map_err(Reason::Manifest)?;
    let is_index = matches!(document, Document::Index(_));
    match says_index {
        Some(says_index) if says_index != is_index => Err(Reason::MediaType),
        _ => Ok(document),
    }
}
