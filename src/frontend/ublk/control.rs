//! Commands to the driver that make, start, stop and delete devices, each on a thread of its own.
//!
//! Such a command may block for as long as a device is in use, and on some kernels for ever, so that no thread that is
//! needed for anything else may wait inside one: the caller waits for the thread, up to a deadline. A signal can
//! interrupt only the thread's own wait, which it resumes: the command itself runs in a kernel worker. Commands need the
//! 128-byte entries of a ring that is made for them.
#![expect(unsafe_code, reason = "a command points to its payload")]

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::AsRawFd,
    path::Path,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use rustix::io::Errno;

use super::{
    abi::{self, bytes_of},
    command::Command,
};
use crate::frontend::FrontendError;

const CONTROL_PATH: &str = "/dev/ublk-control";

/// Commands before Linux 6.4 are numbers, later ones are encoded like ioctls around the same number.
const LEGACY_COMMAND_MASK: u32 = 0xff;

/// The queue that a command names when it is for none.
const NO_QUEUE: u16 = u16::MAX;

/// The driver's control file.
#[derive(Debug, Clone)]
pub(super) struct Control {
    file: Arc<File>,
    legacy: bool,
}

/// The driver's answer to a command: a number and what the payload has become.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) payload: Vec<u8>,
}

/// A command that has been sent.
pub(super) struct Pending {
    name: &'static str,
    id: Option<u32>,
    receiver: mpsc::Receiver<Result<Reply, Failure>>,
}

enum Failure {
    /// The driver's own answer.
    Refused(io::Error),
    /// The command did not reach it.
    Unsent(io::Error),
}

impl Control {
    pub(super) fn open() -> Result<Self, FrontendError> {
        let file = OpenOptions::new().read(true).write(true).open(CONTROL_PATH).map_err(|source| {
            FrontendError::Unavailable { path: Path::new(CONTROL_PATH).to_owned(), source }
        })?;
        Ok(Self { file: Arc::new(file), legacy: false })
    }

    /// Makes it speak as to a driver before Linux 6.4; `operation` below translates the commands of queues.
    pub(super) fn set_legacy(&mut self) {
        self.legacy = true;
    }

    /// The number that this driver knows `operation` by.
    pub(super) fn operation(&self, operation: u32) -> u32 {
        if self.legacy { operation & LEGACY_COMMAND_MASK } else { operation }
    }

    /// Sends a command and waits for the answer, at most for `deadline`.
    pub(super) fn run(&self, command: Command, deadline: Duration) -> Result<Reply, FrontendError> {
        let name = command.name;
        let pending = self.start(command)?;
        pending.wait(deadline).unwrap_or(Err(FrontendError::Deadline { step: name, after: deadline }))
    }

    /// Sends a command.
    pub(super) fn start(&self, command: Command) -> Result<Pending, FrontendError> {
        // Without room: a send succeeds only when the answer has been taken, and fails when nobody will take it.
        let (sender, receiver) = mpsc::sync_channel(0);
        let pending = Pending { name: command.name, id: command.id, receiver };
        let control = self.clone();
        let body = move || {
            let added = command.is_add();
            let outcome = control.execute(command);
            if let Err(mpsc::SendError(Ok(reply))) = sender.send(outcome)
                && added
            {
                control.undo_add(&reply);
            }
        };
        thread::Builder::new().name("ublk-command".to_owned()).spawn(body).map_err(FrontendError::System)?;
        Ok(pending)
    }

    /// Deletes a device that was made after its maker had given up.
    fn undo_add(&self, reply: &Reply) {
        let Some(info) = abi::value_at::<abi::ublksrv_ctrl_dev_info>(&reply.payload, 0) else { return };
        if let Err(Failure::Refused(error) | Failure::Unsent(error)) =
            self.execute(Command::delete(info.dev_id))
        {
            tracing::error!(id = info.dev_id, %error, "a device that came too late cannot be deleted");
        }
    }

    fn execute(&self, command: Command) -> Result<Reply, Failure> {
        let mut ring: IoUring<squeue::Entry128, cqueue::Entry> =
            IoUring::builder().build(1).map_err(Failure::Unsent)?;
        let path_bytes = command.path.as_ref().map_or(0, Vec::len);
        let mut buffer = command.path.unwrap_or_default();
        buffer.extend_from_slice(&command.payload);
        let header = abi::ublksrv_ctrl_cmd {
            dev_id: command.id.unwrap_or(u32::MAX),
            queue_id: NO_QUEUE,
            len: u16::try_from(buffer.len()).expect("payloads are some hundred bytes"),
            addr: if buffer.is_empty() { 0 } else { buffer.as_mut_ptr() as u64 },
            data: [command.data],
            dev_path_len: u16::try_from(path_bytes).expect("paths of nodes are short"),
            ..abi::ublksrv_ctrl_cmd::default()
        };
        let mut argument = [0; 80];
        argument.iter_mut().zip(bytes_of(&header)).for_each(|(to, from)| *to = *from);
        let operation = self.operation(command.operation);
        let entry =
            opcode::UringCmd80::new(types::Fd(self.file.as_raw_fd()), operation).cmd(argument).build();
        // SAFETY: the buffer stays where it is until the answer has come; `answer` leaks it if that cannot be known.
        unsafe { ring.submission().push(&entry) }.expect("a new ring has room for one entry");
        let result = answer(&mut ring, &mut buffer)?;
        if result < 0 {
            return Err(Failure::Refused(io::Error::from_raw_os_error(result.wrapping_neg())));
        }
        Ok(Reply { payload: buffer.split_off(path_bytes) })
    }
}

fn answer(ring: &mut IoUring<squeue::Entry128, cqueue::Entry>, buffer: &mut Vec<u8>) -> Result<i32, Failure> {
    loop {
        let entered = ring.submit_and_wait(1);
        if let Some(entry) = ring.completion().next() {
            return Ok(entry.result());
        }
        match entered {
            Ok(_) => {}
            Err(error) if is_passing(&error) => {}
            Err(error) => {
                // The driver may have the command all the same.
                std::mem::forget(std::mem::take(buffer));
                return Err(Failure::Unsent(error));
            }
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    let passing = [Errno::INTR, Errno::AGAIN, Errno::BUSY];
    passing.into_iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

impl Pending {
    /// The answer, or None if it has not come after `timeout`; may be called again.
    pub(super) fn wait(&self, timeout: Duration) -> Option<Result<Reply, FrontendError>> {
        let failure = match self.receiver.recv_timeout(timeout) {
            Ok(Ok(reply)) => return Some(Ok(reply)),
            Ok(Err(failure)) => failure,
            Err(mpsc::RecvTimeoutError::Timeout) => return None,
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                Failure::Unsent(io::Error::other("the thread of the command has ended"))
            }
        };
        Some(Err(match (failure, self.id) {
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
