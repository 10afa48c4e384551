//! Metrics as text: names, units and labels of what the modules have counted.

mod families;
mod overdue;
mod text;
mod uppers;

use std::{fmt, sync::Arc};

use super::{daemon::Served, device::Device, service::Service, settings::dropped_log_lines};
use crate::{image::ReadMetrics, telemetry::Counter, upper::WriteMetrics};
use text::Family;

/// What removed devices had counted.
#[derive(Debug, Default)]
pub(super) struct Retired {
    reads: ReadMetrics,
    writes: WriteMetrics,
    overdue: Counter,
}

impl Retired {
    /// Adds what a device has counted that is no more.
    pub(super) fn absorb(&self, device: &Device) {
        self.reads.absorb(device.reads());
        device.writes().into_iter().for_each(|writes| self.writes.absorb(writes));
        self.overdue.inc_by(device.overdue().count());
    }
}

/// Which metrics are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricsDetail {
    /// All but the histograms of single devices: those of all together.
    Totals,
    /// All: some hundred lines more for each device.
    Devices,
}

/// All metrics in the OpenMetrics text format.
///
/// # Errors
/// Never in practice: writing to memory does not fail.
pub(super) fn render(
    service: &Service,
    served: &[Arc<Served>],
    retired: &Retired,
    detail: MetricsDetail,
) -> Result<String, fmt::Error> {
    let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
    let count = u64::try_from(served.len()).unwrap_or(u64::MAX);
    let dropped = dropped_log_lines();
    let mut all = vec![
        Family::gauges("build_info", "What this process is; always 1", [(version, 1)]),
        Family::gauges("devices", "Devices that are served", [(Vec::new(), count)]),
        Family::counters("log_dropped_lines", "Lines of the log that nobody took", [(Vec::new(), dropped)]),
    ];
    all.extend(families::of_all_devices(served, &retired.reads));
    all.extend(families::of_devices(served));
    all.extend(uppers::of_devices(served));
    all.extend(overdue::of_devices(served, &retired.overdue));
    if detail == MetricsDetail::Devices {
        all.push(families::durations_of_devices(served));
        all.push(uppers::durations_of_devices(served));
    }
    all.extend(uppers::of_all_devices(served, &retired.writes));
    all.extend(families::of_images(served, service.factory().retired_images()));
    all.extend(families::of_registry(&service.factory().registry_metrics()));
    all.extend(families::of_hosts(service.factory().client().loads()));
    if let Some((metrics, used_bytes)) = service.factory().cache_metrics() {
        all.extend(families::of_cache(metrics, used_bytes));
    }
    text::text(all)
}
