//! A larger size of a device that is in use.
//!
//! First the layer has it, durably, then the queues take requests for it, and last the kernel sends them. So whatever is written
//! past the old end is there again when the layer is opened, whenever a crash comes.

use std::{sync::Arc, time::Duration};

use super::{Daemon, Served, detached};
use crate::{
    crash_point::CrashPoint,
    server::{
        api::types::DeviceInfo,
        device::{Shown, failure_of_upper},
        failure::{Failure, FailureClass},
    },
};

impl Daemon {
    /// Makes device `id`, which must have a writable layer, larger. What is on it is not touched. It goes on when the caller
    /// gives up waiting.
    ///
    /// # Errors
    /// Where there is no such device, it takes no writes, it would shrink, or the driver cannot do it: then nothing has changed.
    /// Where the kernel refuses at last, or does not answer in time, the layer has its new size, which the device shows once it is
    /// made again, and [`Daemon::info`] at once. Asking for the same size again tells the kernel again.
    pub async fn resize(self: &Arc<Self>, id: u32, size_bytes: u64) -> Result<DeviceInfo, Failure> {
        let served = self.table.live(id)?;
        let limit = Duration::from_millis(self.config().device.attach_timeout_ms);
        detached(async move { resize(&served, size_bytes, limit).await }).await
    }
}

async fn resize(served: &Arc<Served>, size_bytes: u64, limit: Duration) -> Result<DeviceInfo, Failure> {
    let id = served.info.id;
    let Shown::Overlay(overlay) = served.device.shown() else {
        let text = format!("device {id} has no writable layer");
        return Err(Failure::new(FailureClass::Conflict, text));
    };
    let _turn = served.turn().await?;
    served.ask(move |attachment| attachment.check_resize(size_bytes)).await?;
    let resizing = Arc::clone(overlay);
    let resized =
        served.sealer.call(move |reactor| async move { resizing.resize(&reactor, size_bytes).await });
    resized
        .await
        .map_err(|_| Failure::new(FailureClass::Internal, "the reactor has stopped"))?
        .map_err(failure_of_upper)?;
    CrashPoint::ResizeGrown.reach();
    let told = served.ask(move |attachment| attachment.resize(size_bytes, limit)).await;
    told.map_err(|failure| {
        let device = match failure.class() {
            FailureClass::TimedOut => format!("the kernel may or may not have the new size of device {id}"),
            _ => format!("device {id} is as it was"),
        };
        let text = format!(
            "{device}; its layer has {size_bytes} bytes, which info shows, and the next device of it"
        );
        Failure::with_source(failure.class(), text, failure)
    })?;
    let noted =
        served.note(|record| record.granted.iter_mut().for_each(|granted| granted.size_bytes = size_bytes));
    if let Err(failure) = noted.await {
        // What is shown of it while it waits; the layer says what it is.
        tracing::error!(id, error = failure.full_text(), "a device has an old record");
    }
    tracing::info!(id, size_bytes, "resized");
    Ok(served.info())
}
