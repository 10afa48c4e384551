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
    legacy::connect::{Connected, Connection, HttpConnector, proxy::SocksV5},
    proxy::matcher::{Intercept, Matcher},
};
use tower_service::Service;

use super::{no_proxy::NoProxy, tunnel};
use crate::registry::{ProxyConfig, Reason, RegistryError};

type Cause = Box<dyn std::error::Error + Send + Sync>;
type Connecting = Pin<Box<dyn Future<Output = Result<Transport, Cause>> + Send>>;

/// The proxies in force.
#[derive(Clone)]
pub(super) struct Proxies(Option<Arc<Configured>>);

struct Configured {
    proxies: Matcher,
    /// The library's own knows fewer forms.
    direct: NoProxy,
}

/// A proxy's URL, and what to call it in messages: the URL itself may hold a password.
type Named<'a> = (&'static str, &'a str);

/// What failed at a proxy or on the way to it.
#[derive(Debug, thiserror::Error)]
#[error("the proxy {proxy} does not lead there")]
pub(super) struct ProxyError {
    /// Host and port.
    pub(super) proxy: String,
    source: Cause,
}

/// How proxies can be spoken to.
const SCHEMES: [&str; 4] = ["http", "https", "socks5", "socks5h"];

impl Proxies {
    pub(super) fn new(config: &ProxyConfig) -> Result<Self, RegistryError> {
        match config {
            ProxyConfig::Environment => Self::from_environment(|name| std::env::var(name).ok()),
            ProxyConfig::None => Ok(Self(None)),
            ProxyConfig::Explicit { http, https, no_proxy } => {
                Self::checked(("the proxy for HTTP", http), ("the proxy for HTTPS", https), no_proxy)
            }
        }
    }

    /// By the variables that curl knows, in upper or lower case.
    fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Self, RegistryError> {
        if variable("REQUEST_METHOD").is_some() {
            // In a CGI program HTTP_PROXY is what the client sent as a header.
            return Ok(Self(None));
        }
        let value = |name: &'static str| {
            let text = variable(name).or_else(|| variable(&name.to_ascii_lowercase()));
            text.filter(|text| !text.is_empty()).map(|text| (name, text))
        };
        let all = value("ALL_PROXY");
        let [http, https] = ["HTTP_PROXY", "HTTPS_PROXY"]
            .map(|name| value(name).or_else(|| all.clone()).unwrap_or((name, String::new())));
        let no_proxy = value("NO_PROXY").map(|(_, text)| text).unwrap_or_default();
        Self::checked((http.0, &http.1), (https.0, &https.1), &no_proxy)
    }

    /// Going out directly where a proxy was wanted would be a leak: a URL that cannot be used is an error.
    fn checked(http: Named<'_>, https: Named<'_>, no_proxy: &str) -> Result<Self, RegistryError> {
        for (name, text) in [http, https].into_iter().filter(|(_, text)| !text.is_empty()) {
            let alone = Matcher::builder().http(text.to_owned()).build();
            let found = alone.intercept(&Uri::from_static("http://any.invalid/"));
            if !found.is_some_and(|proxy| is_usable(proxy.uri())) {
                let what = format!("{name} is no URL of a proxy by {}", SCHEMES.join(", "));
                let reason = Reason::Configuration { what, source: None };
                return Err(RegistryError::new("configuration", reason));
            }
        }
        let (http, https) = (http.1.to_owned(), https.1.to_owned());
        let proxies = Matcher::builder().http(http).https(https).build();
        Ok(Self(Some(Arc::new(Configured { proxies, direct: NoProxy::parse(no_proxy) }))))
    }

    /// The header that a plain request through an HTTP proxy needs; a tunnel has its own.
    pub(super) fn authorization(&self, target: &Uri) -> Option<HeaderValue> {
        if target.scheme_str() != Some("http") {
            return None;
        }
        self.intercept(target)?.basic_auth().cloned()
    }

    /// Host and port of the proxy that reads requests to `target`, as only a plain one does.
    pub(super) fn reader(&self, target: &Uri) -> Option<String> {
        let proxy = self.intercept(target).filter(|_| target.scheme_str() == Some("http"))?;
        let reads = proxy.uri().scheme_str().is_some_and(|scheme| scheme.starts_with("http"));
        reads.then(|| name(&proxy))
    }

    fn intercept(&self, target: &Uri) -> Option<Intercept> {
        let configured = self.0.as_ref().filter(|configured| !configured.direct.matches(target))?;
        configured.proxies.intercept(target)
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

    /// Connects through `proxy`, which what fails on the way is said of.
    fn through(&mut self, proxy: &Intercept, target: Uri) -> Connecting {
        let (connecting, proxy) = (self.by(proxy, target), name(proxy));
        Box::pin(async move { connecting.await.map_err(|source| ProxyError { proxy, source }.into()) })
    }

    fn by(&mut self, proxy: &Intercept, target: Uri) -> Connecting {
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
            let connecting = socks.call(with_port(target));
            return Box::pin(async move { Ok(Transport::new(connecting.await?, false)) });
        }
        let connecting = self.to_proxy.call(proxy.uri().clone());
        if target.scheme_str() == Some("https") {
            let authorization = proxy.basic_auth().cloned();
            return Box::pin(async move {
                let stream = connecting.await?;
                Ok(Transport::new(tunnel::through(stream, &target, authorization).await?, false))
            });
        }
        Box::pin(async move { Ok(Transport::new(connecting.await?, true)) })
    }
}

/// Host and port.
fn name(proxy: &Intercept) -> String {
    proxy.uri().authority().map(|authority| authority.as_str().to_owned()).unwrap_or_default()
}

/// Whether the scheme is one of ours, and nothing but a port stands behind the host.
fn is_usable(proxy: &Uri) -> bool {
    let known = proxy.scheme_str().is_some_and(|scheme| SCHEMES.contains(&scheme));
    let host = proxy.host().unwrap_or_default();
    let whole = proxy.port_u16().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    known && proxy.authority().is_some_and(|authority| authority.as_str() == whole)
}

/// The target with its port named: where it is not, SOCKS takes that of HTTPS for every scheme.
fn with_port(target: Uri) -> Uri {
    let named = match (target.host(), target.port(), target.scheme_str()) {
        (Some(host), None, Some("http")) => format!("http://{host}:80/").parse().ok(),
        _ => None,
    };
    named.unwrap_or(target)
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

trait Stream: Read + Write + Unpin + Send {}

impl<T: Read + Write + Unpin + Send> Stream for T {}

impl Transport {
    fn new(stream: impl Stream + 'static, is_proxied: bool) -> Self {
        Self { stream: Box::new(stream), is_proxied }
    }
}

impl Connection for Transport {
    fn connected(&self) -> Connected {
        Connected::new().proxy(self.is_proxied)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn from(variables: &[(&str, &str)]) -> Result<Proxies, RegistryError> {
        Proxies::from_environment(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, text)| (*text).to_owned())
        })
    }

    fn proxy_of(variables: &[(&str, &str)], target: &'static str) -> Option<String> {
        let proxy = from(variables).unwrap().intercept(&Uri::from_static(target));
        proxy.map(|proxy| proxy.uri().to_string())
    }

    #[test]
    fn the_environment_names_proxies_as_for_curl() {
        let variables = [
            ("https_proxy", "http://s:1"),
            ("ALL_PROXY", "socks5h://a:2"),
            ("HTTP_PROXY", ""),
            ("NO_PROXY", "near.example"),
        ];
        assert_eq!(proxy_of(&variables, "https://r.example/").unwrap(), "http://s:1/");
        assert_eq!(proxy_of(&variables, "http://r.example/").unwrap(), "socks5h://a:2/");
        assert_eq!(proxy_of(&variables, "https://x.near.example/"), None);
        assert_eq!(proxy_of(&[("HTTPS_PROXY", "s:1")], "https://r.example/").unwrap(), "http://s:1/");
        assert_eq!(proxy_of(&[], "https://r.example/"), None);
        let cgi = [("REQUEST_METHOD", "GET"), ("HTTP_PROXY", "http://evil:1")];
        assert_eq!(proxy_of(&cgi, "http://r.example/"), None);
    }

    #[test]
    fn a_proxy_that_cannot_be_used_is_an_error_without_its_password() {
        for bad in ["http://u:hunter2@host:port", "socks4://u:hunter2@h", "http://u:hunter2 @h", "ftp://h"] {
            let Err(error) = from(&[("HTTPS_PROXY", bad)]) else { panic!("{bad}") };
            assert!(error.to_string().contains("HTTPS_PROXY"), "{error}");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
    }
}
