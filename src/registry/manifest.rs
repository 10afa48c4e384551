//! Fetches manifests: by tag or digest, verified, and out of an index the one for a platform.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::Deserialize;

use super::{
    Digest, ImageReference, Platform, Priority, Reason, RegistryError, Repository, body,
    client::Shared,
    exchange::Answer,
    location,
    retry::{self, Call},
};

/// The limit that registries keep themselves.
pub const MAX_MANIFEST_BYTES: usize = 4 << 20;
/// An index may point to an index; more levels than this are not made by any tool.
const MAX_INDEX_DEPTH: usize = 3;
/// Platforms named in an error.
const MAX_SHOWN_PLATFORMS: usize = 16;

const MANIFEST_TYPES: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
const INDEX_TYPES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json";

/// An image manifest as the registry sent it, its digest checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The document.
    pub bytes: Bytes,
    /// OCI's or docker's type of an image manifest.
    pub media_type: String,
    /// Digest of `bytes`.
    pub digest: Digest,
}

/// The parts of a manifest or index that are needed to tell them apart and to choose.
#[derive(Deserialize)]
struct Document {
    #[serde(rename = "schemaVersion")]
    schema_version: u32,
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
    manifests: Option<Vec<Descriptor>>,
    layers: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
    platform: Option<DescribedPlatform>,
}

#[derive(Deserialize)]
struct DescribedPlatform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

/// What a document is.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Manifest(String),
    /// The digest of the first that fits.
    Index(Digest),
}

pub(super) async fn resolve(
    shared: &Shared,
    repository: &Repository,
    reference: &ImageReference,
    platform: &Platform,
) -> Result<Manifest, RegistryError> {
    let parse = |text: &str| {
        text.parse::<Digest>()
            .map_err(|error| RegistryError::new(reference.to_string(), Reason::Digest(error)))
    };
    let mut wanted = reference.digest().map(parse).transpose()?;
    let call = shared.start(Priority::Demand);
    for _ in 0..MAX_INDEX_DEPTH {
        let name = wanted.as_ref().map_or(reference.tag_or_digest(), Digest::as_str);
        let (bytes, content_type, digest) = fetch(shared, call, repository, name, wanted.as_ref()).await?;
        let kind = classify(&bytes, &content_type, platform)
            .map_err(|reason| RegistryError::new(format!("{reference} ({digest})"), reason))?;
        match kind {
            Kind::Manifest(media_type) => return Ok(Manifest { bytes, media_type, digest }),
            Kind::Index(digest) => wanted = Some(digest),
        }
    }
    let what = format!("more than {MAX_INDEX_DEPTH} levels of indexes");
    Err(RegistryError::new(reference.to_string(), Reason::Manifest(what)))
}

async fn fetch(
    shared: &Shared,
    call: Call,
    repository: &Repository,
    name: &str,
    wanted: Option<&Digest>,
) -> Result<(Bytes, String, Digest), RegistryError> {
    let url = repository.manifest_url(name);
    let headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(ACCEPT))]);
    let exchange = &shared.exchange;
    retry::run(&exchange.limits, &exchange.metrics, call, &location::shown(&url), || async {
        let answer = shared.follow(call, repository, url.clone(), &headers).await?.answer.into_success()?;
        if answer.status() != StatusCode::OK {
            return Err(answer.error(Reason::Status { status: answer.status().as_u16(), retry_after: None }));
        }
        if let Some(encoding) = answer.header(header::CONTENT_ENCODING).filter(|text| *text != "identity") {
            let encoding = encoding.chars().take(32).collect();
            return Err(answer.error(Reason::ContentEncoding(encoding)));
        }
        let content_type = answer.header(header::CONTENT_TYPE).unwrap_or_default();
        let content_type = content_type.split(';').next().unwrap_or_default().trim().to_owned();
        let promised = promised_digest(&answer);
        let target = location::shown(&answer.url);
        let limit_bytes = MAX_MANIFEST_BYTES;
        let bytes = body::read_limited(answer, limit_bytes, exchange.limits.stall_timeout())
            .await?
            .ok_or_else(|| RegistryError::new(&target, Reason::ManifestTooLarge { limit_bytes }))?;
        for expected in wanted.iter().copied().chain(promised.as_ref()) {
            let got = expected.of_same_kind(&bytes);
            if got != *expected {
                let (expected, got) = (expected.to_string(), got.to_string());
                return Err(RegistryError::new(&target, Reason::DigestMismatch { expected, got }));
            }
        }
        let digest = wanted.cloned().unwrap_or_else(|| Digest::sha256(&bytes));
        Ok((bytes, content_type, digest))
    })
    .await
}

/// The digest that the registry says its answer has. One by an algorithm that is not known promises nothing.
fn promised_digest(answer: &Answer) -> Option<Digest> {
    answer.header(HeaderName::from_static("docker-content-digest"))?.parse().ok()
}

/// Tells manifest and index apart, by the document's own type before the header's, and chooses from an index.
fn classify(bytes: &[u8], content_type: &str, platform: &Platform) -> Result<Kind, Reason> {
    let document: Document =
        serde_json::from_slice(bytes).map_err(|error| Reason::Manifest(error.to_string()))?;
    if document.schema_version != 2 {
        let what = format!("schema version {}, not 2", document.schema_version);
        return Err(Reason::Manifest(what));
    }
    let is_known = |kind: &str| MANIFEST_TYPES.contains(&kind) || INDEX_TYPES.contains(&kind);
    let own = document.media_type.as_deref();
    if own.is_some_and(|own| own != content_type) && is_known(content_type) {
        return Err(Reason::Manifest(format!("sent as {content_type}, but says that it is another type")));
    }
    let media_type = match own.or(is_known(content_type).then_some(content_type)) {
        Some(media_type) if is_known(media_type) => media_type,
        Some(_) => return Err(Reason::Manifest("neither OCI's nor docker's media type".to_owned())),
        None if document.manifests.is_some() => INDEX_TYPES[0],
        None => MANIFEST_TYPES[0],
    };
    if INDEX_TYPES.contains(&media_type) {
        if document.layers.is_some() {
            return Err(Reason::Manifest("an index with layers".to_owned()));
        }
        let manifests =
            document.manifests.ok_or_else(|| Reason::Manifest("an index without manifests".into()))?;
        return choose(&manifests, platform).map(Kind::Index);
    }
    if document.manifests.is_some() || document.layers.is_none() {
        return Err(Reason::Manifest("a manifest without layers, or with manifests".to_owned()));
    }
    Ok(Kind::Manifest(media_type.to_owned()))
}

fn choose(manifests: &[Descriptor], wanted: &Platform) -> Result<Digest, Reason> {
    let mut offered = Vec::new();
    for descriptor in manifests {
        let Some(described) = &descriptor.platform else { continue };
        let platform = Platform {
            os: described.os.clone(),
            architecture: described.architecture.clone(),
            variant: described.variant.clone().filter(|variant| !variant.is_empty()),
        };
        if wanted.accepts(&platform) {
            return descriptor.digest.parse().map_err(Reason::Digest);
        }
        // Attestations are listed as unknown/unknown, which helps nobody to choose.
        if platform.os != "unknown" && offered.len() < MAX_SHOWN_PLATFORMS {
            offered.push(platform.to_string());
        }
    }
    Err(Reason::NoPlatform { wanted: wanted.to_string(), offered: offered.join(", ") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classified(text: &str, content_type: &str) -> Result<Kind, Reason> {
        let amd64 = Platform { os: "linux".into(), architecture: "amd64".into(), variant: None };
        classify(text.as_bytes(), content_type, &amd64)
    }

    fn entry(hash: char, platform: &str) -> String {
        let digest = hash.to_string().repeat(64);
        format!(r#"{{"digest":"sha256:{digest}","platform":{platform}}}"#)
    }

    #[test]
    fn an_index_gives_the_manifest_of_the_platform() {
        let entries = [
            entry('a', r#"{"os":"linux","architecture":"arm64"}"#),
            entry('b', r#"{"os":"linux","architecture":"amd64"}"#),
            entry('c', r#"{"os":"unknown","architecture":"unknown"}"#),
        ];
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","));
        let expected: Digest = format!("sha256:{}", "b".repeat(64)).parse().unwrap();
        assert_eq!(classified(&index, "").unwrap(), Kind::Index(expected));
        let other = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries[0]);
        match classified(&other, INDEX_TYPES[1]) {
            Err(Reason::NoPlatform { wanted, offered }) => {
                assert_eq!((wanted.as_str(), offered.as_str()), ("linux/amd64", "linux/arm64"));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_document_that_contradicts_its_type_is_refused() {
        let manifest = r#"{"schemaVersion":2,"layers":[]}"#;
        assert!(
            matches!(classified(manifest, MANIFEST_TYPES[1]), Ok(Kind::Manifest(kind)) if kind == MANIFEST_TYPES[1])
        );
        assert!(matches!(classified(manifest, "text/plain"), Ok(Kind::Manifest(_))));
        let typed = format!(r#"{{"schemaVersion":2,"mediaType":"{}","layers":[]}}"#, MANIFEST_TYPES[0]);
        assert!(classified(&typed, "application/json").is_ok());
        for (text, content_type) in [
            (manifest, INDEX_TYPES[0]),
            (typed.as_str(), MANIFEST_TYPES[1]),
            (r#"{"schemaVersion":1,"layers":[]}"#, ""),
            (r#"{"schemaVersion":2}"#, ""),
            (r#"{"schemaVersion":2,"layers":[],"manifests":[]}"#, ""),
            (r#"{"schemaVersion":2,"mediaType":"x","layers":[]}"#, ""),
            ("[]", ""),
            ("", ""),
        ] {
            assert!(matches!(classified(text, content_type), Err(Reason::Manifest(_))), "{text}");
        }
    }
}
