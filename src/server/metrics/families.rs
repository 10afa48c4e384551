//! The families of each module's counters.

use std::sync::Arc;

use super::text::{Family, Labels};
use crate::{
    cache::CacheMetrics,
    image::{ClassMetrics, SourceClass},
    registry::RegistryMetrics,
    server::{
        counted::{DeviceStats, OperationStats},
        daemon::Served,
        factory::OpenImage,
        image_totals::ImageTotals,
    },
    telemetry::{Counter, Snapshot},
};

/// Kinds of requests by the name of their label.
fn operations(stats: &DeviceStats) -> [(&'static str, &OperationStats); 3] {
    [("read", &stats.read), ("write", &stats.write), ("flush", &stats.flush)]
}

/// One value for each label set.
fn each<S>(rows: &[(Labels, S)], value: impl Fn(&S) -> u64) -> Vec<(Labels, u64)> {
    rows.iter().map(|(labels, stats)| (labels.clone(), value(stats))).collect()
}

fn latencies<S>(rows: &[(Labels, S)], value: impl Fn(&S) -> Snapshot) -> Vec<(Labels, Snapshot)> {
    rows.iter().map(|(labels, stats)| (labels.clone(), value(stats))).collect()
}

/// What single devices were asked for.
pub(super) fn of_devices(served: &[Arc<Served>]) -> Vec<Family> {
    let rows: Vec<(Labels, &OperationStats)> = served
        .iter()
        .flat_map(|served| {
            let id = served.info.id.to_string();
            operations(served.device.stats())
                .map(|(name, stats)| (vec![("device", id.clone()), ("operation", name.to_owned())], stats))
        })
        .collect();
    vec![
        Family::counters("device_requests", "Ended requests of a device", each(&rows, |s| s.requests.get())),
        Family::byte_counters(
            "device_transferred",
            "Bytes of a device's requests",
            each(&rows, |s| s.bytes.get()),
        ),
        Family::counters("device_errors", "Failed requests of a device", each(&rows, |s| s.errors.get())),
        Family::durations(
            "device_request_duration",
            "How long requests of a device took",
            latencies(&rows, |s| s.latency.snapshot()),
        ),
    ]
}

/// Sums over all devices there ever were, so that they never shrink when one is removed.
pub(super) fn of_all_devices(served: &[Arc<Served>], retired: &DeviceStats) -> Vec<Family> {
    let total = DeviceStats::default();
    total.absorb(retired);
    served.iter().for_each(|served| total.absorb(served.device.stats()));
    let rows = operations(&total).map(|(name, stats)| (vec![("operation", name.to_owned())], stats));
    vec![
        Family::counters("requests", "Ended requests of all devices", each(&rows, |s| s.requests.get())),
        Family::byte_counters(
            "transferred",
            "Bytes of all devices' requests",
            each(&rows, |s| s.bytes.get()),
        ),
        Family::counters("errors", "Failed requests of all devices", each(&rows, |s| s.errors.get())),
        Family::durations(
            "request_duration",
            "How long requests of all devices took",
            latencies(&rows, |s| s.latency.snapshot()),
        ),
    ]
}

/// The images behind `served`, each once.
fn images(served: &[Arc<Served>]) -> Vec<&Arc<OpenImage>> {
    let mut images: Vec<&Arc<OpenImage>> = Vec::new();
    for device in served {
        if !images.iter().any(|image| Arc::ptr_eq(image, &device.image)) {
            images.push(&device.image);
        }
    }
    images
}

/// Reads of single images by where their bytes came from. Devices of one image share them; which device shows which image
/// is a family of its own.
pub(super) fn of_images(served: &[Arc<Served>]) -> Vec<Family> {
    let shows = served.iter().map(|served| {
        let names = vec![("device", served.info.id.to_string()), ("image", served.image.name.clone())];
        (names, 1)
    });
    let images = images(served);
    let named = |image: &OpenImage| vec![("image", image.name.clone())];
    let by_source: Vec<(Labels, &ClassMetrics)> = images
        .iter()
        .flat_map(|image| {
            SourceClass::ALL.map(|class| {
                let labels = vec![("image", image.name.clone()), ("source", class.name().to_owned())];
                (labels, image.image.metrics().of(class))
            })
        })
        .collect();
    let kept = images.iter().map(|image| (named(image), image.image.decoded_bytes()));
    let errors = images.iter().map(|image| (named(image), image.image.metrics().errors.get()));
    vec![
        Family::gauges("device_image", "Which image a device shows; always 1", shows),
        Family::counters(
            "image_reads",
            "Reads of an image by source",
            each(&by_source, |m| m.requests.get()),
        ),
        Family::byte_counters(
            "image_read",
            "Bytes read of an image by source",
            each(&by_source, |m| m.bytes.get()),
        ),
        Family::durations(
            "image_read_duration",
            "How long reads of an image took by source",
            latencies(&by_source, |m| m.latency.snapshot()),
        ),
        Family::counters("image_errors", "Failed reads of an image", errors),
        Family::gauges("image_decoded_cache_bytes", "Decoded blocks that are kept, in bytes", kept),
    ]
}

/// Sums over all images there ever were, so that they never shrink when one is closed.
pub(super) fn of_all_images(served: &[Arc<Served>], retired: &ImageTotals) -> Vec<Family> {
    let total = ImageTotals::default();
    total.absorb(retired);
    images(served).iter().for_each(|image| total.absorb_image(image.image.metrics()));
    let rows: Vec<(Labels, &ClassMetrics)> = total
        .classes()
        .map(|(class, metrics)| (vec![("source", class.name().to_owned())], metrics))
        .collect();
    vec![
        Family::counters("reads", "Reads of all images by source", each(&rows, |m| m.requests.get())),
        Family::byte_counters("read", "Bytes read of all images by source", each(&rows, |m| m.bytes.get())),
        Family::durations(
            "read_duration",
            "How long reads of all images took by source",
            latencies(&rows, |m| m.latency.snapshot()),
        ),
        one("read_errors", "Failed reads of all images", &total.errors),
        one("decoded_blocks", "Compressed blocks that were decoded", &total.decoded_blocks),
        one("damaged_blocks", "Compressed blocks that were found damaged", &total.damaged_blocks),
    ]
}

/// What was asked of registries.
pub(super) fn of_registry(metrics: &RegistryMetrics) -> Vec<Family> {
    let kinds = [
        ("network", &metrics.network_errors),
        ("timeout", &metrics.timeouts),
        ("registry", &metrics.registry_errors),
        ("credentials", &metrics.credential_errors),
        ("other", &metrics.other_errors),
    ];
    let errors = kinds.map(|(kind, counter)| (vec![("kind", kind.to_owned())], counter.get()));
    vec![
        one("registry_requests", "HTTP requests to registries, storage and token servers", &metrics.requests),
        one("registry_retries", "Tries after the first", &metrics.retries),
        one("registry_redirects", "Redirects that were followed", &metrics.redirects),
        one("registry_token_fetches", "Requests to token servers", &metrics.token_fetches),
        one_of_bytes("registry_received", "Verified bytes of blobs", &metrics.bytes),
        one_of_bytes("registry_wasted", "Bytes that were read and thrown away", &metrics.wasted_bytes),
        Family::counters("registry_errors", "Failed tries by who can mend it", errors),
    ]
}

/// What the cache did, and how full it is.
pub(super) fn of_cache(metrics: &CacheMetrics, used_bytes: u64) -> Vec<Family> {
    vec![
        one("cache_hits", "Reads served from the cache alone", &metrics.hits),
        one("cache_misses", "Reads that waited for a registry", &metrics.misses),
        one("cache_fetches", "Ranges that were asked of registries", &metrics.fetches),
        one("cache_failed_fetches", "Ranges that could not be had", &metrics.failed_fetches),
        one("cache_joined_fetches", "Fetches that another request had begun", &metrics.joined),
        one("cache_spared_fetches", "Fetches that another process had done", &metrics.spared_by_peers),
        one("cache_write_errors", "Failed writes of the cache's disk", &metrics.write_errors),
        one("cache_read_errors", "Failed reads of the cache's disk", &metrics.read_errors),
        one("cache_invalidations", "Ranges that a checksum refuted", &metrics.invalidations),
        one_of_bytes("cache_read", "Bytes handed to readers", &metrics.bytes_read),
        one_of_bytes("cache_fetched", "Bytes that registries delivered", &metrics.bytes_fetched),
        one_of_bytes("cache_evicted", "Bytes given back to the file system", &metrics.evicted_bytes),
        Family::gauges("cache_used_bytes", "Bytes on disk", [(Vec::new(), used_bytes)]),
    ]
}

fn one(name: &'static str, help: &'static str, counter: &Counter) -> Family {
    Family::counters(name, help, [(Vec::new(), counter.get())])
}

fn one_of_bytes(name: &'static str, help: &'static str, counter: &Counter) -> Family {
    Family::byte_counters(name, help, [(Vec::new(), counter.get())])
}
