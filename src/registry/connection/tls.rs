//! TLS of one host: authorities, client certificates, and no verification only where configured.

use std::{fs::File, io::Read as _, path::Path, sync::Arc};

use rustls::{
    ClientConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use super::Authorities;
use crate::registry::{ClientIdentity, HostConfig, Reason, RegistryError};

/// A bundle of all public authorities is a quarter of this.
const MAX_PEM_BYTES: u64 = 1 << 20;

/// The TLS settings for one host, without ALPN.
pub(in crate::registry) fn client_config(
    trusted: &Authorities,
    host: &HostConfig,
    shared_identity: Option<&ClientIdentity>,
) -> Result<ClientConfig, RegistryError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| configuration("TLS versions", error))?;
    let trusted = match &host.ca_file {
        _ if host.skip_verify => Authorities::anyone(),
        Some(ca_file) => trusted.clone().with_file(ca_file)?,
        None => trusted.clone(),
    };
    let builder = builder.dangerous().with_custom_certificate_verifier(trusted.verifier(provider));
    let Some(identity) = host.client_identity.as_ref().or(shared_identity) else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = certificates(&identity.cert_file)?;
    let key = PrivateKeyDer::from_pem_slice(&read(&identity.key_file)?)
        .map_err(|error| unusable("client key", &identity.key_file, error))?;
    builder
        .with_client_auth_cert(chain, key)
        .map_err(|error| unusable("client certificate", &identity.cert_file, error))
}

pub(super) fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, RegistryError> {
    let text = read(file)?;
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match parsed {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => {
            let what = format!("{}: holds no PEM certificate", file.display());
            Err(RegistryError::new("configuration", Reason::Configuration { what, source: None }))
        }
        Err(error) => Err(unusable("certificate", file, error)),
    }
}

fn read(file: &Path) -> Result<Vec<u8>, RegistryError> {
    let mut text = Vec::new();
    let opened = File::open(file);
    opened
        .and_then(|opened| opened.take(MAX_PEM_BYTES).read_to_end(&mut text))
        .map_err(|error| unusable("file", file, error))?;
    Ok(text)
}

pub(super) fn unusable(
    role: &str,
    file: &Path,
    error: impl std::error::Error + Send + Sync + 'static,
) -> RegistryError {
    configuration(&format!("{}: unusable {role}", file.display()), error)
}

fn configuration(what: &str, error: impl std::error::Error + Send + Sync + 'static) -> RegistryError {
    let what = what.to_owned();
    RegistryError::new("configuration", Reason::Configuration { what, source: Some(Box::new(error)) })
}
