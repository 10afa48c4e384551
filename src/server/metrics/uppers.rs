//! The families of the counters of writable layers.

use std::sync::Arc;

use super::text::{Family, Labels};
use crate::{server::daemon::Served, upper::WriteMetrics};

/// What the writable layers of single devices were asked for.
pub(super) fn of_devices(served: &[Arc<Served>]) -> Vec<Family> {
    let writable: Vec<(Labels, &WriteMetrics)> = served
        .iter()
        .filter_map(|served| Some((vec![("device", served.info.id.to_string())], served.device.writes()?)))
        .collect();
    families(
        &writable,
        [
            "device_upper_requests",
            "device_upper",
            "device_upper_duration",
            "device_upper_errors",
            "device_upper_rounds",
        ],
    )
}

/// Sums over all devices there ever were, so that they never shrink when one is removed.
pub(super) fn of_all_devices(served: &[Arc<Served>], retired: &WriteMetrics) -> Vec<Family> {
    let total = WriteMetrics::default();
    total.absorb(retired);
    served.iter().filter_map(|served| served.device.writes()).for_each(|writes| total.absorb(writes));
    families(
        &[(Labels::new(), &total)],
        ["upper_requests", "upper", "upper_duration", "upper_errors", "upper_rounds"],
    )
}

fn families(of: &[(Labels, &WriteMetrics)], names: [&'static str; 5]) -> Vec<Family> {
    let [requests, bytes, duration, errors, rounds] = names;
    let rows: Vec<_> = of
        .iter()
        .flat_map(|(labels, writes)| {
            writes.kinds().map(|(kind, counted)| {
                let kind = [("kind", kind.to_owned())];
                (labels.iter().cloned().chain(kind).collect::<Labels>(), counted)
            })
        })
        .collect();
    let each = |value: fn(&WriteMetrics) -> u64| {
        of.iter().map(move |(labels, writes)| (labels.clone(), value(writes)))
    };
    vec![
        Family::counters(
            requests,
            "Requests to writable layers by kind",
            rows.iter().map(|(labels, counted)| (labels.clone(), counted.requests.get())),
        ),
        Family::byte_counters(
            bytes,
            "Bytes of them",
            rows.iter().map(|(labels, counted)| (labels.clone(), counted.bytes.get())),
        ),
        Family::durations(
            duration,
            "How long requests to writable layers took by kind",
            rows.iter().map(|(labels, counted)| (labels.clone(), counted.latency.snapshot())),
        ),
        Family::counters(
            errors,
            "Requests to writable layers that failed",
            each(|writes| writes.errors.get()),
        ),
        Family::counters(
            rounds,
            "Rounds that made writes durable; flushes share them",
            each(|writes| writes.rounds.get()),
        ),
    ]
}
