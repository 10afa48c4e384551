//! What lies in `examples/` for Prometheus and Grafana, tried by a real Prometheus that scrapes the API.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use stratabd::server::{
    api::{
        ApiLimits, ApiListener,
        types::{AddDevice, ImageSpec},
    },
    config::{Config, HostSection},
};
use url::form_urlencoded::byte_serialize;

use super::{
    PATIENCE, fixture,
    port::{reserved_address, wait_for_server},
    read_some,
    registry::{Registry, Serving, push_image},
    start, writable,
};

fn example(name: &str) -> String {
    format!("{}/examples/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn promtool(arguments: &[&str]) -> String {
    let ran = Command::new("promtool").args(arguments).output().expect("promtool is installed");
    let said = [ran.stdout, ran.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    assert!(ran.status.success(), "{said}");
    said
}

#[test]
fn promtool_finds_no_fault_with_the_alerts_and_each_fires_for_its_own() {
    let said = promtool(&["check", "rules", "--lint=all", "--lint-fatal", &example("prometheus-alerts.yml")]);
    assert_eq!(said.lines().filter(|line| !line.is_empty()).count(), 2, "{said}");
    promtool(&["test", "rules", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/api/alerts_test.yml")]);
}

/// The queries of all panels of the dashboard, with what its variables stand for.
fn queries(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let queries = targets.map(|target| target["expr"].as_str().unwrap());
    let variables = [("$__rate_interval", "5s"), ("$instance", ".*"), ("$device", ".*")];
    queries
        .map(|query| variables.iter().fold(query.to_owned(), |text, (name, value)| text.replace(name, value)))
        .collect()
}

/// A Prometheus that scrapes `target`; dropping it ends the process.
struct Prometheus(Child, SocketAddr);

impl Prometheus {
    fn start(dir: &Path, target: SocketAddr) -> Self {
        let address = reserved_address();
        let config = json!({
            "global": {"scrape_interval": "200ms", "evaluation_interval": "200ms"},
            "rule_files": [example("prometheus-alerts.yml")],
            "scrape_configs": [{"job_name": "stratabd", "static_configs": [{"targets": [target.to_string()]}]}],
        });
        // JSON is YAML.
        std::fs::write(dir.join("prometheus.yml"), config.to_string()).unwrap();
        let mut process = Command::new("prometheus")
            .arg("--config.file=prometheus.yml")
            .arg("--storage.tsdb.path=data")
            .arg(format!("--web.listen-address={address}"))
            .current_dir(dir)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("prometheus is installed");
        wait_for_server(&mut process, address);
        Self(process, address)
    }

    /// What the API answers to a GET of `path`.
    fn get(&self, path: &str) -> Value {
        let mut stream = TcpStream::connect(self.1).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let answer: Value = serde_json::from_str(body).unwrap_or_default();
        answer.get("data").cloned().unwrap_or_default()
    }

    fn query(&self, query: &str) -> Value {
        let text: String = byte_serialize(query.as_bytes()).collect();
        self.get(&format!("/api/v1/query?query={text}")).get("result").cloned().unwrap_or_default()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_query_of_the_dashboard_and_every_alert_finds_what_a_daemon_shows() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::start(dir.path(), &Serving::default());
    let layer = std::fs::read(fixture("ext4/L0.zt4k")).unwrap();
    push_image(registry.address(), "sample/ext4", "latest", &[layer]);
    let mut config = Config::default();
    config.cache.dir = dir.path().join("cache");
    let host = registry.address().to_string();
    let plain = HostSection { plain_http: true, ..HostSection::default() };
    config.registry.hosts.insert(host.parse().unwrap(), plain);
    let (daemon, service, port) = start(dir.path(), config);
    let metrics = Some(([127, 0, 0, 1], 0).into());
    let listener = ApiListener::bind(&dir.path().join("s"), 0o600, metrics).await.unwrap();
    let prometheus = Prometheus::start(dir.path(), listener.metrics_address().unwrap());
    let answering = Arc::clone(&daemon);
    let serving = tokio::spawn(async move { listener.serve(answering, ApiLimits::default()).await });
    daemon.add(AddDevice::of(ImageSpec::Config(writable(dir.path())))).await.unwrap();
    daemon.add(AddDevice::of(ImageSpec::Reference(format!("{host}/sample/ext4:latest")))).await.unwrap();

    let dashboard: Value =
        serde_json::from_slice(&std::fs::read(example("grafana-dashboard.json")).unwrap()).unwrap();
    let mut left = queries(&dashboard);
    assert!(left.len() > 30, "{left:#?}");
    let began = Instant::now();
    while !left.is_empty() {
        read_some(&service, &port).await;
        left.retain(|query| prometheus.query(query).as_array().is_none_or(Vec::is_empty));
        assert!(began.elapsed() < PATIENCE, "no data for {left:#?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let rules = prometheus.get("/api/v1/rules");
    let rules = rules["groups"][0]["rules"].as_array().unwrap().clone();
    assert_eq!(rules.len(), 13, "{rules:#?}");
    for rule in rules {
        assert_eq!(rule["health"], "ok", "{rule:#}");
        // What it looks at is there, however little it is.
        let query = rule["query"].as_str().unwrap();
        let looked_at = [" == ", " > ", " < "].iter().find_map(|sign| query.split_once(sign)).unwrap().0;
        let found = prometheus.query(looked_at);
        assert!(found.as_array().is_some_and(|found| !found.is_empty()), "{looked_at}: {found}");
        assert_eq!(rule["state"], "inactive", "{rule:#}");
    }
    serving.abort();
}
