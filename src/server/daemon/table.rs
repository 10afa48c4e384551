//! The devices of this process, and the places that are taken while one comes or goes.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{
    block::{BlockError, ErrorKind},
    frontend::{Attachment, Detached, FrontendError},
    image::{ReadMetrics, SourceClass},
    reactor::ReactorHandle,
    server::{
        api::types::{AddDevice, DeviceInfo, DeviceState, ImageSpec, ReadCount, RequestCount},
        blocking::device_work,
        device::{Device, Shown},
        failure::{Failure, FailureClass},
        port::failure_of_frontend,
    },
    upper::WriteMetrics,
};

/// A device that is served.
pub(in crate::server) struct Served {
    /// As it was when it was made; [`Served::info`] is as it is now.
    pub(in crate::server) info: DeviceInfo,
    pub(in crate::server) request: AddDevice,
    /// What the next daemon is to make it of: the same bytes, whatever a tag means by then.
    pub(in crate::server) pinned: ImageSpec,
    /// What it shows, with counters of its own.
    pub(in crate::server) device: Arc<Device>,
    /// Where its layers are sealed and made larger, and where what it was left with is made durable.
    pub(in crate::server) sealer: ReactorHandle,
    /// Held by whoever makes a snapshot or another size, and to make the last writes durable: one at a time.
    pub(in crate::server) snapshotting: tokio::sync::Mutex<()>,
    /// What of it is left.
    pub(in crate::server) presence: Mutex<Presence>,
}

/// What is left of a device.
pub(in crate::server) enum Presence {
    /// All of it: this is what the frontend has.
    Attached(Box<dyn Attachment>),
    /// Somebody removes it, or has.
    Leaving,
    /// Writes that are not durable yet. The frontend has let go of the device as it says here, or has failed to.
    Unsaved(Option<Detached>),
}

/// A removal that has failed.
#[derive(Debug)]
pub(in crate::server) struct NotRemoved {
    /// Why.
    pub(in crate::server) failure: Failure,
    /// Whether another removal may save what was written last.
    pub(in crate::server) is_unsaved: bool,
}

impl Served {
    /// What is to be shown of it.
    pub(in crate::server) fn info(&self) -> DeviceInfo {
        DeviceInfo { size_bytes: self.device.geometry().size_bytes, ..self.info.clone() }
    }

    /// Asks the frontend for something that may block, unless the device is being removed.
    ///
    /// # Errors
    /// [`FailureClass::Conflict`] where it is, and what the frontend says.
    pub(super) async fn ask<T: Send + 'static>(
        self: &Arc<Self>,
        asked: impl FnOnce(&dyn Attachment) -> Result<T, FrontendError> + Send + 'static,
    ) -> Result<T, Failure> {
        let served = Arc::clone(self);
        device_work(move || {
            let presence = served.presence();
            let Presence::Attached(attachment) = &*presence else { return Err(served.is_leaving()) };
            asked(attachment.as_ref()).map_err(|error| failure_of_frontend("the frontend refuses", error))
        })
        .await
    }

    /// The turn to change which layers the device has.
    ///
    /// # Errors
    /// [`FailureClass::Conflict`] where it is being removed.
    pub(super) async fn turn(&self) -> Result<tokio::sync::MutexGuard<'_, ()>, Failure> {
        let turn = self.snapshotting.lock().await;
        match &*self.presence() {
            Presence::Attached(_) => Ok(turn),
            Presence::Leaving | Presence::Unsaved(_) => Err(self.is_leaving()),
        }
    }

    /// Removes the device; the first call does. Programs that have it open get `patience` to close it, for the sake of its
    /// number. What was written to it is durable then, and a snapshot that had begun has ended. Where writes could not be
    /// saved, the next call tries again.
    ///
    /// # Errors
    /// When it cannot be removed within `limit`, or what was written not be made durable within as much again.
    pub(in crate::server) async fn detach(
        self: &Arc<Self>,
        limit: Duration,
        patience: Duration,
    ) -> Result<Detached, NotRemoved> {
        let removing = Arc::clone(self);
        let detached = device_work(move || removing.remove(limit, patience)).await;
        if matches!(&detached, Err(failure) if failure.class() == FailureClass::Conflict) {
            return Ok(detached?);
        }
        // Also where the frontend has failed: nobody else will flush them.
        let Err(error) = self.save(limit).await else { return Ok(detached?) };
        // After a failed sync there is nothing left to be saved.
        let is_unsaved = matches!(error.kind(), ErrorKind::NoSpace | ErrorKind::TimedOut);
        if is_unsaved {
            *self.presence() = Presence::Unsaved(detached.as_ref().ok().copied());
        }
        let id = self.info.id;
        let lost = match is_unsaved {
            true => {
                format!("the last writes to device {id} are not durable yet: remove it again to try again")
            }
            false => format!("the last writes to device {id} may not be durable"),
        };
        let text =
            detached.map_or_else(|failure| format!("{}; {lost}", failure.full_text()), |_| lost.clone());
        let class = match error.kind() {
            ErrorKind::TimedOut => FailureClass::TimedOut,
            _ => FailureClass::Internal,
        };
        Err(NotRemoved { failure: Failure::with_source(class, text, error), is_unsaved })
    }

    /// Makes durable what was written, after a snapshot that is under way: whoever makes the device again finds it done.
    async fn save(&self, limit: Duration) -> Result<(), BlockError> {
        if let Shown::Image(_) = self.device.shown() {
            // A fork of it may wait for a registry.
            return Ok(());
        }
        let saving = async {
            let _turn = self.snapshotting.lock().await;
            self.device.make_durable(&self.sealer).await
        };
        let late = || Err(BlockError::new(ErrorKind::TimedOut, "a flush takes too long"));
        tokio::time::timeout(limit, saving).await.unwrap_or_else(|_| late())
    }

    fn remove(&self, limit: Duration, patience: Duration) -> Result<Detached, Failure> {
        let found = std::mem::replace(&mut *self.presence(), Presence::Leaving);
        let failed = "cannot remove the device";
        let detached = match found {
            Presence::Attached(attachment) => attachment
                .detach_within(limit, patience)
                .map_err(|error| failure_of_frontend(failed, error))?,
            Presence::Unsaved(detached) => {
                return detached.ok_or_else(|| Failure::new(FailureClass::Internal, failed));
            }
            Presence::Leaving => return Err(self.is_leaving()),
        };
        if detached == Detached::HeldOpen {
            tracing::warn!(id = self.info.id, "the kernel keeps the number until somebody closes the node");
        }
        Ok(detached)
    }

    fn presence(&self) -> MutexGuard<'_, Presence> {
        self.presence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_leaving(&self) -> Failure {
        Failure::new(FailureClass::Conflict, format!("device {} is being removed", self.info.id))
    }

    /// Whether another program has deleted the device.
    fn has_ended(&self) -> bool {
        // Whoever asks the frontend for something is told by it.
        let Ok(presence) = self.presence.try_lock() else { return false };
        matches!(&*presence, Presence::Attached(attachment) if attachment.has_ended())
    }
}

impl From<Failure> for NotRemoved {
    fn from(failure: Failure) -> Self {
        Self { failure, is_unsaved: false }
    }
}

impl From<NotRemoved> for Failure {
    fn from(error: NotRemoved) -> Self {
        error.failure
    }
}

enum Place {
    /// Its number was asked for and nothing is there yet.
    Attaching(AddDevice),
    Live(Arc<Served>),
    Detaching(Arc<Served>),
}

/// All devices of this process by number. Locked for moments only.
#[derive(Default)]
pub(super) struct Table {
    places: Mutex<Places>,
}

#[derive(Default)]
struct Places {
    by_id: BTreeMap<u32, Place>,
    /// No device may come any more.
    closed: bool,
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets no device come any more.
    pub(super) fn close(&self) {
        self.lock().closed = true;
    }

    /// Whether devices may come.
    pub(super) fn check_open(&self) -> Result<(), Failure> {
        self.lock().check_open()
    }

    /// Takes the place of `id`.
    pub(super) fn reserve(&self, id: u32, request: &AddDevice) -> Result<(), Failure> {
        let mut places = self.lock();
        places.check_open()?;
        if places.by_id.contains_key(&id) {
            return Err(Failure::new(FailureClass::Conflict, format!("device {id} exists already")));
        }
        places.by_id.insert(id, Place::Attaching(request.clone()));
        Ok(())
    }

    /// Gives a reserved place up.
    pub(super) fn release(&self, id: u32) {
        let mut places = self.lock();
        if matches!(places.by_id.get(&id), Some(Place::Attaching(_))) {
            places.by_id.remove(&id);
        }
    }

    /// Puts a new device in its place. Where none may come any more, it is the caller's to remove.
    pub(super) fn insert(&self, served: &Arc<Served>) -> Result<(), Failure> {
        let mut places = self.lock();
        places.check_open()?;
        let id = served.info.id;
        if let Some(Place::Detaching(former)) = places.by_id.insert(id, Place::Live(Arc::clone(served)))
            && former.presence.try_lock().is_ok_and(|presence| matches!(&*presence, Presence::Unsaved(_)))
        {
            tracing::error!(
                id,
                "another device has this number now: the last writes to the former one are lost"
            );
        }
        Ok(())
    }

    /// Begins to remove `id`, also when an earlier attempt has failed; `None` where there is no such device here.
    pub(super) fn begin_removal(&self, id: u32) -> Result<Option<Arc<Served>>, Failure> {
        let mut places = self.lock();
        match places.by_id.get_mut(&id) {
            None => Ok(None),
            Some(Place::Attaching(_)) => {
                Err(Failure::new(FailureClass::Conflict, format!("device {id} is still being attached")))
            }
            Some(Place::Live(served) | Place::Detaching(served)) => {
                let served = Arc::clone(served);
                places.by_id.insert(id, Place::Detaching(Arc::clone(&served)));
                Ok(Some(served))
            }
        }
    }

    /// Whether `served` is here; its number may be another's by now, since the kernel gives it away as soon as the device
    /// has gone.
    pub(super) fn has(&self, served: &Arc<Served>) -> bool {
        self.lock().has(served)
    }

    /// Takes `served` out, if it is here.
    pub(super) fn remove(&self, served: &Arc<Served>) {
        let mut places = self.lock();
        if places.has(served) {
            places.by_id.remove(&served.info.id);
        }
    }

    /// Device `id`, which must be usable.
    pub(super) fn live(&self, id: u32) -> Result<Arc<Served>, Failure> {
        match self.lock().by_id.get(&id) {
            Some(Place::Live(served)) => Ok(Arc::clone(served)),
            Some(_) => Err(Failure::new(FailureClass::Conflict, format!("device {id} is coming or going"))),
            None => Err(Failure::new(FailureClass::NotFound, format!("there is no device {id} here"))),
        }
    }

    /// What is to be shown of each, by number.
    pub(super) fn infos(&self) -> BTreeMap<u32, DeviceInfo> {
        self.lock().by_id.iter().map(|(id, place)| (*id, place.info(*id))).collect()
    }

    pub(super) fn info(&self, id: u32) -> Option<DeviceInfo> {
        let (mut info, served) = {
            let places = self.lock();
            let place = places.by_id.get(&id)?;
            (place.info(id), place.served().map(Arc::clone))
        };
        // The sizes of files are asked for, which may take longer than a moment.
        if let Some(served) = served {
            info.layers = served.device.layers();
            info.reads = read_counts(served.device.reads());
            info.upper = served.device.writes().map(request_counts).unwrap_or_default();
        }
        Some(info)
    }

    /// All devices that can be asked for requests.
    pub(super) fn served(&self) -> Vec<Arc<Served>> {
        self.lock().by_id.values().filter_map(Place::served).map(Arc::clone).collect()
    }
}

impl Places {
    fn has(&self, served: &Arc<Served>) -> bool {
        let place = self.by_id.get(&served.info.id).and_then(Place::served);
        place.is_some_and(|other| Arc::ptr_eq(other, served))
    }

    fn check_open(&self) -> Result<(), Failure> {
        match self.closed {
            true => {
                Err(Failure::new(FailureClass::Conflict, "the daemon is stopping and takes no more devices"))
            }
            false => Ok(()),
        }
    }
}

/// The counters of one device's reads, as `info` shows them.
fn read_counts(reads: &ReadMetrics) -> Vec<ReadCount> {
    let served = SourceClass::ALL.map(|class| {
        let counted = reads.of(class);
        let (requests, bytes) = (counted.requests.get(), counted.bytes.get());
        ReadCount { source: class.name().to_owned(), requests, bytes }
    });
    let failed = ReadCount { source: "failed".to_owned(), requests: reads.errors.get(), bytes: 0 };
    served.into_iter().chain([failed]).collect()
}

/// The counters of one device's writable layer, as `info` shows them.
fn request_counts(writes: &WriteMetrics) -> Vec<RequestCount> {
    let served = writes.kinds().map(|(kind, counted)| {
        let (requests, bytes) = (counted.requests.get(), counted.bytes.get());
        RequestCount { kind: kind.to_owned(), requests, bytes }
    });
    let failed = RequestCount { kind: "failed".to_owned(), requests: writes.errors.get(), bytes: 0 };
    served.into_iter().chain([failed]).collect()
}

impl Place {
    fn served(&self) -> Option<&Arc<Served>> {
        match self {
            Self::Live(served) | Self::Detaching(served) => Some(served),
            Self::Attaching(_) => None,
        }
    }

    fn info(&self, id: u32) -> DeviceInfo {
        match self {
            Self::Live(served) if served.has_ended() => {
                DeviceInfo { state: DeviceState::Ended, ..served.info() }
            }
            Self::Live(served) => served.info(),
            Self::Detaching(served) => DeviceInfo { state: DeviceState::Detaching, ..served.info() },
            Self::Attaching(request) => DeviceInfo {
                id,
                path: std::path::PathBuf::new(),
                state: DeviceState::Attaching,
                image: Some(request.image.clone()),
                size_bytes: 0,
                logical_block_bytes: 0,
                read_only: true,
                queues: request.queues.unwrap_or_default(),
                depth: request.depth.unwrap_or_default(),
                features: Vec::new(),
                server_pid: None,
                layers: Vec::new(),
                reads: Vec::new(),
                upper: Vec::new(),
                held_open: false,
            },
        }
    }
}
