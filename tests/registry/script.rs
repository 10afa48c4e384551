//! A scripted HTTP/1.1 server: each request is answered by the bytes that the test gives, and remembered.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake},
    thread::{self, Thread},
    time::Duration,
};

use stratabd::{
    block::ByteRange,
    format::oci::Digest,
    registry::{Client, HostConfig, Limits, ProxyConfig, RegistryConfig, RemoteBlob, Repository},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// One request as the server saw it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) target: String,
    head: String,
    pub(crate) body: String,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// The range asked for, end exclusive.
    pub(crate) fn range(&self) -> Option<(usize, usize)> {
        let (start, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((start.parse().unwrap(), last.parse::<usize>().unwrap() + 1))
    }
}

/// What happens to the connection after the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    Keep,
    Close,
    Stall,
}

/// An answer: wait, send, then keep, close or fall silent.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) delay: Duration,
    pub(crate) bytes: Vec<u8>,
    pub(crate) after: After,
}

/// Status line, header lines and body; `Content-Length` is only there if given.
pub(crate) fn raw(status: &str, headers: &[&str], body: &[u8], after: After) -> Step {
    let mut bytes = format!("HTTP/1.1 {status}\r\n").into_bytes();
    for header in headers {
        bytes.extend_from_slice(format!("{header}\r\n").as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    Step { delay: Duration::ZERO, bytes, after }
}

/// As [`raw`], with the right `Content-Length`.
pub(crate) fn reply(status: &str, headers: &[&str], body: &[u8]) -> Step {
    let length = format!("Content-Length: {}", body.len());
    let mut all = headers.to_vec();
    all.push(&length);
    raw(status, &all, body, After::Keep)
}

/// The honest answer to a range request.
pub(crate) fn partial(blob: &[u8], seen: &Seen) -> Step {
    let (start, end) = seen.range().expect("every blob request has a range");
    let range = format!("Content-Range: bytes {start}-{}/{}", end - 1, blob.len());
    reply("206 Partial Content", &[&range], &blob[start..end])
}

/// Requests that were read and not answered yet.
#[derive(Default)]
struct Load {
    now: AtomicUsize,
    peak: AtomicUsize,
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    load: Arc<Load>,
    accepting: JoinHandle<()>,
}

impl Server {
    /// Answers the n-th request, counted from 0, by `script(request, n)`.
    pub(crate) async fn start(script: impl Fn(&Seen, usize) -> Step + Send + Sync + 'static) -> Self {
        Self::start_at("127.0.0.1:0", script).await
    }

    /// As [`Server::start`], on `address`.
    pub(crate) async fn start_at(
        address: &str,
        script: impl Fn(&Seen, usize) -> Step + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let load = Arc::new(Load::default());
        let (script, log, counted) = (Arc::new(script), seen.clone(), load.clone());
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (script, log, load) = (script.clone(), log.clone(), counted.clone());
                tokio::spawn(async move { serve(stream, &*script, &log, &load).await });
            }
        });
        Self { address, seen, load, accepting }
    }

    pub(crate) fn requests(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// The most requests that were in flight at once.
    pub(crate) fn peak(&self) -> usize {
        self.load.peak.load(Ordering::SeqCst)
    }

    pub(crate) fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(
    mut stream: TcpStream,
    script: &(dyn Fn(&Seen, usize) -> Step + Send + Sync),
    log: &Mutex<Vec<Seen>>,
    load: &Load,
) -> Option<()> {
    loop {
        let seen = read_request(&mut stream).await?;
        let number = {
            let mut log = log.lock().unwrap();
            log.push(seen.clone());
            log.len() - 1
        };
        let now = load.now.fetch_add(1, Ordering::SeqCst) + 1;
        load.peak.fetch_max(now, Ordering::SeqCst);
        let step = script(&seen, number);
        tokio::time::sleep(step.delay).await;
        load.now.fetch_sub(1, Ordering::SeqCst);
        stream.write_all(&step.bytes).await.ok()?;
        match step.after {
            After::Keep => {}
            After::Close => return None,
            After::Stall => std::future::pending().await,
        }
    }
}

async fn read_request(stream: &mut TcpStream) -> Option<Seen> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let mut words = head.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut seen = Seen { method, target, head, body: String::new() };
    let length: usize = seen.header("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    seen.body = String::from_utf8(body).unwrap();
    Some(seen)
}

/// Drives a future on a thread that knows nothing of tokio.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(thread::current())).into();
    let mut future = std::pin::pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        thread::park();
    }
}

/// Bytes that differ from one offset to the next in no short period.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

/// Short times, so that failures are soon over; plain HTTP to each of `plain`.
pub(crate) fn config(plain: &[SocketAddr]) -> RegistryConfig {
    let host = HostConfig { plain_http: true, ..HostConfig::default() };
    RegistryConfig {
        hosts: plain.iter().map(|address| (address.to_string().parse().unwrap(), host.clone())).collect(),
        proxy: ProxyConfig::None,
        limits: Limits {
            request_deadline_ms: 10_000,
            connect_timeout_ms: 5_000,
            stall_timeout_ms: 1_000,
            max_tries: 4,
            backoff_base_ms: 1,
            backoff_max_ms: 5,
            ..Limits::default()
        },
        ..RegistryConfig::default()
    }
}

pub(crate) fn client(config: &RegistryConfig) -> Client {
    Client::new(config, tokio::runtime::Handle::current()).unwrap()
}

pub(crate) fn digest() -> Digest {
    Digest::from_hash([0xab; 32])
}

pub(crate) fn repository(server: &Server) -> Repository {
    Repository::new(&server.address.to_string(), "team/app", true).unwrap()
}

pub(crate) fn blob(client: &Client, server: &Server, size: usize) -> RemoteBlob {
    client.blob(&repository(server), digest(), size as u64)
}

pub(crate) fn range(start: u64, end: u64) -> ByteRange {
    ByteRange::between(start, end)
}
