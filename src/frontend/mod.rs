//! The kernel's side of a device: what makes a [`BlockDevice`] into something that programs can open.
//!
//! A [`Frontend`] attaches any device; [`ublk`] is the one that serves the Linux driver of that name, and TCMU and
//! vhost-user-blk fit behind the same trait. [`NullFrontend`] opens a device's queues and nothing else, and fails on
//! demand: tests of whoever attaches devices stand on it. Frontends know nothing of images; engines nothing of these.
//!
//! The life of an attachment: [`Frontend::attach`] returns when the device can be opened. From then on the reactors that
//! were given serve it, and must run until [`Attachment::detach`] has returned. Both calls block for as long as the
//! kernel takes, so they belong on a thread that serves nothing and may be waited for. They cannot be cancelled, but end at
//! their deadlines.
//!
//! A device may outlive its server, where the driver can do that: after [`Attachment::leave`], or when the process has died,
//! its requests wait, and the next process takes it by [`Frontend::take_over`] and serves them from [`Attachment::resume`] on.

mod error;
mod mark;
mod null;
pub mod ublk;

use std::{path::Path, sync::Arc, time::Duration};

pub use error::FrontendError;
pub use mark::Mark;
pub use null::{NullFrontend, Stage};

use crate::{block::BlockDevice, reactor::ReactorHandle};

/// How long programs may take to close a device that has gone.
pub(crate) const CLOSE_PATIENCE: Duration = Duration::from_secs(2);

/// Makes block devices usable by programs. One frontend may serve any number of devices; it holds nothing of them.
pub trait Frontend {
    /// Attaches `device` and returns when its node can be opened; called once for each attachment.
    ///
    /// Queue `i` is served by one of `reactors`, which must be running. Nothing is left behind by a failure, except
    /// what the kernel did not give back before the deadline.
    ///
    /// # Errors
    /// A geometry or request that cannot be had is refused before the kernel is asked for anything.
    fn attach<D: BlockDevice>(
        &self,
        device: &Arc<D>,
        request: &AttachRequest,
        reactors: &[ReactorHandle],
    ) -> Result<Box<dyn Attachment>, FrontendError>;

    /// Takes device `id`, whose server has died or left it, and opens its queues. Its requests come from [`Attachment::resume`] on,
    /// those that were at the former server once more, and `device` must show what the former one showed. `mark` is the one that
    /// the device was made with.
    ///
    /// A failure leaves the device as it was, waiting, and so does dropping what is returned before it is told to resume.
    ///
    /// # Errors
    /// [`FrontendError::NotRecoverable`], [`FrontendError::NotWaiting`], [`FrontendError::StillServed`],
    /// [`FrontendError::AnotherMark`] and [`FrontendError::Mismatch`] where the kernel has it otherwise; those of [`Frontend::attach`] besides.
    fn take_over<D: BlockDevice>(
        &self,
        device: &Arc<D>,
        id: u32,
        mark: Option<Mark>,
        reactors: &[ReactorHandle],
        deadline: Duration,
    ) -> Result<Box<dyn Attachment>, FrontendError>;
}

/// A device that programs can use.
///
/// Dropping it detaches with a deadline of some seconds, unless that was tried already, and logs what goes wrong; call
/// [`Attachment::detach`] to know.
pub trait Attachment: Send {
    /// The node that programs open, for example `/dev/ublkb0`.
    fn path(&self) -> &Path;

    /// The number of the device among those of its frontend.
    fn id(&self) -> u32;

    /// What was granted, which may be less than what was asked for.
    fn info(&self) -> AttachmentInfo;

    /// What the driver granted, by its own names.
    fn features(&self) -> Vec<String>;

    /// Lets the requests come of a device that was taken over, and returns when they are served; of any other it does nothing.
    ///
    /// # Errors
    /// What the kernel does not do, or not before the deadline. Nobody else can have the device then before this process ends: it
    /// may be called again, and goes on where it has failed.
    fn resume(&mut self, deadline: Duration) -> Result<(), FrontendError>;

    /// Whether the device has ended without [`Attachment::detach`], for example because another program deleted it.
    fn has_ended(&self) -> bool;

    /// Whether [`Attachment::resize`] can be asked for `size_bytes`. The kernel is not asked.
    ///
    /// # Errors
    /// [`FrontendError::Unsupported`] where the driver cannot do it, and those of a size that it cannot have.
    fn check_resize(&self, size_bytes: u64) -> Result<(), FrontendError>;

    /// Lets programs see a device of `size_bytes`, which its [`BlockDevice`] must have already. Blocks for up to `deadline`.
    ///
    /// # Errors
    /// As [`Attachment::check_resize`], and where the kernel refuses or does not answer.
    fn resize(&self, size_bytes: u64, deadline: Duration) -> Result<(), FrontendError>;

    /// As [`Attachment::detach_within`], and gives programs that just look at the device, as udev does, two seconds to close it.
    ///
    /// # Errors
    /// As [`Attachment::detach_within`]. The device is nobody's then: to be called where the process ends anyway.
    fn detach(mut self: Box<Self>, deadline: Duration) -> Result<Detached, FrontendError> {
        self.detach_within(deadline, CLOSE_PATIENCE)
    }

    /// Removes the device. Requests in flight are served for half of the deadline; those that are then still waiting for
    /// the engine fail. Open descriptors of the node do not hinder it: they see a device that has gone, and after `patience`
    /// it is [`Detached::HeldOpen`].
    ///
    /// # Errors
    /// What the kernel did not do before the deadline, or could not be asked to. The reactors may then still hold parts of the
    /// device, or serve all of it: it may be called again.
    fn detach_within(&mut self, deadline: Duration, patience: Duration) -> Result<Detached, FrontendError>;

    /// Stops serving, and leaves the device to [`Frontend::take_over`] in another process: when it returns, no request is being
    /// worked at, and none will be. Those that come wait. Whatever else holds on to the device ends with the process.
    ///
    /// # Errors
    /// [`FrontendError::NotRecoverable`] for a device that would go with its server, which goes as when it is dropped; and where
    /// requests have not ended before the deadline. The device stays then, and they run once more for its next server.
    fn leave(self: Box<Self>, deadline: Duration) -> Result<(), FrontendError>;
}

/// What is asked of a frontend besides the device.
#[derive(Debug, Clone)]
pub struct AttachRequest {
    /// The number of the device; the lowest free one if None.
    pub id: Option<u32>,
    /// Hardware queues; cut to the number of processors.
    pub queues: u16,
    /// Requests in flight in each queue.
    pub depth: u16,
    /// Largest request in bytes; a multiple of 4096.
    pub max_io_bytes: u32,
    /// The device outlives its server, where the driver can do that, and waits for the next.
    pub recovery: bool,
    /// By which it is known again.
    pub mark: Option<Mark>,
    /// When to give up; a driver that hangs otherwise takes the caller with it.
    pub deadline: Duration,
}

impl Default for AttachRequest {
    fn default() -> Self {
        Self {
            id: None,
            queues: 1,
            depth: 64,
            max_io_bytes: 1 << 20,
            recovery: true,
            mark: None,
            deadline: Duration::from_secs(30),
        }
    }
}

/// What an attached device was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttachmentInfo {
    /// Hardware queues.
    pub queues: u16,
    /// Requests in flight in each queue.
    pub depth: u16,
    /// Largest request in bytes.
    pub max_io_bytes: u32,
    /// Whether the device outlives its server.
    pub recoverable: bool,
}

/// How far a device has gone when [`Attachment::detach`] returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detached {
    /// Nothing of it is left.
    Complete,
    /// Nothing of it is left here; the kernel keeps the number until the last program has closed the node.
    HeldOpen,
}
