//! Upstream's credential services: asked for `remote_url` over HTTP, HTTPS or a unix socket.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use rustls::ClientConfig;
use serde::Deserialize;
use tokio::{net::UnixStream, time::timeout};
use url::Url;

use super::{CredentialsError, DockerConfig, MAX_DOCKER_CONFIG_BYTES};
use crate::registry::{
    ClientIdentity, HostConfig, Reason, RegistryError,
    connection::{Authorities, tls},
    location::{self, shown},
};

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A service that gives out docker `auths` for a blob's URL.
pub(in crate::registry) struct CredentialService {
    transport: Transport,
    timeout: Duration,
}

enum Transport {
    Http { client: Box<legacy::Client<HttpsConnector<HttpConnector>, Empty<Bytes>>>, url: Url },
    Unix(PathBuf),
}

/// The answer has a `traceId` too, which is of no use here.
#[derive(Deserialize)]
struct Answer {
    success: bool,
    #[serde(default)]
    data: Option<DockerConfig>,
}

/// TLS as upstream has it: where an authority is given, only that one is trusted.
pub(super) fn tls(
    identity: Option<&ClientIdentity>,
    ca_file: Option<&Path>,
    trusted: &Authorities,
) -> Result<ClientConfig, RegistryError> {
    let trusted = if ca_file.is_some() { Authorities::none() } else { trusted.clone() };
    let host = HostConfig {
        ca_file: ca_file.map(Path::to_owned),
        client_identity: identity.cloned(),
        ..HostConfig::default()
    };
    tls::client_config(&trusted, &host, None)
}

/// Reads a service's answer: the logins that it gives out, or `None` where it says that it has failed.
///
/// # Errors
/// The line at which it is no such document; more may quote a secret.
pub fn parse_service_answer(body: &[u8]) -> Result<Option<DockerConfig>, usize> {
    let answer: Answer = serde_json::from_slice(body).map_err(|error| error.line())?;
    Ok(answer.success.then(|| answer.data.unwrap_or_default()))
}

impl CredentialService {
    pub(super) fn http(
        service_url: &str,
        tls: Option<ClientConfig>,
        timeout: Duration,
    ) -> Result<Self, RegistryError> {
        let wanted = if tls.is_some() { "https" } else { "http" };
        let url =
            location::parse(service_url).ok().filter(|url| url.scheme() == wanted).ok_or_else(|| {
                let what = format!("credentials: url is not a {wanted} URL without user information");
                RegistryError::new("credential service", Reason::Configuration { what, source: None })
            })?;
        let tls = match tls {
            Some(tls) => tls,
            None => tls::client_config(&Authorities::none(), &HostConfig::default(), None)?,
        };
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        let connector = HttpsConnector::from((tcp, tls));
        let client = Box::new(legacy::Client::builder(TokioExecutor::new()).build(connector));
        Ok(Self { transport: Transport::Http { client, url }, timeout })
    }

    pub(super) fn unix(path: PathBuf, timeout: Duration) -> Self {
        Self { transport: Transport::Unix(path), timeout }
    }

    /// Asks for the credentials of `remote_url`.
    pub(super) async fn ask(&self, remote_url: &Url) -> Result<DockerConfig, CredentialsError> {
        let exchange = async {
            let response = self.send(remote_url).await?;
            if response.status() != StatusCode::OK {
                return Err(self.fail(format!("answered with status {}", response.status()), None));
            }
            let limit = usize::try_from(MAX_DOCKER_CONFIG_BYTES).unwrap_or(usize::MAX);
            let body = Limited::new(response.into_body(), limit).collect().await;
            body.map(|body| body.to_bytes()).map_err(|cause| self.fail("broke off".to_owned(), Some(cause)))
        };
        let body = timeout(self.timeout, exchange).await.unwrap_or_else(|_| {
            Err(self.fail(format!("did not answer within {} ms", self.timeout.as_millis()), None))
        })?;
        parse_service_answer(&body)
            .map_err(|line| CredentialsError::Document { origin: self.name(), line })?
            .ok_or_else(|| self.fail("answered success = false".to_owned(), None))
    }

    async fn send(&self, remote_url: &Url) -> Result<Response<Incoming>, CredentialsError> {
        let lost = |cause: Cause| self.fail("cannot be reached".to_owned(), Some(cause));
        // Every character of a blob's URL may stand in a query as it is, which is how upstream sends it.
        let query = format!("remote_url={}", shown(remote_url));
        match &self.transport {
            Transport::Http { client, url } => {
                let mut url = url.clone();
                url.set_query(Some(&query));
                let request = Request::get(url.as_str()).body(Empty::new()).map_err(|e| lost(e.into()))?;
                client.request(request).await.map_err(|error| lost(error.into()))
            }
            Transport::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(|error| lost(error.into()))?;
                let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
                    .await
                    .map_err(|error| lost(error.into()))?;
                tokio::spawn(async move { connection.await.ok() });
                let request = Request::get(format!("/auth?{query}"))
                    .header(header::HOST, "localhost")
                    .body(Empty::<Bytes>::new())
                    .map_err(|error| lost(error.into()))?;
                sender.send_request(request).await.map_err(|error| lost(error.into()))
            }
        }
    }

    /// What messages call it.
    pub(super) fn name(&self) -> String {
        match &self.transport {
            Transport::Http { url, .. } => shown(url),
            Transport::Unix(path) => path.display().to_string(),
        }
    }

    fn fail(&self, failure: String, source: Option<Cause>) -> CredentialsError {
        CredentialsError::Service { service: self.name(), failure, source }
    }
}
