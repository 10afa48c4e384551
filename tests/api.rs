//! The control API on a real socket, with devices of a frontend that needs no driver.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    unreachable_pub,
    dead_code,
    reason = "a test panics where something is not as expected, reads its own files, and uses a part of the support"
)]

#[path = "api/metrics.rs"]
mod metrics;
#[path = "support/port.rs"]
mod port;
#[path = "api/prometheus.rs"]
mod prometheus;
#[path = "support/registry.rs"]
mod registry;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use stratabd::{
    block::{BlockDevice, BlockQueue},
    frontend::{AttachRequest, Attachment, Detached, FrontendError, Mark, NullFrontend, Stage},
    image::Image,
    offline::{CreateOptions, Upper, create},
    reactor::ReactorHandle,
    server::{
        api::{
            ApiLimits, ApiListener,
            types::{AddDevice, FeatureList, ImageSpec},
        },
        config::Config,
        daemon::{Daemon, DaemonParts},
        device::{Device, Shown},
        failure::Failure,
        port::{KnownDevice, Port},
        service::Service,
        state::StateDir,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};

/// Keeps what was attached, so that it can be read as a frontend would.
struct NullPort(NullFrontend, Mutex<Vec<Arc<Image>>>);

/// The device that somebody seems to have mounted.
const MOUNTED: &str = "/dev/null-13";

impl Port for NullPort {
    fn features(&self) -> Result<FeatureList, Failure> {
        Ok(FeatureList { bits: 0x2, names: vec!["URING_CMD_COMP_IN_TASK".to_owned()] })
    }

    fn attach(
        &self,
        device: &Device,
        request: &AttachRequest,
        reactors: &[ReactorHandle],
    ) -> Result<Box<dyn Attachment>, FrontendError> {
        if let Shown::Image(image) = device.shown() {
            self.1.lock().unwrap().push(Arc::clone(image));
        }
        device.attach_to(&self.0, request, reactors)
    }

    fn take_over(
        &self,
        device: &Device,
        id: u32,
        mark: Option<Mark>,
        reactors: &[ReactorHandle],
        deadline: Duration,
    ) -> Result<Box<dyn Attachment>, FrontendError> {
        device.take_over_with(&self.0, id, mark, reactors, deadline)
    }

    fn known(&self) -> Result<Vec<KnownDevice>, Failure> {
        Ok(Vec::new())
    }

    fn user(&self, path: &Path) -> Option<String> {
        (path == MOUNTED).then(|| "a mount".to_owned())
    }

    fn remove_orphan(&self, _id: u32, _timeout: Duration) -> Result<Detached, Failure> {
        Ok(Detached::Complete)
    }
}

async fn ask(socket: &Path, method: &str, path: &str, body: &Value) -> (u16, String) {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let len = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

fn daemon(dir: &Path) -> Arc<Daemon> {
    start(dir, without_cache()).0
}

fn start(dir: &Path, config: Config) -> (Arc<Daemon>, Arc<Service>, Arc<NullPort>) {
    start_with(dir, config, NullFrontend::new())
}

fn start_with(
    dir: &Path,
    config: Config,
    frontend: NullFrontend,
) -> (Arc<Daemon>, Arc<Service>, Arc<NullPort>) {
    let service = Service::start(config, tokio::runtime::Handle::current(), || Ok(())).unwrap();
    let port = Arc::new(NullPort(frontend, Mutex::default()));
    let parts = DaemonParts { service: Arc::clone(&service), port: Arc::clone(&port) as _ };
    (Daemon::new(parts, StateDir::open(&dir.join("state")).unwrap()), service, port)
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

const READ_BYTES: usize = 64 << 10;

/// Reads the begin of the image that was attached last, as a frontend would.
async fn read_some(service: &Service, port: &NullPort) {
    let image = Arc::clone(port.1.lock().unwrap().last().unwrap());
    let read = service.reactors().one().call(move |reactor| async move {
        let mut bytes = vec![0; READ_BYTES];
        image.open_queue(&reactor).unwrap().read(0, &mut bytes).await.unwrap();
    });
    read.await.unwrap();
}

/// Long enough for a machine under load.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn who_keeps_the_metrics_socket_busy_keeps_nobody_from_the_control_socket() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let listener = ApiListener::bind(&socket, 0o600, Some(([127, 0, 0, 1], 0).into())).await.unwrap();
    let metrics = listener.metrics_address().unwrap();
    let limits = ApiLimits { connections: 1, receive_timeout: 10 * PATIENCE, ..ApiLimits::default() };
    let daemon = daemon(dir.path());
    let serving = tokio::spawn(async move { listener.serve(daemon, limits).await });
    let _silent = [TcpStream::connect(metrics).await.unwrap(), TcpStream::connect(metrics).await.unwrap()];
    for _ in 0..3 {
        let asked = ask(&socket, "GET", "/v1/devices", &Value::Null);
        assert_eq!(tokio::time::timeout(PATIENCE, asked).await.unwrap().0, 200);
    }
    serving.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_its_answer_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let listener = ApiListener::bind(&socket, 0o600, None).await.unwrap();
    let limits =
        ApiLimits { connections: 1, answer_timeout: Duration::from_millis(100), ..ApiLimits::default() };
    let daemon = daemon(dir.path());
    let serving = tokio::spawn(async move { listener.serve(daemon, limits).await });
    // The refusal quotes the key, and is more than a socket holds.
    let body = format!(r#"{{"image":{{"config":"/c"}},"{}":1}}"#, "x".repeat(1 << 20));
    let mut unread = UnixStream::connect(&socket).await.unwrap();
    let head = format!("POST /v1/devices HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    unread.write_all(head.as_bytes()).await.unwrap();
    unread.write_all(body.as_bytes()).await.unwrap();
    let asked = ask(&socket, "GET", "/v1/devices", &Value::Null);
    assert_eq!(tokio::time::timeout(PATIENCE, asked).await.unwrap().0, 200);
    serving.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_in_use_is_removed_only_by_force() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = daemon(dir.path());
    let socket = dir.path().join("s");
    let listener = ApiListener::bind(&socket, 0o600, None).await.unwrap();
    let serving = tokio::spawn(async move { listener.serve(daemon, ApiLimits::default()).await });
    let layer = fixture("lsmt/tiny.lsmt");
    for id in [12, 13] {
        let wanted = json!({"image": {"layers": [layer]}, "id": id});
        assert_eq!(ask(&socket, "POST", "/v1/devices", &wanted).await.0, 201);
    }
    assert_eq!(ask(&socket, "DELETE", "/v1/devices/12", &Value::Null).await.0, 200);
    for path in ["/v1/devices/13", "/v1/devices/13?wait=false"] {
        let (status, body) = ask(&socket, "DELETE", path, &Value::Null).await;
        assert_eq!(status, 409, "{body}");
        assert!(body.contains("--force"), "{body}");
    }
    let (_, info) = ask(&socket, "GET", "/v1/devices/13", &Value::Null).await;
    assert!(info.contains(r#""state":"live""#), "{info}");
    assert_eq!(ask(&socket, "DELETE", "/v1/devices/13?force=true", &Value::Null).await.0, 200);
    serving.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_lives_its_life_through_the_socket() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = daemon(dir.path());
    let socket = dir.path().join("s");
    let listener = ApiListener::bind(&socket, 0o600, None).await.unwrap();
    let serving = tokio::spawn(async move { listener.serve(daemon, ApiLimits::default()).await });

    let layers = json!([fixture("ext4/L0.z4k"), fixture("ext4/L1.zt4k")]);
    let wanted = json!({"image": {"layers": layers}, "id": 5, "queues": 2, "depth": 16});
    let (status, body) = ask(&socket, "POST", "/v1/devices", &wanted).await;
    let added: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(status, 201, "{body}");
    assert_eq!(
        (&added["id"], &added["state"], &added["size_bytes"]),
        (&json!(5), &json!("live"), &json!(1 << 30))
    );
    assert_eq!(
        (&added["queues"], &added["depth"], &added["read_only"]),
        (&json!(2), &json!(16), &json!(true))
    );

    let (status, _) = ask(&socket, "POST", "/v1/devices", &wanted).await;
    assert_eq!(status, 409);
    let (_, body) = ask(&socket, "GET", "/v1/devices/5", &Value::Null).await;
    let info: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(info["layers"].as_array().unwrap().len(), 2, "{body}");
    assert!(info["layers"].to_string().contains("lz4 in blocks of 4096 bytes"), "{body}");
    assert_eq!(info["features"], json!(["NULL"]), "{body}");
    assert_eq!(info["reads"][1], json!({"source": "decoded", "requests": 0, "bytes": 0}), "{body}");
    let (_, body) = ask(&socket, "GET", "/v1/features", &Value::Null).await;
    assert!(body.contains("URING_CMD_COMP_IN_TASK"), "{body}");
    for path in ["/healthz", "/readyz"] {
        let answer = ask(&socket, "GET", path, &Value::Null).await;
        assert_eq!(answer, (200, r#"{"status":"ok","devices":1,"waiting":0}"#.to_owned()), "{path}");
    }
    let (_, metrics) = ask(&socket, "GET", "/metrics", &Value::Null).await;
    for line in [
        "stratabd_devices 1",
        "stratabd_device_reads_total{device=\"5\",source=\"decoded\"} 0",
        "stratabd_reads_total{source=\"registry\"} 0",
        "stratabd_registry_requests_total 0",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
    }
    let (status, _) = ask(&socket, "DELETE", "/v1/devices/5", &Value::Null).await;
    assert_eq!(status, 200);
    let (_, body) = ask(&socket, "GET", "/v1/devices", &Value::Null).await;
    assert_eq!(body, r#"{"devices":[]}"#);
    serving.abort();
    assert!(serving.await.is_err());
    assert!(!socket.exists(), "the socket goes with the listener");
}

const MIB: u64 = 1 << 20;

/// The files of a writable layer of 4 MiB in `dir`, and a configuration that names it.
fn writable(dir: &Path) -> PathBuf {
    let (data, index) = (dir.join("upper.data"), dir.join("upper.index"));
    let config = dir.join("config.v1.json");
    std::fs::write(&config, json!({"upper": {"data": data, "index": index}}).to_string()).unwrap();
    let options = CreateOptions {
        sparse: false,
        virtual_size_bytes: 4 * MIB,
        uuid: None,
        parent_uuid: None,
        ext4: false,
        overwrite: false,
    };
    create(&Upper { data, index: Some(index) }, &options).unwrap();
    config
}

fn without_cache() -> Config {
    let mut config = Config::default();
    config.cache.enabled = false;
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writable_device_grows_through_the_socket_and_comes_back_as_large() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let listener = ApiListener::bind(&socket, 0o600, None).await.unwrap();
    let daemon = daemon(dir.path());
    let serving = tokio::spawn(async move { listener.serve(daemon, ApiLimits::default()).await });
    let wanted = json!({"image": {"config": writable(dir.path())}, "id": 5});
    assert_eq!(ask(&socket, "POST", "/v1/devices", &wanted).await.0, 201);
    let image = json!({"image": {"layers": [fixture("lsmt/tiny.lsmt")]}, "id": 6});
    assert_eq!(ask(&socket, "POST", "/v1/devices", &image).await.0, 201);
    let resize = async |id: u32, size_bytes: u64| {
        let path = format!("/v1/devices/{id}/resize");
        let (status, body) = ask(&socket, "POST", &path, &json!({"size_bytes": size_bytes})).await;
        (status, serde_json::from_str::<Value>(&body).unwrap())
    };
    assert_eq!(resize(6, 8 * MIB).await.0, 409, "an image takes no writes");
    assert_eq!(resize(7, 8 * MIB).await.0, 404);
    for size_bytes in [MIB, 4 * MIB + 1, 1 << 62] {
        assert_eq!(
            resize(5, size_bytes).await.0,
            if size_bytes == 1 << 62 { 422 } else { 400 },
            "{size_bytes}"
        );
    }
    let size = async || {
        let (_, body) = ask(&socket, "GET", "/v1/devices/5", &Value::Null).await;
        serde_json::from_str::<Value>(&body).unwrap()["size_bytes"].clone()
    };
    assert_eq!(size().await, 4 * MIB);
    let (status, info) = resize(5, 8 * MIB).await;
    assert_eq!((status, &info["size_bytes"]), (200, &json!(8 * MIB)));
    assert_eq!(size().await, 8 * MIB);
    assert_eq!(ask(&socket, "GET", "/v1/devices/5/resize", &Value::Null).await.0, 405);
    assert_eq!(ask(&socket, "DELETE", "/v1/devices/5", &Value::Null).await.0, 200);
    assert_eq!(ask(&socket, "POST", "/v1/devices", &wanted).await.0, 201);
    assert_eq!(size().await, 8 * MIB);
    serving.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_that_refuses_leaves_a_larger_layer_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let config = writable(dir.path());
    let frontend = NullFrontend::failing(Stage::Resize);
    let (daemon, ..) = start_with(dir.path(), without_cache(), frontend);
    let image = ImageSpec::Config(config);
    daemon.add(AddDevice { id: Some(5), ..AddDevice::of(image) }).await.unwrap();
    let failure = daemon.resize(5, 8 * MIB).await.unwrap_err();
    assert!(failure.full_text().contains("its layer has 8388608 bytes"), "{}", failure.full_text());
    assert!(failure.full_text().contains("told to fail"), "{}", failure.full_text());
    let header = std::fs::read(dir.path().join("upper.data")).unwrap();
    assert_eq!(header[48..56], (8 * MIB).to_le_bytes());
    daemon.remove(5, true).await.unwrap();
}
