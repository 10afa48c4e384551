//! Sockets, connections and their limits: who may connect, how much it may send, and how long it may take.

use std::{
    convert::Infallible,
    fs, io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener, UnixStream},
    sync::Semaphore,
};

use super::route::{self, Surface};
use crate::server::daemon::Daemon;

/// What one client, and all together, may cost.
#[derive(Debug, Clone, Copy)]
pub struct ApiLimits {
    /// Connections that are served at once; further ones wait in the backlog.
    pub connections: usize,
    /// Bytes of a request's line and headers.
    pub header_bytes: usize,
    /// Headers of a request.
    pub headers: usize,
    /// Bytes of a request's body: an image of 255 layers with paths of 4096 bytes fits.
    pub body_bytes: usize,
    /// How long a client may take to send headers, or the body.
    pub receive_timeout: Duration,
}

impl Default for ApiLimits {
    fn default() -> Self {
        Self {
            connections: 64,
            header_bytes: 16 << 10,
            headers: 32,
            body_bytes: 2 << 20,
            receive_timeout: Duration::from_secs(10),
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
        let slots = Arc::new(Semaphore::new(limits.connections));
        loop {
            let slot = Arc::clone(&slots).acquire_owned().await;
            let accepted = match &self.tcp {
                None => self.unix.accept().await.map(|(stream, _)| Stream::Control(stream)),
                Some(tcp) => tokio::select! {
                    unix = self.unix.accept() => unix.map(|(stream, _)| Stream::Control(stream)),
                    tcp = tcp.accept() => tcp.map(|(stream, _)| Stream::Metrics(stream)),
                },
            };
            let daemon = Arc::clone(&daemon);
            match accepted {
                Ok(stream) => {
                    tokio::spawn(async move {
                        match stream {
                            Stream::Control(stream) => {
                                converse(stream, daemon, limits, Surface::Control).await
                            }
                            Stream::Metrics(stream) => {
                                converse(stream, daemon, limits, Surface::Metrics).await
                            }
                        }
                        drop(slot);
                    });
                }
                Err(error) => {
                    // Out of descriptors, most likely: others must end first.
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

enum Stream {
    Control(UnixStream),
    Metrics(tokio::net::TcpStream),
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
    // Made under a name that nobody looks for, so that there is no moment at which others may connect.
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
    let service = service_fn(move |request| {
        let daemon = Arc::clone(&daemon);
        async move { Ok::<_, Infallible>(route::answer(&daemon, request, &limits, surface).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.receive_timeout)
        .max_headers(limits.headers)
        .max_buf_size(limits.header_bytes)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the control API ended early");
    }
}
