//! Families of numbers, and their text. Counters and histograms of this crate have no lock, so they are copied into
//! families at each scrape.

use std::fmt::{self, Write};

use super::Exposition;
use crate::telemetry::{LATENCY_BOUNDS_NS, Snapshot};

/// Names and values of labels.
pub(super) type Labels = Vec<(&'static str, String)>;

/// Characters of a label's value that are shown: an image may be named by hundreds of paths.
const MAX_LABEL_CHARS: usize = 256;

/// One metric with all its label sets. The name has no `_total`.
#[derive(Debug)]
pub(super) struct Family {
    name: String,
    help: &'static str,
    is_counter: bool,
    rows: Rows,
}

#[derive(Debug)]
enum Rows {
    Numbers(Vec<(Labels, u64)>),
    Fractions(Vec<(Labels, f64)>),
    Histograms(Vec<(Labels, Snapshot)>),
}

impl Family {
    fn new(name: &str, help: &'static str, rows: Rows) -> Self {
        Self { name: format!("stratabd_{name}"), help, is_counter: false, rows }
    }

    /// A number of events.
    pub(super) fn counters(
        name: &'static str,
        help: &'static str,
        rows: impl IntoIterator<Item = (Labels, u64)>,
    ) -> Self {
        Self { is_counter: true, ..Self::gauges(name, help, rows) }
    }

    /// A number of bytes that only grows.
    pub(super) fn byte_counters(
        name: &'static str,
        help: &'static str,
        rows: impl IntoIterator<Item = (Labels, u64)>,
    ) -> Self {
        Self { is_counter: true, ..Self::byte_gauges(name, help, rows) }
    }

    /// A number that goes up and down.
    pub(super) fn gauges(
        name: &'static str,
        help: &'static str,
        rows: impl IntoIterator<Item = (Labels, u64)>,
    ) -> Self {
        Self::new(name, help, Rows::Numbers(rows.into_iter().collect()))
    }

    /// A number of bytes that goes up and down.
    pub(super) fn byte_gauges(
        name: &'static str,
        help: &'static str,
        rows: impl IntoIterator<Item = (Labels, u64)>,
    ) -> Self {
        Self::new(&format!("{name}_bytes"), help, Rows::Numbers(rows.into_iter().collect()))
    }

    /// Durations.
    pub(super) fn durations(
        name: &'static str,
        help: &'static str,
        rows: impl IntoIterator<Item = (Labels, Snapshot)>,
    ) -> Self {
        Self::new(&format!("{name}_seconds"), help, Rows::Histograms(rows.into_iter().collect()))
    }

    /// A number of the process, named as all programs name it.
    pub(super) fn of_process(name: &'static str, help: &'static str, value: f64) -> Self {
        let name = format!("process_{name}");
        Self { name, help, is_counter: false, rows: Rows::Fractions(vec![(Labels::new(), value)]) }
    }

    /// The same as a number that only grows.
    pub(super) fn growing(self) -> Self {
        Self { is_counter: true, ..self }
    }

    fn write(&self, text: &mut String, exposition: Exposition) -> fmt::Result {
        let (name, total) = (&self.name, if self.is_counter { "_total" } else { "" });
        let kind = match &self.rows {
            Rows::Histograms(_) => "histogram",
            Rows::Numbers(_) | Rows::Fractions(_) if self.is_counter => "counter",
            Rows::Numbers(_) | Rows::Fractions(_) => "gauge",
        };
        // The family of a counter is named without its end in the one format, and as the number itself in the other.
        let family_end = match exposition {
            Exposition::OpenMetrics => "",
            Exposition::Text => total,
        };
        writeln!(text, "# HELP {name}{family_end} {}", self.help)?;
        writeln!(text, "# TYPE {name}{family_end} {kind}")?;
        let mut line = |end: &str, labels: &Labels, bound: Option<f64>, value: &dyn fmt::Display| {
            text.push_str(name);
            text.push_str(end);
            write_labels(text, labels, bound)?;
            writeln!(text, " {value}")
        };
        match &self.rows {
            Rows::Numbers(rows) => {
                rows.iter().try_for_each(|(labels, value)| line(total, labels, None, value))
            }
            Rows::Fractions(rows) => {
                rows.iter().try_for_each(|(labels, value)| line(total, labels, None, value))
            }
            Rows::Histograms(rows) => rows.iter().try_for_each(|(labels, snapshot)| {
                let mut count = 0_u64;
                for (bound, more) in bounds().zip(&snapshot.buckets) {
                    count = count.saturating_add(*more);
                    line("_bucket", labels, Some(bound), &count)?;
                }
                line("_sum", labels, None, &seconds_of(snapshot.sum_ns))?;
                line("_count", labels, None, &count)
            }),
        }
    }
}

/// The upper bounds of a histogram's buckets in seconds.
fn bounds() -> impl Iterator<Item = f64> {
    LATENCY_BOUNDS_NS.iter().map(|bound| seconds_of(*bound)).chain([f64::INFINITY])
}

#[expect(clippy::cast_precision_loss, reason = "half a nanosecond in 100 days does not count")]
fn seconds_of(ns: u64) -> f64 {
    ns as f64 / 1e9
}

fn write_labels(text: &mut String, labels: &Labels, bound: Option<f64>) -> fmt::Result {
    let mut before = '{';
    for (name, value) in labels {
        write!(text, "{before}{name}=\"")?;
        write_value(text, value);
        text.push('"');
        before = ',';
    }
    match bound {
        Some(f64::INFINITY) => write!(text, "{before}le=\"+Inf\"")?,
        Some(bound) => write!(text, "{before}le=\"{bound}\"")?,
        None => {}
    }
    // An empty pair of braces is not what every reader takes.
    if bound.is_some() || !labels.is_empty() {
        text.push('}');
    }
    Ok(())
}

/// A label's value: names of images and hosts come from elsewhere, and may be anything.
fn write_value(text: &mut String, value: &str) {
    let mut chars = value.chars();
    for char in chars.by_ref().take(MAX_LABEL_CHARS) {
        match char {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            char if char.is_control() => text.push(char::REPLACEMENT_CHARACTER),
            char => text.push(char),
        }
    }
    if chars.next().is_some() {
        text.push('…');
    }
}

/// The text of `families`.
///
/// # Errors
/// Never in practice: writing to memory does not fail.
pub(super) fn text(families: &[Family], exposition: Exposition) -> Result<String, fmt::Error> {
    let mut text = String::new();
    families.iter().try_for_each(|family| family.write(&mut text, exposition))?;
    if exposition == Exposition::OpenMetrics {
        text.push_str("# EOF\n");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::telemetry::LatencyHistogram;

    fn sample() -> Vec<Family> {
        let histogram = LatencyHistogram::default();
        for micros in [1, 1, 3] {
            histogram.observe(Duration::from_micros(micros));
        }
        let labels = || vec![("device", "0".to_owned())];
        vec![
            Family::counters("requests", "Requests", [(labels(), 3)]),
            Family::byte_counters("read", "Bytes", [(labels(), 4096)]),
            Family::gauges("devices", "Devices", [(Vec::new(), 2)]),
            Family::of_process("cpu_seconds", "CPU", 0.25).growing(),
            Family::durations("request_duration", "Time", [(labels(), histogram.snapshot())]),
            Family::gauges("nothing", "Nothing", []),
        ]
    }

    #[test]
    fn names_carry_prefix_unit_and_total_and_buckets_add_up() {
        let text = text(&sample(), Exposition::Text).unwrap();
        for line in [
            "# HELP stratabd_requests_total Requests",
            "# TYPE stratabd_requests_total counter",
            "stratabd_requests_total{device=\"0\"} 3",
            "# TYPE stratabd_read_bytes_total counter",
            "stratabd_read_bytes_total{device=\"0\"} 4096",
            "stratabd_devices 2",
            "process_cpu_seconds_total 0.25",
            "# TYPE stratabd_request_duration_seconds histogram",
            "stratabd_request_duration_seconds_bucket{device=\"0\",le=\"0.000001024\"} 2",
            "stratabd_request_duration_seconds_bucket{device=\"0\",le=\"0.000004096\"} 3",
            "stratabd_request_duration_seconds_bucket{device=\"0\",le=\"+Inf\"} 3",
            "stratabd_request_duration_seconds_count{device=\"0\"} 3",
            "# TYPE stratabd_nothing gauge",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(text.contains("stratabd_request_duration_seconds_sum{device=\"0\"} 0.000005"), "{text}");
        assert!(!text.contains("EOF"), "{text}");
    }

    #[test]
    fn openmetrics_has_the_same_numbers_under_its_own_heads() {
        let [plain, open] =
            [Exposition::Text, Exposition::OpenMetrics].map(|it| text(&sample(), it).unwrap());
        let numbers =
            |text: &str| text.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n");
        assert_eq!(numbers(&plain), numbers(&open));
        assert!(open.contains("# TYPE stratabd_requests counter\n") && open.ends_with("\n# EOF\n"), "{open}");
    }

    #[test]
    fn a_name_makes_no_line_and_no_label_of_its_own() {
        let hostile = format!("a\"}} 9\nforged 1\\\u{1b}[2J{}", "x".repeat(1000));
        let family = Family::gauges("image", "Image", [(vec![("image", hostile)], 1)]);
        let text = text(&[family], Exposition::Text).unwrap();
        let line = text.lines().last().unwrap();
        assert!(line.starts_with("stratabd_image{image=\"a\\\"} 9\\nforged 1\\\\\u{fffd}[2Jxxx"), "{line}");
        assert!(line.ends_with("x…\"} 1") && line.chars().count() < 300, "{line}");
        assert_eq!(text.lines().count(), 3, "{text}");
    }
}
