//! One device served by the calling process, without daemon, socket or state.

use std::{sync::Arc, time::Duration};

use super::{
    api::types::{AddDevice, DeviceInfo},
    blocking::blocking,
    daemon::{OpenedDevice, Served},
    failure::Failure,
    port::Port,
    service::Service,
};
use crate::frontend::CLOSE_PATIENCE;

/// A running device.
pub struct Foreground {
    served: Arc<Served>,
}

impl Foreground {
    /// Makes a device and returns when it is usable.
    ///
    /// # Errors
    /// When the image cannot be opened or the device not made; then nothing is left of it.
    pub async fn attach(
        service: &Service,
        port: Arc<dyn Port>,
        request: &AddDevice,
    ) -> Result<Self, Failure> {
        let opened = OpenedDevice::open(service, request).await?;
        Ok(Self { served: Arc::new(opened.attach(&port).await?) })
    }

    /// What it is.
    #[must_use]
    pub fn info(&self) -> &DeviceInfo {
        &self.served.info
    }

    /// Removes it.
    ///
    /// # Errors
    /// When somebody still holds it after `timeout`.
    pub async fn detach(self, timeout: Duration) -> Result<(), Failure> {
        blocking(move || self.served.detach(timeout, CLOSE_PATIENCE)).await
    }
}
