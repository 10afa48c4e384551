//! Where things are in a registry: repositories, URLs of blobs and manifests, redirects.

use url::{Origin, Url};

use super::LocationError;
use crate::format::oci::Digest;

/// Longest URL that is followed. Signed URLs of the large clouds are below 4 KiB.
pub const MAX_URL_BYTES: usize = 16 << 10;
/// The longest repository name that registries take.
const MAX_REPOSITORY_BYTES: usize = 255;

/// A repository of a registry.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Repository {
    /// `scheme://host[:port]/`.
    base: Url,
    name: String,
}

impl Repository {
    /// The repository `name` at `host`, which may have a port.
    ///
    /// # Errors
    /// When host or name cannot be part of a URL.
    pub fn new(host: &str, name: &str, plain_http: bool) -> Result<Self, LocationError> {
        let scheme = if plain_http { "http" } else { "https" };
        let base = parse(&format!("{scheme}://{host}/"))?;
        if base.path() != "/" || base.query().is_some() || base.fragment().is_some() || !is_repository(name) {
            return Err(LocationError::Repository);
        }
        Ok(Self { base, name: name.to_owned() })
    }

    /// The repository of upstream's `repoBlobUrl`: `scheme://host/v2/<repository>/blobs`, a slash at its end or not.
    ///
    /// # Errors
    /// When it has another form.
    pub fn from_blob_url(blob_url: &str) -> Result<Self, LocationError> {
        let url = parse(blob_url).map_err(|error| match error {
            LocationError::Syntax(_) | LocationError::Scheme => LocationError::BlobUrl,
            other => other,
        })?;
        let path = url.path().trim_end_matches('/');
        let name = path
            .strip_prefix("/v2/")
            .and_then(|path| path.strip_suffix("/blobs"))
            .ok_or(LocationError::BlobUrl)?;
        if url.query().is_some() || !is_repository(name) {
            return Err(LocationError::BlobUrl);
        }
        let mut base = url.clone();
        base.set_path("/");
        base.set_fragment(None);
        Ok(Self { base, name: name.to_owned() })
    }

    /// The repository of upstream's `--upload`: `scheme://host/v2/<repository>/blobs/uploads/`, a slash at its end or not.
    ///
    /// # Errors
    /// When it has another form.
    pub fn from_upload_url(url: &str) -> Result<Self, LocationError> {
        let blob_url = url.trim_end_matches('/').strip_suffix("/uploads").ok_or(LocationError::UploadUrl)?;
        Self::from_blob_url(blob_url).map_err(|error| match error {
            LocationError::BlobUrl => LocationError::UploadUrl,
            other => other,
        })
    }

    /// Host, with its port unless it is the scheme's own.
    #[must_use]
    pub fn host(&self) -> String {
        authority(&self.base)
    }

    /// The name inside the registry, such as `library/busybox`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The host without its port.
    pub(super) fn host_name(&self) -> Option<&str> {
        self.base.host_str()
    }

    /// Whether it is spoken to without TLS.
    #[must_use]
    pub fn is_plain_http(&self) -> bool {
        self.base.scheme() == "http"
    }

    pub(super) fn origin(&self) -> Origin {
        self.base.origin()
    }

    pub(super) fn blob_url(&self, digest: Digest) -> Url {
        self.url("blobs", &digest.to_string())
    }

    pub(super) fn manifest_url(&self, tag_or_digest: &str) -> Url {
        self.url("manifests", tag_or_digest)
    }

    /// Where uploads begin.
    pub(super) fn uploads_url(&self) -> Url {
        self.url("blobs", "uploads/")
    }

    /// Upstream's `repoBlobUrl` of it, which [`Repository::from_blob_url`] reads.
    #[must_use]
    pub fn blobs_url(&self) -> String {
        let mut url = self.base.clone();
        url.set_path(&format!("v2/{}/blobs", self.name));
        url.into()
    }

    /// Whether `other` lies in the same registry.
    #[must_use]
    pub fn shares_registry_with(&self, other: &Self) -> bool {
        self.origin() == other.origin()
    }

    fn url(&self, kind: &str, item: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("v2/{}/{kind}/{item}", self.name));
        url
    }
}

/// Resolves a `Location` header against the URL that answered with it.
///
/// # Errors
/// When the result is not an http or https URL with a host and without user information.
pub fn resolve_location(base: &Url, location: &str) -> Result<Url, LocationError> {
    if location.len() > MAX_URL_BYTES {
        return Err(LocationError::TooLong(location.len()));
    }
    let mut url = base.join(location)?;
    url.set_fragment(None);
    checked(url)
}

/// The URL as messages may show it: without query, which may hold a signature, and without user information.
#[must_use]
pub fn shown(url: &Url) -> String {
    format!("{}://{}{}", url.scheme(), authority(url), url.path())
}

/// Host, and the port unless it is the scheme's own.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

pub(super) fn parse(text: &str) -> Result<Url, LocationError> {
    if text.len() > MAX_URL_BYTES {
        return Err(LocationError::TooLong(text.len()));
    }
    checked(Url::parse(text)?)
}

fn checked(url: Url) -> Result<Url, LocationError> {
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
        return Err(LocationError::Scheme);
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(LocationError::UserInfo);
    }
    if url.as_str().len() > MAX_URL_BYTES {
        return Err(LocationError::TooLong(url.as_str().len()));
    }
    Ok(url)
}

/// Whether registries take `name` as that of a repository: the grammar of the distribution specification, which joins
/// letters and digits by one point, one or two underscores, or hyphens.
pub(super) fn is_repository(name: &str) -> bool {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let joins =
        |between: &str| matches!(between, "." | "_" | "__") || between.bytes().all(|byte| byte == b'-');
    let is_part =
        |part: &str| part.starts_with(is_word) && part.ends_with(is_word) && part.split(is_word).all(joins);
    name.len() <= MAX_REPOSITORY_BYTES && name.split('/').all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_blob_url_gives_the_repository() {
        let repository = Repository::from_blob_url("http://reg.example:5000/v2/a/b/blobs/").unwrap();
        assert_eq!((repository.host().as_str(), repository.name()), ("reg.example:5000", "a/b"));
        assert!(repository.is_plain_http());
        assert_eq!(repository.blobs_url(), "http://reg.example:5000/v2/a/b/blobs");
        let digest = Digest::from_hash([7; 32]);
        let url = repository.blob_url(digest);
        assert_eq!(url.as_str(), format!("http://reg.example:5000/v2/a/b/blobs/{digest}"));
        for good in ["a", "0", "a.b", "a_b", "a__b", "a--b/c-d.e"] {
            assert!(Repository::from_blob_url(&format!("https://h/v2/{good}/blobs")).is_ok(), "{good}");
        }
        for bad in [
            "",
            "/v2/a/blobs",
            "ftp://h/v2/a/blobs",
            "https://h/v1/a/blobs",
            "https://h/v2/blobs",
            "https://h/v2//blobs",
            "https://h/v2/a/../b/%2e%2e/blobs",
            "https://h/v2/a../b/blobs",
            "https://h/v2/a-/blobs",
            "https://h/v2/a___b/blobs",
            "https://h/v2/a/blobs?x=y",
            "https://u:p@h/v2/a/blobs",
        ] {
            assert!(Repository::from_blob_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn upstreams_upload_url_gives_the_repository() {
        let repository = Repository::from_upload_url("https://reg.example/v2/a/b/blobs/uploads/").unwrap();
        assert_eq!(repository.uploads_url().as_str(), "https://reg.example/v2/a/b/blobs/uploads/");
        assert_eq!(
            Repository::from_upload_url("https://reg.example/v2/a/b/blobs/uploads").unwrap(),
            repository
        );
        for bad in [
            "",
            "https://h/v2/a/blobs/",
            "https://h/v2/a/uploads/",
            "https://h/v2/a/blobs/uploads/?x",
            "/uploads",
        ] {
            assert!(Repository::from_upload_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_location_resolves_as_a_browser_would_and_hostile_ones_are_refused() {
        let base = Url::parse("https://r.example:5000/v2/a/blobs/x?old").unwrap();
        let resolve = |location: &str| resolve_location(&base, location).map(String::from);
        assert_eq!(resolve("/b?sig=%2F#f").unwrap(), "https://r.example:5000/b?sig=%2F");
        assert_eq!(resolve("//s.example/c").unwrap(), "https://s.example/c");
        assert_eq!(resolve("http://s.example/c").unwrap(), "http://s.example/c");
        let long = "a".repeat(MAX_URL_BYTES + 1);
        for bad in ["ftp://x/", "file:///etc/passwd", "https://u:p@x/", "https://[::1", "javascript:1", &long]
        {
            assert!(resolve(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_shown_url_has_no_query() {
        let url = Url::parse("https://s.example/blob?X-Amz-Signature=abc").unwrap();
        assert_eq!(shown(&url), "https://s.example/blob");
    }
}
