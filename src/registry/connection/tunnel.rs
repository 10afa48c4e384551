//! A tunnel through an HTTP proxy, which says why where it refuses.

use bytes::Bytes;
use http::{HeaderValue, Request, Uri, header};
use http_body_util::Empty;
use hyper::{
    client::conn::http1,
    rt::{Read, Write},
    upgrade::{self, Upgraded},
};

/// The head of a proxy's answer. Some have a page of a few KiB behind it, which is not read.
const MAX_HEAD_BYTES: usize = 16 << 10;

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub(super) enum TunnelError {
    /// The proxy has answered, and not by a tunnel.
    #[error("it answered with status {0}")]
    Refused(http::StatusCode),
    /// What is to be reached has no name.
    #[error("no host to connect to")]
    NoHost,
    /// The proxy does not speak HTTP, or has gone.
    #[error("it gave no answer to CONNECT")]
    Exchange(#[from] hyper::Error),
}

/// Has the proxy at the other end of `stream` connect to `target`; `authorization` is what it is shown.
pub(super) async fn through(
    stream: impl Read + Write + Unpin + Send + 'static,
    target: &Uri,
    authorization: Option<HeaderValue>,
) -> Result<Upgraded, TunnelError> {
    let host = target.host().ok_or(TunnelError::NoHost)?;
    let authority = format!("{host}:{}", target.port_u16().unwrap_or(443));
    let mut request =
        Request::connect(&authority).body(Empty::<Bytes>::new()).map_err(|_| TunnelError::NoHost)?;
    let headers = request.headers_mut();
    headers.insert(header::HOST, HeaderValue::from_str(&authority).map_err(|_| TunnelError::NoHost)?);
    if let Some(authorization) = authorization {
        headers.insert(header::PROXY_AUTHORIZATION, authorization);
    }
    let (mut sender, connection) =
        http1::Builder::new().max_buf_size(MAX_HEAD_BYTES).title_case_headers(true).handshake(stream).await?;
    tokio::spawn(connection.with_upgrades());
    let answer = sender.send_request(request).await?;
    if !answer.status().is_success() {
        return Err(TunnelError::Refused(answer.status()));
    }
    Ok(upgrade::on(answer).await?)
}
