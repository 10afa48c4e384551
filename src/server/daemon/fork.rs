//! Forks: a second device that begins with what a first one holds, and shares all of it.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::json;

use super::{Daemon, Served, blocking, detached, snapshot::snapshot};
use crate::{
    format::uuid::Uuid,
    offline::{self, CreateOptions, PartFile, Upper},
    server::{
        api::types::{AddDevice, DeviceInfo, ForkDevice, ImageSpec},
        daemon::SnapshotTarget,
        device::Shown,
        failure::{Failure, FailureClass},
        next_config::read_json,
    },
};

impl Daemon {
    /// Makes a device of its own of what device `id` holds now. What was written to that one is sealed first, so that both lie
    /// over it. It goes on when the caller gives up waiting.
    ///
    /// # Errors
    /// Where there is no such device, it was not made of a configuration, or a file cannot be made.
    pub async fn fork(self: &Arc<Self>, id: u32, wanted: ForkDevice) -> Result<DeviceInfo, Failure> {
        let served = self.table.live(id)?;
        let daemon = Arc::clone(self);
        detached(async move {
            let config = prepare(&served, &wanted).await?;
            let request =
                AddDevice { image: ImageSpec::Config(config), id: wanted.id, ..served.request.clone() };
            daemon.attach(request).await
        })
        .await
    }
}

/// Makes the folder of the fork, and in it its configuration and its writable layer; returns the path of the configuration.
async fn prepare(served: &Served, wanted: &ForkDevice) -> Result<PathBuf, Failure> {
    let ImageSpec::Config(config) = &served.request.image else {
        let text = format!("device {} was not made of a configuration", served.info.id);
        return Err(Failure::new(FailureClass::Conflict, text));
    };
    let folder = folder_of(config, wanted)?;
    let made = folder.clone();
    blocking(move || {
        fs::create_dir(&made).map_err(|source| {
            let class = match source.kind() {
                std::io::ErrorKind::AlreadyExists => FailureClass::Conflict,
                _ => FailureClass::Internal,
            };
            Failure::with_source(class, format!("{}: cannot make it", made.display()), source)
        })
    })
    .await?;
    if let Shown::Overlay(overlay) = served.device.shown()
        && !overlay.is_empty()
    {
        let origin = folder.join("origin");
        let made = origin.clone();
        blocking(move || {
            fs::create_dir(&made).map_err(|source| {
                Failure::with_source(
                    FailureClass::Internal,
                    format!("{}: cannot make it", made.display()),
                    source,
                )
            })
        })
        .await?;
        snapshot(served, SnapshotTarget::Folder(origin)).await?;
    }
    let mut links = served.device.links();
    if let Shown::Overlay(_) = served.device.shown() {
        // Its own writable layer, in which there is nothing.
        links.pop();
    }
    let parent_uuid = links.pop().and_then(|link| link.uuid);
    let (config, size_bytes) = (config.clone(), served.device.geometry().size_bytes);
    blocking(move || write(&config, &folder, size_bytes, parent_uuid)).await
}

fn folder_of(config: &Path, wanted: &ForkDevice) -> Result<PathBuf, Failure> {
    let name = Path::new(&wanted.name);
    if name.file_name() != Some(name.as_os_str()) {
        let text = format!("{:?} is not the name of a folder", wanted.name);
        return Err(Failure::new(FailureClass::Usage, text));
    }
    let beside = config.parent().unwrap_or(Path::new("/"));
    Ok(wanted.to.as_deref().unwrap_or(beside).join(name))
}

/// Writes the files of a fork: all but the last two lines of the device's configuration, and an empty layer of its own.
fn write(
    config: &Path,
    folder: &Path,
    size_bytes: u64,
    parent_uuid: Option<Uuid>,
) -> Result<PathBuf, Failure> {
    let mut document = read_json(config)?;
    let upper = Upper { data: folder.join("upper.data"), index: Some(folder.join("upper.index")) };
    let options = CreateOptions {
        sparse: false,
        virtual_size_bytes: size_bytes,
        uuid: None,
        parent_uuid,
        overwrite: false,
        ext4: false,
    };
    offline::create(&upper, &options)?;
    if let Some(members) = document.as_object_mut() {
        // That file tells how the first device went.
        members.remove("resultFile");
        members.insert("upper".to_owned(), json!({ "data": upper.data, "index": upper.index }));
    }
    let path = folder.join("config.v1.json");
    let part = PartFile::create(&path, false)?;
    let text = serde_json::to_vec(&document).unwrap_or_default();
    part.file().write_all(&text).map_err(|source| {
        Failure::with_source(FailureClass::Internal, format!("{}: cannot write it", path.display()), source)
    })?;
    part.finish()?;
    Ok(path)
}
