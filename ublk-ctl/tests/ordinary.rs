//! `add` of ordinary images of docker's registry, which are converted into the store, by a daemon with a frontend that needs no driver.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    unreachable_pub,
    dead_code,
    reason = "a test panics where something is not as expected, waits for a file, and uses a part of the support"
)]

#[path = "../../tests/support/null_port.rs"]
mod null_port;
#[path = "../../tests/support/ordinary.rs"]
mod ordinary;
#[path = "../../tests/support/port.rs"]
mod port;
#[path = "../../tests/support/registry.rs"]
mod registry;

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::Arc,
    time::Duration,
};

use null_port::NullPort;
use ordinary::{archive, push_ordinary};
use registry::{Registry, Serving};
use serde_json::{Value, json};
use stratabd::{
    frontend::NullFrontend,
    server::{
        api::{ApiLimits, ApiListener},
        config::{Config, HostSection},
        daemon::{Daemon, DaemonParts},
        metrics::{Exposition, MetricsDetail},
        service::Service,
        state::StateDir,
    },
};
use tokio::task::JoinHandle;

/// A registry with the image `app:v1`, and a folder for a daemon's state, cache and store.
struct Site {
    dir: tempfile::TempDir,
    registry: Registry,
    reference: String,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::start(dir.path(), &Serving::default());
        let layers = [
            archive(&[("etc/hostname", b"lower\n"), ("etc/gone", b"gone"), ("large", &[7; 300_000])]),
            archive(&[("etc/hostname", b"upper\n"), ("etc/.wh.gone", b"")]),
        ];
        push_ordinary(registry.address(), "team/app", "v1", &layers);
        let reference = format!("{}/team/app:v1", registry.address());
        Self { dir, registry, reference }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The tool with the daemon's settings.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ublk-ctl"));
        command.args(["--json", "--set", "registry.limits.max_tries=2", "--socket"]).arg(self.path("socket"));
        for (key, value) in [("cache.dir", "cache"), ("store.dir", "store"), ("daemon.state_dir", "state")] {
            command.arg("--set").arg(format!("{key}={}", self.path(value).display()));
        }
        command.arg("--set").arg(format!("registry.hosts.\"{}\".plain_http=true", self.registry.address()));
        command.args(arguments).env_remove("RUST_LOG").env("DOCKER_CONFIG", "/nonexistent");
        command
    }

    fn ctl(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.ctl(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn spawn(&self, arguments: &[&str]) -> Child {
        self.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// A daemon that answers, until the task is aborted.
    async fn daemon(&self) -> (Arc<Daemon>, JoinHandle<()>) {
        let mut config = Config::default();
        config.cache.dir = self.path("cache");
        config.store.dir = self.path("store");
        config.daemon.state_dir = self.path("state");
        config.registry.limits.max_tries = 2;
        let host = HostSection { plain_http: true, ..HostSection::default() };
        config.registry.hosts.insert(self.registry.address().to_string().parse().unwrap(), host);
        let service = Service::start(config, tokio::runtime::Handle::current(), || Ok(())).unwrap();
        let port = Arc::new(NullPort(NullFrontend::new()));
        let daemon = Daemon::new(DaemonParts { service, port }, StateDir::open(&self.path("state")).unwrap());
        let listener = ApiListener::bind(&self.path("socket"), 0o600, None).await.unwrap();
        let served = Arc::clone(&daemon);
        let serving = async move { match listener.serve(served, ApiLimits::default()).await {} };
        (daemon, tokio::spawn(serving))
    }

    /// Files of layers and documents in the store.
    fn blobs(&self) -> usize {
        fs::read_dir(self.path("store/v1/blobs/sha256")).unwrap().count()
    }

    /// What the image has in the file `name`.
    fn content(&self, name: &str) -> String {
        let device = self.path("device");
        self.json(&["image", "export", &self.reference, "--output", device.to_str().unwrap()]);
        let request = format!("cat {name}");
        let path = "/usr/sbin:/sbin:/usr/bin:/bin";
        let said =
            Command::new("debugfs").args(["-R", &request]).arg(&device).env("PATH", path).output().unwrap();
        String::from_utf8_lossy(&said.stdout).into_owned()
    }
}

/// The exit code and the message of a failure.
fn failure(output: &Output) -> (Option<i32>, String) {
    let failure: Value = serde_json::from_slice(&output.stderr).unwrap_or_else(|_| panic!("{output:?}"));
    (output.status.code(), failure["error"]["message"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ordinary_image_is_added_by_one_command_and_then_without_its_registry() {
    let mut site = Site::new();
    let (daemon, serving) = site.daemon().await;
    let refused = site.ctl(&["add", "--no-convert", &site.reference]);
    let (code, said) = failure(&refused);
    assert!(code == Some(5) && said.contains("ublk-ctl convert"), "{code:?} {said}");
    assert!(!site.path("store").exists());

    let added = site.json(&["add", &site.reference]);
    assert_eq!(added["size_bytes"], 64_u64 << 30, "{added}");
    // An operator is not told that something has failed.
    let metrics = daemon.metrics(MetricsDetail::Totals, Exposition::Text).await.unwrap();
    assert!(metrics.contains("attach_failures_total{reason=\"image\"} 0"), "{metrics}");
    let info = site.json(&["info", "0"]);
    assert_eq!(info["layers"].as_array().unwrap().len(), 2, "{info}");
    let listed = site.json(&["list"])["devices"][0]["image"].clone();
    let shown = listed["converted"]["reference"].as_str().unwrap();
    assert!(shown.starts_with(&format!("{}@sha256:", site.reference)), "{listed}");
    let images = site.json(&["store", "list"])["images"].clone();
    assert_eq!((images.as_array().unwrap().len(), &images[0]["used"]), (1, &json!(true)), "{images}");

    site.registry.stop();
    assert_eq!(site.json(&["add", "--count", "3", &site.reference])["devices"].as_array().unwrap().len(), 3);
    // A folder of it, which stays when its device goes.
    let upper = site.path("box");
    site.json(&["add", &site.reference, "--upper", upper.to_str().unwrap()]);
    assert!(fs::read_to_string(upper.join("image_ref")).unwrap().starts_with(&site.reference));
    site.json(&["del", "--all"]);
    assert_eq!(site.json(&["store", "prune"])["removed_images"], 0);
    let again = site.json(&["add", &site.reference, "--upper", upper.to_str().unwrap()]);
    assert_eq!(again["read_only"], false);
    site.json(&["del", "--all"]);
    fs::remove_dir_all(&upper).unwrap();
    assert_eq!(site.json(&["store", "prune"])["removed_images"], 1);
    assert_eq!(site.blobs(), 0);
    drop(daemon);
    serving.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_the_next_daemon_stays_in_the_store() {
    let site = Site::new();
    let (daemon, serving) = site.daemon().await;
    // None of them is there before: each image is converted once for all of its lines.
    let lines = format!("{0}\n# again\n{0}\n", site.reference);
    fs::write(site.path("lines"), lines).unwrap();
    let lines = site.path("lines");
    let added = site.json(&["add", "--from", lines.to_str().unwrap()]);
    assert_eq!(added["devices"].as_array().unwrap().len(), 2, "{added}");
    let upper = site.path("box");
    site.json(&["add", &site.reference, "--upper", upper.to_str().unwrap()]);
    site.json(&["fork", "2", "--name", "twin"]);
    // As when it dies: nothing of the daemon is left but its records.
    serving.abort();
    let _ = serving.await;
    daemon.drain(Duration::from_secs(10)).await.unwrap();
    drop(daemon);
    assert_eq!(site.json(&["store", "prune"])["removed_images"], 0);
    assert_eq!(site.json(&["store", "list"])["images"][0]["used"], true);
    // What is not understood may use anything.
    fs::write(site.path("state/devices/77.json"), "torn").unwrap();
    let (code, said) = failure(&site.ctl(&["store", "prune"]));
    assert!(code == Some(1) && said.contains("device 77"), "{code:?} {said}");
    fs::remove_file(site.path("state/devices/77.json")).unwrap();

    let (daemon, serving) = site.daemon().await;
    daemon.reattach().await.unwrap();
    let devices = site.json(&["list"])["devices"].clone();
    let states: Vec<&Value> = devices.as_array().unwrap().iter().map(|device| &device["state"]).collect();
    assert_eq!(states, ["live"; 4], "{devices}");
    serving.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversion_that_is_cut_leaves_nothing_and_two_at_once_make_one() {
    let site = Site::new();
    let mut cut = site.spawn(&["store", "add", &site.reference]);
    let images = site.path("store/v1/images");
    while !images.exists() && cut.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    cut.kill().unwrap();
    cut.wait().unwrap();
    let both = [(); 2].map(|()| site.spawn(&["store", "add", &site.reference]));
    let made = both.map(|child| {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    });
    assert_eq!(made[0], made[1]);
    // Two layers, a configuration and a manifest.
    assert_eq!(site.blobs(), 4);
    assert_eq!(site.json(&["store", "list"])["images"].as_array().unwrap().len(), 1);
    assert_eq!(site.content("/etc/hostname"), "upper\n");
    assert_eq!(site.json(&["store", "prune"])["removed_images"], 1);
    let gone = site.ctl(&["image", "export", &site.reference, "--sha256"]);
    assert_eq!(failure(&gone).0, Some(5), "{gone:?}");
}
