//! The families of requests that do not end.

use std::sync::Arc;

use super::text::{Family, Labels};
use crate::{server::daemon::Served, telemetry::Counter};

/// How many requests do not end at this moment, by device, and how many have been late so far.
pub(super) fn of_devices(served: &[Arc<Served>], retired: &Counter) -> Vec<Family> {
    let now = served.iter().map(|served| {
        let overdue = u64::try_from(served.device.overdue().list().len()).unwrap_or(u64::MAX);
        (vec![("device", served.info.id.to_string())], overdue)
    });
    let ever =
        served.iter().fold(retired.get(), |sum, served| sum.saturating_add(served.device.overdue().count()));
    vec![
        Family::gauges(
            "device_overdue_requests",
            "Requests that have been under way for too long, 16 a queue at most",
            now,
        ),
        Family::counters(
            "overdue_requests",
            "Requests that were under way for too long so far",
            [(Labels::new(), ever)],
        ),
    ]
}
