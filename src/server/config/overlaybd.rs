//! Upstream's service configuration, `overlaybd.json`, so that a node can switch over with the file it has.

use std::{path::PathBuf, sync::Arc};

use super::{Config, CredentialSection};
use crate::server::document::{self, DocumentError, ObjectNode};

/// What upstream's file asks for, as far as it has a meaning here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OverlaybdConfig {
    cache_dir: Option<PathBuf>,
    cache_size_mib: Option<u64>,
    authfile: Option<PathBuf>,
    credential_service: Option<CredentialSection>,
    log_filter: Option<String>,
    metrics_port: Option<u16>,
    user_agent: Option<String>,
    client_cert: Option<PathBuf>,
    client_key: Option<PathBuf>,
    /// Keys that were set and have no effect, in the order of the document.
    pub unmapped: Vec<Unmapped>,
}

/// One key that was set and has no effect here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmapped {
    /// The key's JSON pointer.
    pub pointer: String,
    /// Why it has none.
    pub reason: &'static str,
}

/// Sections and keys whose meaning does not exist here, with the reason.
const WITHOUT_MEANING: [(&str, &str); 11] = [
    ("gzipCacheConfig", "TurboOCI is not yet supported"),
    ("ioEngine", "reads go through io_uring"),
    ("download", "background download is not yet supported"),
    ("p2pConfig", "peer-to-peer is not yet supported"),
    ("enableAudit", "there is no audit log"),
    ("auditPath", "there is no audit log"),
    ("enableThread", "devices share the reactors' threads"),
    ("registryFsVersion", "there is one registry client"),
    ("prefetchConfig", "prefetch is not yet supported"),
    ("serviceConfig", "live snapshots are not yet supported"),
    ("logPath", "the log goes to standard error"),
];

/// Keys that are read below.
const READ: [&str; 11] = [
    "registryCacheDir",
    "registryCacheSizeGB",
    "cacheType",
    "cacheConfig",
    "credentialFilePath",
    "credentialConfig",
    "logLevel",
    "logConfig",
    "exporterConfig",
    "certConfig",
    "userAgent",
];

impl OverlaybdConfig {
    /// Reads `bytes` of the file called `file` in messages.
    ///
    /// # Errors
    /// The first key that has a wrong type or a value that upstream refuses too.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self, DocumentError> {
        let file: Arc<str> = file.into();
        let value = document::parse(&file, bytes)?;
        let root = ObjectNode::new(&file, String::new(), &value)?;
        let mut config = Self::default();
        config.read_cache(&root)?;
        config.read_credentials(&root)?;
        config.read_log(&root)?;
        config.user_agent = root.text("userAgent")?.map(str::to_owned);
        if let Some(exporter) = root.object("exporterConfig")?
            && exporter.flag("enable")? == Some(true)
        {
            let port = exporter.count("port")?.unwrap_or(9863);
            let rule = || exporter.invalid("port", format!("{port} is not a port"));
            config.metrics_port = Some(u16::try_from(port).map_err(|_| rule())?);
            config.skip(&exporter, &["uriPrefix", "updateInterval"], "metrics are at /metrics");
        }
        if let Some(cert) = root.object("certConfig")? {
            config.client_cert = cert.path("certFile")?;
            config.client_key = cert.path("keyFile")?;
            if config.client_cert.is_some() != config.client_key.is_some() {
                return Err(cert.invalid("certFile", "certFile and keyFile must be set together"));
            }
        }
        for (key, reason) in WITHOUT_MEANING {
            config.skip(&root, &[key], reason);
        }
        let known: Vec<&str> = READ.into_iter().chain(WITHOUT_MEANING.map(|(key, _)| key)).collect();
        let unknown = root.others(&known).into_iter();
        config.unmapped.extend(unknown.map(|pointer| Unmapped { pointer, reason: "unknown" }));
        Ok(config)
    }

    /// Puts what was read into `config`.
    pub fn apply(&self, config: &mut Config) {
        if let Some(dir) = &self.cache_dir {
            config.cache.dir.clone_from(dir);
        }
        if let Some(size_mib) = self.cache_size_mib {
            config.cache.size_mib = size_mib;
        }
        if let Some(file) = &self.authfile {
            config.registry.authfile.clone_from(file);
        }
        if let Some(service) = &self.credential_service {
            config.registry.credential_service = service.clone();
        }
        if let Some(filter) = &self.log_filter {
            config.daemon.log_filter.clone_from(filter);
        }
        if let Some(port) = self.metrics_port {
            config.daemon.metrics_listen = format!("0.0.0.0:{port}");
        }
        if let Some(agent) = &self.user_agent {
            config.registry.user_agent.clone_from(agent);
        }
        if let (Some(cert), Some(key)) = (&self.client_cert, &self.client_key) {
            config.registry.client_cert.clone_from(cert);
            config.registry.client_key.clone_from(key);
        }
    }

    fn read_cache(&mut self, root: &ObjectNode<'_>) -> Result<(), DocumentError> {
        let section = root.object("cacheConfig")?;
        let modern = match &section {
            Some(section) => section.text("cacheType")?.map(|kind| (section, kind)),
            None => None,
        };
        let (kind, dir, size_gib) = match modern {
            Some((section, kind)) => (kind, section.path("cacheDir")?, section.count("cacheSizeGB")?),
            None => (
                root.text("cacheType")?.unwrap_or("file"),
                root.path("registryCacheDir")?,
                root.count("registryCacheSizeGB")?,
            ),
        };
        if kind != "file" {
            self.unmapped.push(Unmapped {
                pointer: "/cacheConfig/cacheType".to_owned(),
                reason: "there is one kind of cache",
            });
        }
        // Beside upstream's own files, never among them: the formats differ.
        self.cache_dir = dir.map(|dir| dir.join("stratabd"));
        self.cache_size_mib = size_gib.map(|gib| gib.saturating_mul(1024));
        if let Some(section) = &section {
            self.skip(section, &["refillSize", "blockSize"], "the fetch size adapts");
        }
        Ok(())
    }

    fn read_credentials(&mut self, root: &ObjectNode<'_>) -> Result<(), DocumentError> {
        let section = root.object("credentialConfig")?;
        let Some(section) = section else {
            self.authfile = root.path("credentialFilePath")?;
            return Ok(());
        };
        let path = section.text("path")?;
        match (section.text("mode")?, path) {
            (None, _) => self.authfile = root.path("credentialFilePath")?,
            (Some("file" | "http" | "https" | "uds"), None) => {
                return Err(section.invalid("path", "must be set for this mode"));
            }
            (Some("file"), Some(path)) => self.authfile = Some(path.into()),
            (Some("http" | "https" | "uds"), Some(address)) => {
                let seconds = section.count("timeout")?.unwrap_or(1);
                self.credential_service = Some(CredentialSection {
                    address: address.to_owned(),
                    timeout_ms: seconds.saturating_mul(1000),
                    client_cert: section.path("client_cert_path")?.unwrap_or_default(),
                    client_key: section.path("client_key_path")?.unwrap_or_default(),
                    ca_file: section.path("server_ca_path")?.unwrap_or_default(),
                });
            }
            (Some(other), _) => {
                let other: String = other.chars().take(64).collect();
                let rule = format!("{other:?} is none of file, http, https and uds");
                return Err(section.invalid("mode", rule));
            }
        }
        Ok(())
    }

    fn read_log(&mut self, root: &ObjectNode<'_>) -> Result<(), DocumentError> {
        let section = root.object("logConfig")?;
        let level = match &section {
            Some(section) => section.count("logLevel")?,
            None => root.count("logLevel")?,
        };
        self.log_filter = level.map(|level| match level {
            0 => "debug".to_owned(),
            1 => "info".to_owned(),
            2 => "warn".to_owned(),
            _ => "error".to_owned(),
        });
        if let Some(section) = &section {
            self.skip(section, &["logPath", "logSizeMB", "logRotateNum"], "the log goes to standard error");
        }
        Ok(())
    }

    /// Notes those of `keys` that `node` has.
    fn skip(&mut self, node: &ObjectNode<'_>, keys: &[&str], reason: &'static str) {
        let found = keys.iter().filter_map(|key| node.pointer_of(key));
        self.unmapped.extend(found.map(|pointer| Unmapped { pointer, reason }));
    }
}
