//! What of a device can be changed while it is in use.

use std::num::NonZeroU64;

use super::{Daemon, Served, detached};
use crate::{
    limit::Rates,
    server::{
        api::types::{AddDevice, DeviceInfo, SetDevice},
        failure::Failure,
    },
};

impl Daemon {
    /// Changes the limits of device `id`, also for the requests that wait. They are the device's until they are changed again, also
    /// when another process serves it.
    ///
    /// # Errors
    /// Where there is no such device, or its record cannot be written: then nothing has changed.
    pub async fn set(&self, id: u32, wanted: SetDevice) -> Result<DeviceInfo, Failure> {
        let served = self.table.live(id)?;
        detached(async move {
            let _turn = served.turn().await?;
            let before = served.device.limit().rates();
            let rates = Rates {
                requests_per_second: wanted.iops.unwrap_or(before.requests_per_second),
                bytes_per_second: wanted.bytes_per_second.unwrap_or(before.bytes_per_second),
            };
            served.note(|record| limit(&mut record.request, rates)).await?;
            served.device.limit().set(rates);
            tracing::info!(id, ?rates, "the limits of a device are changed");
            Ok(served.info())
        })
        .await
    }
}

impl Served {
    /// The request by which a device like this one is made, as it is now.
    pub(super) fn request_of_now(&self) -> AddDevice {
        let mut request = self.request.clone();
        limit(&mut request, self.device.limit().rates());
        request
    }
}

fn limit(request: &mut AddDevice, rates: Rates) {
    request.iops = NonZeroU64::new(rates.requests_per_second);
    request.bytes_per_second = NonZeroU64::new(rates.bytes_per_second);
}
