//! A frontend as the daemon uses it, so that devices can be managed, and tested, whatever carries their requests.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    advice,
    api::types::FeatureList,
    device::Device,
    failure::{Failure, FailureClass},
};
use crate::{
    frontend::{AttachRequest, Attachment, Detached, FrontendError, Mark},
    reactor::ReactorHandle,
};

/// Carries requests of block devices. Every call may block for as long as it says, and is made on a control thread, never on
/// a reactor.
pub trait Port: Send + Sync + 'static {
    /// What the driver can do.
    ///
    /// # Errors
    /// Where there is no driver, or it may not be used.
    fn features(&self) -> Result<FeatureList, Failure>;

    /// Makes a device and returns when it is usable.
    ///
    /// # Errors
    /// When it cannot be made; then nothing is left of it.
    fn attach(
        &self,
        device: &Device,
        request: &AttachRequest,
        reactors: &[ReactorHandle],
    ) -> Result<Box<dyn Attachment>, FrontendError>;

    /// Takes device `id`, which waits for its next server, as [`crate::frontend::Frontend::take_over`] says.
    ///
    /// # Errors
    /// When it cannot be taken over; then it waits as before.
    fn take_over(
        &self,
        device: &Device,
        id: u32,
        mark: Option<Mark>,
        reactors: &[ReactorHandle],
        deadline: Duration,
    ) -> Result<Box<dyn Attachment>, FrontendError>;

    /// Devices that the kernel knows, this process's own among them. Empty where there is no driver.
    ///
    /// # Errors
    /// When the driver is there and cannot be asked.
    fn known(&self) -> Result<Vec<KnownDevice>, Failure>;

    /// The one of these with the number `id`, if there is one. Whatever is the matter with others is not asked.
    ///
    /// # Errors
    /// As of [`Port::known`].
    fn find(&self, id: u32) -> Result<Option<KnownDevice>, Failure> {
        Ok(self.known()?.into_iter().find(|known| known.id == id))
    }

    /// Names one of those who use the device at `path`, as a mounted file system and a loop device do.
    fn user(&self, path: &Path) -> Option<String>;

    /// Bytes that the file of a layer takes of its file system, which are fewer than its size where it has holes; 0 where nobody
    /// can say.
    fn stored_bytes(&self, path: &Path) -> u64 {
        super::device::stored_bytes(path)
    }

    /// Removes a device that no process serves any more; one that is not there is as good. One that a program has open goes, and
    /// keeps its number until that closes it.
    ///
    /// # Errors
    /// [`FailureClass::Conflict`] where a process seems to be about to start it; else when it could not be removed within
    /// `timeout`.
    fn remove_orphan(&self, id: u32, timeout: Duration) -> Result<Detached, Failure>;
}

/// A device as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownDevice {
    /// Its number.
    pub id: u32,
    /// Path of the block device.
    pub path: PathBuf,
    /// Size in bytes, 0 where unknown.
    pub size_bytes: u64,
    /// Logical block in bytes, 0 where unknown.
    pub logical_block_bytes: u32,
    /// Takes no writes.
    pub read_only: bool,
    /// Hardware queues.
    pub queues: u16,
    /// Requests in flight a queue.
    pub depth: u16,
    /// Process that serves it, if one lives.
    pub server_pid: Option<i32>,
    /// Made and not yet started, or stopped and not yet deleted: the kernel does not tell them apart.
    pub is_unstarted: bool,
    /// Outlives its server.
    pub recoverable: bool,
    /// Has no server and waits for the next, which may take it over.
    pub waits: bool,
    /// What it was made with, to be known again.
    pub mark: Option<Mark>,
}

/// What a frontend says, with the class that follows from it.
#[must_use]
pub fn failure_of_frontend(context: &str, error: FrontendError) -> Failure {
    let class = match &error {
        FrontendError::Unsupported { .. } | FrontendError::NoNode(_) => FailureClass::Driver,
        FrontendError::Unavailable { source, .. } => {
            let text = format!("{context}: no ublk driver ({})", advice::no_driver(source));
            return Failure::with_source(FailureClass::Driver, text, error);
        }
        FrontendError::System(source) if is_refusal(source) => {
            let text = format!("{context} ({})", advice::IO_URING);
            return Failure::with_source(FailureClass::Driver, text, error);
        }
        FrontendError::Command { source, .. } | FrontendError::Node { source, .. } if is_refusal(source) => {
            let text = format!("{context} ({})", advice::PRIVILEGE);
            return Failure::with_source(FailureClass::Driver, text, error);
        }
        FrontendError::IdTaken(_)
        | FrontendError::NotRecoverable(_)
        | FrontendError::NotWaiting(_)
        | FrontendError::AnotherMark { .. }
        | FrontendError::StillServed { .. }
        | FrontendError::Stray(_)
        | FrontendError::Mismatch { .. } => FailureClass::Conflict,
        FrontendError::NoSuchDevice(_) => FailureClass::NotFound,
        FrontendError::Deadline { .. } => FailureClass::TimedOut,
        FrontendError::Geometry(_) | FrontendError::Shape(_) => FailureClass::Image,
        FrontendError::Request { .. } => FailureClass::Usage,
        FrontendError::Engine { source, .. } => super::failure::class_of_data_error(source),
        _ => FailureClass::Internal,
    };
    Failure::with_source(class, context, error)
}

/// Whether the kernel does not let this process do it, whatever it is.
fn is_refusal(source: &io::Error) -> bool {
    matches!(source.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported)
}
