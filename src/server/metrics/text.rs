//! Families of numbers, and their text. Counters and histograms of this crate have no lock, so they are copied into
//! families at each scrape instead of living in a registry of `prometheus-client`.

use std::{fmt, sync::Mutex};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet, text::encode},
    metrics::MetricType,
    registry::{Registry, Unit},
};

use crate::telemetry::{LATENCY_BOUNDS_NS, Snapshot};

/// Names and values of labels.
pub(super) type Labels = Vec<(&'static str, String)>;

/// One metric with all its label sets. The name has neither prefix, unit nor `_total`.
#[derive(Debug)]
pub(super) struct Family {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    rows: Rows,
}

#[derive(Debug)]
enum Rows {
    Counters(Vec<(Labels, u64)>),
    Gauges(Vec<(Labels, i64)>),
    Histograms(Vec<(Labels, Snapshot)>),
}

impl Family {
    /// A number of events.
    pub(super) fn counters(
        name: &'static str,
        help: &'static str,
        rows: impl IntoIterator<Item = (Labels, u64)>,
    ) -> Self {
        Self { name, help, unit: None, rows: Rows::Counters(rows.into_iter().collect()) }
    }

    /// A number of bytes that only grows.
    pub(super) fn byte_counters(
        name: &'static str,
        help: &'static str,
        rows: impl IntoIterator<Item = (Labels, u64)>,
    ) -> Self {
        Self { unit: Some(Unit::Bytes), ..Self::counters(name, help, rows) }
    }

    /// A number that goes up and down.
    pub(super) fn gauges(
        name: &'static str,
        help: &'static str,
        rows: impl IntoIterator<Item = (Labels, u64)>,
    ) -> Self {
        let signed = |(labels, value)| (labels, i64::try_from(value).unwrap_or(i64::MAX));
        Self { name, help, unit: None, rows: Rows::Gauges(rows.into_iter().map(signed).collect()) }
    }

    /// A number of bytes that goes up and down.
    pub(super) fn byte_gauges(
        name: &'static str,
        help: &'static str,
        rows: impl IntoIterator<Item = (Labels, u64)>,
    ) -> Self {
        Self { unit: Some(Unit::Bytes), ..Self::gauges(name, help, rows) }
    }

    /// Durations.
    pub(super) fn durations(
        name: &'static str,
        help: &'static str,
        rows: impl IntoIterator<Item = (Labels, Snapshot)>,
    ) -> Self {
        let rows = Rows::Histograms(rows.into_iter().collect());
        Self { name, help, unit: Some(Unit::Seconds), rows }
    }

    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let kind = match &self.rows {
            Rows::Counters(_) => MetricType::Counter,
            Rows::Gauges(_) => MetricType::Gauge,
            Rows::Histograms(_) => MetricType::Histogram,
        };
        let mut metric = encoder.encode_descriptor(self.name, self.help, self.unit.as_ref(), kind)?;
        match &self.rows {
            // An empty set of labels would be written as braces without content, which not every reader takes.
            Rows::Counters(rows) => rows.iter().try_for_each(|(labels, value)| match labels.as_slice() {
                [] => metric.encode_counter::<NoLabelSet, _, f64>(value, None),
                _ => metric.encode_family(labels)?.encode_counter::<NoLabelSet, _, f64>(value, None),
            }),
            Rows::Gauges(rows) => rows.iter().try_for_each(|(labels, value)| match labels.as_slice() {
                [] => metric.encode_gauge(value),
                _ => metric.encode_family(labels)?.encode_gauge(value),
            }),
            Rows::Histograms(rows) => rows.iter().try_for_each(|(labels, snapshot)| {
                let buckets = seconds(snapshot);
                let count = snapshot.buckets.iter().sum();
                let sum = seconds_of(snapshot.sum_ns);
                metric.encode_family(labels)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
            }),
        }
    }
}

/// Bounds in seconds with the observations of each bucket; the encoder adds them up.
fn seconds(snapshot: &Snapshot) -> Vec<(f64, u64)> {
    let bounds = LATENCY_BOUNDS_NS.iter().map(|bound| seconds_of(*bound)).chain([f64::INFINITY]);
    bounds.zip(snapshot.buckets.iter().copied()).collect()
}

#[expect(clippy::cast_precision_loss, reason = "half a nanosecond in 100 days does not count")]
fn seconds_of(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// The OpenMetrics text of `families`, each name prefixed by `stratabd_`.
///
/// # Errors
/// Never in practice: writing to memory does not fail.
pub(super) fn text(families: Vec<Family>) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("stratabd");
    registry.register_collector(Box::new(Families(Mutex::new(families))));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

/// Families as a collector, which must be shareable though it is used once.
#[derive(Debug)]
struct Families(Mutex<Vec<Family>>);

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let families = self.0.lock().map_err(|_| fmt::Error)?;
        families.iter().try_for_each(|family| family.encode(&mut encoder))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::telemetry::LatencyHistogram;

    #[test]
    fn names_carry_prefix_unit_and_total_and_buckets_add_up() {
        let histogram = LatencyHistogram::default();
        for micros in [1, 1, 3] {
            histogram.observe(Duration::from_micros(micros));
        }
        let labels = || vec![("device", "0".to_owned())];
        let families = vec![
            Family::counters("requests", "Requests", [(labels(), 3)]),
            Family::byte_counters("read", "Bytes", [(labels(), 4096)]),
            Family::gauges("devices", "Devices", [(Vec::new(), 2)]),
            Family::durations("request_duration", "Time", [(labels(), histogram.snapshot())]),
        ];
        let text = text(families).unwrap();
        for line in [
            "# TYPE stratabd_requests counter",
            "stratabd_requests_total{device=\"0\"} 3",
            "# UNIT stratabd_read_bytes bytes",
            "stratabd_read_bytes_total{device=\"0\"} 4096",
            "stratabd_devices 2",
            "# TYPE stratabd_request_duration_seconds histogram",
            "stratabd_request_duration_seconds_bucket{le=\"0.000001024\",device=\"0\"} 2",
            "stratabd_request_duration_seconds_bucket{le=\"0.000004096\",device=\"0\"} 3",
            "stratabd_request_duration_seconds_bucket{le=\"+Inf\",device=\"0\"} 3",
            "stratabd_request_duration_seconds_count{device=\"0\"} 3",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(text.contains("stratabd_request_duration_seconds_sum{device=\"0\"} 0.000005"), "{text}");
    }
}
