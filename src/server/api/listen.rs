//! Sockets, connections and their limits: who may connect, how much it may send, and how long it may take.

use std::{
    convert::Infallible,
    fs,
    future::poll_fn,
    io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener, UnixStream},
    sync::{Notify, Semaphore},
};

use super::route::{self, Surface};
use crate::server::{daemon::Daemon, descriptors::is_exhausted};

/// What one client, and all together, may cost.
#[derive(Debug, Clone, Copy)]
pub struct ApiLimits {
    /// Connections that are served at once, on each socket; further ones wait in the backlog.
    pub connections: usize,
    /// Bytes of a request's line and headers.
    pub header_bytes: usize,
    /// Headers of a request.
    pub headers: usize,
    /// Bytes of a request's body: an image of 255 layers with paths of 4096 bytes fits.
    pub body_bytes: usize,
    /// How long a client may take to send headers, or the body.
    pub receive_timeout: Duration,
    /// How long a client may take to receive an answer.
    pub answer_timeout: Duration,
}

impl Default for ApiLimits {
    fn default() -> Self {
        Self {
            connections: 64,
            header_bytes: 16 << 10,
            headers: 32,
            body_bytes: 2 << 20,
            receive_timeout: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(10),
        }
    }
}

/// The socket could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {place}")]
pub struct ListenError {
    /// Path or address.
    pub place: String,
    source: io::Error,
}

/// The sockets of the API. Dropping it closes them and removes the file.
#[derive(Debug)]
pub struct ApiListener {
    unix: UnixListener,
    path: PathBuf,
    tcp: Option<TcpListener>,
}

impl ApiListener {
    /// Binds `path` with the permission bits `mode`, and a TCP socket for metrics where there is an address. A
    /// socket file that no process listens on any more is replaced.
    ///
    /// # Errors
    /// When a socket cannot be made, or a process listens on `path`.
    pub async fn bind(path: &Path, mode: u32, metrics: Option<SocketAddr>) -> Result<Self, ListenError> {
        let unix = bind_unix(path, mode)
            .await
            .map_err(|source| ListenError { place: path.display().to_string(), source })?;
        let tcp = match metrics {
            None => None,
            Some(address) => Some(
                TcpListener::bind(address)
                    .await
                    .map_err(|source| ListenError { place: address.to_string(), source })?,
            ),
        };
        Ok(Self { unix, path: path.to_owned(), tcp })
    }

    /// Address of the metrics socket, if there is one.
    #[must_use]
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().and_then(|tcp| tcp.local_addr().ok())
    }

    /// Serves `daemon` until this is dropped.
    pub async fn serve(&self, daemon: Arc<Daemon>, limits: ApiLimits) -> Infallible {
        let control = accept_all(
            |context| self.unix.poll_accept(context).map_ok(|(stream, _)| stream),
            &daemon,
            limits,
            Surface::Control,
        );
        let Some(tcp) = &self.tcp else { return control.await };
        let metrics = accept_all(
            |context| tcp.poll_accept(context).map_ok(|(stream, _)| stream),
            &daemon,
            limits,
            Surface::Metrics,
        );
        tokio::select! {
            never = control => never,
            never = metrics => never,
        }
    }
}

/// Serves what `accept` returns. Each socket has slots of its own, so that nobody who may only reach the metrics keeps
/// others from the control socket.
async fn accept_all<S>(
    accept: impl Fn(&mut Context<'_>) -> Poll<io::Result<S>>,
    daemon: &Arc<Daemon>,
    limits: ApiLimits,
    surface: Surface,
) -> Infallible
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let slots = Arc::new(Semaphore::new(limits.connections));
    let mut room = None;
    loop {
        let slot = Arc::clone(&slots).acquire_owned().await;
        match poll_fn(&accept).await {
            Ok(stream) => {
                let daemon = Arc::clone(daemon);
                let room = room.take();
                tokio::spawn(async move {
                    converse(stream, daemon, limits, surface).await;
                    drop((slot, room));
                });
            }
            Err(error) => {
                // Whoever asks may be about to make room.
                room = (is_exhausted(&error) && room.is_none()).then(|| daemon.reserve.lend(1)).flatten();
                if room.is_none() {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for ApiListener {
    fn drop(&mut self) {
        // The next start replaces a file that is left.
        let _ = fs::remove_file(&self.path);
    }
}

async fn bind_unix(path: &Path, mode: u32) -> io::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {
            if UnixStream::connect(path).await.is_ok() {
                return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there"));
            }
            fs::remove_file(path)?;
        }
        Ok(_) => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no socket is there"));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // Made under a name that nobody looks for: by its own name it is there only with its permissions.
    let mut hidden = path.as_os_str().to_owned();
    hidden.push(format!(".{}", std::process::id()));
    let _ = fs::remove_file(&hidden);
    let listener = UnixListener::bind(&hidden)?;
    let shown = fs::set_permissions(&hidden, fs::Permissions::from_mode(mode))
        .and_then(|()| fs::rename(&hidden, path));
    if let Err(error) = shown {
        let _ = fs::remove_file(&hidden);
        return Err(error);
    }
    Ok(listener)
}

async fn converse<S>(stream: S, daemon: Arc<Daemon>, limits: ApiLimits, surface: Surface)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let answered = Notify::new();
    let service = service_fn(|request| async {
        let answer = route::answer(&daemon, request, &limits, surface).await;
        answered.notify_one();
        Ok::<_, Infallible>(answer)
    });
    // One request a connection: what follows the answer is then only its way out, which can be given a limit.
    let conversation = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.receive_timeout)
        .max_headers(limits.headers)
        .max_buf_size(limits.header_bytes)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    let unread = async {
        answered.notified().await;
        tokio::time::sleep(limits.answer_timeout).await;
    };
    tokio::select! {
        served = conversation => {
            if let Err(error) = served {
                tracing::debug!(%error, "a connection to the control API ended early");
            }
        }
        () = unread => tracing::debug!("a client does not receive its answer and is cut off"),
    }
}
