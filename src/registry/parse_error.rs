//! Errors of the pure parsers: challenges, locations, references, docker's config file.

/// Why a `WWW-Authenticate` header is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChallengeError {
    /// A 401 without the header, or one that is not text.
    #[error("no readable WWW-Authenticate header")]
    Missing,
    /// Not as RFC 9110 has it.
    #[error("WWW-Authenticate is malformed")]
    Syntax,
    /// Longer than the limit.
    #[error("WWW-Authenticate of {0} bytes is too long")]
    TooLong(usize),
    /// More parameters than the limit.
    #[error("WWW-Authenticate has too many parameters")]
    TooManyParameters,
    /// A parameter that must be unique is there twice.
    #[error("WWW-Authenticate repeats a parameter")]
    Repeated,
    /// Bearer without the URL of the token server.
    #[error("WWW-Authenticate names no realm")]
    NoRealm,
    /// Neither Basic nor Bearer.
    #[error("WWW-Authenticate offers neither Basic nor Bearer")]
    NoKnownScheme,
}

/// Why a URL that a server or a configuration gave cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LocationError {
    /// A redirect without a readable `Location`.
    #[error("a redirect without a readable Location header")]
    Missing,
    /// Not a URL.
    #[error("not a URL: {0}")]
    Syntax(#[from] url::ParseError),
    /// Longer than the limit.
    #[error("a URL of {0} bytes is too long")]
    TooLong(usize),
    /// Neither http nor https, or without a host.
    #[error("a URL that is neither http nor https, or has no host")]
    Scheme,
    /// A user name or password inside a URL.
    #[error("a URL that holds a user name or password")]
    UserInfo,
    /// From https to http.
    #[error("a redirect from https to {to}, whose host is not configured as plain_http")]
    Downgrade {
        /// Where it leads, without query.
        to: String,
    },
    /// Not `scheme://host/v2/<repository>/blobs`.
    #[error("a blob URL that is not scheme://host/v2/<repository>/blobs")]
    BlobUrl,
    /// Upstream's `--upload` in another form.
    #[error("not of the form scheme://host/v2/<repository>/blobs/uploads/")]
    UploadUrl,
    /// A repository name with characters or parts that no registry takes.
    #[error("a repository name that is empty, too long, or has parts other than [a-z0-9._-]")]
    Repository,
}

/// Why a text does not name a host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HostNameError {
    /// Another scheme before the host.
    #[error("a host is named as HOST or HOST:PORT, and registries are spoken to by http or https alone")]
    Scheme,
    /// Something after the host.
    #[error("a host is named as HOST or HOST:PORT, without a path: what is set is set for all of the host")]
    Path,
    /// Not what a URL may have there.
    #[error("a host is named as HOST or HOST:PORT")]
    Location(#[from] LocationError),
}

/// Why a text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReferenceError {
    /// Longer than any reference can be.
    #[error("a reference of {0} bytes is too long")]
    TooLong(usize),
    /// Not `registry/repository[:tag][@digest]`.
    #[error("not registry/repository[:tag][@digest]: {0}")]
    Syntax(String),
}
