//! Where user names and passwords come from. Nothing is remembered: every 401 asks the source again.

mod docker_config;
mod program;
mod service;

use std::{fmt, io, path::PathBuf, time::Duration};

use url::Url;

pub use docker_config::{DockerConfig, KeyHost, MAX_DOCKER_CONFIG_BYTES};
pub use program::parse_helper_answer;
use service::CredentialService;
pub use service::parse_service_answer;

use super::{CredentialConfig, RegistryError, Repository, Secret, connection::Authorities};

/// What to show to a registry or its token server.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Credentials {
    /// Nothing.
    Anonymous,
    /// User name and password.
    Basic {
        /// The user name, which is not secret.
        username: String,
        /// The password or an access key.
        password: Secret,
    },
    /// A refresh token, exchanged at the token server by OAuth 2.
    IdentityToken(Secret),
    /// A token that is shown to the registry as it is.
    RegistryToken(Secret),
}

/// Why a credential source gave nothing. Holds no credential.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialsError {
    /// The file is there but cannot be read.
    #[error("cannot read the credential file {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The document is not docker's `config.json`, or too large. The parser's own message could quote a secret.
    #[error("{origin} is not a docker config.json (line {line}), or is larger than 1 MiB")]
    Document {
        /// File or service.
        origin: String,
        /// The line at which parsing stopped, 0 if it is too large.
        line: usize,
    },
    /// A helper's name that is not a plain word.
    #[error("the credential helper's name in config.json is not a plain word")]
    HelperName,
    /// A helper failed, timed out or wrote something else than the protocol has.
    #[error("the credential helper docker-credential-{helper} {failure}")]
    Helper {
        /// Its name.
        helper: String,
        /// What it did.
        failure: &'static str,
        /// The system's answer, if it was not the helper itself.
        source: Option<io::Error>,
    },
    /// The credential service did not give what it owes.
    #[error("the credential service {service} {failure}")]
    Service {
        /// Its URL without query, or its socket.
        service: String,
        /// What it did.
        failure: String,
        /// What the network said.
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

impl CredentialsError {
    /// Whether asking again may help.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Service { .. })
    }
}

/// A configured source of credentials.
pub(super) enum CredentialSource {
    None,
    File { path: PathBuf, helper_dirs: Vec<PathBuf> },
    Service(CredentialService),
}

impl CredentialSource {
    pub(super) fn new(config: &CredentialConfig, trusted: &Authorities) -> Result<Self, RegistryError> {
        Ok(match config {
            CredentialConfig::None => Self::None,
            CredentialConfig::File { path, helper_dirs } => {
                Self::File { path: path.clone(), helper_dirs: helper_dirs.clone() }
            }
            CredentialConfig::Http { url, timeout_ms } => {
                Self::Service(CredentialService::http(url, None, Duration::from_millis(*timeout_ms))?)
            }
            CredentialConfig::Https { url, timeout_ms, client_identity, server_ca_file } => {
                let tls = service::tls(client_identity.as_ref(), server_ca_file.as_deref(), trusted)?;
                Self::Service(CredentialService::http(url, Some(tls), Duration::from_millis(*timeout_ms))?)
            }
            CredentialConfig::Uds { path, timeout_ms } => {
                Self::Service(CredentialService::unix(path.clone(), Duration::from_millis(*timeout_ms)))
            }
        })
    }

    /// What to show for `repository`. `url` is what was asked for when the registry said 401.
    pub(super) async fn look_up(
        &self,
        repository: &Repository,
        url: &Url,
    ) -> Result<Credentials, CredentialsError> {
        let host = repository.host();
        let default_port = if repository.is_plain_http() { 80 } else { 443 };
        let key_host = KeyHost { host: &host, default_port };
        let config = match self {
            Self::None => return Ok(Credentials::Anonymous),
            Self::File { path, helper_dirs } => {
                let Some(config) = docker_config::read(path.clone()).await? else {
                    tracing::debug!(path = %path.display(), "no credential file, going on anonymously");
                    return Ok(Credentials::Anonymous);
                };
                for key in config.odd_keys() {
                    tracing::warn!(path = %path.display(), key, "what the credential file has for this cannot be used");
                }
                if let Some((helper, server)) = config.helper(key_host, repository.name())
                    && let Some(found) = program::ask(&helper, &server, helper_dirs).await?
                {
                    return Ok(found);
                }
                config
            }
            Self::Service(service) => service.ask(url).await?,
        };
        Ok(config.credentials(key_host, repository.name()))
    }
}

impl fmt::Debug for CredentialSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "CredentialSource::None",
            Self::File { .. } => "CredentialSource::File",
            Self::Service(_) => "CredentialSource::Service",
        })
    }
}
