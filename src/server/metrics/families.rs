//! The families of each module's counters.

use std::sync::Arc;

use super::text::{Family, Labels};
use crate::{
    cache::CacheMetrics,
    image::{ClassMetrics, ImageMetrics, ReadMetrics, SourceClass},
    registry::{HostLoad, RegistryMetrics},
    server::{daemon::Served, factory::OpenImage},
    source::ProofMetrics,
    telemetry::{Counter, Snapshot},
};

const DIRECT_READS: &str = "Reads that the kernel moved from a layer's file to the request by itself";

/// One value for each label set.
fn each<S>(rows: &[(Labels, S)], value: impl Fn(&S) -> u64) -> Vec<(Labels, u64)> {
    rows.iter().map(|(labels, stats)| (labels.clone(), value(stats))).collect()
}

fn latencies<S>(rows: &[(Labels, S)], value: impl Fn(&S) -> Snapshot) -> Vec<(Labels, Snapshot)> {
    rows.iter().map(|(labels, stats)| (labels.clone(), value(stats))).collect()
}

/// Reads by source with the labels of `reads` and the source.
fn by_source<'a>(reads: &'a ReadMetrics, labels: &Labels) -> [(Labels, &'a ClassMetrics); 5] {
    SourceClass::ALL.map(|class| {
        let source = [("source", class.name().to_owned())];
        (labels.iter().cloned().chain(source).collect(), reads.of(class))
    })
}

fn named(served: &Served) -> Labels {
    vec![("device", served.info.id.to_string())]
}

fn reads_of_devices(served: &[Arc<Served>]) -> Vec<(Labels, &ClassMetrics)> {
    served.iter().flat_map(|served| by_source(served.device.reads(), &named(served))).collect()
}

/// What single devices were asked for, and which image each shows.
pub(super) fn of_devices(served: &[Arc<Served>]) -> Vec<Family> {
    let rows = reads_of_devices(served);
    let errors = served.iter().map(|served| (named(served), served.device.reads().errors.get()));
    let direct = served.iter().map(|served| (named(served), served.device.reads().direct.get()));
    let shows = served.iter().filter_map(|served| {
        let image =
            [("image", served.request.image.to_string()), ("image_id", served.device.image()?.id.clone())];
        Some((named(served).into_iter().chain(image).collect(), 1))
    });
    vec![
        Family::gauges(
            "device_image",
            "Which image a device shows, as list names it, and the id of its layers; always 1",
            shows,
        ),
        Family::counters(
            "device_reads",
            "Reads of a device, by where the bytes came from",
            each(&rows, |m| m.requests.get()),
        ),
        Family::byte_counters(
            "device_read",
            "Bytes that were read of a device, by where they came from",
            each(&rows, |m| m.bytes.get()),
        ),
        Family::counters("device_errors", "Reads of a device that failed", errors),
        Family::counters("device_direct_reads", DIRECT_READS, direct),
    ]
}

/// How long reads of single devices took.
pub(super) fn durations_of_devices(served: &[Arc<Served>]) -> Family {
    Family::durations(
        "device_read_duration",
        "How long reads of a device took, by where the bytes came from, in seconds",
        latencies(&reads_of_devices(served), |m| m.latency.snapshot()),
    )
}

/// Sums over all devices there ever were, so that they never shrink when one is removed.
pub(super) fn of_all_devices(served: &[Arc<Served>], retired: &ReadMetrics) -> Vec<Family> {
    let total = ReadMetrics::default();
    total.absorb(retired);
    served.iter().for_each(|served| total.absorb(served.device.reads()));
    let rows = by_source(&total, &Labels::new());
    vec![
        Family::counters(
            "reads",
            "Reads of all devices, by where the bytes came from",
            each(&rows, |m| m.requests.get()),
        ),
        Family::byte_counters(
            "read",
            "Bytes that were read of all devices, by where they came from",
            each(&rows, |m| m.bytes.get()),
        ),
        one("errors", "Reads of all devices that failed", &total.errors),
        one("direct_reads", DIRECT_READS, &total.direct),
        Family::durations(
            "read_duration",
            "How long reads of all devices took, by where the bytes came from, in seconds",
            latencies(&rows, |m| m.latency.snapshot()),
        ),
    ]
}

/// What images did, each once however many devices show it.
pub(super) fn of_images(served: &[Arc<Served>], retired: &ImageMetrics) -> Vec<Family> {
    let mut images: Vec<&Arc<OpenImage>> = Vec::new();
    for image in served.iter().filter_map(|served| served.device.image()) {
        if !images.iter().any(|other| Arc::ptr_eq(other, image)) {
            images.push(image);
        }
    }
    let total = ImageMetrics::default();
    total.absorb(retired);
    images.iter().for_each(|image| total.absorb(image.image.metrics()));
    let named = |image: &OpenImage| vec![("image", image.name.clone()), ("image_id", image.id.clone())];
    let memory = |image: &OpenImage| {
        let tables = image.image.index_bytes().saturating_add(image.image.tables_bytes());
        u64::try_from(tables).unwrap_or(u64::MAX)
    };
    let fetched: Vec<_> = images.iter().map(|image| (named(image), image.fetched())).collect();
    vec![
        Family::counters(
            "image_fetches",
            "Ranges asked of registries by reads of an image",
            each(&fetched, |f| f.fetches),
        ),
        Family::byte_counters(
            "image_fetched",
            "Bytes that registries sent for reads of an image",
            each(&fetched, |f| f.bytes),
        ),
        Family::counters(
            "image_fetch_retries",
            "Tries to fetch a range of an image after the first",
            each(&fetched, |f| f.retries),
        ),
        Family::counters(
            "image_failed_fetches",
            "Ranges of an image that could not be had of a registry",
            each(&fetched, |f| f.failures),
        ),
        one("decoded_blocks", "Compressed blocks of layers that were decoded", &total.decoded_blocks),
        one("damaged_blocks", "Compressed blocks of layers that were found damaged", &total.damaged_blocks),
        Family::gauges(
            "image_decoded_cache_bytes",
            "Memory of decoded blocks that are kept of an image, in bytes",
            images.iter().map(|image| (named(image), image.image.decoded_bytes())),
        ),
        Family::gauges(
            "image_index_bytes",
            "Memory of the index and the block tables of an image, in bytes",
            images.iter().map(|image| (named(image), memory(image))),
        ),
    ]
}

/// Hosts with series of their own; the rest are summed up. A redirect may lead anywhere.
const MOST_HOSTS: usize = 16;

/// How busy the hosts of registries are.
pub(super) fn of_hosts(mut loads: Vec<HostLoad>) -> Vec<Family> {
    let others = loads.split_off(loads.len().min(MOST_HOSTS));
    if let Some(sum) = others.into_iter().reduce(|sum, load| HostLoad {
        host: sum.host,
        limit: sum.limit.saturating_add(load.limit),
        in_flight: sum.in_flight.saturating_add(load.in_flight),
        waiting: sum.waiting.saturating_add(load.waiting),
    }) {
        loads.push(HostLoad { host: "other".to_owned(), ..sum });
    }
    let rows: Vec<_> = loads.into_iter().map(|load| (vec![("host", load.host.clone())], load)).collect();
    let count = |value: usize| u64::try_from(value).unwrap_or(u64::MAX);
    vec![
        Family::gauges(
            "registry_request_limit",
            "Requests that a registry host gets at once: more while it answers in good time, fewer when it is slow or refuses",
            each(&rows, |load| count(load.limit)),
        ),
        Family::gauges(
            "registry_requests_in_flight",
            "Requests to a registry host that are under way",
            each(&rows, |load| count(load.in_flight)),
        ),
        Family::gauges(
            "registry_requests_waiting",
            "Requests that wait for their turn with a registry host",
            each(&rows, |load| count(load.waiting)),
        ),
    ]
}

/// What was asked of registries.
pub(super) fn of_registry(metrics: &RegistryMetrics) -> Vec<Family> {
    let shrinks = [
        ("slow", &metrics.shrinks_slow),
        ("refused", &metrics.shrinks_refused),
        ("timeout", &metrics.shrinks_timed_out),
    ];
    let shrinks = shrinks.map(|(reason, counter)| (vec![("reason", reason.to_owned())], counter.get()));
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
        one("registry_retries", "Tries of requests to registries after the first", &metrics.retries),
        one("registry_redirects", "Redirects of registries that were followed", &metrics.redirects),
        one("registry_token_fetches", "Requests to token servers", &metrics.token_fetches),
        one_of_bytes(
            "registry_received",
            "Bytes of blobs that registries sent and that were verified",
            &metrics.bytes,
        ),
        one_of_bytes(
            "registry_wasted",
            "Bytes that registries sent and that were thrown away",
            &metrics.wasted_bytes,
        ),
        Family::counters(
            "registry_errors",
            "Tries of requests to registries that failed, by who can mend it",
            errors,
        ),
        Family::counters(
            "registry_limit_shrinks",
            "How often a registry host got fewer requests at once, by why",
            shrinks,
        ),
    ]
}

/// What was held against Merkle trees.
pub(super) fn of_proofs(metrics: &ProofMetrics) -> Vec<Family> {
    vec![
        one_of_bytes(
            "verity_proven",
            "Bytes of registries that the Merkle tree of their blob has proven",
            &metrics.proven_bytes,
        ),
        one(
            "verity_refuted_fetches",
            "Answers of registries that the Merkle tree of their blob has refuted",
            &metrics.refuted_fetches,
        ),
    ]
}

/// What the cache did, and how full it is.
pub(super) fn of_cache(metrics: &CacheMetrics, used_bytes: u64, limit_bytes: u64) -> Vec<Family> {
    vec![
        one("cache_hits", "Reads of blobs that the cache alone has served", &metrics.hits),
        one(
            "cache_misses",
            "Reads of blobs that waited for a registry, since the cache had not all of it",
            &metrics.misses,
        ),
        one("cache_fetches", "Ranges that the cache has asked of registries", &metrics.fetches),
        one(
            "cache_failed_fetches",
            "Ranges that the cache has asked of registries and could not have",
            &metrics.failed_fetches,
        ),
        one(
            "cache_joined_fetches",
            "Fetches of the cache that another request had begun already",
            &metrics.joined,
        ),
        one(
            "cache_spared_fetches",
            "Fetches of the cache that another process had done already",
            &metrics.spared_by_peers,
        ),
        one("cache_write_errors", "Writes to the cache's disk that failed", &metrics.write_errors),
        one("cache_read_errors", "Reads of the cache's disk that failed", &metrics.read_errors),
        one(
            "cache_damaged_grains",
            "Pieces of 4 KiB that were found damaged on the cache's disk",
            &metrics.damaged_grains,
        ),
        one(
            "cache_invalidations",
            "Ranges of the cache that a layer's checksum has refuted",
            &metrics.invalidations,
        ),
        one_of_bytes("cache_read", "Bytes that the cache has handed to readers", &metrics.bytes_read),
        one_of_bytes("cache_fetched", "Bytes that registries delivered to the cache", &metrics.bytes_fetched),
        one_of_bytes(
            "cache_evicted",
            "Bytes that the cache has given back to its file system",
            &metrics.evicted_bytes,
        ),
        Family::byte_gauges("cache_used", "Bytes that the cache has on its disk", [(Vec::new(), used_bytes)]),
        Family::byte_gauges(
            "cache_limit",
            "Bytes that the cache may have on its disk, of cache.size_mib; 0 where there is no cache",
            [(Vec::new(), limit_bytes)],
        ),
    ]
}

fn one(name: &'static str, help: &'static str, counter: &Counter) -> Family {
    Family::counters(name, help, [(Vec::new(), counter.get())])
}

fn one_of_bytes(name: &'static str, help: &'static str, counter: &Counter) -> Family {
    Family::byte_counters(name, help, [(Vec::new(), counter.get())])
}
