//! Devices that are written to: what a removal makes durable, and how it meets snapshots and forks.

use futures_util::FutureExt;

use super::*;
use crate::{
    block::{BlockDevice, BlockQueue},
    offline::{self, CreateOptions, Upper},
    server::{
        api::types::ForkDevice,
        daemon::snapshot::{change_over, next_config, snapshot},
    },
};

/// What makes a device of an empty writable layer in `dir`.
pub(super) fn writable(dir: &Path) -> AddDevice {
    writable_of(dir, 1 << 20)
}

/// The same, of a device of so many bytes.
pub(super) fn writable_of(dir: &Path, virtual_size_bytes: u64) -> AddDevice {
    let upper = Upper { data: dir.join("upper.data"), index: Some(dir.join("upper.index")) };
    let options = CreateOptions {
        sparse: false,
        virtual_size_bytes,
        uuid: None,
        parent_uuid: None,
        ext4: false,
        overwrite: false,
    };
    offline::create(&upper, &options).unwrap();
    let config = dir.join("config.v1.json");
    let text = serde_json::json!({"upper": {"data": upper.data, "index": upper.index}}).to_string();
    std::fs::write(&config, text).unwrap();
    AddDevice { image: ImageSpec::Config(config), ..request(None) }
}

/// The only device of `daemon`.
pub(super) fn only(daemon: &Daemon) -> Arc<Served> {
    daemon.table.served().pop().unwrap()
}

/// Writes a sector, and does not flush.
pub(super) async fn write(served: &Served, sector: u64) {
    let Shown::Overlay(overlay) = served.device.shown().clone() else { panic!("it takes no writes") };
    let writing = served.sealer.call(move |reactor| async move {
        overlay.open_queue(&reactor).unwrap().write(sector * 512, &[7; 512]).await.unwrap();
    });
    writing.await.unwrap();
}

pub(super) fn top_of(served: &Served) -> PathBuf {
    served.device.links().pop().unwrap().name.into()
}

pub(super) fn configuration(dir: &Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(dir.join("config.v1.json")).unwrap()).unwrap()
}

/// Begins to remove the device, and returns when the frontend has let go of it.
async fn begin_removal(
    daemon: &Arc<Daemon>,
    served: &Arc<Served>,
) -> task::JoinHandle<Result<DeviceInfo, Failure>> {
    let (removing, id) = (Arc::clone(daemon), served.info.id);
    let removal = task::spawn(async move { removing.remove(id, true).await });
    while matches!(&*served.presence.lock().unwrap(), Presence::Attached(_)) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    removal
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_made_while_its_layer_is_sealed_writes_to_the_next_one() {
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let daemon = daemon(state.path(), NullFrontend::new(), Vec::new());
    let image = writable(dir.path());
    daemon.add(image.clone()).await.unwrap();
    let served = only(&daemon);
    write(&served, 1).await;
    daemon.remove(0, true).await.unwrap();
    // A snapshot that has outlived the removal has the layer open.
    let adding = Arc::clone(&daemon);
    let adding = task::spawn(async move { adding.add(image).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let next = dir.path().join("next");
    std::fs::create_dir(&next).unwrap();
    let turn = served.snapshotting.lock().await;
    snapshot(&served, SnapshotTarget::Folder(next.clone()), &turn).await.unwrap();
    drop(turn);
    drop(served);
    adding.await.unwrap().unwrap();
    assert_eq!(top_of(&only(&daemon)), next.join("upper.data"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_waits_for_the_snapshot_that_has_begun_and_refuses_the_next() {
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let daemon = daemon(state.path(), NullFrontend::new(), Vec::new());
    daemon.add(writable(dir.path())).await.unwrap();
    let served = only(&daemon);
    let turn = served.snapshotting.lock().await;
    let (snapping, to) = (Arc::clone(&daemon), dir.path().to_owned());
    let next = task::spawn(async move { snapping.snapshot(0, SnapshotTarget::Folder(to)).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let removal = begin_removal(&daemon, &served).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!removal.is_finished(), "it does not wait");
    drop(turn);
    removal.await.unwrap().unwrap();
    assert_eq!(next.await.unwrap().unwrap_err().class(), FailureClass::Conflict);
    assert!(configuration(dir.path())["lowers"].is_null(), "nothing was sealed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_nobody_waits_for_any_more_has_the_device_write_where_the_configuration_says() {
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let daemon = daemon(state.path(), NullFrontend::new(), Vec::new());
    daemon.add(writable(dir.path())).await.unwrap();
    let served = only(&daemon);
    let next = next_config(&served, SnapshotTarget::Beside).await.unwrap();
    let upper = next.upper.data.clone();
    // As at the end of the runtime: it is dropped where it waits.
    assert!(change_over(&served, next).now_or_never().is_none());
    let began = Instant::now();
    while configuration(dir.path())["upper"]["data"] != serde_json::json!(upper) {
        assert!(began.elapsed() < Duration::from_secs(30), "it does not go on");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    write(&served, 1).await;
    assert_eq!(top_of(&served), upper);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_a_layer_that_the_configuration_does_not_name_is_refused() {
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let daemon = daemon(state.path(), NullFrontend::new(), Vec::new());
    daemon.add(writable(dir.path())).await.unwrap();
    let other = dir.path().join("other");
    std::fs::create_dir(&other).unwrap();
    writable(&other);
    let text = configuration(&other).to_string();
    std::fs::write(dir.path().join("config.v1.json"), &text).unwrap();
    let next = dir.path().join("next");
    std::fs::create_dir(&next).unwrap();
    let refused = daemon.snapshot(0, SnapshotTarget::Folder(next.clone())).await.unwrap_err();
    assert!(refused.full_text().contains("its upper is not"), "{}", refused.full_text());
    assert_eq!(configuration(dir.path()).to_string(), text);
    assert!(!next.join("upper.data").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn last_writes_that_are_not_durable_in_time_are_saved_by_the_next_removal() {
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let daemon = daemon(state.path(), NullFrontend::new(), Vec::new());
    let image = writable(dir.path());
    daemon.add(image.clone()).await.unwrap();
    let served = only(&daemon);
    write(&served, 1).await;
    let hung = served.snapshotting.lock().await;
    let leaving = daemon.table.begin_removal(0).unwrap().unwrap();
    let late = daemon.detach(leaving, Duration::from_millis(50), Duration::ZERO).await.unwrap_err();
    assert_eq!(late.class(), FailureClass::TimedOut);
    assert_eq!(states(&daemon).await, [(0, DeviceState::Detaching)]);
    let busy = daemon.add(image.clone()).await.unwrap_err();
    assert_eq!(busy.class(), FailureClass::Conflict, "nobody else has the layer: {}", busy.full_text());
    drop(hung);
    drop(served);
    daemon.remove(0, true).await.unwrap();
    assert!(states(&daemon).await.is_empty());
    assert!(std::fs::metadata(dir.path().join("upper.index")).unwrap().len() > 4096, "its entry is there");
    daemon.add(image).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_the_frontend_fails_saves_the_last_writes() {
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let daemon = daemon(state.path(), NullFrontend::failing(Stage::Detach), Vec::new());
    daemon.add(writable(dir.path())).await.unwrap();
    write(&only(&daemon), 1).await;
    daemon.remove(0, true).await.unwrap_err();
    assert!(std::fs::metadata(dir.path().join("upper.index")).unwrap().len() > 4096, "its entry is there");
    assert_eq!(states(&daemon).await, [(0, DeviceState::Detaching)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_could_not_be_stopped_is_kept_and_removed_by_the_next_removal() {
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let daemon = daemon(state.path(), NullFrontend::failing_times(Stage::Stop, 2), Vec::new());
    daemon.add(writable(dir.path())).await.unwrap();
    for sector in [1, 2] {
        daemon.remove(0, true).await.unwrap_err();
        assert_eq!(states(&daemon).await, [(0, DeviceState::Detaching)]);
        // It is live still, and takes writes.
        write(&only(&daemon), sector).await;
    }
    daemon.remove(0, true).await.unwrap();
    assert!(states(&daemon).await.is_empty());
    assert!(!state.path().join("devices/0.json").exists());
    let index = std::fs::metadata(dir.path().join("upper.index")).unwrap().len();
    assert_eq!(index, 4096 + 2 * 16, "the entries of both writes are there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_stops_again_what_could_not_be_stopped() {
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let daemon = daemon(state.path(), NullFrontend::failing_times(Stage::Stop, 1), Vec::new());
    daemon.add(writable(dir.path())).await.unwrap();
    daemon.remove(0, true).await.unwrap_err();
    daemon.drain(Duration::from_secs(10)).await.unwrap();
    assert!(states(&daemon).await.is_empty());
}

#[tokio::test]
async fn a_layer_file_that_hangs_holds_up_only_who_asks_for_it() {
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let port = Arc::new(TestPort::new(NullFrontend::new(), Vec::new()));
    let daemon = with_port(state.path(), Arc::clone(&port));
    daemon.add(writable(dir.path())).await.unwrap();
    let (answer, hung) = mpsc::channel();
    *port.hung_file.lock().unwrap() = Some(hung);
    // More than there are threads for work on devices.
    let asking = (0..40).map(|_| {
        let asking = Arc::clone(&daemon);
        task::spawn(async move { asking.info(0).await })
    });
    let asking: Vec<_> = asking.collect();
    while port.asked.load(Ordering::Relaxed) < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // The runtime's only thread is free, and nobody else asks for the file.
    daemon.metrics(MetricsDetail::Devices, Exposition::Text).await.unwrap();
    daemon.refuse_in_use(0).await.unwrap();
    let limit = Duration::from_secs(10);
    tokio::time::timeout(limit, daemon.remove(0, true)).await.expect("it waits").unwrap();
    assert!(!asking.iter().any(task::JoinHandle::is_finished));
    drop(answer);
    for asking in asking {
        assert_eq!(asking.await.unwrap().unwrap().layers.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_open_slowly_hold_up_no_snapshot() {
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let daemon = daemon(state.path(), NullFrontend::new(), Vec::new());
    daemon.add(writable(dir.path())).await.unwrap();
    write(&only(&daemon), 1).await;
    // Every thread that opens images is decoding an index that never ends.
    let mut held = Vec::new();
    for _ in 0..8 {
        let (hold, holding) = mpsc::channel::<()>();
        daemon.service.reactors().opener().spawn(move |_| async move {
            let _ = holding.recv_timeout(Duration::from_secs(30));
        });
        held.push(hold);
    }
    let limit = Duration::from_secs(10);
    let target = SnapshotTarget::Folder(dir.path().join("next"));
    tokio::time::timeout(limit, daemon.snapshot(0, target)).await.expect("it waits").unwrap();
    tokio::time::timeout(limit, daemon.resize(0, 2 << 20)).await.expect("it waits").unwrap();
    tokio::time::timeout(limit, daemon.remove(0, true)).await.expect("it waits").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn forks_that_are_made_at_once_share_one_layer() {
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let daemon = daemon(state.path(), NullFrontend::new(), Vec::new());
    daemon.add(writable(dir.path())).await.unwrap();
    write(&only(&daemon), 1).await;
    let forks = (0..8).map(|number| {
        let wanted = ForkDevice { name: format!("fork-{number}"), to: None, id: None };
        daemon.fork(0, wanted)
    });
    for forked in futures_util::future::join_all(forks).await {
        forked.unwrap();
    }
    assert_eq!(
        configuration(dir.path())["lowers"].as_array().unwrap().len(),
        1,
        "only the first had to seal"
    );
    daemon.drain(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_after_a_fork_does_not_lie_in_the_folder_of_the_fork() {
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let daemon = daemon(state.path(), NullFrontend::new(), Vec::new());
    let image = writable(dir.path());
    daemon.add(image.clone()).await.unwrap();
    let first = only(&daemon);
    let forks = tempfile::tempdir().unwrap();
    for name in ["a", "b"] {
        write(&first, 1).await;
        let wanted = ForkDevice { name: name.to_owned(), to: Some(forks.path().to_owned()), id: None };
        let forked = daemon.fork(0, wanted).await.unwrap();
        daemon.remove(forked.id, true).await.unwrap();
    }
    assert_eq!(top_of(&first).parent(), Some(dir.path()));
    drop(first);
    std::fs::remove_dir_all(forks.path()).unwrap();
    daemon.remove(0, true).await.unwrap();
    daemon.add(image).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_that_fails_leaves_no_folder() {
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let daemon = daemon(state.path(), NullFrontend::new(), Vec::new());
    daemon.add(writable(dir.path())).await.unwrap();
    let wanted = |id| ForkDevice { name: "fork".into(), to: None, id };
    assert_eq!(daemon.fork(0, wanted(Some(0))).await.unwrap_err().class(), FailureClass::Conflict);
    assert!(!dir.path().join("fork").exists());
    daemon.fork(0, wanted(None)).await.unwrap();
    assert_eq!(daemon.fork(0, wanted(None)).await.unwrap_err().class(), FailureClass::Conflict);
    assert!(dir.path().join("fork/config.v1.json").exists(), "it is that of another fork");
}

#[test]
fn a_fork_that_the_daemons_end_cuts_off_leaves_no_folder() {
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (attached, gate) = mpsc::channel();
    runtime.block_on(async {
        let port = Arc::new(TestPort::new(NullFrontend::new(), Vec::new()));
        let daemon = with_port(state.path(), Arc::clone(&port) as _);
        daemon.add(writable(dir.path())).await.unwrap();
        *port.gate.lock().unwrap() = Some(gate);
        let wanted = ForkDevice { name: "fork".into(), to: None, id: None };
        task::spawn(async move { daemon.fork(0, wanted).await });
        while port.others.lock().unwrap().is_empty() {
            task::yield_now().await;
        }
    });
    assert!(dir.path().join("fork/config.v1.json").exists());
    runtime.shutdown_background();
    let began = Instant::now();
    while dir.path().join("fork").exists() {
        assert!(began.elapsed() < Duration::from_secs(30), "it is left");
        std::thread::yield_now();
    }
    attached.send(()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_of_a_device_whose_configuration_became_another_is_refused() {
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let daemon = daemon(state.path(), NullFrontend::new(), Vec::new());
    daemon.add(writable(dir.path())).await.unwrap();
    let config = dir.path().join("config.v1.json");
    let own = configuration(dir.path());
    let mut larger = own.clone();
    larger["lowers"] = serde_json::json!([{ "file": dir.path().join("upper.data") }]);
    let other = serde_json::json!({ "upper": { "data": "/elsewhere/data", "index": "/elsewhere/index" } });
    for changed in [larger, other] {
        std::fs::write(&config, changed.to_string()).unwrap();
        let wanted = ForkDevice { name: "fork".into(), to: None, id: None };
        let refused = daemon.fork(0, wanted).await.unwrap_err();
        assert!(refused.full_text().contains("the device"), "{}", refused.full_text());
        assert!(!dir.path().join("fork").exists());
    }
    std::fs::write(&config, own.to_string()).unwrap();
    daemon.fork(0, ForkDevice { name: "fork".into(), to: None, id: None }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upper_of_a_device_that_is_not_made_leaves_no_folder_that_ties_the_next_to_its_image() {
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let wanted = AddDevice { upper: Some(dir.path().join("new/box")), ..request(None) };
    let failing = daemon(state.path(), NullFrontend::failing(Stage::Attach), Vec::new());
    failing.add(wanted.clone()).await.unwrap_err();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    drop(failing);
    let working = daemon(state.path(), NullFrontend::new(), Vec::new());
    working.add(wanted.clone()).await.unwrap();
    assert_eq!(working.add(wanted).await.unwrap_err().class(), FailureClass::Conflict);
    assert!(dir.path().join("new/box/config.v1.json").exists(), "it is that of another device");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_refused_a_path_that_the_daemon_would_look_for_elsewhere() {
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let daemon = daemon(state.path(), NullFrontend::new(), Vec::new());
    daemon.add(writable(dir.path())).await.unwrap();
    for target in [SnapshotTarget::Folder("next".into()), SnapshotTarget::Config("next.json".into())] {
        let refused = daemon.snapshot(0, target).await.unwrap_err();
        assert_eq!(refused.class(), FailureClass::Usage, "{}", refused.full_text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_size_that_the_kernel_refuses_is_the_layers_all_the_same() {
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let daemon = daemon(state.path(), NullFrontend::failing(Stage::Resize), Vec::new());
    daemon.add(writable(dir.path())).await.unwrap();
    let refused = daemon.resize(0, 2 << 20).await.unwrap_err();
    assert!(
        refused.full_text().contains("device 0 is as it was; its layer has 2097152 bytes"),
        "{refused:?}"
    );
    assert_eq!(daemon.info(0).await.unwrap().size_bytes, 2 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_of_a_device_that_takes_no_writes_waits_for_no_fork() {
    let state = tempfile::tempdir().unwrap();
    let daemon = daemon(state.path(), NullFrontend::new(), Vec::new());
    daemon.add(request(None)).await.unwrap();
    let served = only(&daemon);
    let _fork = served.snapshotting.lock().await;
    let removal = tokio::time::timeout(Duration::from_secs(5), daemon.remove(0, true)).await;
    removal.expect("it waits").unwrap();
}
