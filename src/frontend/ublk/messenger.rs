//! A thread that takes commands to the driver and brings the answers.
//!
//! A signal can interrupt only the thread's own wait, which it resumes: the command itself runs in a kernel worker. Commands
//! need the 128-byte entries of a ring that is made for them.
#![expect(unsafe_code, reason = "a command points to its payload")]

use std::{
    fs::File,
    io,
    os::fd::AsRawFd,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use rustix::io::Errno;

use super::{
    abi::{self, bytes_of},
    command::Command,
    control::Reply,
};
use crate::crash_point;

/// The queue that a command names when it is for none.
const NO_QUEUE: u16 = u16::MAX;

/// Commands before Linux 6.4 are numbers, later ones are encoded like ioctls around the same number.
const LEGACY_COMMAND_MASK: u32 = 0xff;

/// How long a thread waits for another command. Those of an attach come within milliseconds.
const IDLE_TIME: Duration = Duration::from_millis(100);

type Ring = IoUring<squeue::Entry128, cqueue::Entry>;

/// A command, as the driver knows it.
pub(super) struct Job {
    pub(super) command: Command,
    pub(super) legacy: bool,
}

/// Why there is no answer to use.
pub(super) enum Failure {
    /// The driver's own answer.
    Refused(io::Error),
    /// The command did not reach it.
    Unsent(io::Error),
}

/// The near side of the thread. It takes one command at a time, and the next when the answer has been taken. When it is
/// dropped the thread ends with the command that it has.
#[derive(Debug)]
pub(super) struct Messenger {
    // Both without room: a send succeeds only when what was sent is taken, and fails when nobody will take it.
    jobs: mpsc::SyncSender<Job>,
    answers: mpsc::Receiver<Result<Reply, Failure>>,
}

impl Messenger {
    /// Starts the thread with its first command for the driver's control `file`.
    pub(super) fn with_job(file: Arc<File>, job: Job) -> io::Result<Self> {
        let (jobs, waiting) = mpsc::sync_channel(0);
        let (answering, answers) = mpsc::sync_channel(0);
        let body = move || carry(&file, job, &waiting, &answering);
        thread::Builder::new().name("ublk-command".to_owned()).spawn(body)?;
        Ok(Self { jobs, answers })
    }

    /// Has it carry `job`, which comes back if the thread has ended.
    pub(super) fn send(&self, job: Job) -> Result<(), Job> {
        self.jobs.send(job).map_err(|mpsc::SendError(job)| job)
    }

    /// The answer to the last command, or None if it has not come after `timeout`.
    pub(super) fn answer(&self, timeout: Duration) -> Option<Result<Reply, Failure>> {
        match self.answers.recv_timeout(timeout) {
            Ok(answer) => Some(answer),
            Err(mpsc::RecvTimeoutError::Timeout) => None,
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                Some(Err(Failure::Unsent(io::Error::other("the thread of the command has ended"))))
            }
        }
    }
}

/// Carries commands until none comes any more, or nobody wants an answer.
fn carry(
    file: &File,
    first: Job,
    jobs: &mpsc::Receiver<Job>,
    answers: &mpsc::SyncSender<Result<Reply, Failure>>,
) {
    let mut ring = match Ring::builder().build(1) {
        Ok(ring) => ring,
        Err(error) => {
            let _ = answers.send(Err(Failure::Unsent(error)));
            return;
        }
    };
    let mut next = Some(first);
    while let Some(Job { command, legacy }) = next {
        while crash_point::hangs(command.name) {
            thread::park();
        }
        let added = command.is_add();
        let answer = execute(&mut ring, file, command, legacy);
        // The driver may have the command all the same, and would answer it to the next.
        let lost = matches!(answer, Err(Failure::Unsent(_)));
        if let Err(mpsc::SendError(unwanted)) = answers.send(answer) {
            if let Ok(reply) = unwanted
                && added
            {
                undo_add(&mut ring, file, &reply, legacy);
            }
            return;
        }
        if lost {
            return;
        }
        next = jobs.recv_timeout(IDLE_TIME).ok();
    }
}

/// Deletes a device that was made after its maker had given up.
fn undo_add(ring: &mut Ring, file: &File, reply: &Reply, legacy: bool) {
    let Some(info) = abi::value_at::<abi::ublksrv_ctrl_dev_info>(&reply.payload, 0) else { return };
    if let Err(Failure::Refused(error) | Failure::Unsent(error)) =
        execute(ring, file, Command::delete(info.dev_id), legacy)
    {
        tracing::error!(id = info.dev_id, %error, "a device that came too late cannot be deleted");
    }
}

fn execute(ring: &mut Ring, file: &File, command: Command, legacy: bool) -> Result<Reply, Failure> {
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
    let operation = encoded(command.operation, legacy);
    let entry = opcode::UringCmd80::new(types::Fd(file.as_raw_fd()), operation).cmd(argument).build();
    // SAFETY: the buffer stays where it is until the answer has come; `answer` leaks it if that cannot be known.
    unsafe { ring.submission().push(&entry) }.expect("a ring with nothing under way has room for one entry");
    let result = answer(ring, &mut buffer)?;
    if result < 0 {
        return Err(Failure::Refused(io::Error::from_raw_os_error(result.wrapping_neg())));
    }
    Ok(Reply { payload: buffer.split_off(path_bytes) })
}

fn answer(ring: &mut Ring, buffer: &mut Vec<u8>) -> Result<i32, Failure> {
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

/// The number that a driver knows `operation` by.
pub(super) fn encoded(operation: u32, legacy: bool) -> u32 {
    if legacy { operation & LEGACY_COMMAND_MASK } else { operation }
}
