//! The client of the daemon's control API.

use std::{path::PathBuf, time::Duration};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use stratabd::server::{
    api::types::ErrorAnswer,
    failure::{Failure, FailureClass},
};
use tokio::net::UnixStream;

/// Longest answer that is read: a list of thousands of devices fits.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Connecting to a socket of this machine takes no time unless the daemon hangs.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The daemon bounds its own work; this bounds a daemon that does not answer at all.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(600);

/// Talks to one daemon.
#[derive(Debug)]
pub(crate) struct Client {
    socket: PathBuf,
}

impl Client {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Asks for `path` and returns the JSON of the answer.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.exchange(Method::GET, path, None).await
    }

    /// Sends `body` to `path` and returns the JSON of the answer.
    pub(crate) async fn post<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, Failure> {
        let bytes =
            serde_json::to_vec(body).map_err(|error| self.broken("cannot write the request", error))?;
        self.exchange(Method::POST, path, Some(bytes)).await
    }

    /// Deletes `path` and returns the JSON of the answer.
    pub(crate) async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.exchange(Method::DELETE, path, None).await
    }

    async fn exchange<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(ANSWER_TIMEOUT, self.exchange_forever(method, path, body)).await {
            Ok(answer) => answer,
            Err(_) => {
                let text = format!("stratabd at {} does not answer", self.socket.display());
                Err(Failure::new(FailureClass::TimedOut, text))
            }
        }
    }

    async fn exchange_forever<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<T, Failure> {
        let stream = self.connect().await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken("cannot begin to talk", error))?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "stratabd")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|error| self.broken("cannot make the request", error))?;
        let answer = sender
            .send_request(request)
            .await
            .map_err(|error| self.broken("the connection broke off", error))?;
        let status = answer.status();
        let bytes = Limited::new(answer.into_body(), MAX_ANSWER_BYTES)
            .collect()
            .await
            .map_err(|error| self.broken("cannot read the answer", error))?
            .to_bytes();
        if status.is_success() {
            return serde_json::from_slice(&bytes)
                .map_err(|error| self.broken("cannot understand the answer", error));
        }
        match serde_json::from_slice::<ErrorAnswer>(&bytes) {
            Ok(answer) => Err(Failure::new(answer.error.class, answer.error.message)),
            Err(_) => {
                let text = format!("stratabd at {} answered {status}", self.socket.display());
                Err(Failure::new(FailureClass::Daemon, text))
            }
        }
    }

    async fn connect(&self) -> Result<UnixStream, Failure> {
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, UnixStream::connect(&self.socket));
        match connecting.await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => {
                let advice = match error.kind() {
                    std::io::ErrorKind::PermissionDenied => "run as root, or as the owner of the socket",
                    _ => {
                        "start it with \"systemctl start stratabd\", or use add --foreground, which needs none"
                    }
                };
                let text = format!("no stratabd at {} ({advice})", self.socket.display());
                Err(Failure::with_source(FailureClass::Daemon, text, error))
            }
            Err(_) => {
                let text = format!("stratabd at {} does not accept connections", self.socket.display());
                Err(Failure::new(FailureClass::Daemon, text))
            }
        }
    }

    fn broken(&self, action: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Failure {
        let text = format!("stratabd at {}: {action}", self.socket.display());
        Failure::with_source(FailureClass::Daemon, text, source)
    }
}
