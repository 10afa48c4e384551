//! Devices that were taken over as far as that nobody else can have them before this process ends, and whose requests do not come yet.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use super::OpenedDevice;
use crate::{
    frontend::Attachment,
    server::{blocking::device_work, failure::Failure, port::failure_of_frontend},
};

/// One of them, with what serves it.
pub(in crate::server) struct Taken {
    opened: OpenedDevice,
    attachment: Box<dyn Attachment>,
}

impl Taken {
    pub(super) fn new(opened: OpenedDevice, attachment: Box<dyn Attachment>) -> Self {
        Self { opened, attachment }
    }

    /// Lets its requests come; to be called again with what a failure gives back.
    ///
    /// # Errors
    /// What the frontend says.
    pub(in crate::server) async fn resume(
        self,
    ) -> Result<(OpenedDevice, Box<dyn Attachment>), Box<NotResumed>> {
        let Self { opened, mut attachment } = self;
        let limit = opened.limit();
        let resuming = device_work(move || {
            let resumed = attachment.resume(limit);
            Ok((attachment, resumed))
        });
        match resuming.await {
            Ok((attachment, Ok(()))) => Ok((opened, attachment)),
            Ok((attachment, Err(error))) => {
                let failure = failure_of_frontend("cannot take over the device", error);
                Err(Box::new(NotResumed { failure, taken: Some(Self { opened, attachment }) }))
            }
            Err(failure) => Err(Box::new(NotResumed { failure, taken: None })),
        }
    }
}

/// One whose requests could not be let come.
pub(in crate::server) struct NotResumed {
    /// Why.
    pub(in crate::server) failure: Failure,
    taken: Option<Taken>,
}

/// Those that are to be tried again, by number. Locked for moments only.
#[derive(Default)]
pub(super) struct AllTaken(Mutex<BTreeMap<u32, Taken>>);

impl AllTaken {
    /// Keeps device `id` for the next try.
    pub(super) fn keep(&self, id: u32, not_resumed: NotResumed) -> Failure {
        if let Some(taken) = not_resumed.taken {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id, taken);
        }
        not_resumed.failure
    }

    /// Whether device `id` is there for [`AllTaken::remove`].
    pub(super) fn has(&self, id: u32) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, taken| !taken.attachment.has_ended());
        all.contains_key(&id)
    }

    /// Device `id`, if it was taken and the kernel has not ended it since then.
    pub(super) fn remove(&self, id: u32) -> Option<Taken> {
        let taken = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        taken.filter(|taken| !taken.attachment.has_ended())
    }
}
