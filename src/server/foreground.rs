//! One device served by the calling process, without daemon, socket or state.

use std::{sync::Arc, time::Duration};

use super::{
    api::types::{AddDevice, DeviceInfo},
    blocking::device_work,
    daemon::{OpenedDevice, Served},
    failure::{Failure, FailureClass},
    port::Port,
    result_file,
    service::Service,
};
use crate::frontend::{CLOSE_PATIENCE, Detached};

/// A running device.
pub struct Foreground {
    served: Arc<Served>,
    port: Arc<dyn Port>,
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
            let opened = tokio::select! {
                opened = OpenedDevice::open(service, request) => opened?,
                () = given_up => return Err(Failure::new(FailureClass::Internal, "interrupted")),
            };
            let attachment = opened.attach(&port, request.id).await?;
            let (served, made) = opened.served(attachment, None);
            made.keep();
            Ok(Self { served: Arc::new(served), port })
        };
        result_file::record(&request.image, attaching).await
    }

    /// What it is.
    #[must_use]
    pub fn info(&self) -> &DeviceInfo {
        &self.served.info
    }

    /// Whether somebody has it mounted.
    ///
    /// # Errors
    /// Where the thread that asks has ended.
    pub async fn is_in_use(&self) -> Result<bool, Failure> {
        let (port, path) = (Arc::clone(&self.port), self.info().path.clone());
        device_work(move || Ok(port.is_claimed(&path))).await
    }

    /// Removes it, whoever uses it.
    ///
    /// # Errors
    /// When it cannot be removed within `timeout`.
    pub async fn detach(self, timeout: Duration) -> Result<Detached, Failure> {
        Ok(self.served.detach(timeout, CLOSE_PATIENCE).await?)
    }
}
