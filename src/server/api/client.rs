//! The client of the control API, for programs that ask one thing of a daemon and wait for the answer.

use std::{
    io::{self, ErrorKind},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::PathBuf,
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};
use socket2::{Domain, SockAddr, Socket, Type};

use super::{exchange::ask, types::ErrorAnswer};
use crate::server::failure::{Failure, FailureClass};

/// How long a daemon is waited for that does not say a word, unless the caller has more patience.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// The daemon bounds its own work; this bounds a daemon that hangs in the midst of it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(600);

/// Talks to one daemon.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    patience: Duration,
}

impl Client {
    /// A client of the daemon that listens at the path `socket`. Nothing is asked yet.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self { socket, patience: PATIENCE }
    }

    /// The same, which waits for so long for a daemon that does not say a word.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Asks for `path` and returns the JSON of the answer.
    ///
    /// # Errors
    /// What the daemon answers; [`FailureClass::Daemon`] where it cannot be reached or understood, and [`FailureClass::TimedOut`].
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.exchange("GET", path, &[])
    }

    /// Sends `body` to `path` and returns the JSON of the answer.
    ///
    /// # Errors
    /// What the daemon answers; [`FailureClass::Daemon`] where it cannot be reached or understood, and [`FailureClass::TimedOut`].
    pub fn post<B: Serialize, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T, Failure> {
        let unsaid = |error| {
            let text = "cannot put it into a request, whose names and paths are UTF-8";
            Failure::with_source(FailureClass::Usage, text, error)
        };
        let bytes = serde_json::to_vec(body).map_err(unsaid)?;
        self.exchange("POST", path, &bytes)
    }

    /// Deletes `path` and returns the JSON of the answer.
    ///
    /// # Errors
    /// What the daemon answers; [`FailureClass::Daemon`] where it cannot be reached or understood, and [`FailureClass::TimedOut`].
    pub fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.exchange("DELETE", path, &[])
    }

    fn exchange<T: DeserializeOwned>(&self, method: &str, path: &str, body: &[u8]) -> Result<T, Failure> {
        self.greet()?;
        let mut stream = self.connect()?;
        let answer =
            ask(&mut stream, method, path, body, ANSWER_TIMEOUT).map_err(|error| match error.kind() {
                ErrorKind::TimedOut => {
                    let text = format!(
                        "stratabd at {} has not done it in {ANSWER_TIMEOUT:?}",
                        self.socket.display()
                    );
                    Failure::new(FailureClass::TimedOut, text)
                }
                _ => self.unread(error),
            })?;
        if (200..300).contains(&answer.status) {
            return serde_json::from_slice(&answer.body)
                .map_err(|error| self.broken("cannot understand the answer", error));
        }
        match serde_json::from_slice::<ErrorAnswer>(&answer.body) {
            Ok(answer) => Err(answer.error.into_failure()),
            Err(_) => {
                let text = format!("stratabd at {} answered {}", self.socket.display(), answer.status);
                Err(Failure::new(FailureClass::Daemon, text))
            }
        }
    }

    /// Finds out whether the daemon answers at all, by what costs it nothing: the kernel takes connections for one that hangs, and what
    /// is asked for may take minutes.
    fn greet(&self) -> Result<(), Failure> {
        let asked = ask(&mut self.connect()?, "GET", "/v1/daemon", &[], self.patience);
        asked.map(drop).map_err(|error| match error.kind() {
            ErrorKind::TimedOut => {
                let text = format!(
                    "stratabd at {} has said nothing in {:?}: it hangs, or is stopped",
                    self.socket.display(),
                    self.patience
                );
                Failure::new(FailureClass::Daemon, text)
            }
            _ => self.unread(error),
        })
    }

    fn unread(&self, error: io::Error) -> Failure {
        match error.kind() {
            ErrorKind::InvalidData => self.broken("cannot read the answer", error),
            _ => self.broken("the connection broke off", error),
        }
    }

    fn connect(&self) -> Result<UnixStream, Failure> {
        self.open().map_err(|error| {
            let socket = self.socket.display();
            let advice = match error.kind() {
                // Its queue of connections is full.
                ErrorKind::WouldBlock => {
                    let text = format!("stratabd at {socket} does not accept connections");
                    return Failure::new(FailureClass::Daemon, text);
                }
                ErrorKind::PermissionDenied => "run as root, or as the owner of the socket",
                _ => "start it with \"systemctl start stratabd\", or use add --foreground, which needs none",
            };
            let text = format!("no stratabd at {socket} ({advice})");
            Failure::with_source(FailureClass::Daemon, text, error)
        })
    }

    /// The standard library connects without a limit of time.
    fn open(&self) -> io::Result<UnixStream> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_write_timeout(Some(self.patience))?;
        socket.connect(&SockAddr::unix(&self.socket)?)?;
        Ok(OwnedFd::from(socket).into())
    }

    fn broken(&self, action: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Failure {
        let text = format!("stratabd at {}: {action}", self.socket.display());
        Failure::with_source(FailureClass::Daemon, text, source)
    }
}
