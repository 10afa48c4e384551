//! The families of the counters of writable layers.

use std::sync::Arc;

use super::text::{Family, Labels};
use crate::{
    server::daemon::Served,
    upper::{RequestMetrics, WriteMetrics},
};

/// What the writable layers of single devices were asked for.
pub(super) fn of_devices(served: &[Arc<Served>]) -> Vec<Family> {
    let names = ["device_upper_requests", "device_upper", "device_upper_errors", "device_upper_rounds"];
    let mut all = counts(&writable(served), names);
    let room = |served: &Arc<Served>| {
        Some((vec![("device", served.info.id.to_string())], served.device.upper_room_bytes()?))
    };
    all.push(Family::byte_gauges(
        "device_upper_room",
        "Bytes that the data file of a log-structured writable layer takes until it is as large as it may be",
        served.iter().filter_map(room),
    ));
    all
}

/// How long requests to the writable layers of single devices took.
pub(super) fn durations_of_devices(served: &[Arc<Served>]) -> Family {
    durations(&writable(served), "device_upper_duration")
}

/// Sums over all devices there ever were, so that they never shrink when one is removed.
pub(super) fn of_all_devices(served: &[Arc<Served>], retired: &WriteMetrics) -> Vec<Family> {
    let total = WriteMetrics::default();
    total.absorb(retired);
    served.iter().filter_map(|served| served.device.writes()).for_each(|writes| total.absorb(writes));
    let total = [(Labels::new(), &total)];
    let mut families = counts(&total, ["upper_requests", "upper", "upper_errors", "upper_rounds"]);
    families.push(durations(&total, "upper_duration"));
    families
}

fn writable(served: &[Arc<Served>]) -> Vec<(Labels, &WriteMetrics)> {
    let named = |served: &Served| vec![("device", served.info.id.to_string())];
    served.iter().filter_map(|served| Some((named(served), served.device.writes()?))).collect()
}

/// What was counted of each kind of request, with the labels of the layer and the kind.
fn kinds<'a>(of: &[(Labels, &'a WriteMetrics)]) -> Vec<(Labels, &'a RequestMetrics)> {
    let of_one = |(labels, writes): &(Labels, &'a WriteMetrics)| {
        let labels = labels.clone();
        writes.kinds().map(move |(kind, counted)| {
            let kind = [("kind", kind.to_owned())];
            (labels.iter().cloned().chain(kind).collect::<Labels>(), counted)
        })
    };
    of.iter().flat_map(of_one).collect()
}

fn counts(of: &[(Labels, &WriteMetrics)], names: [&'static str; 4]) -> Vec<Family> {
    let [requests, bytes, errors, rounds] = names;
    let rows = kinds(of);
    let each = |value: fn(&WriteMetrics) -> u64| {
        of.iter().map(move |(labels, writes)| (labels.clone(), value(writes)))
    };
    vec![
        Family::counters(
            requests,
            "Requests to writable layers, by kind",
            rows.iter().map(|(labels, counted)| (labels.clone(), counted.requests.get())),
        ),
        Family::byte_counters(
            bytes,
            "Bytes of requests to writable layers, by kind",
            rows.iter().map(|(labels, counted)| (labels.clone(), counted.bytes.get())),
        ),
        Family::counters(
            errors,
            "Requests to writable layers that failed",
            each(|writes| writes.errors.get()),
        ),
        Family::counters(
            rounds,
            "Rounds of syncs that made writes to writable layers durable; flushes share them",
            each(|writes| writes.rounds.get()),
        ),
    ]
}

fn durations(of: &[(Labels, &WriteMetrics)], name: &'static str) -> Family {
    let rows = kinds(of).into_iter().map(|(labels, counted)| (labels, counted.latency.snapshot()));
    Family::durations(name, "How long requests to writable layers took, by kind, in seconds", rows)
}
