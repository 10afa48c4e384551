//! The way out: a TCP connection to the host itself, or to a proxy that leads there.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{HeaderValue, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::HttpsConnector;
use hyper_util::client::{
    legacy::connect::{
        Connected, Connection, HttpConnector,
        proxy::{SocksV5, Tunnel},
    },
    proxy::matcher::{Intercept, Matcher},
};
use tower_service::Service;

use crate::registry::ProxyConfig;

type Cause = Box<dyn std::error::Error + Send + Sync>;
type Connecting = Pin<Box<dyn Future<Output = Result<Transport, Cause>> + Send>>;

/// The proxies in force.
#[derive(Clone)]
pub(super) struct Proxies(Option<Arc<Matcher>>);

impl Proxies {
    pub(super) fn new(config: &ProxyConfig) -> Self {
        Self(match config {
            ProxyConfig::Environment => Some(Arc::new(Matcher::from_env())),
            ProxyConfig::None => None,
            ProxyConfig::Explicit { http, https, no_proxy } => Some(Arc::new(
                Matcher::builder().http(http.clone()).https(https.clone()).no(no_proxy.clone()).build(),
            )),
        })
    }

    /// The header that a plain request through an HTTP proxy needs; a tunnel has its own.
    pub(super) fn authorization(&self, target: &Uri) -> Option<HeaderValue> {
        if target.scheme_str() != Some("http") {
            return None;
        }
        self.intercept(target)?.basic_auth().cloned()
    }

    fn intercept(&self, target: &Uri) -> Option<Intercept> {
        self.0.as_ref()?.intercept(target)
    }
}

/// Connects to a target, through a proxy where one is in force. TLS to the target comes on top of it.
#[derive(Clone)]
pub(super) struct Egress {
    proxies: Proxies,
    tcp: HttpConnector,
    /// To proxies that are reached by TLS themselves.
    to_proxy: HttpsConnector<HttpConnector>,
}

impl Egress {
    pub(super) fn new(proxies: Proxies, tcp: HttpConnector, tls: rustls::ClientConfig) -> Self {
        let to_proxy = HttpsConnector::from((tcp.clone(), tls));
        Self { proxies, tcp, to_proxy }
    }

    fn through(&mut self, proxy: &Intercept, target: Uri) -> Connecting {
        let scheme = proxy.uri().scheme_str().unwrap_or_default();
        if scheme.starts_with("socks5") {
            let Some(address) = socks_address(proxy.uri()) else {
                return Box::pin(async { Err("the SOCKS proxy's address is malformed".into()) });
            };
            // `socks5h` leaves the resolution of names to the proxy.
            let mut socks = SocksV5::new(address, self.tcp.clone()).local_dns(scheme == "socks5");
            if let Some((user, password)) = proxy.raw_auth() {
                socks = socks.with_auth(user.to_owned(), password.to_owned());
            }
            let connecting = socks.call(target);
            return Box::pin(async move { Ok(Transport::new(connecting.await?, false)) });
        }
        if target.scheme_str() == Some("https") {
            let mut tunnel = Tunnel::new(proxy.uri().clone(), self.to_proxy.clone());
            if let Some(authorization) = proxy.basic_auth() {
                tunnel = tunnel.with_auth(authorization.clone());
            }
            let connecting = tunnel.call(target);
            return Box::pin(async move { Ok(Transport::new(connecting.await?, false)) });
        }
        let connecting = self.to_proxy.call(proxy.uri().clone());
        Box::pin(async move { Ok(Transport::new(connecting.await?, true)) })
    }
}

fn socks_address(proxy: &Uri) -> Option<Uri> {
    let port = proxy.port_u16().unwrap_or(1080);
    let authority = format!("{}:{port}", proxy.host()?);
    Uri::builder().scheme("http").authority(authority).path_and_query("/").build().ok()
}

impl Service<Uri> for Egress {
    type Response = Transport;
    type Error = Cause;
    type Future = Connecting;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Cause>> {
        self.tcp.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, target: Uri) -> Connecting {
        if let Some(proxy) = self.proxies.intercept(&target) {
            return self.through(&proxy, target);
        }
        let connecting = self.tcp.call(target);
        Box::pin(async move { Ok(Transport::new(connecting.await?, false)) })
    }
}

/// A connection of whatever kind.
pub(super) struct Transport {
    stream: Box<dyn Stream>,
    /// Whether requests must name their host in full because a proxy reads them.
    is_proxied: bool,
}

trait Stream: Read + Write + Connection + Unpin + Send {}

impl<T: Read + Write + Connection + Unpin + Send> Stream for T {}

impl Transport {
    fn new(stream: impl Stream + 'static, is_proxied: bool) -> Self {
        Self { stream: Box::new(stream), is_proxied }
    }
}

impl Connection for Transport {
    fn connected(&self) -> Connected {
        self.stream.connected().proxy(self.is_proxied)
    }
}

impl Read for Transport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_read(context, buffer)
    }
}

impl Write for Transport {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.stream).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.stream).poll_write_vectored(context, parts)
    }
}
