//! The port to the kernel's ublk driver, and what a process that serves through it must do first.

use std::{io, path::Path, sync::Arc, time::Duration};

use rustix::{
    mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount},
    thread::UnshareFlags,
};

use super::{
    api::types::FeatureList,
    device::Device,
    failure::{Failure, FailureClass},
    mounts::places_of_devices,
    port::{KnownDevice, Port, failure_of_frontend},
};
use crate::{
    frontend::{
        AttachRequest, Attachment, Detached, FrontendError, Mark,
        ublk::{self, DeviceState, Ublk},
    },
    reactor::ReactorHandle,
};

/// The port to the driver.
#[must_use]
pub fn port() -> Arc<dyn Port> {
    Arc::new(UblkPort(Ublk::new()))
}

/// What the driver can do.
///
/// # Errors
/// Where there is no driver, or it may not be used.
pub fn features() -> Result<FeatureList, Failure> {
    UblkPort(Ublk::new()).features()
}

/// Marks this process as one that writeback depends on. To be called before it has another thread.
///
/// # Errors
/// Where it may not, for want of CAP_SYS_RESOURCE: it can serve all the same.
pub fn mark_io_flusher() -> Result<(), Failure> {
    ublk::mark_io_flusher().map_err(|source| {
        let text =
            "cannot mark this process as IO_FLUSHER: memory pressure may stall devices that are written";
        Failure::with_source(FailureClass::Driver, text, source)
    })
}

/// Says in the log, once there is one, where that was refused.
pub fn log_mark(marked: Result<(), Failure>) {
    if let Err(failure) = marked {
        tracing::warn!("{}", failure.full_text());
    }
}

/// Prepares a thread that serves devices; to be given to [`super::service::Service::start`].
///
/// # Errors
/// The kernel's answer.
pub fn prepare_thread() -> io::Result<()> {
    ublk::prepare_serving_thread()
}

struct UblkPort(Ublk);

impl Port for UblkPort {
    fn features(&self) -> Result<FeatureList, Failure> {
        let features =
            self.0.features().map_err(|error| failure_of_frontend("cannot ask for features", error))?;
        Ok(FeatureList { bits: features.bits(), names: features.names() })
    }

    fn attach(
        &self,
        device: &Device,
        request: &AttachRequest,
        reactors: &[ReactorHandle],
    ) -> Result<Box<dyn Attachment>, FrontendError> {
        device.attach_to(&self.0, request, reactors)
    }

    fn take_over(
        &self,
        device: &Device,
        id: u32,
        mark: Option<Mark>,
        reactors: &[ReactorHandle],
        deadline: Duration,
    ) -> Result<Box<dyn Attachment>, FrontendError> {
        device.take_over_with(&self.0, id, mark, reactors, deadline)
    }

    fn known(&self) -> Result<Vec<KnownDevice>, Failure> {
        match self.0.list() {
            Ok(devices) => Ok(devices.into_iter().map(known).collect()),
            Err(FrontendError::Unavailable { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(Vec::new())
            }
            Err(error) => Err(failure_of_frontend("cannot list the kernel's devices", error)),
        }
    }

    fn find(&self, id: u32) -> Result<Option<KnownDevice>, Failure> {
        match self.0.info(id) {
            Ok(device) => Ok(Some(known(device))),
            Err(FrontendError::NoSuchDevice(_)) => Ok(None),
            Err(FrontendError::Unavailable { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(None)
            }
            Err(error) => Err(failure_of_frontend("cannot ask the kernel for the device", error)),
        }
    }

    fn user(&self, path: &Path) -> Option<String> {
        self.0.user(path)
    }

    fn remove_orphan(&self, id: u32, timeout: Duration) -> Result<Detached, Failure> {
        if self.0.is_being_made(id) {
            let text = format!("another process has device {id} open, and may be about to start it");
            return Err(Failure::new(FailureClass::Conflict, text));
        }
        match self.0.remove(id, timeout) {
            Ok(detached) => Ok(detached),
            Err(FrontendError::NoSuchDevice(_)) => Ok(Detached::Complete),
            Err(FrontendError::Unavailable { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(Detached::Complete)
            }
            Err(error) => Err(failure_of_frontend("cannot remove the device", error)),
        }
    }
}

fn known(device: ublk::DeviceInfo) -> KnownDevice {
    let (served, recoverable, waits) = (device.is_served(), device.is_recoverable(), device.waits());
    let (size_bytes, logical_block_bytes, read_only) = device
        .shape
        .map(|shape| {
            let block_bytes = u32::try_from(shape.logical_block_bytes).unwrap_or(0);
            (shape.size_bytes, block_bytes, shape.read_only)
        })
        .unwrap_or_default();
    KnownDevice {
        id: device.id,
        path: device.path,
        size_bytes,
        logical_block_bytes,
        read_only,
        queues: device.queues,
        depth: device.depth,
        server_pid: served.then_some(device.server_pid),
        is_unstarted: device.state == DeviceState::Dead,
        recoverable,
        waits,
        mark: device.mark,
    }
}

/// Gives the process a mount namespace of its own, in which changes made elsewhere still arrive. Call it before any thread
/// is started: a thread that is there keeps the old one.
///
/// # Errors
/// Where the process may not.
pub fn leave_mount_namespace() -> Result<(), Failure> {
    #[expect(
        deprecated,
        reason = "a mount namespace, unlike a table of descriptors, cannot break memory safety"
    )]
    let left = rustix::thread::unshare(UnshareFlags::NEWNS);
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    left.and_then(|()| mount_change("/", flags)).map_err(|errno| {
        let source = io::Error::from(errno);
        Failure::with_source(FailureClass::Driver, "cannot leave the mount namespace (run as root)", source)
    })?;
    // Where mounts are not propagated, as without systemd, one that ends elsewhere would stay here, and its device in use. These are
    // of a former daemon's devices, later ones upon earlier.
    for place in places_of_devices().into_iter().rev() {
        if let Err(errno) = unmount(&place, UnmountFlags::DETACH) {
            tracing::debug!(place = %place.display(), %errno, "a mount is kept");
        }
    }
    Ok(())
}
