//! A reverse proxy between the tests and a real registry that misbehaves on demand and counts what it is asked.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use tokio::net::TcpListener;

/// What is done to an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Passed on as it is.
    None,
    /// Answered with this status instead, and with `Retry-After: 1` where it is 429 or 503.
    Status(u16),
    /// The connection ends after half of the announced body.
    CutBody,
    /// The body is half as long as was asked for, and says so.
    ShortBody,
    /// More bytes than were asked for.
    LongBody,
    /// The right number of bytes of another place of the blob, labelled with that place.
    WrongRange,
    /// The right label and length, and wrong bytes.
    WrongBody,
    /// The whole blob with status 200.
    Full,
    /// The head at once, the body never.
    Stall,
}

/// How the proxy behaves now.
#[derive(Debug, Clone)]
pub struct Behaviour {
    /// Added before each answer.
    pub delay: Duration,
    /// Each fault befalls one answer about a blob in so many, from the first on; one at a time, in this order.
    pub faults: Vec<(u64, Fault)>,
    /// The byte at this place of each blob is another one, in all answers that have it.
    pub flip: Option<u64>,
    /// New requests are refused by closing the connection.
    pub down: bool,
    /// Asks for a bearer token, which this proxy hands out itself; the fault `Status(401)` makes it expire.
    pub login: bool,
}

impl Behaviour {
    /// Everything passes.
    pub fn healthy() -> Self {
        Self { delay: Duration::ZERO, faults: Vec::new(), flip: None, down: false, login: false }
    }
}

/// What has been asked so far.
#[derive(Debug, Default)]
pub struct Counts {
    /// All requests.
    pub requests: AtomicU64,
    /// Bytes of blob bodies sent.
    pub blob_bytes: AtomicU64,
    /// Requests for blobs without a Range header.
    pub unranged: AtomicU64,
    /// Requests that got no answer: the proxy was down, or the registry behind it was.
    pub unanswered: AtomicU64,
    /// How often each fault has been done to an answer.
    strikes: Mutex<HashMap<Fault, u64>>,
    /// When each request came and was answered.
    spans: Mutex<Vec<(Instant, Instant)>>,
}

impl Counts {
    /// How often `fault` has been done to an answer.
    pub fn struck(&self, fault: Fault) -> u64 {
        self.strikes.lock().unwrap().get(&fault).copied().unwrap_or_default()
    }

    fn strike(&self, fault: Fault) {
        if fault != Fault::None {
            *self.strikes.lock().unwrap().entry(fault).or_default() += 1;
        }
    }

    fn unanswered(&self, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> std::io::Error {
        self.unanswered.fetch_add(1, Ordering::SeqCst);
        std::io::Error::other(error)
    }

    /// How many requests, since `from`, waited for one another at least: the most that do not overlap in time.
    pub fn round_trips(&self, from: Instant) -> usize {
        let mut spans: Vec<_> =
            self.spans.lock().unwrap().iter().filter(|span| span.0 >= from).copied().collect();
        spans.sort_by_key(|span| span.1);
        let mut free = from;
        spans
            .iter()
            .filter(|(came, answered)| {
                let later = *came >= free;
                if later {
                    free = *answered;
                }
                later
            })
            .count()
    }
}

/// A running proxy; dropping it closes the port.
pub struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

struct Shared {
    upstream: String,
    behaviour: Mutex<Behaviour>,
    counts: Counts,
    /// Answers about blobs that each fault of the behaviour has seen go by.
    seen: Mutex<Vec<u64>>,
    /// Serial number of the only token that is good now.
    token: AtomicU64,
    /// When a fault made that token the good one; `None` while none has since the last change of behaviour.
    token_born: Mutex<Option<Instant>>,
}

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

impl FaultProxy {
    /// Starts a proxy on a free loopback port in front of `upstream`, a `host:port`.
    pub fn start(upstream: &str) -> Self {
        let shared = Arc::new(Shared {
            upstream: upstream.to_owned(),
            behaviour: Mutex::new(Behaviour::healthy()),
            counts: Counts::default(),
            seen: Mutex::default(),
            token: AtomicU64::new(0),
            token_born: Mutex::default(),
        });
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (sender, receiver) = mpsc::channel();
        let serving = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                sender.send(listener.local_addr().unwrap()).unwrap();
                tokio::select! {
                    () = accept(listener, serving) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { address: receiver.recv().unwrap(), shared, stop: Some(stop), thread: Some(thread) }
    }

    /// Where it listens, as `host:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Behaves so from now on.
    pub fn behave(&self, behaviour: Behaviour) {
        let mut current = self.shared.behaviour.lock().unwrap();
        *self.shared.seen.lock().unwrap() = vec![0; behaviour.faults.len()];
        *self.shared.token_born.lock().unwrap() = None;
        *current = behaviour;
    }

    /// What has been asked so far.
    pub fn counts(&self) -> &Counts {
        &self.shared.counts
    }

    /// Number of requests so far.
    pub fn requests(&self) -> u64 {
        self.shared.counts.requests.load(Ordering::SeqCst)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let client = Client::builder(TokioExecutor::new()).build_http();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let (shared, client) = (Arc::clone(&shared), client.clone());
        tokio::spawn(async move {
            let answer = service_fn(move |request| {
                let (shared, client) = (Arc::clone(&shared), client.clone());
                async move { answer(request, &shared, &client).await }
            });
            // A cut connection is what some of the faults are.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

/// Notes a request's time when it ends.
struct Span<'a> {
    counts: &'a Counts,
    came: Instant,
}

impl Drop for Span<'_> {
    fn drop(&mut self) {
        self.counts.spans.lock().unwrap().push((self.came, Instant::now()));
    }
}

async fn answer(
    mut request: Request<Incoming>,
    shared: &Shared,
    client: &Client<HttpConnector, Incoming>,
) -> Result<Response<Body>, std::io::Error> {
    let counts = &shared.counts;
    counts.requests.fetch_add(1, Ordering::SeqCst);
    let path = request.uri().path().to_owned();
    let _span = Span { counts, came: Instant::now() };
    let is_blob = path.contains("/blobs/sha256:");
    if is_blob && !request.headers().contains_key(header::RANGE) {
        counts.unranged.fetch_add(1, Ordering::SeqCst);
    }
    let (delay, down, fault) = shared.decide(is_blob);
    tokio::time::sleep(delay).await;
    if down {
        return Err(counts.unanswered("down"));
    }
    if path == "/token" {
        return Ok(shared.hand_out_token());
    }
    let fault = if fault == Fault::Status(401) { shared.expire_token() } else { fault };
    if shared.lacks_token(&request) {
        return Ok(challenge(&request));
    }
    counts.strike(fault);
    if let Fault::Status(code) = fault {
        return Ok(refusal(code));
    }
    match fault {
        Fault::Full => drop(request.headers_mut().remove(header::RANGE)),
        Fault::WrongRange => {
            drop(request.headers_mut().insert(header::RANGE, HeaderValue::from_static("bytes=0-511")))
        }
        _ => {}
    }
    let target = format!("http://{}{}", shared.upstream, request.uri());
    *request.uri_mut() = target.parse().map_err(std::io::Error::other)?;
    let response = client.request(request).await.map_err(|error| counts.unanswered(error))?;
    let (mut head, body) = response.into_parts();
    let body = body.collect().await.map_err(|error| counts.unanswered(error))?.to_bytes();
    if is_blob {
        counts.blob_bytes.fetch_add(body.len() as u64, Ordering::SeqCst);
    }
    let flip = shared.behaviour.lock().unwrap().flip.filter(|_| is_blob);
    let body = flip.map_or(body.clone(), |at| flipped(at, &head.headers, body));
    let body = spoil(fault, &mut head.headers, body);
    Ok(Response::from_parts(head, body))
}

/// How long a token is good at least after the first has expired. One that is refused as soon as it is new is no expired
/// one.
const TOKEN_LIFE: Duration = Duration::from_secs(10);

impl Shared {
    /// Takes back the token that is good now, unless it is young. The request is then refused for its old token.
    fn expire_token(&self) -> Fault {
        let mut born = self.token_born.lock().unwrap();
        if born.is_none_or(|born| born.elapsed() >= TOKEN_LIFE) {
            *born = Some(Instant::now());
            self.token.fetch_add(1, Ordering::SeqCst);
            self.counts.strike(Fault::Status(401));
        }
        Fault::None
    }

    fn hand_out_token(&self) -> Response<Body> {
        let token = self.token.load(Ordering::SeqCst);
        Response::new(whole(format!("{{\"token\": \"t{token}\", \"expires_in\": 3600}}").into()))
    }

    fn lacks_token(&self, request: &Request<Incoming>) -> bool {
        let good = format!("Bearer t{}", self.token.load(Ordering::SeqCst));
        let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        self.behaviour.lock().unwrap().login && given != Some(&good)
    }

    fn decide(&self, is_blob: bool) -> (Duration, bool, Fault) {
        let behaviour = self.behaviour.lock().unwrap();
        let mut fault = Fault::None;
        if is_blob {
            let mut seen = self.seen.lock().unwrap();
            for ((one_in, candidate), seen) in behaviour.faults.iter().zip(seen.iter_mut()) {
                *seen += 1;
                if (*seen - 1).is_multiple_of(*one_in) {
                    fault = *candidate;
                    break;
                }
            }
        }
        (behaviour.delay, behaviour.down, fault)
    }
}

fn challenge(request: &Request<Incoming>) -> Response<Body> {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let value =
        format!("Bearer realm=\"http://{host}/token\",service=\"test\",scope=\"repository:test:pull\"");
    let response =
        Response::builder().status(StatusCode::UNAUTHORIZED).header(header::WWW_AUTHENTICATE, value);
    response.body(whole(Bytes::from_static(b"{}"))).unwrap()
}

fn refusal(code: u16) -> Response<Body> {
    let mut response = Response::builder().status(StatusCode::from_u16(code).unwrap());
    if code == 429 || code == 503 {
        response = response.header(header::RETRY_AFTER, "1");
    }
    response.body(Full::new(Bytes::from_static(b"no")).map_err(never).boxed_unsync()).unwrap()
}

fn spoil(fault: Fault, headers: &mut http::HeaderMap, body: Bytes) -> Body {
    let half = body.slice(..body.len() / 2);
    match fault {
        Fault::CutBody => half_and(half, true),
        Fault::Stall => half_and(half, false),
        Fault::ShortBody => {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(half.len()));
            whole(half)
        }
        Fault::LongBody => {
            let mut longer = body.to_vec();
            longer.extend_from_slice(&[0; 512]);
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(longer.len()));
            whole(longer.into())
        }
        Fault::WrongBody => whole(body.iter().map(|byte| byte ^ 0x40).collect()),
        _ => whole(body),
    }
}

/// `body` with the byte at `at` of the blob changed, if it has it.
fn flipped(at: u64, headers: &http::HeaderMap, body: Bytes) -> Bytes {
    let range = headers.get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let start = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse().ok());
    let mut bytes = body.to_vec();
    if let Some(byte) =
        at.checked_sub(start.unwrap_or(0)).and_then(|at| bytes.get_mut(usize::try_from(at).ok()?))
    {
        *byte ^= 0x40;
    }
    bytes.into()
}

fn whole(body: Bytes) -> Body {
    Full::new(body).map_err(never).boxed_unsync()
}

/// Sends `half`, and then cuts the connection or hangs. The pause lets the half leave first.
fn half_and(half: Bytes, cut: bool) -> Body {
    let stream = futures_util::stream::unfold(Some(half), move |half| async move {
        if let Some(half) = half {
            return Some((Ok(Frame::data(half)), None));
        }
        tokio::time::sleep(if cut { Duration::from_millis(20) } else { Duration::from_secs(3600) }).await;
        Some((Err(std::io::Error::other("cut")), None))
    });
    StreamBody::new(stream).boxed_unsync()
}

fn never(error: Infallible) -> std::io::Error {
    match error {}
}
