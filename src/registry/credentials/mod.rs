//! Where user names and passwords come from. Nothing is remembered: every 401 asks the source again.

mod docker_config;
mod login;
mod program;
mod service;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    time::Duration,
};

use url::Url;

pub use docker_config::{DockerConfig, KeyHost, MAX_DOCKER_CONFIG_BYTES};
pub(super) use login::Login;
pub use login::Shown;
pub use program::parse_helper_answer;
use service::CredentialService;
pub use service::parse_service_answer;

use super::{CredentialConfig, RegistryError, Repository, Secret, connection::Authorities};

/// What to show to a registry or its token server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Credentials {
    /// Nothing.
    #[default]
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
    Files { paths: Vec<PathBuf>, helper_dirs: Vec<PathBuf> },
    Service(CredentialService),
}

impl CredentialSource {
    pub(super) fn new(config: &CredentialConfig, trusted: &Authorities) -> Result<Self, RegistryError> {
        Ok(match config {
            CredentialConfig::None => Self::None,
            CredentialConfig::Files { paths, helper_dirs } => {
                Self::Files { paths: paths.clone(), helper_dirs: helper_dirs.clone() }
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
    ) -> Result<Login, CredentialsError> {
        let host = repository.host();
        let default_port = if repository.is_plain_http() { 80 } else { 443 };
        let wanted = Wanted { host: KeyHost { host: &host, default_port }, repository: repository.name() };
        let (paths, helper_dirs) = match self {
            Self::None => return Ok(Login::default()),
            Self::Files { paths, helper_dirs } => (paths, helper_dirs),
            Self::Service(service) => {
                let found = service.ask(url).await?.credentials(wanted.host, wanted.repository);
                return Ok(Login { credentials: found, origin: service.name() });
            }
        };
        let mut failed = None;
        for path in paths {
            match wanted.look_in(path, helper_dirs).await {
                Ok(Login { credentials: Credentials::Anonymous, .. }) => {}
                Ok(found) => return Ok(found),
                // It costs the other files nothing.
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        let places: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
        let nothing = Login { credentials: Credentials::Anonymous, origin: places.join(", ") };
        failed.map_or(Ok(nothing), Err)
    }
}

/// What a login is looked for for.
struct Wanted<'a> {
    host: KeyHost<'a>,
    repository: &'a str,
}

impl Wanted<'_> {
    async fn look_in(&self, path: &Path, helper_dirs: &[PathBuf]) -> Result<Login, CredentialsError> {
        let Some(config) = docker_config::read(path.to_owned()).await? else {
            tracing::debug!(path = %path.display(), "no credential file");
            return Ok(Login::default());
        };
        for key in config.odd_keys() {
            tracing::warn!(path = %path.display(), key, "what the credential file has for this cannot be used");
        }
        let mut failed = None;
        if let Some((helper, server)) = config.helper(self.host, self.repository) {
            match program::ask(&helper, &server, helper_dirs).await {
                Ok(None) => {}
                Ok(Some(credentials)) => {
                    return Ok(Login { credentials, origin: format!("docker-credential-{helper}") });
                }
                Err(error) => failed = Some(error),
            }
        }
        // A helper that does not work, or is not here, costs the file's own login nothing.
        match (config.credentials(self.host, self.repository), failed) {
            (Credentials::Anonymous, Some(error)) => Err(error),
            (credentials, _) => Ok(Login { credentials, origin: path.display().to_string() }),
        }
    }
}

impl fmt::Debug for CredentialSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "CredentialSource::None",
            Self::Files { .. } => "CredentialSource::Files",
            Self::Service(_) => "CredentialSource::Service",
        })
    }
}
