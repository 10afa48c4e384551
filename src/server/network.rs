//! From the configuration to the registry client's own.

use std::path::{Path, PathBuf};

use super::{
    config::{Config, HostSection, RegistrySection},
    failure::{Failure, FailureClass},
    layers::make_absolute,
    usual_places,
};
use crate::registry::{
    ClientIdentity, CredentialConfig, Fault, HostConfig, Limits, ProxyConfig, Reason, RegistryConfig,
    RegistryError,
};

/// The registry client's configuration.
pub(super) fn registry_config(config: &Config) -> RegistryConfig {
    let section = &config.registry;
    let defaults = RegistryConfig::default();
    let user_agent = match section.user_agent.as_str() {
        "" => defaults.user_agent,
        agent => agent.to_owned(),
    };
    RegistryConfig {
        hosts: section.hosts.iter().map(|(name, host)| (name.clone(), host_config(host))).collect(),
        certs_dirs: match section.certs_dirs.as_slice() {
            [] => usual_places::certs_dirs(),
            dirs => dirs.to_vec(),
        },
        credentials: credentials(section),
        client_identity: identity(&section.client_cert, &section.client_key),
        proxy: proxy(&section.proxy.0),
        user_agent,
        limits: limits(section),
        ca_file: non_empty(&section.ca_file),
    }
}

/// A registry's failure with the class that follows from it.
#[must_use]
pub fn failure_of_registry(context: impl Into<String>, error: RegistryError) -> Failure {
    let class = match error.fault() {
        _ if matches!(error.reason(), Reason::NotFound) => FailureClass::NotFound,
        // A setting would mend them, and whether it should is for who runs the registry to say: as any other failure of TLS.
        _ if matches!(error.reason(), Reason::UnknownAuthority { .. } | Reason::NotTls { .. }) => {
            FailureClass::Registry
        }
        Fault::Configuration | Fault::Caller => FailureClass::Usage,
        _ => FailureClass::Registry,
    };
    Failure::with_source(class, context, error)
}

fn host_config(host: &HostSection) -> HostConfig {
    HostConfig {
        plain_http: host.plain_http,
        skip_verify: host.insecure_tls,
        ca_file: non_empty(&host.ca_file),
        client_identity: identity(&host.client_cert, &host.client_key),
    }
}

fn credentials(section: &RegistrySection) -> CredentialConfig {
    let service = &section.credential_service;
    let address = service.address.as_str();
    if address.starts_with("https://") {
        return CredentialConfig::Https {
            url: address.to_owned(),
            timeout_ms: service.timeout_ms,
            client_identity: identity(&service.client_cert, &service.client_key),
            server_ca_file: non_empty(&service.ca_file),
        };
    }
    if address.starts_with("http://") {
        return CredentialConfig::Http { url: address.to_owned(), timeout_ms: service.timeout_ms };
    }
    if !address.is_empty() {
        return CredentialConfig::Uds { path: address.into(), timeout_ms: service.timeout_ms };
    }
    let paths = non_empty(&section.authfile).map_or_else(usual_places::login_files, |path| vec![path]);
    CredentialConfig::Files { paths, helper_dirs: section.credential_helper_dirs.clone() }
}

fn proxy(setting: &str) -> ProxyConfig {
    match setting {
        "environment" => ProxyConfig::Environment,
        "none" | "" => ProxyConfig::None,
        url => ProxyConfig::Explicit { http: url.to_owned(), https: url.to_owned(), no_proxy: String::new() },
    }
}

fn limits(section: &RegistrySection) -> Limits {
    let wanted = &section.limits;
    Limits {
        concurrent_requests: usize::try_from(wanted.concurrent_requests).unwrap_or(usize::MAX),
        request_deadline_ms: wanted.request_deadline_ms,
        total_deadline_ms: wanted.total_deadline_ms,
        connect_timeout_ms: wanted.connect_timeout_ms,
        stall_timeout_ms: wanted.stall_timeout_ms,
        max_tries: wanted.max_tries,
        ..Limits::default()
    }
}

fn identity(cert: &Path, key: &Path) -> Option<ClientIdentity> {
    Some(ClientIdentity { cert_file: non_empty(cert)?, key_file: non_empty(key)? })
}

fn non_empty(path: &Path) -> Option<PathBuf> {
    let mut path = Some(path).filter(|path| !path.as_os_str().is_empty())?.to_owned();
    make_absolute(&mut path);
    Some(path)
}
