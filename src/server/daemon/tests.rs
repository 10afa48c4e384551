//! Devices come, are listed and go, with a frontend that needs no driver.

#[expect(clippy::cast_possible_truncation, reason = "tests run where usize has 64 bits")]
mod deaths;
#[expect(clippy::cast_possible_truncation, reason = "tests run where usize has 64 bits")]
mod merges;
mod private;
mod records;
mod recover;
mod resume;
mod stale;
mod writable;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use super::{served::Presence, *};
use crate::{
    frontend::{AttachRequest, Attachment, Detached, FrontendError, Mark, NullFrontend, Stage},
    reactor::ReactorHandle,
    server::{
        api::types::ImageSpec,
        device::{Device, Shown},
        port::KnownDevice,
        upper_folder,
    },
};

/// A driver that has devices of its own besides those that are attached through it.
struct TestPort {
    frontend: NullFrontend,
    others: Mutex<Vec<KnownDevice>>,
    /// Makes the next attach wait, with its device known to the kernel as number 0, or the next take-over.
    gate: Mutex<Option<mpsc::Receiver<()>>>,
    /// How often an orphan is found to be held open.
    held: Mutex<u32>,
    /// Makes the next removal of an orphan wait.
    clearing: Mutex<Option<mpsc::Receiver<()>>>,
    /// Makes questions for the room of a file wait, and counts them.
    hung_file: Mutex<Option<mpsc::Receiver<()>>>,
    asked: AtomicUsize,
}

/// Waits as told, and not for ever: a test that fails is to end.
fn hang(gate: &Mutex<Option<mpsc::Receiver<()>>>) {
    let gate = gate.lock().unwrap().take();
    gate.map(|gate| gate.recv_timeout(Duration::from_secs(30)));
}

impl TestPort {
    fn new(frontend: NullFrontend, others: Vec<KnownDevice>) -> Self {
        Self {
            frontend,
            others: Mutex::new(others),
            gate: Mutex::default(),
            held: Mutex::default(),
            clearing: Mutex::default(),
            hung_file: Mutex::default(),
            asked: AtomicUsize::new(0),
        }
    }
}

impl Port for TestPort {
    fn features(&self) -> Result<FeatureList, Failure> {
        Ok(FeatureList { bits: 2, names: vec!["X".to_owned()] })
    }

    fn attach(
        &self,
        device: &Device,
        request: &AttachRequest,
        reactors: &[ReactorHandle],
    ) -> Result<Box<dyn Attachment>, FrontendError> {
        let gate = self.gate.lock().unwrap().take();
        if let Some(gate) = gate {
            self.others.lock().unwrap().push(known(0, i32::try_from(std::process::id()).ok()));
            let _ = gate.recv();
            self.others.lock().unwrap().clear();
        }
        device.attach_to(&self.frontend, request, reactors)
    }

    fn take_over(
        &self,
        device: &Device,
        id: u32,
        mark: Option<Mark>,
        reactors: &[ReactorHandle],
        deadline: Duration,
    ) -> Result<Box<dyn Attachment>, FrontendError> {
        hang(&self.gate);
        device.take_over_with(&self.frontend, id, mark, reactors, deadline)
    }

    fn known(&self) -> Result<Vec<KnownDevice>, Failure> {
        let waiting = self.frontend.waiting().into_iter();
        let waiting = waiting.map(|id| KnownDevice {
            recoverable: true,
            waits: true,
            mark: self.frontend.mark(id),
            ..known(id, None)
        });
        Ok(self.others.lock().unwrap().iter().cloned().chain(waiting).collect())
    }

    fn user(&self, _path: &Path) -> Option<String> {
        None
    }

    fn stored_bytes(&self, _path: &Path) -> u64 {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let gate = self.hung_file.lock().unwrap();
        gate.as_ref().map(|gate| gate.recv_timeout(Duration::from_secs(30)));
        4096
    }

    fn remove_orphan(&self, id: u32, _timeout: Duration) -> Result<Detached, Failure> {
        hang(&self.clearing);
        let mut held = self.held.lock().unwrap();
        if *held > 0 {
            *held -= 1;
            return Ok(Detached::HeldOpen);
        }
        self.others.lock().unwrap().retain(|device| device.id != id);
        Ok(Detached::Complete)
    }
}

fn known(id: u32, server_pid: Option<i32>) -> KnownDevice {
    KnownDevice {
        id,
        path: format!("/dev/ublkb{id}").into(),
        size_bytes: 4096,
        logical_block_bytes: 512,
        read_only: true,
        queues: 1,
        depth: 1,
        server_pid,
        is_unstarted: false,
        recoverable: false,
        waits: false,
        mark: None,
    }
}

fn daemon(state: &Path, frontend: NullFrontend, others: Vec<KnownDevice>) -> Arc<Daemon> {
    with_port(state, Arc::new(TestPort::new(frontend, others)))
}

fn with_port(state: &Path, port: Arc<TestPort>) -> Arc<Daemon> {
    with_config(state, port, Config::default())
}

/// A daemon that has no successor.
fn last_daemon(state: &Path, frontend: NullFrontend) -> Arc<Daemon> {
    let mut config = Config::default();
    config.daemon.reattach = false;
    with_config(state, Arc::new(TestPort::new(frontend, Vec::new())), config)
}

fn with_config(state: &Path, port: Arc<TestPort>, mut config: Config) -> Arc<Daemon> {
    config.cache.enabled = false;
    config.reactors.threads = 2;
    let runtime = tokio::runtime::Handle::current();
    let service = Service::start(config, runtime, || Ok(())).unwrap();
    Daemon::new(DaemonParts { service, port }, StateDir::open(state).unwrap())
}

/// A daemon whose driver is making a device, until something is sent.
async fn daemon_making_a_device(
    state: &Path,
) -> (Arc<Daemon>, mpsc::Sender<()>, task::JoinHandle<Result<DeviceInfo, Failure>>) {
    let (sender, gate) = mpsc::channel();
    let port = TestPort::new(NullFrontend::new(), Vec::new());
    *port.gate.lock().unwrap() = Some(gate);
    let port = Arc::new(port);
    let daemon = with_port(state, Arc::clone(&port));
    let adding = Arc::clone(&daemon);
    let adding = task::spawn(async move { adding.add(request(None)).await });
    while port.others.lock().unwrap().is_empty() {
        task::yield_now().await;
    }
    (daemon, sender, adding)
}

fn request(id: Option<u32>) -> AddDevice {
    let layer = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/lsmt/tiny.lsmt");
    AddDevice { id, queues: Some(2), ..AddDevice::of(ImageSpec::Layers(vec![layer])) }
}

async fn states(daemon: &Daemon) -> Vec<(u32, DeviceState)> {
    daemon.list().await.unwrap().into_iter().map(|info| (info.id, info.state)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_is_made_listed_and_removed_and_leaves_no_record() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = daemon(dir.path(), NullFrontend::new(), Vec::new());
    let added = daemon.add(request(None)).await.unwrap();
    assert_eq!((added.id, added.queues, added.state), (0, 2, DeviceState::Live));
    let info = daemon.info(0).await.unwrap();
    assert_eq!(info.layers.len(), 1);
    assert!(dir.path().join("devices/0.json").exists());
    assert_eq!(states(&daemon).await, [(0, DeviceState::Live)]);
    let totals = daemon.metrics(MetricsDetail::Totals, Exposition::Text).await.unwrap();
    assert!(
        totals.contains("stratabd_devices 1\n") && totals.contains("stratabd_read_duration_seconds_bucket")
    );
    let of_one = "stratabd_device_read_duration_seconds_bucket{";
    assert!(!totals.contains(of_one), "{totals}");
    let devices = daemon.metrics(MetricsDetail::Devices, Exposition::Text).await.unwrap();
    assert!(devices.contains(of_one), "{devices}");
    daemon.remove(0, true).await.unwrap();
    assert!(states(&daemon).await.is_empty());
    assert!(!dir.path().join("devices/0.json").exists());
    assert_eq!(daemon.remove(0, true).await.unwrap_err().class(), FailureClass::NotFound);
    assert_eq!(daemon.info(0).await.unwrap_err().class(), FailureClass::NotFound);
}

#[tokio::test]
async fn a_state_directory_that_hangs_holds_up_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = daemon(dir.path(), NullFrontend::new(), Vec::new());
    // Who reads it waits for a writer, who comes when the runtime's thread was seen to be free, or after a while.
    let fifo = dir.path().join("devices/3.json");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let (free, is_free) = mpsc::channel::<()>();
    let writer = std::thread::spawn(move || {
        let _ = is_free.recv_timeout(Duration::from_secs(10));
        std::fs::File::options().write(true).open(fifo).map(drop)
    });
    let began = Instant::now();
    let listed = tokio::time::timeout(Duration::from_millis(50), daemon.list()).await;
    let waited = began.elapsed();
    drop(free);
    writer.join().unwrap().unwrap();
    assert!(listed.is_err(), "the record was not read");
    assert!(waited < Duration::from_secs(5), "the runtime's only thread has waited {waited:?} for a file");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_devices_of_one_image_share_it() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = daemon(dir.path(), NullFrontend::new(), Vec::new());
    let (first, second) = tokio::join!(daemon.add(request(None)), daemon.add(request(None)));
    assert_ne!(first.unwrap().id, second.unwrap().id);
    let served = daemon.table.served();
    assert!(Arc::ptr_eq(served[0].device.image().unwrap(), served[1].device.image().unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_is_given_once_and_a_bad_request_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = daemon(dir.path(), NullFrontend::new(), Vec::new());
    daemon.add(request(Some(7))).await.unwrap();
    assert_eq!(daemon.add(request(Some(7))).await.unwrap_err().class(), FailureClass::Conflict);
    let relative = AddDevice { image: ImageSpec::Config("c.json".into()), ..request(None) };
    assert_eq!(daemon.add(relative).await.unwrap_err().class(), FailureClass::Usage);
    let missing = AddDevice { image: ImageSpec::Config("/nowhere/c.json".into()), ..request(Some(8)) };
    assert_eq!(daemon.add(missing).await.unwrap_err().class(), FailureClass::NotFound);
    let shallow = AddDevice { depth: Some(0), ..request(None) };
    assert_eq!(daemon.add(shallow).await.unwrap_err().class(), FailureClass::Usage);
    assert_eq!(states(&daemon).await, [(7, DeviceState::Live)], "nothing is left of those that failed");
    daemon.add(request(Some(8))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn orphans_can_be_removed_and_devices_of_other_processes_cannot() {
    let dir = tempfile::tempdir().unwrap();
    let others = vec![known(3, None), known(4, Some(1))];
    let daemon = daemon(dir.path(), NullFrontend::new(), others);
    daemon.state.records().save(&Record::new(9, request(Some(9))).in_phase(Phase::Live)).unwrap();
    let expected = [(3, DeviceState::Orphan), (4, DeviceState::Foreign), (9, DeviceState::Orphan)];
    assert_eq!(states(&daemon).await, expected);
    daemon.remove(3, true).await.unwrap();
    daemon.remove(9, true).await.unwrap();
    assert_eq!(daemon.remove(4, true).await.unwrap_err().class(), FailureClass::Conflict);
    assert_eq!(states(&daemon).await, [(4, DeviceState::Foreign)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_being_made_is_no_orphan() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, made, adding) = daemon_making_a_device(dir.path()).await;
    assert_eq!(states(&daemon).await, [(0, DeviceState::Attaching)]);
    let hunted = daemon.remove(0, true).await.unwrap_err();
    assert_eq!(hunted.class(), FailureClass::Conflict, "{}", hunted.full_text());
    made.send(()).unwrap();
    adding.await.unwrap().unwrap();
    assert_eq!(states(&daemon).await, [(0, DeviceState::Live)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_another_process_is_about_to_start_is_looked_at_twice() {
    let dir = tempfile::tempdir().unwrap();
    let unstarted = |id| KnownDevice { is_unstarted: true, ..known(id, None) };
    let port = Arc::new(TestPort::new(NullFrontend::new(), vec![unstarted(3), unstarted(4)]));
    let daemon = with_port(dir.path(), Arc::clone(&port));
    let hunter = Arc::clone(&daemon);
    let hunt = task::spawn(async move { tokio::join!(hunter.remove(3, true), hunter.remove(4, true)) });
    tokio::time::sleep(Duration::from_millis(50)).await;
    port.others.lock().unwrap()[0] = known(3, Some(1));
    let (started, left) = hunt.await.unwrap();
    assert_eq!(started.unwrap_err().class(), FailureClass::Conflict);
    assert_eq!(left.unwrap().id, 4);
    assert_eq!(states(&daemon).await, [(3, DeviceState::Foreign)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_made_while_the_daemon_drains_goes_again() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, made, adding) = daemon_making_a_device(dir.path()).await;
    let draining = Arc::clone(&daemon);
    let drain = task::spawn(async move { draining.drain(Duration::from_secs(10)).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!drain.is_finished(), "it does not wait for the device");
    made.send(()).unwrap();
    drain.await.unwrap().unwrap();
    assert_eq!(adding.await.unwrap().unwrap_err().class(), FailureClass::Conflict);
    assert_eq!(daemon.add(request(Some(5))).await.unwrap_err().class(), FailureClass::Conflict);
    assert!(states(&daemon).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_that_another_process_has_is_passed_over() {
    let frontend = NullFrontend::new();
    let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let [first, second, third] = dirs.each_ref().map(|dir| daemon(dir.path(), frontend.clone(), Vec::new()));
    // One that the kernel does not list, as a program holds it, and then one that it does.
    assert_eq!(first.add(request(None)).await.unwrap().id, 0);
    assert_eq!(second.add(request(None)).await.unwrap().id, 1);
    drop(third);
    let listing =
        daemon(dirs[2].path(), frontend, vec![known(0, Some(1)), known(1, Some(1)), known(2, Some(1))]);
    assert_eq!(listing.add(request(None)).await.unwrap().id, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_removal_of_an_orphan_that_hangs_holds_up_no_device() {
    let dir = tempfile::tempdir().unwrap();
    let port = Arc::new(TestPort::new(NullFrontend::new(), vec![known(0, None)]));
    let (cleared, gate) = mpsc::channel();
    *port.clearing.lock().unwrap() = Some(gate);
    let daemon = with_port(dir.path(), Arc::clone(&port));
    let hunter = Arc::clone(&daemon);
    let hunt = task::spawn(async move { hunter.remove(0, true).await });
    while port.clearing.lock().unwrap().is_some() {
        task::yield_now().await;
    }
    let added = tokio::time::timeout(Duration::from_secs(10), daemon.add(request(None))).await;
    assert_eq!(added.expect("it waits").unwrap().id, 1, "the number is not free yet");
    let same = daemon.add(request(Some(0))).await.unwrap_err();
    assert_eq!(same.class(), FailureClass::Conflict);
    assert_eq!(daemon.remove(0, true).await.unwrap_err().class(), FailureClass::Conflict);
    assert_eq!(states(&daemon).await, [(0, DeviceState::Orphan), (1, DeviceState::Live)]);
    cleared.send(()).unwrap();
    hunt.await.unwrap().unwrap();
    assert_eq!(daemon.add(request(None)).await.unwrap().id, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_daemon_attaches_what_the_last_one_had_unless_another_process_serves_it() {
    let dir = tempfile::tempdir().unwrap();
    let first = daemon(dir.path(), NullFrontend::new(), Vec::new());
    for id in [1, 2, 5] {
        first.add(request(Some(id))).await.unwrap();
    }
    let marked = |device: KnownDevice| {
        let stored = first.state.records().one(device.id).unwrap();
        KnownDevice { mark: stored.record.unwrap().mark, ..device }
    };
    let others = vec![marked(known(2, Some(1))), marked(known(5, None))];
    drop(first);
    let next = daemon(dir.path(), NullFrontend::new(), others);
    next.reattach().await.unwrap();
    let expected = [(1, DeviceState::Live), (2, DeviceState::Foreign), (5, DeviceState::Live)];
    assert_eq!(states(&next).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_removes_all_devices_and_says_what_it_could_not() {
    let dir = tempfile::tempdir().unwrap();
    let limit = Duration::from_secs(10);
    let good = last_daemon(dir.path(), NullFrontend::new());
    good.add(request(None)).await.unwrap();
    good.add(request(None)).await.unwrap();
    good.drain(limit).await.unwrap();
    assert!(states(&good).await.is_empty());
    drop(good);
    let bad = last_daemon(dir.path(), NullFrontend::failing(Stage::Detach));
    bad.add(request(Some(6))).await.unwrap();
    let failure = bad.drain(limit).await.unwrap_err();
    assert!(failure.full_text().contains('6'), "{failure:?}");
    assert_eq!(states(&bad).await, [(6, DeviceState::Orphan)], "its record stays");
}
