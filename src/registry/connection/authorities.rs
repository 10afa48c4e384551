//! Certificate authorities: those of files, and the system's, which are read with the first handshake that needs them.

use std::{
    fmt,
    path::Path,
    sync::{Arc, OnceLock},
};

use rustls::{
    CertificateError, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme,
    client::{
        VerifierBuilderError, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};

use super::tls::{certificates, unusable};
use crate::registry::RegistryError;

/// Whom to trust. A clone shares the system's authorities.
///
/// The system's are read late because they are hundreds of files: a device over local layers, and a registry without TLS,
/// should not wait for them. Those of a file are read at once, so that a mistake is told at start.
#[derive(Clone)]
pub(in crate::registry) struct Authorities {
    system: Option<Arc<OnceLock<RootCertStore>>>,
    added: RootCertStore,
    /// The same, to be known again where one of them is shown by a server itself.
    named: Vec<CertificateDer<'static>>,
    is_anyone: bool,
}

impl Authorities {
    /// The system's.
    pub(in crate::registry) fn of_system() -> Self {
        Self { system: Some(Arc::default()), ..Self::none() }
    }

    /// No one yet.
    pub(in crate::registry) fn none() -> Self {
        Self { system: None, added: RootCertStore::empty(), named: Vec::new(), is_anyone: false }
    }

    /// Whoever asks: for hosts with `skip_verify`. The handshake's own signatures are still checked.
    pub(super) fn anyone() -> Self {
        Self { is_anyone: true, ..Self::none() }
    }

    /// These, and those of the PEM file `file`.
    ///
    /// # Errors
    /// When the file cannot be read, or holds no usable certificate.
    pub(in crate::registry) fn with_file(mut self, file: &Path) -> Result<Self, RegistryError> {
        for certificate in certificates(file)? {
            self.added.add(certificate.clone()).map_err(|error| unusable("ca_file", file, error))?;
            self.named.push(certificate);
        }
        Ok(self)
    }

    /// Checks servers' certificates against these authorities.
    pub(super) fn verifier(self, provider: Arc<CryptoProvider>) -> Arc<dyn ServerCertVerifier> {
        Arc::new(Verifier { authorities: self, provider, built: OnceLock::new() })
    }

    fn all(&self) -> RootCertStore {
        let mut all = self.added.clone();
        if let Some(system) = &self.system {
            all.roots.extend_from_slice(&system.get_or_init(system_roots).roots);
        }
        all
    }
}

/// The authorities of the system. None at all is no error here: private ones may be configured.
fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "cannot read some of the system's certificate authorities");
    }
    let (taken, ignored) = roots.add_parsable_certificates(found.certs);
    tracing::debug!(taken, ignored, "system certificate authorities");
    roots
}

/// Whether a certificate failed for nothing but that it is also one of an authority.
fn is_marked_as_authority(error: &rustls::Error) -> bool {
    let rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(cause))) = error else {
        return false;
    };
    matches!(cause.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
}

/// The usual verifier, built with the first certificate that is shown.
struct Verifier {
    authorities: Authorities,
    provider: Arc<CryptoProvider>,
    built: OnceLock<Result<Arc<WebPkiServerVerifier>, VerifierBuilderError>>,
}

impl Verifier {
    /// Takes a server's own certificate that a file names, also where it is marked as an authority, which is what `openssl req -x509`
    /// makes and the usual verifier refuses. That it has looked at the certificate's time before, a test makes sure of.
    fn verify_named(
        &self,
        end_entity: &CertificateDer<'_>,
        server_name: &ServerName<'_>,
        error: rustls::Error,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if !self.authorities.named.contains(end_entity) || !is_marked_as_authority(&error) {
            return Err(error);
        }
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn build(&self) -> Result<Arc<WebPkiServerVerifier>, VerifierBuilderError> {
        let roots = Arc::new(self.authorities.all());
        WebPkiServerVerifier::builder_with_provider(roots, self.provider.clone()).build()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.authorities.is_anyone {
            return Ok(ServerCertVerified::assertion());
        }
        match self.built.get_or_init(|| self.build()) {
            Ok(usual) => usual
                .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
                .or_else(|error| self.verify_named(end_entity, server_name, error)),
            Err(error) => Err(rustls::Error::General(format!("no certificate authorities: {error}"))),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("is_built", &self.built.get().is_some()).finish_non_exhaustive()
    }
}
