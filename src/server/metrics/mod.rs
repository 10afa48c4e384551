//! Metrics as text: names, units and labels of what the modules have counted.

mod attaches;
mod exposition;
mod families;
mod process;
mod requests;
mod text;
mod uppers;

use std::{fmt, sync::Arc};

use super::{daemon::Served, device::Device, log::dropped_lines, service::Service};
use crate::{cache::CacheMetrics, image::ReadMetrics, telemetry::Counter, upper::WriteMetrics};
pub(super) use attaches::Attaches;
pub use exposition::Exposition;
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

/// All that is counted.
pub(super) struct Counted<'a> {
    pub(super) service: &'a Service,
    pub(super) served: &'a [Arc<Served>],
    /// Devices of a former daemon that have not come back yet.
    pub(super) waiting: usize,
    pub(super) retired: &'a Retired,
    pub(super) attaches: &'a Attaches,
}

impl Counted<'_> {
    /// All metrics as text. Every family is there from the start, also one that has nothing to show yet.
    ///
    /// # Errors
    /// Never in practice: writing to memory does not fail.
    pub(super) fn text(&self, detail: MetricsDetail, exposition: Exposition) -> Result<String, fmt::Error> {
        let Self { service, served, waiting, retired, attaches } = self;
        let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
        let count = |devices: usize| u64::try_from(devices).unwrap_or(u64::MAX);
        let factory = service.factory();
        let mut all = vec![
            Family::gauges("build_info", "Which stratabd this process is; always 1", [(version, 1)]),
            Family::gauges("devices", "Devices that are served", [(Vec::new(), count(served.len()))]),
            Family::gauges(
                "devices_waiting",
                "Devices of a former daemon that have not come back yet",
                [(Vec::new(), count(*waiting))],
            ),
            Family::counters(
                "log_dropped_lines",
                "Lines of the log that were dropped since nobody took them",
                [(Vec::new(), dropped_lines())],
            ),
        ];
        all.extend(attaches.families());
        all.extend(families::of_all_devices(served, &retired.reads));
        all.extend(families::of_devices(served));
        all.extend(uppers::of_devices(served));
        all.extend(requests::of_devices(served, &retired.overdue));
        if detail == MetricsDetail::Devices {
            all.push(families::durations_of_devices(served));
            all.push(uppers::durations_of_devices(served));
        }
        all.extend(uppers::of_all_devices(served, &retired.writes));
        all.extend(families::of_images(served, factory.retired_images()));
        all.extend(families::of_registry(&factory.registry_metrics()));
        all.extend(families::of_hosts(factory.client().loads()));
        all.extend(families::of_proofs(factory.proof_metrics()));
        // It is opened for the first image of a registry.
        let nothing = CacheMetrics::default();
        let (cache, used_bytes) = factory.cache_metrics().unwrap_or((&nothing, 0));
        all.extend(families::of_cache(cache, used_bytes, factory.cache_limit_bytes()));
        all.extend(process::of_this_process());
        text::text(&all, exposition)
    }
}
