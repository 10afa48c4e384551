//! Forks: a second device that begins with what a first one holds, and shares all of it.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Daemon, Served, check_absolute, detached,
    merge::{self, turn_with_room},
    snapshot::snapshot,
};
use crate::{
    crash_point::CrashPoint,
    server::{
        api::types::{AddDevice, DeviceInfo, ForkDevice, ImageSpec},
        daemon::SnapshotTarget,
        device::Shown,
        failure::{Failure, FailureClass},
        mounts::file_system_work,
        next_config::document_of,
        own_layers::disown,
        service::Service,
        upper_folder::{
            Made, NewFolder, document, image_ref, make_durably, planned as planned_in, reference_of,
        },
    },
};

impl Daemon {
    /// Makes a device of its own of what device `id` holds now. What was written to that one is sealed first, so that both lie
    /// over it. It goes on when the caller gives up waiting.
    ///
    /// # Errors
    /// Where there is no such device, or a file cannot be made.
    pub async fn fork(self: &Arc<Self>, id: u32, wanted: ForkDevice) -> Result<DeviceInfo, Failure> {
        let served = self.table.live(id)?;
        let daemon = Arc::clone(self);
        detached(async move {
            let folder = folder_of(&served.request.image, &wanted)?;
            let forking = daemon.make_fork(&served, wanted.id, folder.clone());
            daemon.attaches.count(folder.display(), forking).await
        })
        .await
    }

    async fn make_fork(
        &self,
        served: &Arc<Served>,
        id: Option<u32>,
        folder: PathBuf,
    ) -> Result<DeviceInfo, Failure> {
        let planned = folder.clone();
        let planned = file_system_work(&folder, move || Ok(planned_in(&planned))).await?;
        let Some(config) = planned.last().cloned() else { return Err(taken(&folder)) };
        let request = AddDevice { image: ImageSpec::Config(config), id, ..served.request_of_now() };
        let making = self.begin(&request).await?;
        let prepared = async {
            making.will_make(planned).await?;
            // Whatever ends this before the device is there, the daemon's end too, takes the folder away again.
            let made = make(folder.clone()).await?;
            prepare(&self.service, served, folder, made).await
        };
        let made = match prepared.await {
            Ok((_, made)) => made,
            Err(failure) => {
                making.take_back(Made::default(), &failure).await;
                return Err(failure);
            }
        };
        CrashPoint::ForkPrepared.reach();
        drop(merge::begin(served));
        self.finish(making, request, made).await
    }
}

/// Makes the configuration of the fork and its writable layer in `folder`; returns the path of the configuration. What the first
/// device writes from then on stays where that one's files are.
async fn prepare(
    service: &Service,
    served: &Arc<Served>,
    folder: PathBuf,
    mut made: Made,
) -> Result<(PathBuf, Made), Failure> {
    // Until all is written down: a snapshot meanwhile would change which layers these are.
    let turn = turn_with_room(served).await?;
    if let Shown::Overlay(overlay) = served.device.shown()
        && !overlay.is_empty()
    {
        snapshot(served, SnapshotTarget::Beside, &turn).await?;
    }
    let mut links = served.device.links();
    let top = match served.device.shown() {
        // Its own writable layer, in which there is nothing.
        Shown::Overlay(_) => links.pop().map(|link| PathBuf::from(link.name)),
        Shown::Image(_) => None,
    };
    let layers_below = links.len();
    let parent_uuid = links.pop().and_then(|link| link.uuid);
    // Whoever has chosen a kind has chosen it for what is written later too.
    let sparse = matches!(served.device.shown(), Shown::Overlay(overlay) if overlay.is_sparse());
    let size_bytes = served.device.geometry().size_bytes;
    match &served.request.image {
        ImageSpec::Config(config) => {
            let config = config.clone();
            served.merging.is_forked();
            file_system_work(&folder.clone(), move || {
                let mut document = document_of(&config, top.as_deref(), layers_below)?;
                // They are the fork's image, which it shares.
                disown(&mut document);
                if let Some(members) = document.as_object_mut() {
                    // That file tells how the first device went.
                    members.remove("resultFile");
                }
                let image_ref = config.parent().and_then(image_ref);
                let new = NewFolder { document, image_ref, sparse, size_bytes, parent_uuid };
                Ok((new.write(&folder, &mut made)?, made))
            })
            .await
        }
        ImageSpec::Reference(_) | ImageSpec::Layers(_) | ImageSpec::Converted { .. } => {
            let placed = service.factory().places(&served.pinned).await?;
            let (document, image_ref) = (document(&placed.places)?, reference_of(&served.pinned));
            let new = NewFolder { document, image_ref, sparse, size_bytes, parent_uuid };
            file_system_work(&folder.clone(), move || Ok((new.write(&folder, &mut made)?, made))).await
        }
    }
}

/// Where the folder of the fork is to be.
fn folder_of(image: &ImageSpec, wanted: &ForkDevice) -> Result<PathBuf, Failure> {
    let name = Path::new(&wanted.name);
    if name.file_name() != Some(name.as_os_str()) {
        let text = format!("{:?} is not the name of a folder", wanted.name);
        return Err(Failure::new(FailureClass::Usage, text));
    }
    let beside = match image {
        ImageSpec::Config(config) => config.parent(),
        ImageSpec::Reference(_) | ImageSpec::Layers(_) | ImageSpec::Converted { .. } => None,
    };
    let parent = wanted.to.as_deref().or(beside).ok_or_else(|| {
        let text = "the device was not made of a configuration: say by --to where the files of the fork go";
        Failure::new(FailureClass::Usage, text)
    })?;
    check_absolute(parent)?;
    Ok(parent.join(name))
}

fn taken(folder: &Path) -> Failure {
    Failure::new(FailureClass::Conflict, format!("{}: it is there already", folder.display()))
}

/// Makes a folder that is not there, durably.
async fn make(folder: PathBuf) -> Result<Made, Failure> {
    file_system_work(&folder.clone(), move || {
        let mut made = Made::default();
        make_durably(&folder, &mut made).map_err(|source| {
            let class = match source.kind() {
                io::ErrorKind::AlreadyExists => FailureClass::Conflict,
                _ => FailureClass::Internal,
            };
            Failure::with_source(class, format!("{}: cannot make it", folder.display()), source)
        })?;
        Ok(made)
    })
    .await
}
