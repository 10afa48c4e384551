//! What an operator may set: hosts, credentials, proxies and limits. A plain structure; the server fills it.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::Deserialize;

use super::HostName;

/// Everything that the client takes from configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryConfig {
    /// Settings by host: `name:port` goes before `name`.
    pub hosts: BTreeMap<HostName, HostConfig>,
    /// PEM file of certificate authorities, trusted besides the system's by every host.
    pub ca_file: Option<PathBuf>,
    /// Where hosts may have folders with their certificates, as docker's `certs.d`. The first that has one for a host counts.
    pub certs_dirs: Vec<PathBuf>,
    /// Where user names and passwords come from.
    pub credentials: CredentialConfig,
    /// Client certificate for all registries that have none of their own (upstream's `certConfig`). What a registry leads
    /// to, storage or a token server elsewhere, never sees it.
    pub client_identity: Option<ClientIdentity>,
    /// Which proxies to use.
    pub proxy: ProxyConfig,
    /// The `User-Agent` header.
    pub user_agent: String,
    /// Bounds of time and number.
    pub limits: Limits,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            hosts: BTreeMap::new(),
            ca_file: None,
            certs_dirs: Vec::new(),
            credentials: CredentialConfig::default(),
            client_identity: None,
            proxy: ProxyConfig::default(),
            user_agent: concat!("stratabd/", env!("CARGO_PKG_VERSION")).to_owned(),
            limits: Limits::default(),
        }
    }
}

/// How to talk to one host.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HostConfig {
    /// Speak HTTP without TLS. Anyone on the way can read and change everything.
    pub plain_http: bool,
    /// Take any certificate. Anyone on the way can read and change everything.
    pub skip_verify: bool,
    /// PEM file of certificate authorities, trusted besides the system's.
    pub ca_file: Option<PathBuf>,
    /// Client certificate and key.
    pub client_identity: Option<ClientIdentity>,
}

/// A certificate and its key, both PEM files.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientIdentity {
    /// The certificate and the chain above it.
    pub cert_file: PathBuf,
    /// The private key.
    pub key_file: PathBuf,
}

/// Where user names and passwords come from. Every source is asked again after each 401.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(tag = "mode", rename_all = "lowercase", deny_unknown_fields)]
#[non_exhaustive]
pub enum CredentialConfig {
    /// Always anonymous.
    #[default]
    None,
    /// Docker's `config.json` and what else has its form, with its `credsStore` and `credHelpers` programs.
    Files {
        /// The files; the first that has a login for the repository counts. Those that are missing have none.
        paths: Vec<PathBuf>,
        /// Directories to look for `docker-credential-*` in before `PATH`.
        #[serde(default)]
        helper_dirs: Vec<PathBuf>,
    },
    /// Upstream's credential service over HTTP.
    Http {
        /// Its URL; `?remote_url=` is added.
        url: String,
        /// Time for one answer, in milliseconds.
        #[serde(default = "default_service_timeout_ms")]
        timeout_ms: u64,
    },
    /// Upstream's credential service over HTTPS, by mutual TLS where a certificate is given.
    Https {
        /// Its URL; `?remote_url=` is added.
        url: String,
        /// Time for one answer, in milliseconds.
        #[serde(default = "default_service_timeout_ms")]
        timeout_ms: u64,
        /// Client certificate and key.
        #[serde(default)]
        client_identity: Option<ClientIdentity>,
        /// PEM file of the only authority to trust; the system's if absent.
        #[serde(default)]
        server_ca_file: Option<PathBuf>,
    },
    /// Upstream's credential service on a unix socket.
    Uds {
        /// The socket.
        path: PathBuf,
        /// Time for one answer, in milliseconds.
        #[serde(default = "default_service_timeout_ms")]
        timeout_ms: u64,
    },
}

/// Upstream's default for `credentialConfig.timeout`.
fn default_service_timeout_ms() -> u64 {
    1000
}

/// Which proxies to use.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum ProxyConfig {
    /// By `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` of the environment, read once at start.
    #[default]
    Environment,
    /// None.
    None,
    /// As given; an empty text means none. URLs of the schemes http, https, socks5 and socks5h.
    Explicit {
        /// For plain HTTP targets.
        #[serde(default)]
        http: String,
        /// For HTTPS targets.
        #[serde(default)]
        https: String,
        /// Hosts to reach directly, as in `NO_PROXY`.
        #[serde(default)]
        no_proxy: String,
    },
}

/// Bounds of time and number.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Requests in flight to all hosts together. 64 fills 10 Gbit/s with 256 KiB reads at 13 ms, and is few enough for
    /// hundreds of nodes to share a registry.
    pub concurrent_requests: usize,
    /// Of these, the most to one host, so that one that hangs does not take the others with it. `None`: three quarters. A host
    /// that is slow or refuses gets fewer.
    pub concurrent_requests_per_host: Option<usize>,
    /// Of these, the most that prefetch may hold: the rest is always free for reads that somebody waits for. `None`: half.
    pub concurrent_prefetches: Option<usize>,
    /// Time for one operation, all its tries and the pauses between them, in milliseconds. Upstream's budget is 30 s too. What an
    /// operation waits for its turn does not count, as long as its host answers others; if that is silent for so long, those who
    /// wait give up too.
    pub request_deadline_ms: u64,
    /// Time for one operation in all, what it waits for its turn included, in milliseconds. 10 minutes are what a host that gives
    /// four answers a second needs for 2400 requests.
    pub total_deadline_ms: u64,
    /// Time for name resolution, TCP, proxy and TLS together, in milliseconds.
    pub connect_timeout_ms: u64,
    /// Longest silence of a server within a request, before or inside the body, in milliseconds.
    pub stall_timeout_ms: u64,
    /// Most tries of one operation, the first included. With the back-off below, 18 span the deadline even if each try
    /// fails at once: it is the deadline that ends them.
    pub max_tries: u32,
    /// Upper end of the first back-off, in milliseconds; it doubles with each try. The lower end is half of it.
    pub backoff_base_ms: u64,
    /// Highest upper end of a back-off, in milliseconds.
    pub backoff_max_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            concurrent_requests: 64,
            concurrent_requests_per_host: None,
            concurrent_prefetches: None,
            request_deadline_ms: 30_000,
            total_deadline_ms: 600_000,
            connect_timeout_ms: 5_000,
            stall_timeout_ms: 10_000,
            max_tries: 18,
            backoff_base_ms: 100,
            backoff_max_ms: 5_000,
        }
    }
}

/// No configured time is longer; a caller would rather have an error within the hour.
const MAX_WAIT: Duration = Duration::from_secs(60 * 60);

impl Limits {
    pub(super) fn per_host(&self) -> usize {
        let three_quarters = self.concurrent_requests - self.concurrent_requests / 4;
        self.concurrent_requests_per_host.unwrap_or(three_quarters)
    }

    pub(super) fn prefetches(&self) -> usize {
        self.concurrent_prefetches.unwrap_or(self.concurrent_requests.div_ceil(2))
    }

    /// Time for one operation that does not wait.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        Duration::from_millis(self.request_deadline_ms).min(MAX_WAIT)
    }

    /// Time for one operation in all, never less than one that does not wait may take.
    #[must_use]
    pub fn total_deadline(&self) -> Duration {
        Duration::from_millis(self.total_deadline_ms).min(MAX_WAIT).max(self.deadline())
    }

    /// Time until the head of an answer is there, connecting included.
    pub(super) fn head_timeout(&self) -> Duration {
        self.connect_timeout() + self.stall_timeout()
    }

    pub(super) fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms).min(MAX_WAIT)
    }

    pub(super) fn stall_timeout(&self) -> Duration {
        Duration::from_millis(self.stall_timeout_ms).min(MAX_WAIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_can_be_given_and_unknown_ones_are_refused() {
        let text = r#"
            user_agent = "x/1"
            proxy = "none"
            client_identity = { cert_file = "/c", key_file = "/k" }
            credentials = { mode = "files", paths = ["/root/.docker/config.json"] }
            [limits]
            concurrent_requests = 2
            [hosts."localhost:5000"]
            plain_http = true
        "#;
        let config: RegistryConfig = toml::from_str(text).unwrap();
        assert!(config.hosts["localhost:5000"].plain_http);
        assert_eq!(config.limits.concurrent_requests, 2);
        assert_eq!(config.limits.max_tries, Limits::default().max_tries);
        assert!(matches!(config.credentials, CredentialConfig::Files { .. }));
        assert!(toml::from_str::<RegistryConfig>("[hosts.a]\nskip_verfy = true").is_err());
        assert!(toml::from_str::<RegistryConfig>("[credentials]\nmode = \"uds\"\npth = \"/x\"").is_err());
    }
}
