//! Commands to the driver that make, start, stop and delete devices, each waited for up to a deadline.
//!
//! Such a command may block for as long as a device is in use, and on some kernels for ever, so that no thread that is
//! needed for anything else may wait inside one: a [`Messenger`] does. Those that have brought their answers carry the next commands,
//! whoever sends them; one whose answer is not waited for to the end stays with its command.

use std::{
    fs::{File, OpenOptions},
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use rustix::io::Errno;

use super::{
    command::Command,
    messenger::{self, Failure, Job, Messenger},
};
use crate::frontend::FrontendError;

const CONTROL_PATH: &str = "/dev/ublk-control";

/// The driver's control file. All of this process that live at the same time are the same.
#[derive(Debug, Clone)]
pub(super) struct Control {
    shared: Arc<Shared>,
    legacy: bool,
}

/// The file, and the messengers that wait for a command. Many devices come at once, and a thread with a ring is what costs most of a
/// command.
#[derive(Debug)]
struct Shared {
    file: Arc<File>,
    idle: Mutex<Vec<Messenger>>,
}

/// What is open. It is not kept open: the driver can be unloaded when there is no device.
static OPEN: Mutex<Weak<Shared>> = Mutex::new(Weak::new());

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
    shared: Arc<Shared>,
}

impl Control {
    pub(super) fn open() -> Result<Self, FrontendError> {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = open.upgrade() {
            return Ok(Self { shared, legacy: false });
        }
        let file = OpenOptions::new().read(true).write(true).open(CONTROL_PATH).map_err(|source| {
            FrontendError::Unavailable { path: Path::new(CONTROL_PATH).to_owned(), source }
        })?;
        let shared = Arc::new(Shared { file: Arc::new(file), idle: Mutex::default() });
        *open = Arc::downgrade(&shared);
        Ok(Self { shared, legacy: false })
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
        let mut job = Job { command, legacy: self.legacy };
        let messenger = loop {
            let Some(idle) = self.shared.take_idle() else {
                let started = Messenger::with_job(Arc::clone(&self.shared.file), job);
                break started.map_err(FrontendError::System)?;
            };
            // One that has waited for too long has gone.
            match idle.send(job) {
                Ok(()) => break idle,
                Err(unsent) => job = unsent,
            }
        };
        Ok(Pending { name, id, messenger, shared: Arc::clone(&self.shared) })
    }
}

impl Shared {
    /// The messenger that has waited for the shortest time.
    fn take_idle(&self) -> Option<Messenger> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn put_idle(&self, messenger: Messenger) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(messenger);
    }
}

impl Pending {
    /// The answer, or the command back if none has come after `timeout`.
    pub(super) fn wait(self, timeout: Duration) -> Result<Result<Reply, FrontendError>, Self> {
        let Some(answer) = self.messenger.answer(timeout) else { return Err(self) };
        self.shared.put_idle(self.messenger);
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
