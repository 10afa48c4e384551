//! The devices of this process, and the places that are taken while one comes or goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::served::Served;
use crate::server::{
    api::types::{AddDevice, DeviceInfo, DeviceState},
    failure::{Failure, FailureClass},
};

enum Place {
    /// Its number was asked for, and its image is being opened.
    Opening(AddDevice),
    /// The driver is being asked for it.
    Making(AddDevice),
    Live(Arc<Served>),
    Detaching(Arc<Served>),
    /// What another process has left there is being removed.
    Clearing,
}

/// A place that is taken for a device that is to come. It is free again when this is dropped, unless the device has come.
pub(super) struct Reserved<'a> {
    table: &'a Table,
    pub(super) id: u32,
}

/// A place that no device may have as long as this lives, for what another process has left there.
pub(super) struct Cleared<'a> {
    table: &'a Table,
    id: u32,
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

    /// Whether no device may come any more.
    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Takes the place of `id`.
    pub(super) fn reserve(&self, id: u32, request: &AddDevice) -> Result<Reserved<'_>, Failure> {
        let mut places = self.lock();
        places.check_open()?;
        let taken = match places.by_id.get(&id) {
            None => None,
            Some(Place::Opening(_) | Place::Making(_)) => Some("is being attached"),
            Some(Place::Live(_) | Place::Detaching(_)) => Some("exists already"),
            Some(Place::Clearing) => Some("is being removed"),
        };
        if let Some(taken) = taken {
            return Err(Failure::new(FailureClass::Conflict, format!("device {id} {taken}")));
        }
        places.by_id.insert(id, Place::Opening(request.clone()));
        Ok(Reserved { table: self, id })
    }

    /// Takes the first place that is neither taken nor one of `others`, which the driver has for somebody else.
    pub(super) fn reserve_free(
        &self,
        request: &AddDevice,
        others: &BTreeSet<u32>,
    ) -> Result<Reserved<'_>, Failure> {
        let mut places = self.lock();
        places.check_open()?;
        let is_free = |id: &u32| !places.by_id.contains_key(id) && !others.contains(id);
        let none = || Failure::new(FailureClass::Conflict, "all numbers of devices are taken");
        let id = (0..u32::MAX).find(is_free).ok_or_else(none)?;
        places.by_id.insert(id, Place::Opening(request.clone()));
        Ok(Reserved { table: self, id })
    }

    /// Takes the place of `id` for what another process has left there; `None` where it is taken.
    pub(super) fn clear(&self, id: u32) -> Option<Cleared<'_>> {
        let mut places = self.lock();
        if places.by_id.contains_key(&id) {
            return None;
        }
        places.by_id.insert(id, Place::Clearing);
        Some(Cleared { table: self, id })
    }

    /// Puts a new device in its place. Where none may come any more, it is the caller's to remove.
    pub(super) fn insert(&self, served: &Arc<Served>) -> Result<(), Failure> {
        let mut places = self.lock();
        places.check_open()?;
        places.by_id.insert(served.info.id, Place::Live(Arc::clone(served)));
        Ok(())
    }

    /// Whether somebody has taken the place of `id` for a device that is to come.
    pub(super) fn is_coming(&self, id: u32) -> bool {
        matches!(self.lock().by_id.get(&id), Some(Place::Opening(_) | Place::Making(_)))
    }

    /// Begins to remove `id`, also when an earlier attempt has failed; `None` where there is no such device here.
    pub(super) fn begin_removal(&self, id: u32) -> Result<Option<Arc<Served>>, Failure> {
        let mut places = self.lock();
        match places.by_id.get_mut(&id) {
            None => Ok(None),
            Some(Place::Opening(_) | Place::Making(_)) => {
                Err(Failure::new(FailureClass::Conflict, format!("device {id} is still being attached")))
            }
            Some(Place::Clearing) => {
                Err(Failure::new(FailureClass::Conflict, format!("device {id} is being removed")))
            }
            Some(Place::Live(served) | Place::Detaching(served)) => {
                let served = Arc::clone(served);
                places.by_id.insert(id, Place::Detaching(Arc::clone(&served)));
                Ok(Some(served))
            }
        }
    }

    /// Takes `served` out, if it is here.
    pub(super) fn remove(&self, served: &Arc<Served>) {
        let mut places = self.lock();
        let id = served.info.id;
        let here = places.by_id.get(&id).and_then(Place::served);
        if here.is_some_and(|other| Arc::ptr_eq(other, served)) {
            places.by_id.remove(&id);
        }
    }

    /// Whether devices are served, or the driver is being asked for one.
    pub(super) fn has_devices(&self) -> bool {
        let places = self.lock();
        places
            .by_id
            .values()
            .any(|place| matches!(place, Place::Making(_) | Place::Live(_) | Place::Detaching(_)))
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
        self.lock().by_id.iter().filter_map(|(id, place)| Some((*id, place.info(*id)?))).collect()
    }

    /// What is to be shown of `id`, and what more can be asked for it.
    pub(super) fn info(&self, id: u32) -> Option<(DeviceInfo, Option<Arc<Served>>)> {
        let places = self.lock();
        let place = places.by_id.get(&id)?;
        Some((place.info(id)?, place.served().map(Arc::clone)))
    }

    /// All devices that can be asked for requests.
    pub(super) fn served(&self) -> Vec<Arc<Served>> {
        self.lock().by_id.values().filter_map(Place::served).map(Arc::clone).collect()
    }
}

impl Places {
    fn check_open(&self) -> Result<(), Failure> {
        match self.closed {
            true => {
                Err(Failure::new(FailureClass::Conflict, "the daemon is stopping and takes no more devices"))
            }
            false => Ok(()),
        }
    }
}

impl Reserved<'_> {
    /// The driver is asked for the device from now on.
    ///
    /// # Errors
    /// Where no device may come any more.
    pub(super) fn begin(&self) -> Result<(), Failure> {
        let mut places = self.table.lock();
        places.check_open()?;
        if let Some(place) = places.by_id.get_mut(&self.id)
            && let Place::Opening(request) = place
        {
            *place = Place::Making(request.clone());
        }
        Ok(())
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let mut places = self.table.lock();
        if matches!(places.by_id.get(&self.id), Some(Place::Opening(_) | Place::Making(_))) {
            places.by_id.remove(&self.id);
        }
    }
}

impl Drop for Cleared<'_> {
    fn drop(&mut self) {
        self.table.lock().by_id.remove(&self.id);
    }
}

impl Place {
    fn served(&self) -> Option<&Arc<Served>> {
        match self {
            Self::Live(served) | Self::Detaching(served) => Some(served),
            Self::Opening(_) | Self::Making(_) | Self::Clearing => None,
        }
    }

    /// `None` where others know more.
    fn info(&self, id: u32) -> Option<DeviceInfo> {
        Some(match self {
            Self::Live(served) if served.has_ended() => {
                DeviceInfo { state: DeviceState::Ended, ..served.info() }
            }
            Self::Live(served) => served.info(),
            Self::Detaching(served) => DeviceInfo { state: DeviceState::Detaching, ..served.info() },
            Self::Opening(request) | Self::Making(request) => DeviceInfo {
                image: Some(request.image.clone()),
                queues: request.queues.unwrap_or_default(),
                depth: request.depth.unwrap_or_default(),
                ..DeviceInfo::without_server(id, DeviceState::Attaching)
            },
            Self::Clearing => return None,
        })
    }
}
