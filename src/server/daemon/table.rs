//! The devices of this process, and the places that are taken while one comes or goes.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{
    frontend::{Attachment, Detached},
    image::Image,
    server::{
        api::types::{AddDevice, DeviceInfo, DeviceState},
        factory::OpenImage,
        failure::{Failure, FailureClass},
        port::failure_of_frontend,
    },
};

/// A device that is served.
pub(in crate::server) struct Served {
    pub(in crate::server) info: DeviceInfo,
    pub(in crate::server) request: AddDevice,
    pub(in crate::server) image: Arc<OpenImage>,
    /// The image as this device shows it, with counters of its own.
    pub(in crate::server) device: Arc<Image>,
    /// Taken by whoever removes the device.
    pub(in crate::server) attachment: Mutex<Option<Box<dyn Attachment>>>,
}

impl Served {
    /// Removes the device; the first call does.
    pub(in crate::server) fn detach(&self, limit: Duration) -> Result<(), Failure> {
        let taken = self.attachment.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(attachment) = taken else {
            let text = format!("device {} is being removed already", self.info.id);
            return Err(Failure::new(FailureClass::Conflict, text));
        };
        match attachment.detach(limit) {
            Ok(Detached::Complete) => Ok(()),
            Ok(Detached::HeldOpen) => {
                tracing::warn!(
                    id = self.info.id,
                    "somebody still holds the node; the kernel keeps its number until then"
                );
                Ok(())
            }
            Err(error) => Err(failure_of_frontend("cannot remove the device", error)),
        }
    }

    /// Whether another program has deleted the device.
    fn has_ended(&self) -> bool {
        let attachment = self.attachment.lock().unwrap_or_else(PoisonError::into_inner);
        attachment.as_ref().is_some_and(|attachment| attachment.has_ended())
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
    places: Mutex<BTreeMap<u32, Place>>,
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the place of `id`.
    pub(super) fn reserve(&self, id: u32, request: &AddDevice) -> Result<(), Failure> {
        let mut places = self.lock();
        if places.contains_key(&id) {
            return Err(Failure::new(FailureClass::Conflict, format!("device {id} exists already")));
        }
        places.insert(id, Place::Attaching(request.clone()));
        Ok(())
    }

    /// Gives a reserved place up.
    pub(super) fn release(&self, id: u32) {
        let mut places = self.lock();
        if matches!(places.get(&id), Some(Place::Attaching(_))) {
            places.remove(&id);
        }
    }

    pub(super) fn insert(&self, served: Arc<Served>) {
        self.lock().insert(served.info.id, Place::Live(served));
    }

    /// Begins to remove `id`, also when an earlier attempt has failed; `None` where there is no such device here.
    pub(super) fn begin_removal(&self, id: u32) -> Result<Option<Arc<Served>>, Failure> {
        let mut places = self.lock();
        match places.get_mut(&id) {
            None => Ok(None),
            Some(Place::Attaching(_)) => {
                Err(Failure::new(FailureClass::Conflict, format!("device {id} is still being attached")))
            }
            Some(Place::Live(served) | Place::Detaching(served)) => {
                let served = Arc::clone(served);
                places.insert(id, Place::Detaching(Arc::clone(&served)));
                Ok(Some(served))
            }
        }
    }

    /// Takes `served` out; returns false where its number is another's by now, since the kernel gives it away as soon as the
    /// device has gone.
    pub(super) fn remove(&self, served: &Arc<Served>) -> bool {
        let mut places = self.lock();
        let id = served.info.id;
        let is_same = |place: &Place| match place {
            Place::Live(other) | Place::Detaching(other) => Arc::ptr_eq(other, served),
            Place::Attaching(_) => false,
        };
        let same = places.get(&id).is_some_and(is_same);
        if same {
            places.remove(&id);
        }
        same
    }

    pub(super) fn ids(&self) -> Vec<u32> {
        self.lock().keys().copied().collect()
    }

    /// What is to be shown of each, by number.
    pub(super) fn infos(&self) -> BTreeMap<u32, DeviceInfo> {
        self.lock().iter().map(|(id, place)| (*id, place.info(*id))).collect()
    }

    pub(super) fn info(&self, id: u32) -> Option<DeviceInfo> {
        let places = self.lock();
        let place = places.get(&id)?;
        let mut info = place.info(id);
        if let Place::Live(served) | Place::Detaching(served) = place {
            info.layers = served.image.layers.clone();
        }
        Some(info)
    }

    /// All devices that can be asked for requests.
    pub(super) fn served(&self) -> Vec<Arc<Served>> {
        let live = |place: &Place| match place {
            Place::Live(served) | Place::Detaching(served) => Some(Arc::clone(served)),
            Place::Attaching(_) => None,
        };
        self.lock().values().filter_map(live).collect()
    }
}

impl Place {
    fn info(&self, id: u32) -> DeviceInfo {
        match self {
            Self::Live(served) if served.has_ended() => {
                DeviceInfo { state: DeviceState::Ended, ..served.info.clone() }
            }
            Self::Live(served) => served.info.clone(),
            Self::Detaching(served) => DeviceInfo { state: DeviceState::Detaching, ..served.info.clone() },
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
            },
        }
    }
}
