//! The families of requests that are under way, and of those that do not end.

use std::sync::Arc;

use super::text::{Family, Labels};
use crate::{server::daemon::Served, telemetry::Counter};

/// How many requests each device has at this moment, how many of them do not end, and how many have been late so far.
pub(super) fn of_devices(served: &[Arc<Served>], retired: &Counter) -> Vec<Family> {
    let each = |value: fn(&Served) -> u64| {
        served.iter().map(move |served| (vec![("device", served.info.id.to_string())], value(served)))
    };
    let overdue = |served: &Served| u64::try_from(served.device.overdue().list().len()).unwrap_or(u64::MAX);
    let ever =
        served.iter().fold(retired.get(), |sum, served| sum.saturating_add(served.device.overdue().count()));
    vec![
        Family::gauges(
            "device_requests_in_flight",
            "Requests of a device that are under way",
            each(|served| served.device.overdue().in_flight()),
        ),
        Family::gauges(
            "device_overdue_requests",
            "Requests of a device that have been under way for longer than device.overdue_after_ms, 16 a queue at most",
            each(overdue),
        ),
        Family::counters(
            "overdue_requests",
            "Requests of all devices that were under way for longer than device.overdue_after_ms",
            [(Labels::new(), ever)],
        ),
    ]
}
