//! From a request to a device in the table. Its number is chosen and its record is on the disk before anything of it is made, so
//! that whatever ends this process leaves nothing that nobody knows.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use super::{Daemon, OpenedDevice, device_work, table::Reserved, taken::Taken};
use crate::{
    crash_point::CrashPoint,
    frontend::Attachment,
    server::{
        api::types::{AddDevice, DeviceInfo},
        descriptors::explained,
        failure::{Failure, FailureClass},
        mounts::file_system_work,
        result_file,
        state::{KeptRecord, Phase, Record},
        upper_folder::{self, Made},
    },
};

/// Numbers that are tried in turn for a device that may have any. Those of other processes are passed over at once; only such a
/// number counts as programs hold after its device has gone, or as a record has.
const NUMBER_ATTEMPTS: usize = 1024;

/// A device that is to come: its place in the table, and its record.
pub(super) struct Making<'a> {
    daemon: &'a Daemon,
    place: Reserved<'a>,
    record: KeptRecord,
    /// Whether another number is as good.
    may_move: bool,
}

impl Daemon {
    /// Makes a device of `request`.
    ///
    /// # Errors
    /// When it cannot be made; then nothing is left of it.
    pub(super) async fn make_new(&self, request: AddDevice) -> Result<DeviceInfo, Failure> {
        let making = self.begin(&request).await?;
        self.finish(making, request, Made::default()).await
    }

    /// Makes the device of `record` again, of which the kernel has nothing any more. Its record stays where that fails.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(super) async fn make_again(&self, record: Record) -> Result<DeviceInfo, Failure> {
        let request = AddDevice { id: Some(record.id), ..record.request.clone() };
        let place = self.table.reserve(record.id, &request)?;
        self.remove_unfinished(&record).await?;
        let record = KeptRecord::found(self.state.records(), record);
        let mut making = Making { daemon: self, place, record, may_move: false };
        let (opened, attachment) = making.attach(&request).await.map_err(explained)?;
        self.appear(making, opened, attachment, Made::default()).await
    }

    /// Serves the device of `record`, which waits in the kernel, from now on. It and its record stay where that fails.
    ///
    /// # Errors
    /// When it cannot be taken over.
    pub(super) async fn take_over(&self, record: Record) -> Result<(), Failure> {
        let (id, request) = (record.id, record.request.clone());
        let place = self.table.reserve(id, &request)?;
        // It was started, whoever was told of that.
        let record = record.in_phase(Phase::Live);
        let taken = match self.taken.remove(id) {
            Some(taken) => taken,
            None => self.take(&record).await?,
        };
        place.begin()?;
        let resumed = taken.resume().await;
        let (opened, attachment) = resumed.map_err(|not_resumed| self.taken.keep(id, *not_resumed))?;
        let record = KeptRecord::found(self.state.records(), record);
        let making = Making { daemon: self, place, record, may_move: false };
        self.appear(making, opened, attachment, Made::default()).await.map(drop)
    }

    /// Has the device of `record` be this process's, without its requests.
    async fn take(&self, record: &Record) -> Result<Taken, Failure> {
        self.reserve.check_room()?;
        let opening = OpenedDevice::open(&self.service, &record.request);
        let opened = self.unwanted.unless(record.id, opening).await.map_err(explained)?;
        CrashPoint::TakeOverOpened.reach();
        self.remove_unfinished(record).await?;
        opened.take_over(&self.port, record).await
    }

    /// Takes a place for a device of `request`, and writes its record.
    ///
    /// # Errors
    /// [`FailureClass::Conflict`] where the number that it names is taken.
    pub(super) async fn begin(&self, request: &AddDevice) -> Result<Making<'_>, Failure> {
        // Before its record, which takes a descriptor too.
        self.reserve.check_room()?;
        let (place, record) = match request.id {
            Some(id) => {
                let place = self.table.reserve(id, request)?;
                let record =
                    KeptRecord::create(self.state.records(), Record::new(id, request.clone()).marked());
                (place, record.await?)
            }
            None => {
                self.begin_anywhere(Record::new(0, request.clone()).marked(), &mut BTreeSet::new()).await?
            }
        };
        CrashPoint::AddRecorded.reach();
        Ok(Making { daemon: self, place, record, may_move: request.id.is_none() })
    }

    /// Takes the first place that is not one of `others` nor has a record, and writes `record` there.
    async fn begin_anywhere(
        &self,
        mut record: Record,
        others: &mut BTreeSet<u32>,
    ) -> Result<(Reserved<'_>, KeptRecord), Failure> {
        for _ in 0..NUMBER_ATTEMPTS {
            let place = self.table.reserve_free(&record.request, others)?;
            record.id = place.id;
            match KeptRecord::create(self.state.records(), record.clone()).await {
                Err(failure) if failure.class() == FailureClass::Conflict => {
                    others.insert(place.id);
                }
                created => return Ok((place, created?)),
            }
        }
        let text = format!("{NUMBER_ATTEMPTS} numbers in a row have records of devices that are not there");
        Err(Failure::new(FailureClass::Conflict, text))
    }

    /// Makes the device of `request`, for which `made` was made, in the place that was taken for it.
    ///
    /// # Errors
    /// When it cannot be made; then nothing is left of it, nor of what was made for it.
    pub(super) async fn finish(
        &self,
        mut making: Making<'_>,
        request: AddDevice,
        made: Made,
    ) -> Result<DeviceInfo, Failure> {
        match making.attach(&request).await {
            Ok((opened, attachment)) => self.appear(making, opened, attachment, made).await,
            Err(failure) => {
                making.take_back(made, &failure).await;
                Err(explained(failure))
            }
        }
    }

    /// Puts a device into the table, and notes that it is there.
    async fn appear(
        &self,
        making: Making<'_>,
        opened: OpenedDevice,
        attachment: Box<dyn Attachment>,
        made: Made,
    ) -> Result<DeviceInfo, Failure> {
        let Making { place: _place, record, .. } = making;
        let was_there = record.get().await.phase == Phase::Live;
        let granted = opened.granted(attachment.as_ref());
        let (served, made_now) = opened.served(attachment, Some(record));
        let (served, made) = (Arc::new(served), made.and(made_now));
        let (id, info) = (served.info.id, served.info.clone());
        let changing = self.changing.lock().await;
        if let Err(stopping) = self.table.insert(&served) {
            drop(changing);
            let limit = Duration::from_millis(self.config().device.detach_timeout_ms);
            if was_there && self.stays(&served) {
                served.leave(limit).await?;
                return Err(stopping);
            }
            served.detach(limit, Duration::ZERO).await?;
            drop(made);
            if let (false, Some(record)) = (was_there, &served.record) {
                record.forget().await;
            }
            return Err(stopping);
        }
        made.keep();
        CrashPoint::AddUnnoted.reach();
        let is_there = |record: &mut Record| {
            record.phase = Phase::Live;
            record.granted = Some(granted);
            record.unfinished.clear();
        };
        if let Err(failure) = served.note(is_there).await {
            // The device works, and the next process finds that it was started.
            tracing::error!(id, error = failure.full_text(), "a device has an old record");
        }
        drop(changing);
        tracing::info!(id, image = %served.request.image, path = %info.path.display(), "device attached");
        Ok(info)
    }
}

impl Making<'_> {
    /// Notes, before they are made, the files and folders that will be made for the device and that are not there yet.
    ///
    /// # Errors
    /// What the file system says.
    pub(super) async fn will_make(&self, paths: Vec<PathBuf>) -> Result<(), Failure> {
        self.record.change(|record| record.unfinished = paths).await
    }

    /// Opens the image and asks the driver for the device. What is told of it goes where the configuration of the image says.
    async fn attach(&mut self, request: &AddDevice) -> Result<(OpenedDevice, Box<dyn Attachment>), Failure> {
        let daemon = self.daemon;
        let attaching = async {
            daemon.reserve.check_room()?;
            if let Some(folder) = request.upper.clone() {
                let place = folder.clone();
                let planned = file_system_work(&place, move || Ok(upper_folder::planned(&folder))).await?;
                self.will_make(planned).await?;
            }
            let opening = OpenedDevice::open(&daemon.service, request);
            let opened = daemon.unwanted.unless(self.place.id, opening).await?;
            // Also with what has been opened for it.
            daemon.reserve.check_room()?;
            let pinned = opened.pinned_request(self.place.id);
            self.record.change(|record| record.request = pinned).await?;
            let attachment = self.attach_opened(&opened).await?;
            Ok((opened, attachment))
        };
        result_file::record(&request.image, attaching).await
    }

    /// Asks the driver; where the device may have any number, until one is free.
    async fn attach_opened(&mut self, opened: &OpenedDevice) -> Result<Box<dyn Attachment>, Failure> {
        let daemon = self.daemon;
        let mut others = BTreeSet::new();
        for _ in 0..NUMBER_ATTEMPTS {
            self.place.begin()?;
            match opened.attach(&daemon.port, &self.record.get().await).await {
                Err(failure) if failure.class() == FailureClass::Conflict && self.may_move => {
                    // Another process has it, or a program holds what was there before, which no list shows.
                    others.insert(self.place.id);
                    let port = Arc::clone(&daemon.port);
                    others.extend(device_work(move || port.known()).await?.into_iter().map(|known| known.id));
                    self.move_on(opened, &mut others).await?;
                }
                attached => return attached,
            }
        }
        let text = format!("{NUMBER_ATTEMPTS} numbers in a row are taken by other processes");
        Err(Failure::new(FailureClass::Conflict, text))
    }

    /// Takes another number, which is none of `others`.
    async fn move_on(&mut self, opened: &OpenedDevice, others: &mut BTreeSet<u32>) -> Result<(), Failure> {
        let (place, record) = self.daemon.begin_anywhere(self.record.get().await, others).await?;
        let before = std::mem::replace(&mut self.record, record);
        before.forget().await;
        let pinned = opened.pinned_request(place.id);
        self.place = place;
        self.record.change(|record| record.request = pinned).await
    }

    /// Takes back what was begun of a device that could not be made: what was made for it, and then its record.
    pub(super) async fn take_back(self, made: Made, failure: &Failure) {
        drop(made);
        let mut is_left = false;
        if failure.class() == FailureClass::TimedOut {
            // The driver may still have it, and may not have given it back in time.
            is_left = self.daemon.find(self.place.id).await.is_ok_and(|known| known.is_some());
        }
        let leaving = |record: &mut Record| *record = record.clone().in_phase(Phase::Leaving);
        match is_left {
            true => drop(self.record.change(leaving).await),
            false => self.record.forget().await,
        }
    }
}
