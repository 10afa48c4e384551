//! The service's configuration, `/etc/stratabd/stratabd.toml`: what can be set, and what holds where nothing is.
//!
//! An empty text or a zero stands for "not set" where a key says so, so that every key has a value and the sample can
//! show all of them. Values come, later ones winning, from the defaults, the file, upstream's `overlaybd.json` and `--set`.

mod nearest;
mod overlaybd;
mod read;

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::{image::DECODED_CACHE_BYTES, registry::HostName};
pub use overlaybd::{OverlaybdConfig, Unmapped};
pub use read::{ConfigError, Overrides};

/// Where the configuration is looked for when no other place is named; it may be missing.
pub const DEFAULT_PATH: &str = "/etc/stratabd/stratabd.toml";

/// A settings file with every key and its default, commented out, and what each is for.
pub const SAMPLE: &str = include_str!("../../../examples/stratabd.toml");

/// Where the control socket is by default.
pub const DEFAULT_SOCKET: &str = "/run/stratabd/stratabd.sock";

/// Largest queue depth of the driver.
pub const MAX_DEPTH: u16 = 4096;

/// More queues than reactors only spread requests thinner; the driver itself takes up to 4096.
pub const MAX_QUEUES: u16 = 64;

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The process itself.
    pub daemon: DaemonSection,
    /// The threads that serve devices.
    pub reactors: ReactorSection,
    /// What a new device gets where its caller says nothing.
    pub device: DeviceSection,
    /// The decoded side of an image.
    pub image: ImageSection,
    /// The cache on disk.
    pub cache: CacheSection,
    /// Converted images.
    pub store: StoreSection,
    /// Registries.
    pub registry: RegistrySection,
}

/// The process: its socket, state and life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DaemonSection {
    /// Path of the control socket.
    pub socket: PathBuf,
    /// Permission bits of the control socket in octal.
    pub socket_mode: String,
    /// Directory of the lock, of one record a device.
    pub state_dir: PathBuf,
    /// Whether devices that a former process left in the state directory are attached again at start.
    pub reattach: bool,
    /// Address that serves `/metrics` over TCP, such as `127.0.0.1:9863`; empty for none.
    pub metrics_listen: String,
    /// Whether to leave the mount namespace of the caller, so that no mount of a device pins it.
    pub private_mounts: bool,
    /// How long SIGTERM waits for devices to be detached, in milliseconds.
    pub drain_timeout_ms: u64,
    /// Lines of text or JSON objects: `text` or `json`.
    pub log_format: LogFormat,
    /// What is logged, as `tracing` filters are written: `info`, `warn,stratabd::registry=debug`.
    pub log_filter: String,
}

/// The shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// A line a person reads.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for DaemonSection {
    fn default() -> Self {
        Self {
            socket: DEFAULT_SOCKET.into(),
            socket_mode: "0600".to_owned(),
            state_dir: "/run/stratabd".into(),
            reattach: true,
            metrics_listen: String::new(),
            private_mounts: false,
            drain_timeout_ms: 30_000,
            log_format: LogFormat::Text,
            log_filter: "info".to_owned(),
        }
    }
}

/// The threads that serve devices, and their memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReactorSection {
    /// How many; 0 for one a processor, at most 4.
    pub threads: u16,
    /// Memory for the data of requests in flight, in MiB a thread. Where some devices hold all of it, since their disk hangs, each
    /// queue of the others may have one request more.
    pub request_buffer_mib: u32,
    /// Memory for compressed data and disk reads in flight, in MiB a thread, with the same exception.
    pub io_buffer_mib: u32,
}

impl Default for ReactorSection {
    fn default() -> Self {
        Self { threads: 0, request_buffer_mib: 32, io_buffer_mib: 32 }
    }
}

/// What a new device gets where its caller says nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeviceSection {
    /// Hardware queues.
    pub queues: u16,
    /// Requests in flight a queue.
    pub depth: u16,
    /// How long attaching may take, in milliseconds.
    pub attach_timeout_ms: u64,
    /// How long detaching may take, in milliseconds; reads that wait for data fail after half of it.
    pub detach_timeout_ms: u64,
    /// How long a device waits for a daemon that is there and cannot take it over, in milliseconds, until its requests fail; 0 for as
    /// long as it takes. Of devices whose caller does not say.
    pub recovery_timeout_ms: u64,
    /// After how long the log, `info` and the metrics name a request that does not end, in milliseconds.
    pub overdue_after_ms: u64,
}

impl Default for DeviceSection {
    fn default() -> Self {
        Self {
            queues: 1,
            depth: 128,
            attach_timeout_ms: 60_000,
            detach_timeout_ms: 10_000,
            recovery_timeout_ms: 0,
            overdue_after_ms: 30_000,
        }
    }
}

/// The decoded side of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImageSection {
    /// Memory for decoded blocks, in MiB an image; 0 keeps none.
    pub decoded_cache_mib: u32,
    /// Whether the layers below a writable one, and below one that is pushed, must be those that it was made over.
    pub check_parents: bool,
    /// Whether layers of registries must have a Merkle tree, which proves each part before it is used.
    pub require_merkle: bool,
}

impl Default for ImageSection {
    fn default() -> Self {
        Self {
            decoded_cache_mib: u32::try_from(DECODED_CACHE_BYTES >> 20).unwrap_or(u32::MAX),
            check_parents: true,
            require_merkle: false,
        }
    }
}

/// The cache on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CacheSection {
    /// Whether blobs of registries are kept on disk.
    pub enabled: bool,
    /// Its directory; several processes may share it.
    pub dir: PathBuf,
    /// How large it may grow, in MiB.
    pub size_mib: u64,
}

impl Default for CacheSection {
    fn default() -> Self {
        Self { enabled: true, dir: "/var/lib/stratabd".into(), size_mib: 8192 }
    }
}

/// The store of images that were converted on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreSection {
    /// Its directory; several processes may share it.
    pub dir: PathBuf,
    /// How large it may grow, in MiB, beside what devices use.
    pub size_mib: u64,
}

impl StoreSection {
    /// How large it may grow, in bytes.
    #[must_use]
    pub fn limit_bytes(&self) -> u64 {
        self.size_mib.saturating_mul(1 << 20)
    }
}

impl Default for StoreSection {
    fn default() -> Self {
        Self { dir: "/var/lib/stratabd-images".into(), size_mib: 20_480 }
    }
}

/// Registries: credentials, proxies, limits, and what is peculiar to single hosts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistrySection {
    /// What the client calls itself; empty for the name and version of this program.
    pub user_agent: String,
    /// Docker-style `config.json` with credentials; empty for where docker and containers-auth.json(5) have them.
    pub authfile: PathBuf,
    /// Directories that are searched for `docker-credential-*` before `PATH`.
    pub credential_helper_dirs: Vec<PathBuf>,
    /// An authority that is trusted besides the system's for every registry, PEM; empty for none.
    pub ca_file: PathBuf,
    /// Folders with one for each host that has certificates of its own, as docker's `certs.d`; empty for those of docker and
    /// containers-certs.d(5).
    pub certs_dirs: Vec<PathBuf>,
    /// Client certificate for hosts that have none of their own, PEM; empty for none.
    pub client_cert: PathBuf,
    /// Key of the client certificate, PEM.
    pub client_key: PathBuf,
    /// `environment` for `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`; `none`; or the URL of a proxy for everything.
    pub proxy: ProxySetting,
    /// Upstream's credential service, used instead of `authfile`.
    pub credential_service: CredentialSection,
    /// Bounds of time and number.
    pub limits: LimitSection,
    /// Peculiarities by `host` or `host:port`.
    #[serde(deserialize_with = "read::hosts")]
    pub hosts: BTreeMap<HostName, HostSection>,
}

/// Which proxy to use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProxySetting(pub String);

impl Default for ProxySetting {
    fn default() -> Self {
        Self("environment".to_owned())
    }
}

/// Bounds of the registry client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitSection {
    /// Requests in flight to all registries together.
    pub concurrent_requests: u32,
    /// How long one read may take with all its tries, in milliseconds, without what it waits for its turn.
    pub request_deadline_ms: u64,
    /// How long one read may take in all, what it waits for its turn included, in milliseconds.
    pub total_deadline_ms: u64,
    /// How long a connection may take to stand, in milliseconds.
    pub connect_timeout_ms: u64,
    /// Longest silence of a server within a request, in milliseconds.
    pub stall_timeout_ms: u64,
    /// Tries of one read, the first included.
    pub max_tries: u32,
}

impl Default for LimitSection {
    fn default() -> Self {
        Self {
            concurrent_requests: 64,
            request_deadline_ms: 30_000,
            total_deadline_ms: 600_000,
            connect_timeout_ms: 5_000,
            stall_timeout_ms: 10_000,
            max_tries: 18,
        }
    }
}

/// A service that is asked for the credentials of a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CredentialSection {
    /// `http://` or `https://` address, or the path of a unix socket; empty for none.
    pub address: String,
    /// How long an answer may take, in milliseconds.
    pub timeout_ms: u64,
    /// Client certificate for an `https` service, PEM; empty for none.
    pub client_cert: PathBuf,
    /// Key of the client certificate, PEM.
    pub client_key: PathBuf,
    /// The only authority that the service's certificate may come from, PEM; empty for the system's.
    pub ca_file: PathBuf,
}

impl Default for CredentialSection {
    fn default() -> Self {
        Self {
            address: String::new(),
            timeout_ms: 1_000,
            client_cert: PathBuf::new(),
            client_key: PathBuf::new(),
            ca_file: PathBuf::new(),
        }
    }
}

/// What is peculiar to one registry.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HostSection {
    /// Speaks HTTP without TLS.
    pub plain_http: bool,
    /// Its certificate is not verified.
    pub insecure_tls: bool,
    /// An authority that is trusted besides the system's, PEM; empty for none.
    pub ca_file: PathBuf,
    /// Client certificate, PEM; empty for none.
    pub client_cert: PathBuf,
    /// Key of the client certificate, PEM.
    pub client_key: PathBuf,
}

#[cfg(test)]
mod tests;
