//! Manifests and indexes, with the fields that are needed here; all others are ignored.

use std::{collections::HashMap, fmt};

use serde::Deserialize;

use super::{Digest, OciError, Platform};

/// Longest manifest or index in bytes: what registries accept.
pub const DOCUMENT_LIMIT_BYTES: usize = 4 << 20;

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// The media types that [`Document::decode`] takes, for the `Accept` header of a request.
pub const MANIFEST_MEDIA_TYPES: [&str; 4] = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX];

const SCHEMA_VERSION: u64 = 2;
const NATIVE_ARTIFACT: &str = "application/vnd.containerd.overlaybd.native.v1+json";

/// What a registry serves under a tag or the digest of a manifest.
#[derive(Debug, Clone)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// Images for several platforms.
    Index(Index),
}

/// A reference to a blob or a manifest.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the content is.
    #[serde(default)]
    pub media_type: String,
    /// The content's name.
    pub digest: Digest,
    /// Size of the content in bytes.
    #[serde(rename = "size")]
    pub size_bytes: u64,
    /// Free text by key.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub annotations: HashMap<String, String>,
    /// What the content runs on, in an index.
    #[serde(default)]
    pub platform: Option<Platform>,
    /// What the manifest describes where it is no image.
    #[serde(default)]
    pub artifact_type: Option<String>,
}

/// One image: its layers from bottom to top.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Layers, bottom first.
    pub layers: Vec<Descriptor>,
    /// What the manifest describes where it is no image.
    #[serde(default)]
    pub artifact_type: Option<String>,
}

/// Images for several platforms.
#[derive(Debug, Clone, Deserialize)]
pub struct Index {
    /// A manifest for each platform, and attestations and the like.
    pub manifests: Vec<Descriptor>,
}

/// The fields that tell documents apart. A manifest of OCI need not state its media type.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kind {
    schema_version: u64,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    manifests: Option<serde::de::IgnoredAny>,
}

impl Document {
    /// Reads the body of a manifest or an index. Whether it has the digest that was asked for is the caller's to check.
    ///
    /// # Errors
    /// [`OciError::TooLong`], [`OciError::Malformed`], [`OciError::SchemaVersion`] and [`OciError::Kind`].
    pub fn decode(body: &[u8]) -> Result<Self, OciError> {
        if body.len() > DOCUMENT_LIMIT_BYTES {
            return Err(OciError::TooLong(body.len()));
        }
        let kind: Kind = serde_json::from_slice(body)?;
        if kind.schema_version != SCHEMA_VERSION {
            return Err(OciError::SchemaVersion(kind.schema_version));
        }
        let is_index = match kind.media_type.as_deref() {
            Some(OCI_MANIFEST | DOCKER_MANIFEST) => false,
            Some(OCI_INDEX | DOCKER_INDEX) => true,
            None | Some("") => kind.manifests.is_some(),
            Some(other) => return Err(OciError::Kind(other.chars().take(128).collect())),
        };
        if is_index {
            Ok(Self::Index(serde_json::from_slice(body)?))
        } else {
            Ok(Self::Manifest(serde_json::from_slice(body)?))
        }
    }
}

impl Index {
    /// The manifest for `wanted`: of several, the first that is marked as overlaybd's own, else the first.
    ///
    /// An index of one manifest that names no platform needs no choice.
    ///
    /// # Errors
    /// [`OciError::NoPlatform`].
    pub fn select(&self, wanted: &Platform) -> Result<&Descriptor, OciError> {
        if let [only @ Descriptor { platform: None, .. }] = self.manifests.as_slice() {
            return Ok(only);
        }
        let suits =
            |entry: &&Descriptor| entry.platform.as_ref().is_some_and(|offered| wanted.accepts(offered));
        let is_native = |entry: &&Descriptor| entry.artifact_type.as_deref() == Some(NATIVE_ARTIFACT);
        let mut suitable = self.manifests.iter().filter(suits);
        let chosen = suitable.clone().find(is_native).or_else(|| suitable.next());
        chosen.ok_or_else(|| OciError::NoPlatform { wanted: wanted.to_string(), offered: self.to_string() })
    }
}

/// The platforms that it offers, as far as a message can hold them.
impl fmt::Display for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 16;
        let platforms = || self.manifests.iter().filter_map(|entry| entry.platform.as_ref());
        let names: Vec<String> =
            platforms().take(SHOWN).map(|name| name.to_string().chars().take(64).collect()).collect();
        let rest = if platforms().nth(SHOWN).is_some() { ", ..." } else { "" };
        write!(f, "{}{rest}", names.join(", "))
    }
}

/// Docker's tools write `null` for an empty map.
fn null_is_empty<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<HashMap<String, String>, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}
