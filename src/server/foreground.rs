//! One device served by the calling process, without daemon and socket. Its record lies in the state directory, so that another
//! process can serve it on when this one dies.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use super::{
    api::types::{AddDevice, DeviceInfo},
    blocking::{blocking, device_work},
    daemon::{Fate, OpenedDevice, Served, check_same, fate},
    failure::{Failure, FailureClass, full_text},
    port::Port,
    result_file,
    service::Service,
    state::{ForegroundRecords, KeptRecord, LeftRecord, Phase, Record, RecordLock, on_disk},
    upper_folder,
};
use crate::frontend::{Attachment, CLOSE_PATIENCE, Detached};

/// Numbers that are tried in turn for a device that may have any.
const NUMBER_ATTEMPTS: usize = 1024;

/// A running device.
pub struct Foreground {
    pub(super) served: Arc<Served>,
    port: Arc<dyn Port>,
    _lock: RecordLock,
}

/// A number that nobody else has, and the record of the device that is to have it.
struct Begun {
    id: u32,
    record: KeptRecord,
    lock: RecordLock,
}

impl Foreground {
    /// Makes a device and returns when it is usable. `given_up` ends it while the image is being opened.
    ///
    /// # Errors
    /// When the image cannot be opened or the device not made; then nothing is left of it.
    pub async fn attach(
        service: &Service,
        port: Arc<dyn Port>,
        request: &AddDevice,
        given_up: impl Future<Output = ()>,
    ) -> Result<Self, Failure> {
        let attaching = async {
            // Who may not use the driver is told so first.
            let asking = Arc::clone(&port);
            let known = device_work(move || asking.known()).await?;
            let mut others: BTreeSet<u32> = known.into_iter().map(|known| known.id).collect();
            let dir = service.config().daemon.state_dir.clone();
            let records = on_disk(move || ForegroundRecords::open(&dir)).await?;
            let mut begun = Begun::anywhere(&records, request, &mut others).await?;
            let attached = begun.attach(service, &port, &records, request, given_up, &mut others).await;
            match attached {
                Ok((opened, attachment)) => begun.serve(opened, attachment, port).await,
                Err(failure) => {
                    begun.record.forget().await;
                    Err(failure)
                }
            }
        };
        result_file::record(&request.image, attaching).await
    }

    /// Serves device `id` on, which a process has left whose state directory is `dir`, else the one of the settings.
    ///
    /// # Errors
    /// Where there is no record of it, its process lives, or it cannot be taken over: then it waits as before.
    pub async fn recover(
        service: &Service,
        port: Arc<dyn Port>,
        id: u32,
        dir: Option<PathBuf>,
    ) -> Result<Self, Failure> {
        let dir = dir.unwrap_or_else(|| service.config().daemon.state_dir.clone());
        let (finding, place) = (dir.clone(), dir.display().to_string());
        let left = on_disk(move || LeftRecord::find(&finding, id, false)).await?.ok_or_else(|| {
            let text = format!("{place} has no record of a device {id}");
            Failure::new(FailureClass::NotFound, text)
        })?;
        let asking = Arc::clone(&port);
        let known = device_work(move || asking.known()).await?.into_iter().find(|known| known.id == id);
        let fate = fate(&left.stored.record, known.as_ref());
        let record = left.stored.record.as_ref().map_err(|error| {
            Failure::new(FailureClass::Conflict, format!("the record of device {id}: {}", full_text(error)))
        })?;
        check_same(record, known.as_ref())?;
        if fate != Fate::TakeOver {
            let text = format!("device {id} does not wait for a server");
            return Err(Failure::new(FailureClass::Conflict, text));
        }
        let record = record.clone().in_phase(Phase::Live);
        let opened = OpenedDevice::open(service, &record.request).await?;
        let resumed = opened.take_over(&port, &record).await?.resume().await;
        let (opened, attachment) = resumed.map_err(|not_resumed| not_resumed.failure)?;
        // Only now: where it fails, it is as if nobody had tried.
        let (records, lock) = on_disk(move || left.into_foreground(&dir)).await?;
        let begun = Begun { id, record: KeptRecord::found(&records, record), lock };
        begun.serve(opened, attachment, port).await
    }

    /// What it is.
    #[must_use]
    pub fn info(&self) -> &DeviceInfo {
        &self.served.info
    }

    /// Names one of those who use it, if somebody does.
    ///
    /// # Errors
    /// Where the thread that asks has ended.
    pub async fn user(&self) -> Result<Option<String>, Failure> {
        let (port, path) = (Arc::clone(&self.port), self.info().path.clone());
        device_work(move || Ok(port.user(&path))).await
    }

    /// Removes it, whoever uses it.
    ///
    /// # Errors
    /// When it cannot be removed within `timeout`.
    pub async fn detach(self, timeout: Duration) -> Result<Detached, Failure> {
        log_unwritten(self.served.note(|record| record.phase = Phase::Leaving).await);
        let detached = self.served.detach(timeout, CLOSE_PATIENCE).await?;
        if let Some(record) = &self.served.record {
            record.forget().await;
        }
        Ok(detached)
    }
}

impl Begun {
    /// Takes the number that `request` wants, or the first that is none of `others` and has no record, and writes a record.
    async fn anywhere(
        records: &ForegroundRecords,
        request: &AddDevice,
        others: &mut BTreeSet<u32>,
    ) -> Result<Self, Failure> {
        if let Some(id) = request.id {
            return Self::at(records, request, id).await;
        }
        for _ in 0..NUMBER_ATTEMPTS {
            let id = (0..u32::MAX).find(|id| !others.contains(id)).unwrap_or(u32::MAX);
            match Self::at(records, request, id).await {
                Err(failure) if failure.class() == FailureClass::Conflict => others.insert(id),
                begun => return begun,
            };
        }
        let text = format!("{NUMBER_ATTEMPTS} numbers in a row are taken");
        Err(Failure::new(FailureClass::Conflict, text))
    }

    async fn at(records: &ForegroundRecords, request: &AddDevice, id: u32) -> Result<Self, Failure> {
        let locking = records.clone();
        let lock = on_disk(move || locking.lock(id)).await?;
        let record = Record::new(id, AddDevice { id: Some(id), ..request.clone() }).marked();
        let record = KeptRecord::create(records.records(), record).await?;
        Ok(Self { id, record, lock })
    }

    /// Opens the image and makes the device, where it may have any number with the first that is free.
    async fn attach(
        &mut self,
        service: &Service,
        port: &Arc<dyn Port>,
        records: &ForegroundRecords,
        request: &AddDevice,
        given_up: impl Future<Output = ()>,
        others: &mut BTreeSet<u32>,
    ) -> Result<(OpenedDevice, Box<dyn Attachment>), Failure> {
        if let Some(folder) = request.upper.clone() {
            let planned = blocking(move || Ok(upper_folder::planned(&folder))).await?;
            self.record.change(|record| record.unfinished = planned).await?;
        }
        let opened = tokio::select! {
            opened = OpenedDevice::open(service, request) => opened?,
            () = given_up => return Err(Failure::new(FailureClass::Interrupted, "interrupted")),
        };
        loop {
            let pinned = opened.pinned_request(self.id);
            self.record.change(|record| record.request = pinned).await?;
            match opened.attach(port, &self.record.get().await).await {
                Err(failure) if failure.class() == FailureClass::Conflict && request.id.is_none() => {
                    // Another process has it. What is noted of files goes along.
                    others.insert(self.id);
                    let asking = Arc::clone(port);
                    others
                        .extend(device_work(move || asking.known()).await?.into_iter().map(|known| known.id));
                    let next = Self::anywhere(records, request, others).await?;
                    let unfinished = self.record.get().await.unfinished;
                    next.record.change(|record| record.unfinished = unfinished).await?;
                    self.record.forget().await;
                    *self = next;
                }
                attached => return Ok((opened, attached?)),
            }
        }
    }

    /// The device, which is there.
    async fn serve(
        self,
        opened: OpenedDevice,
        attachment: Box<dyn Attachment>,
        port: Arc<dyn Port>,
    ) -> Result<Foreground, Failure> {
        let granted = opened.granted(attachment.as_ref());
        let (served, made) = opened.served(attachment, Some(self.record));
        made.keep();
        let is_there = |record: &mut Record| {
            record.phase = Phase::Live;
            record.granted = Some(granted);
            record.unfinished.clear();
        };
        log_unwritten(served.note(is_there).await);
        Ok(Foreground { served: Arc::new(served), port, _lock: self.lock })
    }
}

/// The device works all the same, and who finds the old record finds what the kernel says.
fn log_unwritten(noted: Result<(), Failure>) {
    if let Err(failure) = noted {
        tracing::error!(error = failure.full_text(), "a device has an old record");
    }
}
