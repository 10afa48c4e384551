//! Commands to the driver that make, start, stop and delete devices, each waited for up to a deadline.
//!
//! Such a command may block for as long as a device is in use, and on some kernels for ever, so that no thread that is
//! needed for anything else may wait inside one: a [`Messenger`] does. Whoever sends one command after another uses the same
//! messenger; one whose answer is not waited for to the end stays with its command.

use std::{
    fs::{File, OpenOptions},
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustix::io::Errno;

use super::{
    command::Command,
    messenger::{self, Failure, Job, Messenger},
};
use crate::frontend::FrontendError;

const CONTROL_PATH: &str = "/dev/ublk-control";

/// The driver's control file.
#[derive(Debug, Clone)]
pub(super) struct Control {
    file: Arc<File>,
    legacy: bool,
    idle: Idle,
}

/// Where the messenger waits that has brought the last answer.
type Idle = Arc<Mutex<Option<Messenger>>>;

/// The driver's answer to a command: what the payload has become.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) payload: Vec<u8>,
}

/// A command that has been sent.
pub(super) struct Pending {
    name: &'static str,
    id: Option<u32>,
    messenger: Messenger,
    idle: Idle,
}

impl Control {
    pub(super) fn open() -> Result<Self, FrontendError> {
        let file = OpenOptions::new().read(true).write(true).open(CONTROL_PATH).map_err(|source| {
            FrontendError::Unavailable { path: Path::new(CONTROL_PATH).to_owned(), source }
        })?;
        Ok(Self { file: Arc::new(file), legacy: false, idle: Idle::default() })
    }

    /// Makes it speak as to a driver before Linux 6.4; `operation` below translates the commands of queues.
    pub(super) fn set_legacy(&mut self) {
        self.legacy = true;
    }

    /// The number that this driver knows `operation` by.
    pub(super) fn operation(&self, operation: u32) -> u32 {
        messenger::encoded(operation, self.legacy)
    }

    /// Sends a command and waits for the answer, at most for `deadline`.
    pub(super) fn run(&self, command: Command, deadline: Duration) -> Result<Reply, FrontendError> {
        let name = command.name;
        let pending = self.start(command)?;
        pending.wait(deadline).unwrap_or(Err(FrontendError::Deadline { step: name, after: deadline }))
    }

    /// Sends a command.
    pub(super) fn start(&self, command: Command) -> Result<Pending, FrontendError> {
        let (name, id) = (command.name, command.id);
        let job = Job { command, legacy: self.legacy };
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).take();
        let messenger = match idle {
            Some(idle) => idle.send(job).map(|()| idle),
            None => Err(job),
        };
        // There is none, or it has waited for too long and gone.
        let messenger = messenger.or_else(|job| Messenger::with_job(Arc::clone(&self.file), job));
        Ok(Pending {
            name,
            id,
            messenger: messenger.map_err(FrontendError::System)?,
            idle: Arc::clone(&self.idle),
        })
    }
}

impl Pending {
    /// The answer, or the command back if none has come after `timeout`.
    pub(super) fn wait(self, timeout: Duration) -> Result<Result<Reply, FrontendError>, Self> {
        let Some(answer) = self.messenger.answer(timeout) else { return Err(self) };
        *self.idle.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.messenger);
        Ok(answer.map_err(|failure| match (failure, self.id) {
            (Failure::Unsent(error), _) => FrontendError::System(error),
            (Failure::Refused(error), Some(id)) if is(&error, Errno::EXIST) => {
                tracing::debug!(command = self.name, id, "taken");
                FrontendError::IdTaken(id)
            }
            (Failure::Refused(error), Some(id)) if is(&error, Errno::NODEV) => {
                FrontendError::NoSuchDevice(id)
            }
            (Failure::Refused(source), _) => FrontendError::Command { command: self.name, source },
        }))
    }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}
