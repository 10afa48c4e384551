//! Devices outlive their daemon, come back to the next one, and are tried again where they cannot.

use super::*;
use crate::server::api::types::{RecoverDevice, Way};

const LIMIT: Duration = Duration::from_secs(10);

/// Waits until the daemon shows this.
async fn until(daemon: &Daemon, expected: &[(u32, DeviceState)]) {
    let began = Instant::now();
    while states(daemon).await != expected {
        assert!(began.elapsed() < LIMIT, "{:?}", states(daemon).await);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_ends_leaves_its_devices_to_the_next_one_which_takes_them_over() {
    let (dir, frontend) = (tempfile::tempdir().unwrap(), NullFrontend::new());
    let first = daemon(dir.path(), frontend.clone(), Vec::new());
    for id in [1, 4] {
        first.add(request(Some(id))).await.unwrap();
    }
    first.drain(LIMIT).await.unwrap();
    drop(first);
    assert_eq!(frontend.waiting(), [1, 4], "they keep their numbers");
    let next = daemon(dir.path(), frontend.clone(), Vec::new());
    next.reattach().await.unwrap();
    assert_eq!(states(&next).await, [(1, DeviceState::Live), (4, DeviceState::Live)]);
    assert!(frontend.waiting().is_empty());
    next.remove(4, true).await.unwrap();
    next.drain(LIMIT).await.unwrap();
    assert_eq!(frontend.waiting(), [1], "what was removed does not wait");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_without_a_successor_removes_its_devices() {
    let (dir, frontend) = (tempfile::tempdir().unwrap(), NullFrontend::new());
    let last = last_daemon(dir.path(), frontend.clone());
    last.add(request(Some(1))).await.unwrap();
    last.drain(LIMIT).await.unwrap();
    assert!(states(&last).await.is_empty() && frontend.waiting().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_cannot_be_taken_over_waits_with_its_reason_holds_up_no_other_and_is_tried_again() {
    let (dir, frontend) = (tempfile::tempdir().unwrap(), NullFrontend::new());
    let first = daemon(dir.path(), frontend.clone(), Vec::new());
    for id in [1, 4] {
        first.add(request(Some(id))).await.unwrap();
    }
    first.drain(LIMIT).await.unwrap();
    drop(first);
    let next = daemon(dir.path(), frontend.failing_from_now_on(Stage::TakeOver, 1), Vec::new());
    next.reattach().await.unwrap();
    let waiting = next.waiting.all();
    assert_eq!(waiting.len(), 1, "one of them fails");
    let health = next.health().await.unwrap();
    assert_eq!((health.status.as_str(), health.devices, health.waiting), ("starting", 1, 1));
    assert!(waiting[0].reason.contains("take over"), "{waiting:?}");
    let shown = next.info(waiting[0].id).await.unwrap();
    let unserved = shown.unserved.unwrap();
    assert!(unserved.way == Way::Daemon && unserved.why.contains("told to fail"), "{unserved:?}");
    until(&next, &[(1, DeviceState::Live), (4, DeviceState::Live)]).await;
    while !next.waiting.all().is_empty() {
        task::yield_now().await;
    }
    let health = next.health().await.unwrap();
    assert_eq!((health.status.as_str(), health.devices, health.waiting), ("ok", 2, 0));
}

/// What has fetched cannot be given back, and its layer cannot be opened twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_whose_take_over_has_not_ended_is_held_until_it_does() {
    let (dir, frontend) = (tempfile::tempdir().unwrap(), NullFrontend::new());
    let state = dir.path().join("state");
    let first = daemon(&state, frontend.clone(), Vec::new());
    first.add(AddDevice { id: Some(1), ..writable::writable(dir.path()) }).await.unwrap();
    first.drain(LIMIT).await.unwrap();
    drop(first);
    let failing = frontend.failing_from_now_on(Stage::Resume, 2);
    let next = daemon(&state, failing, Vec::new());
    next.reattach().await.unwrap();
    let waiting = next.info(1).await.unwrap();
    assert!(waiting.unserved.unwrap().why.contains("refused resume"));
    assert_eq!(waiting.state, DeviceState::Waiting);
    // A second try that somebody asks for, and a third by itself.
    next.recover(1, RecoverDevice::default()).await.unwrap_err();
    until(&next, &[(1, DeviceState::Live)]).await;
    next.remove(1, true).await.unwrap();
    assert!(states(&next).await.is_empty() && frontend.waiting().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_whose_take_over_has_not_ended_can_be_removed() {
    let (dir, frontend) = (tempfile::tempdir().unwrap(), NullFrontend::new());
    let state = dir.path().join("state");
    let first = daemon(&state, frontend.clone(), Vec::new());
    let writable = writable::writable(dir.path());
    first.add(AddDevice { id: Some(1), ..writable.clone() }).await.unwrap();
    first.drain(LIMIT).await.unwrap();
    drop(first);
    let next = daemon(&state, frontend.failing_from_now_on(Stage::Resume, 1000), Vec::new());
    next.reattach().await.unwrap();
    next.remove(1, true).await.unwrap();
    // Nothing of the layer is open any more.
    next.add(AddDevice { id: Some(2), ..writable }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_record_keeps_its_device_waiting_until_it_is_repaired() {
    let (dir, frontend) = (tempfile::tempdir().unwrap(), NullFrontend::new());
    let first = daemon(dir.path(), frontend.clone(), Vec::new());
    first.add(request(Some(1))).await.unwrap();
    first.drain(LIMIT).await.unwrap();
    drop(first);
    let path = dir.path().join("devices/1.json");
    let record = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, "torn").unwrap();
    let next = daemon(dir.path(), frontend, Vec::new());
    next.reattach().await.unwrap();
    let waiting = next.info(1).await.unwrap();
    assert_eq!(waiting.state, DeviceState::Waiting);
    assert!(waiting.unserved.unwrap().why.contains("its record says nothing: it is damaged"));
    std::fs::write(&path, record).unwrap();
    until(&next, &[(1, DeviceState::Live)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_that_a_program_holds_is_tried_again_until_it_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let port = TestPort::new(NullFrontend::new(), Vec::new());
    *port.held.lock().unwrap() = 1;
    let daemon = with_port(dir.path(), Arc::new(port));
    daemon.state.records().save(&Record::new(6, request(Some(6))).in_phase(Phase::Live)).unwrap();
    daemon.reattach().await.unwrap();
    assert_eq!(states(&daemon).await, [(6, DeviceState::Orphan)]);
    until(&daemon, &[(6, DeviceState::Live)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_waits_is_tried_no_more_when_it_has_been_removed() {
    let dir = tempfile::tempdir().unwrap();
    let port = TestPort::new(NullFrontend::new(), Vec::new());
    *port.held.lock().unwrap() = 1;
    let daemon = with_port(dir.path(), Arc::new(port));
    daemon.state.records().save(&Record::new(6, request(Some(6))).in_phase(Phase::Live)).unwrap();
    daemon.reattach().await.unwrap();
    daemon.remove(6, true).await.unwrap();
    while !daemon.waiting.all().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(states(&daemon).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_has_waited_for_as_long_as_it_may_is_removed() {
    let (dir, frontend) = (tempfile::tempdir().unwrap(), NullFrontend::new());
    let first = daemon(dir.path(), frontend.clone(), Vec::new());
    let patient = AddDevice { recovery_timeout_ms: std::num::NonZeroU64::new(50), ..request(Some(1)) };
    first.add(patient).await.unwrap();
    first.drain(LIMIT).await.unwrap();
    drop(first);
    let next = daemon(dir.path(), frontend.failing_from_now_on(Stage::TakeOver, 1000), Vec::new());
    next.reattach().await.unwrap();
    let began = Instant::now();
    while dir.path().join("devices/1.json").exists() {
        assert!(began.elapsed() < LIMIT, "{:?}", next.waiting.all());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    while !next.waiting.all().is_empty() {
        task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_just_tried_is_removed_after_the_try() {
    let dir = tempfile::tempdir().unwrap();
    let port = Arc::new(TestPort::new(NullFrontend::new(), Vec::new()));
    let (sender, gate) = mpsc::channel();
    *port.gate.lock().unwrap() = Some(gate);
    let daemon = with_port(dir.path(), Arc::clone(&port));
    daemon.state.records().save(&Record::new(6, request(Some(6))).in_phase(Phase::Live)).unwrap();
    let trying = Arc::clone(&daemon);
    let trying = task::spawn(async move { trying.reattach().await });
    while port.others.lock().unwrap().is_empty() {
        task::yield_now().await;
    }
    let removing = Arc::clone(&daemon);
    let removing = task::spawn(async move { removing.remove(6, true).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!removing.is_finished(), "{:?}", removing.await);
    sender.send(()).unwrap();
    trying.await.unwrap().unwrap();
    removing.await.unwrap().unwrap();
    assert!(states(&daemon).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_tried_while_its_registry_hangs_is_removed_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let registry = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = registry.local_addr().unwrap();
    let mut config = Config::default();
    config.registry.limits.connect_timeout_ms = 60_000;
    let port = Arc::new(TestPort::new(NullFrontend::new(), Vec::new()));
    let daemon = with_config(dir.path(), port, config);
    let image = ImageSpec::Reference(format!("{address}/a@sha256:{}", "0".repeat(64)));
    daemon.state.records().save(&Record::new(6, AddDevice::of(image)).in_phase(Phase::Live)).unwrap();
    let trying = Arc::clone(&daemon);
    let trying = task::spawn(async move { trying.reattach().await });
    let asking = task::spawn_blocking(move || registry.accept().unwrap());
    let _hanging = asking.await.unwrap();
    let began = Instant::now();
    daemon.remove(6, true).await.unwrap();
    assert!(began.elapsed() < LIMIT, "{:?}", began.elapsed());
    trying.await.unwrap().unwrap();
    assert!(states(&daemon).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_just_being_taken_over_is_shown_with_what_is_known_of_it() {
    let (dir, frontend) = (tempfile::tempdir().unwrap(), NullFrontend::new());
    let state = dir.path().join("state");
    let first = daemon(&state, frontend.clone(), Vec::new());
    let wanted = AddDevice { id: Some(1), ..writable::writable(dir.path()) };
    let image = first.add(wanted).await.unwrap().image;
    first.drain(LIMIT).await.unwrap();
    drop(first);
    let port = Arc::new(TestPort::new(frontend, Vec::new()));
    let (go_on, gate) = mpsc::channel();
    *port.gate.lock().unwrap() = Some(gate);
    let next = with_port(&state, port);
    let coming = task::spawn({
        let next = Arc::clone(&next);
        async move { next.reattach().await }
    });
    until(&next, &[(1, DeviceState::Attaching)]).await;
    let listed = next.list().await.unwrap().remove(0);
    assert_eq!((&listed.path, listed.size_bytes), (&PathBuf::from("/dev/ublkb1"), 4096));
    assert_eq!((&listed.image, &listed.unserved), (&image, &None));
    assert_eq!(next.info(1).await.unwrap(), listed);
    go_on.send(()).unwrap();
    coming.await.unwrap().unwrap();
    until(&next, &[(1, DeviceState::Live)]).await;
}
