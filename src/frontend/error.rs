//! Why a device cannot be attached or detached.

use std::{io, path::PathBuf, time::Duration};

use super::{Mark, ublk::ShapeError};
use crate::block::{BlockError, GeometryError};

/// A failure of a frontend. Each says what was being done; the cause is its source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrontendError {
    /// The geometry contradicts itself.
    #[error("the device's geometry contradicts itself")]
    Geometry(#[from] GeometryError),
    /// The geometry is sound, and the kernel cannot have it.
    #[error("the kernel cannot have such a device")]
    Shape(#[from] ShapeError),
    /// A field of the request has no meaning or is too large.
    #[error("{field} is {value}, and must be {rule}")]
    Request {
        /// The field's name.
        field: &'static str,
        /// What was asked for.
        value: u64,
        /// What may be asked for.
        rule: &'static str,
    },
    /// The driver cannot be reached.
    #[error("cannot open {path}: is the module ublk_drv loaded, and may this process use it?", path = path.display())]
    Unavailable {
        /// The file of the driver.
        path: PathBuf,
        /// The answer to opening it.
        source: io::Error,
    },
    /// The number is another device's, which was left alone.
    #[error("device number {0} is taken")]
    IdTaken(u32),
    /// There is no such device.
    #[error("there is no device with the number {0}")]
    NoSuchDevice(u32),
    /// The device goes with its server.
    #[error("device {0} was not made to outlive its server")]
    NotRecoverable(u32),
    /// The number is another device's than the one that is meant.
    #[error("device {id} is another one: {}", marks(*found, *expected))]
    AnotherMark {
        /// Number of the device.
        id: u32,
        /// The mark of the one that is there.
        found: Option<Mark>,
        /// That of the one that is meant.
        expected: Option<Mark>,
    },
    /// The device does not wait for a server.
    #[error("device {0} has not been started, or is being removed: it does not wait for a server")]
    NotWaiting(u32),
    /// The device's server has not gone.
    #[error("device {id} is still served by process {pid}")]
    StillServed {
        /// Number of the device.
        id: u32,
        /// The process.
        pid: i32,
    },
    /// The driver refused a command.
    #[error("the driver refused {command}")]
    Command {
        /// Name of the command, in the kernel's header.
        command: &'static str,
        /// The driver's answer.
        source: io::Error,
    },
    /// The driver is too old.
    #[error("this kernel's driver has no {feature}: it came with {since}")]
    Unsupported {
        /// The feature, by its name in the kernel's header less `UBLK_F_`.
        feature: &'static str,
        /// The first kernel that has it.
        since: &'static str,
    },
    /// The driver answered what cannot be.
    #[error("the driver's answer to {command} is wrong: {what}")]
    Answer {
        /// Name of the command, in the kernel's header.
        command: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Not done in time. What was waited for may still happen.
    #[error("{step} has not ended after {} ms", after.as_millis())]
    Deadline {
        /// What was waited for.
        step: &'static str,
        /// How long.
        after: Duration,
    },
    /// The engine cannot open a queue.
    #[error("the engine cannot open queue {queue}")]
    Engine {
        /// Number of the queue.
        queue: u16,
        /// What the engine says.
        source: BlockError,
    },
    /// A reactor cannot serve a queue.
    #[error("queue {queue} cannot be served: {what}")]
    Queue {
        /// Number of the queue.
        queue: u16,
        /// What failed.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// There is no reactor, or it has stopped.
    #[error("no reactor is running for queue {queue}")]
    NoReactor {
        /// Number of the queue.
        queue: u16,
    },
    /// A file of the device does not behave.
    #[error("{what} of {path} failed", path = path.display())]
    Node {
        /// What was being done.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// What is no node has the name of one, so that the kernel cannot make it.
    #[error("{path} is no node of a device: remove what stands in its place", path = .0.display())]
    Stray(PathBuf),
    /// The node has not appeared, and does not where this process runs.
    #[error("{path} does not appear: /dev here is not the kernel's own, as in a container; mount the host's /dev into it", path = .0.display())]
    NoNode(PathBuf),
    /// The finished device is not the one that was asked for, or the one to be taken over not the one that is to be served.
    #[error("{path} has {what} {found}, and should have {expected}", path = path.display())]
    Mismatch {
        /// What differs.
        what: &'static str,
        /// The device's node.
        path: PathBuf,
        /// What should be.
        expected: u64,
        /// What is.
        found: u64,
    },
    /// A thread or ring for a command could not be made.
    #[error("cannot run a command of the driver")]
    System(#[source] io::Error),
}

fn marks(found: Option<Mark>, expected: Option<Mark>) -> String {
    let name = |mark: Option<Mark>| mark.map_or("no mark".to_owned(), |mark| format!("mark {mark}"));
    format!("the kernel has it with {}, its record with {}", name(found), name(expected))
}
