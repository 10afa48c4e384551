//! The process dies in the steps of work that goes on behind a device: what was written is there, and nothing half made is left.

use std::{
    env,
    io::Read,
    os::unix::{fs::MetadataExt, process::ExitStatusExt},
    process,
};

use super::{
    merges::{SECTOR, SECTORS, change, layers_of, read_all, snapshot_beside, wait_for_merges},
    writable::{only, writable, write},
    *,
};
use crate::format::lsmt::JOURNAL_FOLDER;

/// Set for a child: where its state and its device are.
const CHILD_DIR: &str = "STRATABD_TEST_MERGE_DIR";

/// Enough to be merged.
const SNAPSHOTS: usize = 8;

/// Not a test by itself: the body of a child process, which takes snapshots, and dies while their layers are merged.
#[tokio::test(flavor = "multi_thread")]
async fn child_merges_layers() {
    let Some(dir) = env::var_os(CHILD_DIR).map(PathBuf::from) else { return };
    let daemon = daemon(&dir.join("state"), NullFrontend::new(), Vec::new());
    daemon.add(writable(&dir)).await.unwrap();
    let served = only(&daemon);
    let (mut model, mut random) = (vec![0; SECTORS as usize * SECTOR], fastrand::Rng::with_seed(6));
    let not_yet = served.merging.one.lock().await;
    for _ in 0..SNAPSHOTS {
        change(&served, &mut model, &mut random).await;
        snapshot_beside(&daemon).await;
    }
    change(&served, &mut model, &mut random).await;
    std::fs::write(dir.join("model"), model).unwrap();
    drop(not_yet);
    wait_for_merges(&dir).await;
}

/// Not a test by itself: the body of a child process, which dies when a write has been acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn child_writes_and_dies() {
    let Some(dir) = env::var_os(CHILD_DIR).map(PathBuf::from) else { return };
    let daemon = daemon(&dir.join("state"), NullFrontend::new(), Vec::new());
    daemon.add(writable(&dir)).await.unwrap();
    write(&only(&daemon), 3).await;
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
}

/// Nobody comes to flush it afterwards, and its journal would lie there for as long as the machine runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_removal_of_what_a_dead_daemon_has_left_makes_its_writes_durable_and_leaves_no_journal() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = process::Command::new(env::current_exe().unwrap());
    child.args(["--exact", "server::daemon::tests::deaths::child_writes_and_dies"]);
    child.env(CHILD_DIR, dir.path());
    let child = child.stdout(process::Stdio::null()).stderr(process::Stdio::null()).status().unwrap();
    assert_eq!(child.signal(), Some(9));
    let layer = std::fs::metadata(dir.path().join("upper.data")).unwrap();
    let its_own = format!("-{:x}-{:x}", layer.dev(), layer.ino());
    let journals = || {
        let names = std::fs::read_dir(JOURNAL_FOLDER).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_str().unwrap().ends_with(&its_own)).count()
    };
    assert_eq!(journals(), 1);
    let next = daemon(&dir.path().join("state"), NullFrontend::new(), Vec::new());
    next.remove(0, true).await.unwrap();
    assert_eq!(journals(), 0);
    let config = ImageSpec::Config(dir.path().join("config.v1.json"));
    next.add(AddDevice { image: config, ..request(None) }).await.unwrap();
    let read = read_all(&only(&next)).await;
    assert_eq!(read[3 * 512..][..512], [7; 512]);
    next.remove(0, true).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_that_the_death_of_the_process_cuts_off_loses_no_byte_and_leaves_no_file() {
    for (point, is_named) in
        [("MergeBegun", false), ("MergeFolded", false), ("MergeNamed", true), ("MergeUnmarked", true)]
    {
        let dir = tempfile::tempdir().unwrap();
        let mut child = process::Command::new(env::current_exe().unwrap());
        child.args(["--exact", "server::daemon::tests::deaths::child_merges_layers"]);
        child.env(CHILD_DIR, dir.path()).env("STRATABD_DIE_AT", point);
        let child = child.stdout(process::Stdio::null()).stderr(process::Stdio::null()).status().unwrap();
        assert_eq!(child.signal(), Some(9), "{point} is not reached");
        let named = layers_of(dir.path());
        assert_eq!(named.len() < SNAPSHOTS, is_named, "{point}: {named:?}");

        let next = daemon(&dir.path().join("state"), NullFrontend::new(), Vec::new());
        next.reattach().await.unwrap();
        assert_eq!(states(&next).await, [(0, DeviceState::Live)], "{point}");
        let mut model = vec![0; SECTORS as usize * SECTOR];
        std::fs::File::open(dir.path().join("model")).unwrap().read_exact(&mut model).unwrap();
        assert!(read_all(&only(&next)).await == model, "{point}: the device has other bytes");
        crate::upper::check_parents(only(&next).device.links()).unwrap();
        let names = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
        for path in names {
            let name = path.file_name().unwrap().to_str().unwrap();
            assert!(!name.starts_with('.'), "{point} leaves {name}");
            assert!(!name.contains(".merged-") || named.contains(&path), "{point} leaves {name}");
        }
        next.remove(0, true).await.unwrap();
        assert_eq!(std::fs::read_dir(dir.path().join("state/devices")).unwrap().count(), 0, "{point}");
    }
}
