//! The OCI distribution client: references, credentials, tokens, redirects, and range reads that prove what they return.
//!
//! A [`Client`] runs on a tokio runtime that it is given; what it returns may be awaited on any executor. A
//! [`RemoteBlob`] is read by range. The first read of a blob asks the registry; if that redirects to object storage, later
//! reads go there directly, without the registry's credential. Everything is bounded: requests in flight, tries, time,
//! sizes. How many requests a host gets at once follows from how it answers; the others wait in line. Blobs and manifests are put into a repository by [`Client::ensure_blob`] and [`Client::put_document`], out of memory,
//! a file, or another repository. Parsers of what comes from outside are plain functions over text: [`parse_challenge`], [`ContentRange`],
//! [`DockerConfig::parse`], [`parse_refusal`], [`parse_retry_after`], [`parse_token`], [`ImageReference`], [`resolve_location`], [`locate`].

mod adaptive_limit;
mod authorize;
mod blob;
mod body;
mod budget;
mod call;
mod challenge;
mod client;
mod config;
mod connection;
mod content_range;
mod converted_image;
mod converted_index;
mod copy;
mod credentials;
mod draft;
mod error;
mod exchange;
mod flight;
mod host;
mod host_name;
mod location;
mod manifest;
mod metrics;
mod next_image;
mod parse_error;
mod push;
mod range_answer;
mod reference;
mod refusal;
mod retry;
mod scope;
mod secret;
mod token;

pub use crate::format::oci::Digest;
pub use blob::{MAX_READ_BYTES, RemoteBlob};
pub use budget::Priority;
pub use challenge::{Challenge, MAX_CHALLENGE_BYTES, MAX_CHALLENGE_PARAMETERS, parse_challenge};
pub use client::{Client, MAX_REDIRECTS, Reply};
pub use config::{ClientIdentity, CredentialConfig, HostConfig, Limits, ProxyConfig, RegistryConfig};
pub use content_range::{ContentRange, ContentRangeError};
pub use copy::BlobContent;
pub use credentials::{
    Credentials, CredentialsError, DockerConfig, KeyHost, MAX_DOCKER_CONFIG_BYTES, Shown,
    parse_helper_answer, parse_service_answer,
};
pub use draft::FileContent;
pub use error::{Fault, Reason, RegistryError, Retry};
pub use host::HostLoad;
pub use host_name::HostName;
pub use location::{MAX_URL_BYTES, Repository, resolve_location, shown};
pub use manifest::{FoundDocument, ImageManifest};
pub use metrics::{BlobMetrics, RegistryMetrics};
pub use next_image::{ImageDocuments, NewDocument, NextImage, NextImageError};
pub use parse_error::{ChallengeError, HostNameError, LocationError, ReferenceError};
pub use push::{Arrival, BlobOrigin, NewBlob};
pub use range_answer::{BodyPart, MAX_SKIP_BYTES, locate};
pub use reference::{ImageReference, MAX_REFERENCE_BYTES};
pub use refusal::parse_refusal;
pub use retry::parse_retry_after;
pub use secret::Secret;
pub use token::parse_token;
