//! What `/metrics` shows of devices, and to whom in which format.

use std::{
    collections::BTreeSet,
    io::Write,
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use stratabd::server::{
    api::types::{AddDevice, ImageSpec},
    config::{Config, HostSection},
    metrics::{Exposition, MetricsDetail},
};

use super::{
    READ_BYTES, fixture, read_some,
    registry::{Registry, Serving, push_image},
    start, writable,
};

/// The value of the line of `metrics` that begins with `name`, labels included.
fn value(metrics: &str, name: &str) -> u64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name} is not in\n{metrics}")).parse().unwrap()
}

/// What the operators' guide has to say of metrics, in the first column of its table.
fn guided_families() -> Vec<&'static str> {
    let guide = include_str!("../../docs/operations.md");
    let (_, section) = guide.split_once("## Metrics").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let names = section.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split_once('|')?.0));
    let families: Vec<_> =
        names.flat_map(|cell| cell.split('`').step_by(2)).filter(|name| name.contains('_')).collect();
    assert!(families.len() > 5, "{families:?}");
    families
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_reads_by_source_and_what_was_fetched_for_them() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::start(dir.path(), &Serving::default());
    let host = registry.address().to_string();
    push_image(
        registry.address(),
        "sample/ext4",
        "latest",
        &[std::fs::read(fixture("ext4/L0.zt4k")).unwrap()],
    );
    let mut config = Config::default();
    config.cache.dir = dir.path().join("cache");
    config.image.decoded_cache_mib = 0;
    config
        .registry
        .hosts
        .insert(host.parse().unwrap(), HostSection { plain_http: true, ..HostSection::default() });
    let (daemon, service, port) = start(dir.path(), config);
    let local = ImageSpec::Layers(vec![fixture("ext4/L0.z4k")]);
    let remote = ImageSpec::Reference(format!("{host}/sample/ext4:latest"));
    for (id, image) in [(5, local), (6, remote)] {
        daemon.add(AddDevice { id: Some(id), ..AddDevice::of(image) }).await.unwrap();
        read_some(&service, &port).await;
        read_some(&service, &port).await;
    }
    let metrics = daemon.metrics(MetricsDetail::Devices, Exposition::Text).await.unwrap();
    let count = |name: &str, id: u32, source: &str| {
        value(&metrics, &format!("stratabd_device_read{name}{{device=\"{id}\",source=\"{source}\"}}"))
    };
    assert_eq!((count("s_total", 5, "local"), count("s_total", 5, "cache")), (2, 0));
    assert_eq!(count("_bytes_total", 5, "local"), 2 * READ_BYTES as u64);
    assert_eq!(count("_duration_seconds_count", 5, "local"), 2);
    assert_eq!(count("s_total", 6, "cache") + count("s_total", 6, "registry"), 2);
    assert!(count("s_total", 6, "cache") > 0, "the second read is near");
    assert!(count("_bytes_total", 6, "cache") > 0);
    for name in
        ["cache_hits", "cache_fetches", "cache_fetched_bytes", "registry_requests", "registry_received_bytes"]
    {
        assert!(value(&metrics, &format!("stratabd_{name}_total")) > 0, "{name}");
    }
    let info = daemon.info(6).await.unwrap();
    let fetched = info.layers[0].fetched.unwrap();
    assert!(fetched.fetches > 0 && fetched.bytes > 0, "{fetched:?}");
    assert_eq!((fetched.retries, fetched.failures), (0, 0));
    assert_eq!(fetched.fetches, value(&metrics, "stratabd_cache_fetches_total"), "nothing else was fetched");
    let image = metrics
        .lines()
        .find_map(|line| line.strip_prefix("stratabd_device_image{device=\"6\",")?.strip_suffix("} 1"));
    let image = image.unwrap();
    assert!(image.starts_with(&format!("image=\"{host}/sample/ext4:latest\",image_id=\"")), "{image}");
    let of_image = |name: &str| value(&metrics, &format!("stratabd_image_{name}_total{{{image}}}"));
    assert_eq!((of_image("fetches"), of_image("fetched_bytes")), (fetched.fetches, fetched.bytes));
    assert_eq!((of_image("fetch_retries"), of_image("failed_fetches")), (0, 0));
    assert_eq!(daemon.info(5).await.unwrap().layers[0].fetched, None, "a file of this machine");
    assert_eq!(value(&metrics, "stratabd_registry_retries_total"), 0);
    assert_eq!(value(&metrics, "stratabd_errors_total"), 0);
    for family in guided_families() {
        assert!(metrics.contains(&format!("# TYPE stratabd_{family} ")), "{family} is not in\n{metrics}");
    }
    let reads = daemon.info(5).await.unwrap().reads;
    assert!(reads.iter().any(|reads| (reads.source.as_str(), reads.requests) == ("local", 2)), "{reads:?}");
}

/// Names of the families in `metrics`.
fn families(metrics: &str) -> BTreeSet<&str> {
    let heads = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    heads.filter_map(|head| head.split(' ').next()).collect()
}

/// Has promtool look for what Prometheus' authors would find fault with.
fn lint(metrics: &str) {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is installed");
    promtool.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    let checked = promtool.wait_with_output().unwrap();
    let said = [checked.stdout, checked.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert!(checked.status.success() && said == ["", ""], "{said:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_families_are_there_from_the_start_and_a_device_adds_few_series() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, ..) = start(dir.path(), Config::default());
    let text = async |detail| daemon.metrics(detail, Exposition::Text).await.unwrap();
    let before = text(MetricsDetail::Totals).await;
    for line in [
        "stratabd_cache_hits_total 0",
        "stratabd_cache_limit_bytes 8589934592",
        "stratabd_devices_waiting 0",
        "stratabd_attach_duration_seconds_count 0",
        "stratabd_attach_failures_total{reason=\"registry\"} 0",
        "stratabd_upper_requests_total{kind=\"flush\"} 0",
    ] {
        assert!(before.lines().any(|found| found == line), "{line} is not in\n{before}");
    }
    let process = families(&before).into_iter().filter(|name| name.starts_with("process_")).count();
    assert_eq!(process, 7, "{before}");
    for id in [5, 6] {
        let folder = dir.path().join(id.to_string());
        std::fs::create_dir(&folder).unwrap();
        let config = writable(&folder);
        let lower = json!([{"file": fixture(["ext4/L0.z4k", "ext4/L0.zt4k"][id - 5])}]);
        let mut document: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
        document["lowers"] = lower;
        std::fs::write(&config, document.to_string()).unwrap();
        let wanted = AddDevice { id: u32::try_from(id).ok(), ..AddDevice::of(ImageSpec::Config(config)) };
        daemon.add(wanted).await.unwrap();
    }
    let missing = AddDevice::of(ImageSpec::Config(dir.path().join("none.json")));
    daemon.add(missing).await.unwrap_err();
    let after = text(MetricsDetail::Totals).await;
    assert_eq!(families(&after), families(&before));
    let numbers = |text: &str| text.lines().filter(|line| !line.starts_with('#')).count();
    let of_a_device = (numbers(&after) - numbers(&before)) / 2;
    assert!(of_a_device <= 40, "{of_a_device} series a device:\n{after}");
    assert_eq!(value(&after, "stratabd_attach_duration_seconds_count"), 2);
    assert_eq!(value(&after, "stratabd_attach_failures_total{reason=\"not_found\"}"), 1);
    assert_eq!(value(&after, "stratabd_device_requests_in_flight{device=\"5\"}"), 0);
    for metrics in [before, after, text(MetricsDetail::Devices).await] {
        lint(&metrics);
    }
}
