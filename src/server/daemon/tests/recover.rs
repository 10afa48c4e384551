//! Devices that other processes have left are served on by who is told to, or removed.

use super::*;
use crate::server::{
    api::types::{RecoverDevice, Way},
    foreground::Foreground,
    state::ForegroundRecords,
};

const LIMIT: Duration = Duration::from_secs(10);

/// What a daemon whose state directory is `dir` leaves: devices 3 and 4, which wait, and their records.
async fn left_by_another(dir: &Path, frontend: &NullFrontend) {
    let other = daemon(dir, frontend.clone(), Vec::new());
    for id in [3, 4] {
        other.add(request(Some(id))).await.unwrap();
    }
    other.drain(LIMIT).await.unwrap();
}

/// Makes the record of device `id` that of a process which served it alone, in the state directory `to`.
fn served_alone(from: &Path, to: &Path, id: u32) -> ForegroundRecords {
    let state = StateDir::open(from).unwrap();
    let record = state.records().one(id).unwrap().record.unwrap();
    let foreground = ForegroundRecords::open(to).unwrap();
    foreground.records().create(&record).unwrap();
    state.records().forget(id).unwrap();
    foreground
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_of_a_dead_daemon_with_another_state_directory_is_served_on() {
    let (dir, frontend) = (tempfile::tempdir().unwrap(), NullFrontend::new());
    let [own, others] = ["own", "others"].map(|name| dir.path().join(name));
    left_by_another(&others, &frontend).await;
    let daemon = daemon(&own, frontend.clone(), Vec::new());
    assert_eq!(states(&daemon).await, [(3, DeviceState::Orphan), (4, DeviceState::Orphan)]);
    let unserved = daemon.info(3).await.unwrap().unserved.unwrap();
    assert_eq!(unserved.way, Way::Delete, "there is no record here: {unserved:?}");
    let wanted = RecoverDevice { state_dir: Some(others.clone()) };
    let recovered = daemon.recover(3, wanted.clone()).await.unwrap();
    assert_eq!((recovered.id, recovered.state), (3, DeviceState::Live));
    assert!(!others.join("devices/3.json").exists() && own.join("devices/3.json").exists());
    assert_eq!(daemon.recover(3, wanted.clone()).await.unwrap_err().class(), FailureClass::Conflict);
    let own_dir = daemon.recover(4, RecoverDevice::default()).await.unwrap_err();
    assert_eq!(own_dir.class(), FailureClass::NotFound, "{}", own_dir.full_text());
    // As long as a daemon has them, they are its own.
    let _living = StateDir::open(&others).unwrap();
    let theirs = daemon.recover(4, wanted).await.unwrap_err();
    assert_eq!(theirs.class(), FailureClass::Conflict, "{}", theirs.full_text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_a_dead_process_served_alone_is_served_on_or_removed() {
    let (dir, frontend) = (tempfile::tempdir().unwrap(), NullFrontend::new());
    let [own, others] = ["own", "others"].map(|name| dir.path().join(name));
    left_by_another(&others, &frontend).await;
    let foreground = served_alone(&others, &own, 3);
    served_alone(&others, &own, 4);
    let daemon = daemon(&own, frontend.clone(), Vec::new());
    daemon.reattach().await.unwrap();
    for id in [3, 4] {
        let info = daemon.info(id).await.unwrap();
        assert_eq!((info.state, info.unserved.unwrap().way), (DeviceState::Orphan, Way::Recover));
    }
    let living = foreground.lock(3).unwrap();
    assert_eq!(
        daemon.recover(3, RecoverDevice::default()).await.unwrap_err().class(),
        FailureClass::Conflict
    );
    drop(living);
    daemon.recover(3, RecoverDevice::default()).await.unwrap();
    daemon.remove(4, true).await.unwrap();
    assert_eq!(std::fs::read_dir(own.join("foreground")).unwrap().count(), 0, "record or lock is left");
    assert_eq!(daemon.info(3).await.unwrap().state, DeviceState::Live);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_serves_a_device_alone_leaves_a_record_only_when_it_dies() {
    let (dir, frontend) = (tempfile::tempdir().unwrap(), NullFrontend::new());
    let mut config = Config::default();
    config.cache.enabled = false;
    config.reactors.threads = 1;
    config.daemon.state_dir = dir.path().to_owned();
    let service = Service::start(config, tokio::runtime::Handle::current(), || Ok(())).unwrap();
    let port: Arc<dyn Port> = Arc::new(TestPort::new(frontend.clone(), Vec::new()));
    let wanted = request(None);
    let there = || std::fs::read_dir(dir.path().join("foreground")).unwrap().count();
    let attach = || Foreground::attach(&service, Arc::clone(&port), &wanted, std::future::pending());
    let recover = || Foreground::recover(&service, Arc::clone(&port), 0, None);
    let first = attach().await.unwrap();
    let second = attach().await.unwrap();
    assert_eq!((first.info().id, second.info().id, there()), (0, 1, 4), "a record and a lock each");
    second.detach(LIMIT).await.unwrap();
    assert_eq!(there(), 2);
    let lives = recover().await.err().unwrap();
    assert_eq!(lives.class(), FailureClass::Conflict, "{}", lives.full_text());
    // As its death: nobody serves it, and nobody has the lock.
    first.served.leave(LIMIT).await.unwrap();
    drop(first);
    assert_eq!((frontend.waiting(), there()), (vec![0], 1));
    let again = recover().await.unwrap();
    assert_eq!((again.info().id, there()), (0, 2));
    again.detach(LIMIT).await.unwrap();
    assert_eq!(there(), 0);
    assert_eq!(recover().await.err().unwrap().class(), FailureClass::NotFound);
}
