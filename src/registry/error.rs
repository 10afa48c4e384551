//! The one error of the client: what was asked, why it failed, whose fault it is and whether a retry may help.

use std::{error::Error, fmt, sync::Arc, time::Duration};

use super::{
    ChallengeError, ContentRangeError, CredentialsError, LocationError, NextImageError, ReferenceError, Shown,
};
use crate::format::oci::{Digest, DigestError, OciError};

/// A failed request. Cheap to clone, since one failed fetch fails all who share it.
///
/// The message names the target without its query string, because the query of a signed URL is a secret.
#[derive(Clone)]
pub struct RegistryError(Arc<Report>);

struct Report {
    target: String,
    reason: Reason,
    /// Why, in the registry's own words.
    said: Option<String>,
}

/// Who can mend a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// The caller asked for what cannot be, such as a range outside the blob.
    Caller,
    /// The operator's configuration of this host.
    Configuration,
    /// Missing, wrong or insufficient credentials.
    Credentials,
    /// The way to the registry: names, connections, timeouts.
    Network,
    /// The registry or the storage behind it answered, but not with what it owes.
    Registry,
}

/// Whether asking again may help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Retry {
    /// No: the answer will be the same.
    Never,
    /// Yes and at once, the first time: something remembered had expired.
    Now,
    /// Once and at once: something remembered may be at fault. The same answer again is final.
    Once,
    /// Yes, after a back-off.
    Later,
    /// Yes, and the server said how long to wait.
    After(Duration),
}

type Cause = Box<dyn Error + Send + Sync>;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// 401 although a fresh credential was shown, or there was none to show.
    #[error("access to {host} refused (401): {shown}; \"docker login {host}\" makes a new one")]
    Unauthorized {
        /// The registry's host and port.
        host: String,
        /// What it was shown.
        shown: Shown,
        /// Why the credential source gave nothing, if that is so.
        #[source]
        lookup: Option<Arc<CredentialsError>>,
    },
    /// 403: known, but not allowed.
    #[error("access denied (403): the account for {host} may not do this in the repository")]
    Forbidden {
        /// The host that answered.
        host: String,
    },
    /// 404.
    #[error("not found (404): check the repository and the tag or digest")]
    NotFound,
    /// Another status that is no answer.
    #[error("answered with status {status}")]
    Status {
        /// The HTTP status.
        status: u16,
        /// `Retry-After`, if the server sent one.
        retry_after: Option<Duration>,
    },
    /// The remembered location of the blob does not work any more.
    #[error("the storage location has expired (status {status})")]
    LocationExpired {
        /// The HTTP status.
        status: u16,
    },
    /// No connection.
    #[error("cannot connect to {host}")]
    Connect {
        /// Host and port.
        host: String,
        /// What the network said.
        source: Cause,
    },
    /// A proxy on the way refused.
    #[error("the proxy {proxy} refused (status {status}){}", if *status == 407 { ": it wants a login" } else { "" })]
    Proxy {
        /// Host and port of the proxy.
        proxy: String,
        /// What it answered.
        status: u16,
    },
    /// The certificate is signed by no known authority.
    #[error("the certificate of {host} is signed by an unknown authority: set ca_file for host {host}")]
    UnknownAuthority {
        /// Host and port.
        host: String,
        /// What the TLS library said.
        source: Cause,
    },
    /// The certificate has expired, is for another name, or cannot pass for another reason.
    #[error("the certificate of {host} is refused")]
    Certificate {
        /// Host and port.
        host: String,
        /// What the TLS library said.
        source: Cause,
    },
    /// What came back is not TLS at all.
    #[error("{host} does not speak TLS: set plain_http for host {host} if it is meant to be plain HTTP")]
    NotTls {
        /// Host and port.
        host: String,
        /// What the TLS library said.
        source: Cause,
    },
    /// Any other failure of TLS.
    #[error("TLS with {host} failed")]
    Tls {
        /// Host and port.
        host: String,
        /// What the TLS library said.
        source: Cause,
    },
    /// The connection broke during a request.
    #[error("the connection broke")]
    Exchange {
        /// What the network said.
        source: Cause,
    },
    /// One step of a request took too long.
    #[error("no {what} within {limit:?}")]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// For how long.
        limit: Duration,
    },
    /// All tries together took too long.
    #[error("not done within the deadline of {limit:?}")]
    Deadline {
        /// The deadline.
        limit: Duration,
        /// How the last try that ended had failed.
        #[source]
        last: Option<RegistryError>,
    },
    /// All of it took too long, most of which may have been waiting for a place among the requests to its host.
    #[error(
        "not done within {limit:?} in all, its wait for its turn included (registry.limits.total_deadline_ms)"
    )]
    TotalDeadline {
        /// The deadline.
        limit: Duration,
        /// How the last try that ended had failed.
        #[source]
        last: Option<RegistryError>,
    },
    /// It waited for a place among the requests to its host, of which none was answered.
    #[error("{host} has answered no request for {limit:?}")]
    Silent {
        /// Host and port.
        host: String,
        /// How long it was waited for.
        limit: Duration,
    },
    /// The body ended early.
    #[error("the body ended after {got} of {expected} bytes")]
    ShortBody {
        /// Bytes asked for.
        expected: u64,
        /// Bytes received.
        got: u64,
    },
    /// The body is longer than it may be.
    #[error("the body is longer than {expected} bytes")]
    LongBody {
        /// Bytes asked for.
        expected: u64,
    },
    /// A 206 without a `Content-Range` that can be read.
    #[error("a 206 without a usable range")]
    ContentRange(#[source] ContentRangeError),
    /// A 206 of a blob of another size.
    #[error("has {sent} bytes, and not the {expected} that the manifest or the image's configuration says")]
    WrongSize {
        /// The size that was said.
        expected: u64,
        /// The size by the answer.
        sent: u64,
    },
    /// A 206 for other bytes than those asked for.
    #[error("asked for bytes {asked} and was sent {sent}")]
    WrongRange {
        /// `start-last/total` as asked for.
        asked: String,
        /// `start-last/total` as sent.
        sent: String,
    },
    /// A 200 to a range request whose length is not the blob's.
    #[error("the whole blob was sent with length {sent:?}, but it has {expected} bytes")]
    WrongLength {
        /// The size of the blob.
        expected: u64,
        /// `Content-Length`, if sent.
        sent: Option<u64>,
    },
    /// The server ignores ranges, and the range is too far into the blob to be streamed to.
    #[error("the server ignores range requests; reading {skip} bytes to get to the range is too much")]
    RangeIgnored {
        /// Bytes before the range.
        skip: u64,
    },
    /// 416: the server's blob is shorter than ours.
    #[error(
        "the range is outside the server's blob (416): the blob's size in the manifest or configuration is wrong"
    )]
    RangeNotSatisfiable,
    /// `Content-Encoding` other than identity: the bytes would not be the blob's.
    #[error(
        "the body is encoded as {0:?}, which no range of a blob may be: switch compression off in the proxy or server"
    )]
    ContentEncoding(String),
    /// `multipart/byteranges` to a request for one range.
    #[error("a multipart answer to a request for one range")]
    Multipart,
    /// More redirects than are followed.
    #[error("more than {0} redirects")]
    TooManyRedirects(usize),
    /// A redirect or other URL that cannot be followed.
    #[error("a location that cannot be used")]
    Location(#[source] LocationError),
    /// Nobody listens where the registry takes an upload, which is at its own host but not at its port.
    #[error(
        "the registry takes uploads at {place}, where nobody listens, and not at {host}: a proxy before it may not tell it its port"
    )]
    LostPort {
        /// Host and port where the upload should go.
        place: String,
        /// The registry's own.
        host: String,
        /// What the network said.
        source: Cause,
    },
    /// `http` where nobody allowed it.
    #[error("plain HTTP to {host} is not allowed: set plain_http for host {host} if that is wanted")]
    PlainHttp {
        /// Host and port.
        host: String,
    },
    /// A 401 whose `WWW-Authenticate` cannot be understood.
    #[error("the registry asks for credentials in a way that is not understood")]
    Challenge(#[source] ChallengeError),
    /// The token server leads elsewhere.
    #[error("the token server leads to {to}, a place that must not get the password")]
    TokenRedirect {
        /// Where to, without query.
        to: String,
    },
    /// The token server answered 200 without a usable token.
    #[error("the token server's answer is unusable: {0}")]
    Token(&'static str),
    /// The bytes are not those of the digest.
    #[error("the content has digest {got}, not {expected}")]
    DigestMismatch {
        /// As asked for or promised.
        expected: Digest,
        /// Of the bytes received.
        got: Digest,
    },
    /// A manifest above the limit of 4 MiB.
    #[error("the manifest is larger than {limit_bytes} bytes")]
    ManifestTooLarge {
        /// The limit.
        limit_bytes: usize,
    },
    /// A document that is neither manifest nor index, or an index without the wanted platform.
    #[error("not a usable image manifest or index")]
    Manifest(#[source] OciError),
    /// A document that is a manifest by its header and an index by its content, or the other way round.
    #[error("the document and its Content-Type disagree on whether it is a manifest or an index")]
    MediaType,
    /// What was to be sent cannot be read.
    #[error("cannot read what is to be sent")]
    Content {
        /// What the system said.
        source: Cause,
    },
    /// What was to be copied cannot be had from where it is.
    #[error("cannot read what is to be copied")]
    Origin {
        /// Why, after all tries.
        source: RegistryError,
    },
    /// The base of a new image cannot be used.
    #[error("the image cannot be built upon")]
    NextImage(#[source] NextImageError),
    /// Indexes inside indexes.
    #[error("more than {0} levels of indexes")]
    IndexDepth(usize),
    /// An image reference that cannot be read.
    #[error("not an image reference")]
    Reference(#[source] ReferenceError),
    /// A digest that cannot be read.
    #[error("not a digest")]
    Digest(#[source] DigestError),
    /// A read outside the blob, or larger than one read may be.
    #[error(
        "a read of {len} bytes at {offset} is outside the blob of {size_bytes} bytes or above the limit of one read"
    )]
    OutOfBounds {
        /// Start in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// Size of the blob in bytes.
        size_bytes: u64,
    },
    /// The configuration cannot be used.
    #[error("{what}")]
    Configuration {
        /// Which part and why.
        what: String,
        /// What the system said.
        source: Option<Cause>,
    },
    /// The client's runtime is shutting down.
    #[error("the client is shutting down")]
    Closed,
}

impl RegistryError {
    pub(super) fn new(target: impl Into<String>, reason: Reason) -> Self {
        Self::with_words(target, reason, None)
    }

    /// The same, with what the registry `said` about it.
    pub(super) fn with_words(target: impl Into<String>, reason: Reason, said: Option<String>) -> Self {
        Self(Arc::new(Report { target: target.into(), reason, said }))
    }

    /// Why it failed.
    #[must_use]
    pub fn reason(&self) -> &Reason {
        &self.0.reason
    }

    /// Who can mend it.
    #[must_use]
    pub fn fault(&self) -> Fault {
        self.0.reason.fault()
    }

    /// Whether asking again may help.
    #[must_use]
    pub fn retry(&self) -> Retry {
        self.0.reason.retry()
    }

    /// Whether time ran out, rather than that a wrong or no answer came.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(
            self.0.reason,
            Reason::Timeout { .. }
                | Reason::Deadline { .. }
                | Reason::TotalDeadline { .. }
                | Reason::Silent { .. }
        )
    }

    /// What the registry, storage or token server said about it.
    #[must_use]
    pub fn said(&self) -> Option<&str> {
        self.0.said.as_deref()
    }

    /// What was asked: a URL without query string, or an image reference.
    #[must_use]
    pub fn target(&self) -> &str {
        &self.0.target
    }
}

impl Reason {
    /// Whether the two sides could not agree upon TLS.
    pub(super) fn is_of_tls(&self) -> bool {
        matches!(self, Self::UnknownAuthority { .. } | Self::Certificate { .. } | Self::Tls { .. })
    }

    /// Who can mend it.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Unauthorized { .. } | Self::Forbidden { .. } => Fault::Credentials,
            Self::Connect { .. }
            | Self::Proxy { .. }
            | Self::Exchange { .. }
            | Self::Timeout { .. }
            | Self::Deadline { .. }
            | Self::TotalDeadline { .. }
            | Self::Silent { .. } => Fault::Network,
            Self::UnknownAuthority { .. }
            | Self::NotTls { .. }
            | Self::PlainHttp { .. }
            | Self::Configuration { .. } => Fault::Configuration,
            Self::Origin { source } => source.fault(),
            Self::NotFound
            | Self::Reference(_)
            | Self::Digest(_)
            | Self::OutOfBounds { .. }
            | Self::Content { .. }
            | Self::Manifest(OciError::NoPlatform { .. })
            | Self::Closed => Fault::Caller,
            _ => Fault::Registry,
        }
    }

    /// Whether asking again may help.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            // What a server cannot do at all it cannot do later.
            Self::Status { status: 501 | 505, .. } => Retry::Never,
            Self::Status { status: 408 | 429 | 500.., retry_after } => {
                retry_after.map_or(Retry::Later, Retry::After)
            }
            Self::LocationExpired { .. } => Retry::Now,
            // Not what storage sends; what stands at an old location may.
            Self::RangeIgnored { .. }
            | Self::Multipart
            | Self::ContentEncoding(_)
            | Self::WrongSize { .. }
            | Self::WrongLength { .. } => Retry::Once,
            // The next session will be there as well, but for one behind another of several proxies.
            Self::LostPort { .. } => Retry::Once,
            // What two sides do not agree upon they will not agree upon later; one of several servers may be broken.
            Self::Tls { .. } => Retry::Once,
            // A credential service that was down may be up again; one that gave nothing will give nothing.
            Self::Unauthorized { lookup: Some(failure), .. } if failure.is_transient() => Retry::Later,
            // It may have lost its own way for a while; what it forbids it goes on to forbid.
            Self::Proxy { status: 500.., .. } => Retry::Later,
            Self::Connect { .. }
            | Self::Exchange { .. }
            | Self::Timeout { .. }
            | Self::ShortBody { .. }
            | Self::LongBody { .. }
            | Self::ContentRange(_)
            | Self::WrongRange { .. }
            | Self::DigestMismatch { .. } => Retry::Later,
            _ => Retry::Never,
        }
    }
}

impl fmt::Display for RegistryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.target, self.0.reason)?;
        self.0.said.iter().try_for_each(|said| write!(f, ", and said \"{said}\""))
    }
}

impl fmt::Debug for RegistryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryError")
            .field("target", &self.0.target)
            .field("reason", &self.0.reason)
            .field("said", &self.0.said)
            .finish()
    }
}

impl Error for RegistryError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.reason.source()
    }
}
