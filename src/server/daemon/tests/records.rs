//! The record of a device says before each step what the next process needs to know, wherever this one ends.

use std::{fs, num::NonZeroU64};

use super::*;
use crate::server::api::types::{RecoverDevice, SetDevice, Way};

fn path_of(dir: &Path, id: u32) -> PathBuf {
    dir.join(format!("devices/{id}.json"))
}

fn record(dir: &Path, id: u32) -> Record {
    Record::decode(fs::read_to_string(path_of(dir, id)).unwrap().as_bytes()).unwrap()
}

/// A state directory in which a daemon has left `records`, and the next one, with what the kernel has.
fn after_a_crash(dir: &Path, records: &[Record], others: Vec<KnownDevice>) -> Arc<Daemon> {
    let daemon = daemon(dir, NullFrontend::new(), others);
    records.iter().for_each(|record| daemon.state.records().save(record).unwrap());
    daemon
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_is_there_before_the_driver_is_asked_and_says_what_was_granted_after() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, made, adding) = daemon_making_a_device(dir.path()).await;
    let making = record(dir.path(), 0);
    assert_eq!((making.phase, making.request.id, making.granted), (Phase::Making, Some(0), None));
    made.send(()).unwrap();
    adding.await.unwrap().unwrap();
    let live = record(dir.path(), 0);
    let granted = live.granted.unwrap();
    assert_eq!((live.phase, granted.queues, granted.read_only), (Phase::Live, 2, true));
    daemon.remove(0, true).await.unwrap();
    assert_eq!(fs::read_dir(dir.path().join("devices")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_cannot_be_made_leaves_no_record_and_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = daemon(&dir.path().join("state"), NullFrontend::failing(Stage::Attach), Vec::new());
    let upper = dir.path().join("boxes/a");
    daemon.add(AddDevice { upper: Some(upper), ..request(None) }).await.unwrap_err();
    let missing = AddDevice { image: ImageSpec::Config("/nowhere/c.json".into()), ..request(Some(8)) };
    daemon.add(missing).await.unwrap_err();
    assert_eq!(fs::read_dir(dir.path().join("state/devices")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "the folder is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_half_made_or_half_removed_is_gone_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, state) = (dir.path().join("boxes/a"), dir.path().join("state"));
    let mut making = Record::new(1, AddDevice { upper: Some(folder.clone()), ..request(Some(1)) });
    making.unfinished = upper_folder::planned(&folder);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("upper.data"), "half").unwrap();
    let records = [
        making,
        Record::new(2, request(Some(2))),
        Record::new(3, request(Some(3))).in_phase(Phase::Leaving),
        Record::new(4, request(Some(4))).in_phase(Phase::Leaving),
    ];
    let unstarted = |id| KnownDevice { is_unstarted: true, ..known(id, None) };
    let waiting = KnownDevice { recoverable: true, waits: true, ..known(3, None) };
    let daemon = after_a_crash(&state, &records, vec![unstarted(1), waiting]);
    daemon.reattach().await.unwrap();
    assert_eq!(states(&daemon).await, []);
    assert_eq!(fs::read_dir(state.join("devices")).unwrap().count(), 0);
    assert!(!dir.path().join("boxes").exists());
}

/// Where two devices were made with the same folder, the one that lost says nothing of the other's files.
#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_another_device_has_by_now_is_not_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, state) = (dir.path().join("box"), dir.path().join("state"));
    let request = |id| AddDevice { upper: Some(folder.clone()), ..request(Some(id)) };
    let mut making = Record::new(1, request(1));
    making.unfinished = upper_folder::planned(&folder);
    let daemon = after_a_crash(&state, &[], Vec::new());
    daemon.add(request(2)).await.unwrap();
    drop(daemon);
    let daemon = after_a_crash(&state, &[making], Vec::new());
    daemon.reattach().await.unwrap();
    assert_eq!(states(&daemon).await, [(2, DeviceState::Live)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_device_of_a_newer_daemon_is_neither_attached_nor_removed_nor_is_its_number_given_away() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = after_a_crash(dir.path(), &[], vec![known(0, None)]);
    let mut newer = serde_json::to_value(Record::new(0, request(Some(0)))).unwrap();
    newer["readable_by"] = 9.into();
    for id in [0, 1] {
        fs::write(path_of(dir.path(), id), newer.to_string()).unwrap();
    }
    fs::write(path_of(dir.path(), 2), "torn").unwrap();
    daemon.reattach().await.unwrap();
    let expected = [(0, DeviceState::Waiting), (1, DeviceState::Waiting), (2, DeviceState::Orphan)];
    assert_eq!(states(&daemon).await, expected);
    for id in [0, 1] {
        assert_eq!(daemon.remove(id, true).await.unwrap_err().class(), FailureClass::Conflict);
        assert_eq!(daemon.add(request(Some(id))).await.unwrap_err().class(), FailureClass::Conflict);
        let recovered = daemon.recover(id, RecoverDevice::default()).await.unwrap_err();
        assert!(recovered.full_text().contains("it is a newer stratabd's"), "{recovered:?}");
    }
    assert_eq!(daemon.add(request(None)).await.unwrap().id, 3);
    daemon.remove(2, true).await.unwrap();
    assert_eq!(fs::read_to_string(path_of(dir.path(), 1)).unwrap(), newer.to_string());
}

/// A reboot, or a driver that was loaded anew, gives numbers away again, and two daemons may have one in their records.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_with_another_mark_is_neither_taken_over_nor_removed_and_holds_the_number_until_it_has_gone()
{
    let dir = tempfile::tempdir().unwrap();
    let records = [
        Record::new(1, request(Some(1))).marked().in_phase(Phase::Live),
        Record::new(2, request(Some(2))).marked(),
        Record::new(3, request(Some(3))).marked().in_phase(Phase::Live),
    ];
    let others = [1, 2, 3].map(|id| KnownDevice { recoverable: true, waits: true, ..known(id, None) });
    let port = Arc::new(TestPort::new(NullFrontend::new(), others.to_vec()));
    let daemon = with_port(dir.path(), Arc::clone(&port));
    records.iter().for_each(|record| daemon.state.records().save(record).unwrap());
    daemon.reattach().await.unwrap();
    let shown = daemon.info(1).await.unwrap();
    let unserved = shown.unserved.unwrap();
    let marks = format!(
        "device 1 is another one: the kernel has it with no mark, its record with mark {}",
        records[0].mark.unwrap()
    );
    assert!(unserved.way == Way::Daemon && unserved.why.contains(&marks), "{unserved:?}");
    assert!(!path_of(dir.path(), 2).exists(), "it was half made, and nothing of it is there");
    daemon.remove(1, true).await.unwrap();
    assert!(!path_of(dir.path(), 1).exists());
    assert_eq!(*port.others.lock().unwrap(), others, "they are as they were");
    port.others.lock().unwrap().clear();
    let began = Instant::now();
    while states(&daemon).await != [(3, DeviceState::Live)] {
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", daemon.waiting.all());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(record(dir.path(), 3).mark, records[2].mark);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_has_begun_is_known_to_the_next_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let first = daemon(dir.path(), NullFrontend::failing(Stage::Stop), Vec::new());
    first.add(request(Some(4))).await.unwrap();
    first.remove(4, true).await.unwrap_err();
    assert_eq!(record(dir.path(), 4).phase, Phase::Leaving);
    drop(first);
    let next = after_a_crash(dir.path(), &[], Vec::new());
    next.reattach().await.unwrap();
    assert_eq!(states(&next).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_changed_in_the_record_too_and_a_limit_holds_up_no_removal() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = daemon(dir.path(), NullFrontend::new(), Vec::new());
    let limited = AddDevice { iops: NonZeroU64::new(5), recovery: false, ..request(None) };
    let added = daemon.add(limited).await.unwrap();
    let shown = daemon.info(added.id).await.unwrap();
    assert_eq!((shown.iops, shown.bytes_per_second), (NonZeroU64::new(5), None));
    let set = SetDevice { iops: Some(0), bytes_per_second: Some(4096) };
    let shown = daemon.set(added.id, set).await.unwrap();
    assert_eq!((shown.iops, shown.bytes_per_second), (None, NonZeroU64::new(4096)));
    let noted = record(dir.path(), added.id).request;
    assert_eq!((noted.iops, noted.bytes_per_second, noted.recovery), (None, NonZeroU64::new(4096), false));
    let served = daemon.table.live(added.id).unwrap();
    daemon.remove(added.id, true).await.unwrap();
    assert_eq!(served.device.limit().rates(), crate::limit::Rates::default());
    assert_eq!(daemon.set(added.id, set).await.unwrap_err().class(), FailureClass::NotFound);
}

/// A snapshot that was cut off before its configuration was in place, and one after.
#[tokio::test(flavor = "multi_thread")]
async fn files_of_a_snapshot_that_was_cut_off_go_and_those_of_one_that_was_made_stay() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let first = daemon(&state, NullFrontend::new(), Vec::new());
    first.add(AddDevice { id: Some(1), ..writable::writable(dir.path()) }).await.unwrap();
    let target = || SnapshotTarget::Folder(dir.path().join("next/1"));
    let served = first.table.live(1).unwrap();
    // What is prepared is removed when it is dropped; a crash leaves it.
    std::mem::forget(snapshot::next_config(&served, target()).await.unwrap());
    let part = dir.path().join(".config.v1.json.0123abcd.part");
    fs::write(&part, "half").unwrap();
    let planned = record(&state, 1).unfinished;
    assert_eq!(planned.len(), 4, "two folders and two files: {planned:?}");
    assert!(planned.iter().all(|path| path.exists()), "{planned:?}");
    drop((served, first));
    let next = after_a_crash(&state, &[], Vec::new());
    next.reattach().await.unwrap();
    assert!(!dir.path().join("next").exists() && !part.exists());
    next.snapshot(1, target()).await.unwrap();
    let mut done = record(&state, 1);
    assert_eq!(done.unfinished, Vec::<PathBuf>::new());
    done.unfinished = planned.clone();
    drop(next);
    let last = after_a_crash(&state, &[done], Vec::new());
    last.reattach().await.unwrap();
    assert_eq!(states(&last).await, [(1, DeviceState::Live)]);
    assert!(planned.iter().all(|path| path.exists()), "{planned:?}");
}
