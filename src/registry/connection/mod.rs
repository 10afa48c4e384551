//! Pooled connections: HTTP/1.1 with keep-alive, HTTP/2 where the host offers it, one pool for each configured host.

mod authorities;
mod certs_dir;
mod egress;
mod failure;
mod no_proxy;
pub(super) mod tls;
mod tunnel;

use std::{
    collections::HashMap,
    path::PathBuf,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderValue, Response, StatusCode, Uri, header};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use tokio::time::timeout;
use tower_service::Service;
use url::Url;

pub(super) use authorities::Authorities;
use egress::{Egress, Proxies, Transport};
use failure::ConnectTimeout;

use super::{
    ClientIdentity, HostConfig, HostName, Limits, Reason, RegistryConfig, RegistryError,
    draft::{Body, Content, Draft},
    location,
};

/// Head and buffered body of an HTTP/1 answer. It bounds hostile heads, and is large enough to read a body in big steps.
/// hyper looks at it between reads, so a head of a few times this may still be taken when it arrives in one piece.
const MAX_HTTP1_BUFFER_BYTES: usize = 256 << 10;
/// Storage sends some 20 header fields.
const MAX_HEADERS: usize = 128;
/// Head of an HTTP/2 answer.
const MAX_HTTP2_HEADER_BYTES: u32 = 64 << 10;
/// What a server may send of one answer before it waits for us: a cold read of this size takes one round trip.
const HTTP2_STREAM_WINDOW_BYTES: u32 = 2 << 20;
/// The same for all answers of a connection: bounds what it can make us buffer, and fills 1 Gbit/s at 130 ms.
const HTTP2_CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Idle connections are closed after this; load balancers commonly close them after 60 s without a word.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);
/// How often an HTTP/2 connection in use is checked, so that a dead one fails its requests together.
const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(10);
/// Registries copy a blob inside their storage when all of it has come, before they answer. Object stores copy faster.
const SLOWEST_STORE_BYTES_PER_SECOND: u64 = 32 << 20;
/// TCP's own check of idle peers.
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);

type Cause = Box<dyn std::error::Error + Send + Sync>;
type Pool = legacy::Client<Dialer, Body>;

/// Hosts whose folders of certificates are remembered; storage behind registries may have any number of them.
const MAX_REMEMBERED_HOSTS: usize = 256;

/// The connections to a host, or to all that are not configured.
struct Pools {
    /// As a registry: with the client certificate that is shared by all registries.
    home: Pool,
    /// As whatever a registry has led to, which gets only a certificate of its own.
    away: Pool,
}

/// Host and port of the proxy that has read a request and may have answered it itself, among what is known of the answer.
#[derive(Clone)]
pub(super) struct ReadBy(pub(super) String);

/// What connections are made by.
#[derive(Clone)]
struct Maker {
    trusted: Authorities,
    proxies: Proxies,
    /// That all registries are shown which have none of their own.
    shared_identity: Option<ClientIdentity>,
    limits: Limits,
}

/// All connections of one client.
pub(super) struct Connections {
    by_host: HashMap<HostName, (HostConfig, Arc<Pools>)>,
    other: Arc<Pools>,
    maker: Maker,
    certs_dirs: Arc<[PathBuf]>,
    /// By host and port; `None`: it has no folder of certificates.
    with_certificates: Mutex<HashMap<String, Option<Arc<Pools>>>>,
    proxies: Proxies,
    user_agent: HeaderValue,
    /// Until the head of an answer is there, connecting included.
    head_timeout: Duration,
}

impl Connections {
    pub(super) fn new(config: &RegistryConfig, trusted: &Authorities) -> Result<Self, RegistryError> {
        let proxies = Proxies::new(&config.proxy)?;
        let maker = Maker {
            trusted: trusted.clone(),
            proxies: proxies.clone(),
            shared_identity: config.client_identity.clone(),
            limits: config.limits.clone(),
        };
        let mut by_host = HashMap::new();
        for (name, host) in &config.hosts {
            by_host.insert(name.clone(), (host.clone(), Arc::new(maker.pools(host)?)));
        }
        let user_agent = HeaderValue::from_str(&config.user_agent).map_err(|error| {
            let what = "user_agent is not a header value".to_owned();
            RegistryError::new("configuration", Reason::Configuration { what, source: Some(error.into()) })
        })?;
        Ok(Self {
            by_host,
            other: Arc::new(maker.pools(&HostConfig::default())?),
            maker,
            certs_dirs: config.certs_dirs.clone().into(),
            with_certificates: Mutex::default(),
            proxies,
            user_agent,
            head_timeout: config.limits.head_timeout(),
        })
    }

    /// Whether the operator lets `url`'s host be spoken to without TLS.
    pub(super) fn may_be_plain(&self, url: &Url) -> bool {
        self.host(url).is_some_and(|(host, _)| host.plain_http)
    }

    /// As [`Self::may_be_plain`], for a host as an image reference has it.
    pub(super) fn is_plain_host(&self, host: &str) -> bool {
        location::parse(&format!("http://{host}/")).is_ok_and(|url| self.may_be_plain(&url))
    }

    /// Sends one request and waits for the head of its answer. `is_home` says that `url` is the registry's own.
    pub(super) async fn send(
        &self,
        url: &Url,
        draft: &Draft,
        is_home: bool,
    ) -> Result<Response<Incoming>, RegistryError> {
        let fail = |reason| RegistryError::new(location::shown(url), reason);
        let uri =
            Uri::try_from(url.as_str()).map_err(|_| fail(Reason::Location(super::LocationError::Scheme)))?;
        let mut request = draft.to_request();
        let headers = request.headers_mut();
        headers.insert(header::USER_AGENT, self.user_agent.clone());
        // A range of encoded bytes is not a range of the blob.
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(authorization) = self.proxies.authorization(&uri) {
            headers.insert(header::PROXY_AUTHORIZATION, authorization);
        }
        let proxy = self.proxies.reader(&uri);
        *request.uri_mut() = uri;
        let pools = self.pools(url).await?;
        let pool = if is_home { &pools.home } else { &pools.away };
        let answer = self.while_it_moves(pool.request(request), &draft.content).await;
        let reason = match answer {
            Ok(Ok(mut answer)) => match proxy {
                // None but a proxy says that.
                Some(proxy) if answer.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
                    Reason::Proxy { proxy, status: answer.status().as_u16() }
                }
                Some(proxy) => {
                    answer.extensions_mut().insert(ReadBy(proxy));
                    return Ok(answer);
                }
                None => return Ok(answer),
            },
            Ok(Err(error)) => failure::reason(error, location::authority(url)),
            Err(reason) => reason,
        };
        if reason.is_of_tls() {
            // Its folder may have been made or changed since.
            self.with_certificates().remove(&location::authority(url));
        }
        Err(fail(draft.content.take_failure().unwrap_or(reason)))
    }

    /// Waits for `answer` as long as `content` goes out, and for the usual time and what a registry may need to store it
    /// when it has.
    async fn while_it_moves<T>(
        &self,
        answer: impl Future<Output = T>,
        content: &Content,
    ) -> Result<T, Reason> {
        let mut answer = pin!(answer);
        let stored = Duration::from_secs(content.size_bytes() / SLOWEST_STORE_BYTES_PER_SECOND);
        loop {
            let before = content.sent_bytes();
            let limit =
                if before >= content.size_bytes() { self.head_timeout + stored } else { self.head_timeout };
            match timeout(limit, &mut answer).await {
                Ok(answer) => return Ok(answer),
                Err(_) if content.sent_bytes() > before => {}
                Err(_) => return Err(Reason::Timeout { what: "answer", limit }),
            }
        }
    }

    /// The connections to the host of `url`, whose folder of certificates is looked for with the first.
    async fn pools(&self, url: &Url) -> Result<Arc<Pools>, RegistryError> {
        let configured = self.host(url);
        let usual = configured.map_or(&self.other, |(_, pools)| pools);
        if self.certs_dirs.is_empty() || url.scheme() != "https" {
            return Ok(Arc::clone(usual));
        }
        let name = location::authority(url);
        let known = self.with_certificates().get(&name).cloned();
        let own = match known {
            Some(own) => own,
            None => {
                let host = configured.map(|(host, _)| host.clone()).unwrap_or_default();
                let (maker, dirs, url) = (self.maker.clone(), Arc::clone(&self.certs_dirs), url.clone());
                let looking = move || maker.pools_with_certificates(host, &dirs, &url);
                let own = tokio::task::spawn_blocking(looking).await.unwrap_or(Ok(None))?.map(Arc::new);
                let mut remembered = self.with_certificates();
                if remembered.len() >= MAX_REMEMBERED_HOSTS {
                    remembered.clear();
                }
                remembered.insert(name, own.clone());
                own
            }
        };
        Ok(own.unwrap_or_else(|| Arc::clone(usual)))
    }

    fn with_certificates(&self) -> MutexGuard<'_, HashMap<String, Option<Arc<Pools>>>> {
        self.with_certificates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn host(&self, url: &Url) -> Option<&(HostConfig, Arc<Pools>)> {
        let name = url.host_str()?;
        let port = url.port_or_known_default()?;
        self.by_host.get(format!("{name}:{port}").as_str()).or_else(|| self.by_host.get(name))
    }
}

impl Maker {
    fn pools(&self, host: &HostConfig) -> Result<Pools, RegistryError> {
        let away = self.pool(host, None)?;
        let shared = self.shared_identity.as_ref().filter(|_| host.client_identity.is_none());
        let home = if shared.is_some() { self.pool(host, shared)? } else { away.clone() };
        Ok(Pools { home, away })
    }

    /// As [`Self::pools`], with what a folder has for the host; `None` where there is none.
    fn pools_with_certificates(
        mut self,
        mut host: HostConfig,
        dirs: &[PathBuf],
        url: &Url,
    ) -> Result<Option<Pools>, RegistryError> {
        let Some(found) = certs_dir::find(dirs, url)? else { return Ok(None) };
        for file in &found.ca_files {
            self.trusted = self.trusted.with_file(file)?;
        }
        host.client_identity = host.client_identity.or(found.identity());
        self.pools(&host).map(Some)
    }

    fn pool(&self, host: &HostConfig, shared: Option<&ClientIdentity>) -> Result<Pool, RegistryError> {
        let mut to_host = tls::client_config(&self.trusted, host, shared)?;
        to_host.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let to_proxy = tls::client_config(&self.trusted, &HostConfig::default(), None)?;
        let egress = Egress::new(self.proxies.clone(), tcp(), to_proxy);
        let https = HttpsConnector::from((egress, to_host));
        Ok(pool(Dialer { https, timeout: self.limits.connect_timeout() }, &self.limits))
    }
}

fn tcp() -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(TCP_KEEPALIVE));
    tcp
}

fn pool(dialer: Dialer, limits: &Limits) -> Pool {
    legacy::Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        // Each request that may be under way to a host finds its connection again, by HTTP/1.
        .pool_max_idle_per_host(limits.per_host())
        .http1_max_buf_size(MAX_HTTP1_BUFFER_BYTES)
        .http1_max_headers(MAX_HEADERS)
        .http2_max_header_list_size(MAX_HTTP2_HEADER_BYTES)
        .http2_initial_stream_window_size(HTTP2_STREAM_WINDOW_BYTES)
        .http2_initial_connection_window_size(HTTP2_CONNECTION_WINDOW_BYTES)
        .http2_keep_alive_interval(HTTP2_PING_INTERVAL)
        .http2_keep_alive_timeout(limits.stall_timeout())
        .build(dialer)
}

/// Bounds the time of connecting as a whole.
#[derive(Clone)]
struct Dialer {
    https: HttpsConnector<Egress>,
    timeout: Duration,
}

impl Service<Uri> for Dialer {
    type Response = MaybeHttpsStream<Transport>;
    type Error = Cause;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Cause>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Cause>> {
        self.https.poll_ready(context)
    }

    fn call(&mut self, target: Uri) -> Self::Future {
        let connecting = self.https.call(target);
        let limit = self.timeout;
        Box::pin(async move {
            match timeout(limit, connecting).await {
                Ok(connected) => connected,
                Err(_) => Err(ConnectTimeout(limit).into()),
            }
        })
    }
}
