//! From a request to a device: the image is opened, and then the driver is asked.

use std::{
    num::NonZeroU64,
    sync::{Arc, Mutex},
    time::Duration,
};

use super::{Served, check_absolute, merge::Merging, served::Presence, taken::Taken};
use crate::{
    frontend::{AttachRequest, Attachment},
    limit::Rates,
    reactor::ReactorHandle,
    server::{
        api::types::{AddDevice, DeviceInfo, DeviceState, ImageSpec},
        blocking::device_work,
        config::{MAX_DEPTH, MAX_QUEUES},
        device::Device,
        failure::{Failure, FailureClass},
        port::{Port, failure_of_frontend},
        service::Service,
        state::{FrontendKind, Granted, KeptRecord, Record},
        upper_folder::{Made, Placed, configuration},
    },
};

/// An image that is open, and the device that is to be made of it.
pub(in crate::server) struct OpenedDevice {
    request: AddDevice,
    device: Arc<Device>,
    pinned: ImageSpec,
    /// The folder of its writable layer, where there was none.
    made: Made,
    wanted: AttachRequest,
    reactors: Vec<ReactorHandle>,
    sealer: ReactorHandle,
}

impl OpenedDevice {
    /// Opens the image that `request` names.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(in crate::server) async fn open(service: &Service, request: &AddDevice) -> Result<Self, Failure> {
        let section = &service.config().device;
        let queues = request.queues.unwrap_or(section.queues);
        let depth = request.depth.unwrap_or(section.depth);
        check_request(request, queues, depth)?;
        let limit = Duration::from_millis(section.attach_timeout_ms);
        let opening = async {
            let request = for_platform(service, request).await?;
            let (request, Placed { image: _image, made, .. }) = with_upper(service, &request).await?;
            let (device, pinned) = service.open(&request.image).await?;
            Ok::<_, Failure>((request, device, pinned, made))
        };
        let opened = tokio::time::timeout(limit, opening).await;
        let late = || Failure::new(FailureClass::TimedOut, format!("{}: not open in time", request.image));
        let (request, device, pinned, made) = opened.map_err(|_| late())??;
        let recovery = request.recovery;
        let wanted = AttachRequest { queues, depth, recovery, deadline: limit, ..AttachRequest::default() };
        device.limit().set(Rates {
            requests_per_second: request.iops.map_or(0, NonZeroU64::get),
            bytes_per_second: request.bytes_per_second.map_or(0, NonZeroU64::get),
        });
        Ok(Self {
            request,
            device: Arc::new(device),
            pinned,
            made,
            wanted,
            reactors: service.reactors().choose(queues),
            sealer: service.reactors().sealer(),
        })
    }

    /// The request by which the same device is made again, whatever a tag means by then.
    pub(in crate::server) fn pinned_request(&self, id: u32) -> AddDevice {
        AddDevice { id: Some(id), image: self.pinned.clone(), ..self.request.clone() }
    }

    /// Makes the device, with the number and mark of `record`.
    ///
    /// # Errors
    /// When it cannot be made; then nothing is left of it. [`FailureClass::Conflict`] where the driver has that number already.
    pub(in crate::server) async fn attach(
        &self,
        port: &Arc<dyn Port>,
        record: &Record,
    ) -> Result<Box<dyn Attachment>, Failure> {
        let (attaching, device) = (Arc::clone(port), Arc::clone(&self.device));
        let wanted = AttachRequest { id: Some(record.id), mark: record.mark, ..self.wanted.clone() };
        let reactors = self.reactors.clone();
        let attachment = device_work(move || {
            let attached = attaching.attach(&device, &wanted, &reactors);
            attached.map_err(|error| failure_of_frontend("cannot make a device", error))
        })
        .await?;
        self.device.overdue().set_device(attachment.id());
        Ok(attachment)
    }

    /// Takes the device of `record`, which waits for its next server.
    ///
    /// # Errors
    /// When it cannot be taken over; then it waits as before.
    pub(in crate::server) async fn take_over(
        self,
        port: &Arc<dyn Port>,
        record: &Record,
    ) -> Result<Taken, Failure> {
        let (id, mark) = (record.id, record.mark);
        self.device.overdue().set_device(id);
        let (port, device) = (Arc::clone(port), Arc::clone(&self.device));
        let (reactors, limit) = (self.reactors.clone(), self.wanted.deadline);
        let attachment = device_work(move || {
            let taken = port.take_over(&device, id, mark, &reactors, limit);
            taken.map_err(|error| failure_of_frontend("cannot take over the device", error))
        })
        .await?;
        Ok(Taken::new(self, attachment))
    }

    /// How long the driver may take.
    pub(super) fn limit(&self) -> Duration {
        self.wanted.deadline
    }

    /// What the device was granted.
    pub(in crate::server) fn granted(&self, attachment: &dyn Attachment) -> Granted {
        let (geometry, granted) = (self.device.geometry(), attachment.info());
        Granted {
            frontend: FrontendKind::Ublk,
            queues: granted.queues,
            depth: granted.depth,
            max_io_bytes: granted.max_io_bytes,
            size_bytes: geometry.size_bytes,
            read_only: geometry.read_only,
            features: attachment.features(),
        }
    }

    /// The device that `attachment` is of, with its record if it has one, and what was made for it.
    pub(in crate::server) fn served(
        self,
        attachment: Box<dyn Attachment>,
        record: Option<KeptRecord>,
    ) -> (Served, Made) {
        let granted = self.granted(attachment.as_ref());
        let info = DeviceInfo {
            path: attachment.path().to_owned(),
            image: Some(self.request.image.clone()),
            size_bytes: granted.size_bytes,
            logical_block_bytes: self.device.geometry().logical_block_bytes,
            read_only: granted.read_only,
            queues: granted.queues,
            depth: granted.depth,
            features: granted.features,
            server_pid: i32::try_from(std::process::id()).ok(),
            ..DeviceInfo::without_server(attachment.id(), DeviceState::Live)
        };
        let served = Served {
            info,
            request: self.request,
            pinned: self.pinned,
            record,
            device: self.device,
            sealer: self.sealer,
            snapshotting: tokio::sync::Mutex::default(),
            merging: Merging::default(),
            presence: Mutex::new(Presence::Attached(attachment)),
        };
        (served, self.made)
    }
}

/// The request for the image that the platform of `request` chooses, if it names one.
async fn for_platform(service: &Service, request: &AddDevice) -> Result<AddDevice, Failure> {
    let Some(platform) = &request.platform else { return Ok(request.clone()) };
    let image = service.factory().for_platform(&request.image, platform).await?;
    Ok(AddDevice { image, platform: None, ..request.clone() })
}

/// The request for the configuration in the folder that `request` wants its writes in, and what there is of it.
async fn with_upper(service: &Service, request: &AddDevice) -> Result<(AddDevice, Placed), Failure> {
    let Some(folder) = &request.upper else { return Ok((request.clone(), Placed::default())) };
    let placed = configuration(service, &request.image, folder).await?;
    let image = ImageSpec::Config(placed.config.clone());
    Ok((AddDevice { image, upper: None, ..request.clone() }, placed))
}

fn check_request(request: &AddDevice, queues: u16, depth: u16) -> Result<(), Failure> {
    let wrong = |text: String| Err(Failure::new(FailureClass::Usage, text));
    if queues == 0 || queues > MAX_QUEUES {
        return wrong(format!("{queues} queues: there may be 1 to {MAX_QUEUES}"));
    }
    if depth == 0 || depth > MAX_DEPTH {
        return wrong(format!("depth {depth}: it may be 1 to {MAX_DEPTH}"));
    }
    let paths = match &request.image {
        ImageSpec::Reference(_) => &[][..],
        ImageSpec::Config(path) => std::slice::from_ref(path),
        ImageSpec::Layers(paths) | ImageSpec::Converted { layers: paths, .. } => paths,
    };
    paths.iter().chain(&request.upper).try_for_each(|path| check_absolute(path))
}
