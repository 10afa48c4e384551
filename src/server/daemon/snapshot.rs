//! Snapshots of devices that are in use: what was written becomes a read-only layer, and an empty one takes the writes.
//!
//! The configuration of the image is what makes a snapshot one: it is replaced by rename, durably, while no write goes on. So a
//! crash leaves the old one, whose writable layer has everything, or the new one, whose layers have.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use tokio::{runtime::Handle, sync::MutexGuard};

use super::{
    Daemon, Served, blocking, check_absolute, detached,
    merge::{self, turn_with_room},
};
use crate::{
    crash_point::CrashPoint,
    image::Image,
    offline::{self, CreateOptions, Upper},
    server::{
        api::types::{ImageSpec, SnapshotTaken},
        device::{Shown, failure_of_upper, files_of},
        failure::{Failure, FailureClass},
        image_config::UpperFiles,
        mounts::file_system_work,
        next_config::{NextConfig, Replaced},
        upper_folder::{Made, make_all_durably, missing},
    },
    upper::{Overlay, Sealed},
};

/// Where the next writable layer is.
#[derive(Debug, Clone)]
pub enum SnapshotTarget {
    /// To be made in this folder.
    Folder(PathBuf),
    /// To be made beside the one that is sealed, under another name.
    Beside,
    /// Made already, and named by this configuration, which is to take the place of the device's.
    Config(PathBuf),
}

impl Daemon {
    /// Seals what was written to device `id` so far, and has another layer take the writes. It goes on when the caller gives up
    /// waiting.
    ///
    /// # Errors
    /// Where there is no such device, or it is read-only, or a file cannot be made; then the device goes on as before.
    pub async fn snapshot(
        self: &Arc<Self>,
        id: u32,
        target: SnapshotTarget,
    ) -> Result<SnapshotTaken, Failure> {
        if let SnapshotTarget::Folder(path) | SnapshotTarget::Config(path) = &target {
            check_absolute(path)?;
        }
        let served = self.table.live(id)?;
        detached(async move {
            let turn = turn_with_room(&served).await?;
            let taken = snapshot(&served, target, &turn).await;
            drop(turn);
            drop(merge::begin(&served));
            taken
        })
        .await
    }
}

/// Makes a snapshot, for somebody who has the turn.
pub(super) async fn snapshot(
    served: &Served,
    target: SnapshotTarget,
    _turn: &MutexGuard<'_, ()>,
) -> Result<SnapshotTaken, Failure> {
    for warning in served.device.warnings() {
        tracing::warn!(id = served.info.id, "a limit of the format is half reached: {warning}");
    }
    let next = next_config(served, target).await?;
    let files = next.upper.clone();
    let began = Instant::now();
    compact(served).await?;
    let switched = change_over(served, next).await?;
    // Where this fails, whoever reads the record finds them named.
    if let Err(failure) = served.note(|record| record.unfinished.clear()).await {
        tracing::error!(id = served.info.id, error = failure.full_text(), "a device has an old record");
    }
    tracing::info!(id = served.info.id, sealed = %switched.sealed.display(), took = ?began.elapsed(), "snapshot");
    Ok(SnapshotTaken { data: files.data, index: files.index, ..switched })
}

/// What the device writes to, and the configuration that says so.
fn written(served: &Served) -> Result<(&Arc<Overlay<Image>>, &Path), Failure> {
    match (served.device.shown(), &served.request.image) {
        (Shown::Overlay(overlay), ImageSpec::Config(config)) => Ok((overlay, config)),
        _ => {
            let text = format!("device {} has no writable layer", served.info.id);
            Err(Failure::new(FailureClass::Conflict, text))
        }
    }
}

/// The configuration with another layer over the one that takes the writes, not yet in its place.
pub(super) async fn next_config(served: &Served, target: SnapshotTarget) -> Result<NextConfig, Failure> {
    let (overlay, config) = written(served)?;
    let Some(top) = served.device.links().pop() else {
        return Err(Failure::new(FailureClass::Internal, "a device without a layer"));
    };
    let made = CreateOptions {
        // Whoever has chosen a kind has chosen it for what is written later too.
        sparse: overlay.is_sparse(),
        virtual_size_bytes: served.device.geometry().size_bytes,
        uuid: None,
        parent_uuid: top.uuid,
        overwrite: false,
        ext4: false,
    };
    let (config, sealed) = (config.to_owned(), PathBuf::from(top.name));
    let upper = match target {
        SnapshotTarget::Config(given) => {
            let place = given.clone();
            return file_system_work(&place, move || NextConfig::given(&config, &given, &sealed)).await;
        }
        SnapshotTarget::Folder(folder) => {
            UpperFiles { data: folder.join("upper.data"), index: folder.join("upper.index") }
        }
        SnapshotTarget::Beside => {
            let tag = fastrand::u32(..);
            let name = |kind| sealed.with_file_name(format!("upper-{tag:08x}.{kind}"));
            UpperFiles { data: name("data"), index: name("index") }
        }
    };
    let files = [upper.data.clone(), upper.index.clone()];
    let place = upper.data.clone();
    let planned = file_system_work(&place, move || Ok(missing(&files))).await?;
    served.note(|record| record.unfinished = planned).await?;
    file_system_work(&place, move || prepare(&config, &sealed, upper, &made)).await
}

/// Makes the files of the next layer, where they are to be made, and the configuration that names them.
fn prepare(
    config: &Path,
    sealed: &Path,
    upper: UpperFiles,
    made: &CreateOptions,
) -> Result<NextConfig, Failure> {
    let mut new = Made::default();
    let folder = upper.data.parent().unwrap_or(Path::new("/"));
    make_all_durably(folder, &mut new).map_err(|source| {
        let text = format!("{}: cannot make it", folder.display());
        Failure::with_source(FailureClass::Internal, text, source)
    })?;
    let next = NextConfig::over(config, sealed, upper.clone())?;
    offline::create(&Upper { data: upper.data.clone(), index: Some(upper.index.clone()) }, made)?;
    new.add(upper.data);
    new.add(upper.index);
    Ok(next.removing(new))
}

/// Puts what was written into few enough pieces for a layer that is sealed. Writes go on meanwhile.
async fn compact(served: &Served) -> Result<(), Failure> {
    let overlay = Arc::clone(written(served)?.0);
    let compacted = served.sealer.call(move |reactor| async move { overlay.compact(&reactor).await });
    compacted.await.map_err(|_| stopped())?.map_err(failure_of_upper)
}

/// Seals the layer that takes the writes, puts the configuration in its place, and has the layer take the writes that it names. Once
/// begun it goes on to its end, also where nobody waits for it: configuration and device must agree.
pub(super) async fn change_over(served: &Served, next: NextConfig) -> Result<SnapshotTaken, Failure> {
    let (overlay, sealer) = (Arc::clone(written(served)?.0), served.sealer.clone());
    // On one thread, since writes are kept out from the middle of it on: to find another one may take longer than all the rest.
    blocking(move || {
        let files = files_of(&next.upper)?;
        let sealing = sealer.call(move |reactor| async move { overlay.seal(&reactor, files).await });
        let sealed = Handle::current().block_on(sealing).map_err(|_| stopped())?.map_err(failure_of_upper)?;
        put_in_place(sealed, next)
    })
    .await
}

fn put_in_place(sealed: Sealed, next: NextConfig) -> Result<SnapshotTaken, Failure> {
    let (config, layer) = (next.path().to_owned(), next.sealed().to_owned());
    CrashPoint::SnapshotSealed.reach();
    let (replaced, after) = next.replace();
    let stalled = match replaced {
        Replaced::Yes => {
            CrashPoint::SnapshotNamed.reach();
            let stalled = sealed.stack();
            after.settle();
            stalled
        }
        Replaced::No(failure) => return Err(failure),
        // A crash may bring the old configuration back, which does not name the layer: it must not promise anything.
        Replaced::InDoubt(failure) => {
            sealed.stack_in_doubt(io::Error::other(failure.full_text()));
            after.settle_in_doubt();
            return Err(failure);
        }
    };
    let stalled_us = u64::try_from(stalled.as_micros()).unwrap_or(u64::MAX);
    Ok(SnapshotTaken { config, sealed: layer, stalled_us, ..SnapshotTaken::default() })
}

fn stopped() -> Failure {
    Failure::new(FailureClass::Internal, "the reactor has stopped")
}
