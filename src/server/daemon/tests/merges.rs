//! Many snapshots of one device: its layers stay few, and no byte is lost.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, Ordering},
};

use super::{
    writable::{configuration, only, top_of, writable, writable_of},
    *,
};
use crate::{
    block::{BlockDevice, BlockQueue},
    server::{api::types::ForkDevice, own_layers::OwnLayers},
};

pub(super) const SECTOR: usize = 512;
/// Sectors of the device. The upper half is written all the time, the lower one between snapshots.
pub(super) const SECTORS: u64 = 2048;
/// Most layers that a device may have above those of its image.
const LAYERS_AT_MOST: usize = 16;

/// How many snapshots in a row are taken.
fn snapshots() -> u32 {
    std::env::var("STRATABD_SNAPSHOTS").map_or(40, |count| count.parse().unwrap())
}

pub(super) fn layers_of(dir: &Path) -> Vec<PathBuf> {
    let lowers = configuration(dir)["lowers"].as_array().cloned().unwrap_or_default();
    lowers.iter().map(|lower| lower["file"].as_str().unwrap().into()).collect()
}

pub(super) async fn read_all(served: &Served) -> Vec<u8> {
    let Shown::Overlay(overlay) = served.device.shown().clone() else { panic!("it takes no writes") };
    let reading = served.sealer.call(move |reactor| async move {
        let mut bytes = vec![0; SECTORS as usize * SECTOR];
        overlay.open_queue(&reactor).unwrap().read(0, &mut bytes).await.unwrap();
        bytes
    });
    reading.await.unwrap()
}

async fn write_all(served: &Served, writes: Vec<(u64, Vec<u8>)>) {
    let Shown::Overlay(overlay) = served.device.shown().clone() else { panic!("it takes no writes") };
    let writing = served.sealer.call(move |reactor| async move {
        let queue = overlay.open_queue(&reactor).unwrap();
        for (sector, bytes) in writes {
            queue.write(sector * SECTOR as u64, &bytes).await.unwrap();
        }
    });
    writing.await.unwrap();
}

/// Writes some sectors of the lower half of the device and of `model`.
pub(super) async fn change(served: &Served, model: &mut [u8], random: &mut fastrand::Rng) {
    let mut writes = Vec::new();
    for _ in 0..4 {
        let start = random.u64(0..SECTORS / 2 - 16);
        let bytes = vec![random.u8(0..4); random.usize(1..=16) * SECTOR];
        model[start as usize * SECTOR..][..bytes.len()].copy_from_slice(&bytes);
        writes.push((start, bytes));
    }
    write_all(served, writes).await;
}

/// Writes to the upper half of the device until it is told to end; returns what is there then.
fn keep_writing(served: &Served, ends: Arc<AtomicBool>) -> task::JoinHandle<Vec<u8>> {
    let Shown::Overlay(overlay) = served.device.shown().clone() else { panic!("it takes no writes") };
    let writing = served.sealer.call(move |reactor| async move {
        let queue = overlay.open_queue(&reactor).unwrap();
        let mut random = fastrand::Rng::with_seed(9);
        let mut model = vec![0; (SECTORS / 2) as usize * SECTOR];
        while !ends.load(Ordering::Relaxed) {
            let (sector, byte) = (random.u64(0..SECTORS / 2), random.u8(..));
            queue.write((SECTORS / 2 + sector) * SECTOR as u64, &[byte; SECTOR]).await.unwrap();
            model[sector as usize * SECTOR..][..SECTOR].fill(byte);
            reactor.sleep(Duration::from_micros(200)).await;
        }
        model
    });
    task::spawn(async move { writing.await.unwrap() })
}

pub(super) async fn snapshot_beside(daemon: &Arc<Daemon>) -> u64 {
    daemon.snapshot(0, SnapshotTarget::Beside).await.unwrap().stalled_us
}

/// Waits until nothing is left to be merged.
pub(super) async fn wait_for_merges(dir: &Path) {
    let began = Instant::now();
    let marks = || {
        let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().starts_with('.')).count()
    };
    while OwnLayers::of(&dir.join("config.v1.json")).unwrap().files.len() >= 8 || marks() > 0 {
        assert!(began.elapsed() < Duration::from_secs(60), "nothing is merged");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_under_writes_has_few_layers_after_many_snapshots_and_the_same_bytes() {
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let daemon = daemon(state.path(), NullFrontend::new(), Vec::new());
    let image = writable(dir.path());
    daemon.add(image.clone()).await.unwrap();
    let (served, ends) = (only(&daemon), Arc::new(AtomicBool::new(false)));
    let writer = keep_writing(&served, Arc::clone(&ends));
    let (mut model, mut random) = (vec![0; SECTORS as usize * SECTOR], fastrand::Rng::with_seed(4));
    let (mut stalls, mut most) = (Vec::new(), 0);
    for _ in 0..snapshots() {
        change(&served, &mut model, &mut random).await;
        stalls.push(snapshot_beside(&daemon).await);
        most = most.max(layers_of(dir.path()).len() + 1).max(served.device.links().len());
        let half = model.len() / 2;
        assert!(read_all(&served).await[..half] == model[..half], "a layer shows other bytes");
    }
    ends.store(true, Ordering::Relaxed);
    let half = model.len() / 2;
    model[half..].copy_from_slice(&writer.await.unwrap());
    assert!(read_all(&served).await == model);
    assert!(most <= LAYERS_AT_MOST, "{most} layers");
    stalls.sort_unstable();
    let (count, median, longest) = (stalls.len(), stalls[stalls.len() / 2], stalls[stalls.len() - 1]);
    println!("{count} snapshots: writes waited for {median} us, at most {longest}; {most} layers at most");
    drop(served);
    daemon.remove(0, true).await.unwrap();
    daemon.add(image).await.unwrap();
    assert!(read_all(&only(&daemon)).await == model, "the layers of the configuration make another device");
    crate::upper::check_parents(only(&daemon).device.links()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_would_make_one_layer_too_many_waits_for_a_merge_and_no_write_waits_for_it() {
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let daemon = daemon(state.path(), NullFrontend::new(), Vec::new());
    daemon.add(writable(dir.path())).await.unwrap();
    let served = only(&daemon);
    let (mut model, mut random) = (vec![0; SECTORS as usize * SECTOR], fastrand::Rng::with_seed(1));
    let merging = served.merging.one.lock().await;
    for _ in 0..LAYERS_AT_MOST - 1 {
        change(&served, &mut model, &mut random).await;
        snapshot_beside(&daemon).await;
    }
    assert_eq!(served.device.links().len(), LAYERS_AT_MOST);
    let next = Arc::clone(&daemon);
    let next = task::spawn(async move { snapshot_beside(&next).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    change(&served, &mut model, &mut random).await;
    assert!(!next.is_finished(), "it does not wait");
    assert_eq!(served.device.links().len(), LAYERS_AT_MOST);
    drop(merging);
    next.await.unwrap();
    assert!(served.device.links().len() < LAYERS_AT_MOST);
    assert!(read_all(&served).await == model);
}

/// How many sectors are written that have no neighbour. With more than 1,000,000 the layer has to be compacted.
fn scattered() -> u64 {
    std::env::var("STRATABD_SCATTERED").map_or(20_000, |count| count.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_of_as_many_pieces_as_there_are_can_be_sealed() {
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (daemon, count) = (daemon(state.path(), NullFrontend::new(), Vec::new()), scattered());
    let image = writable_of(dir.path(), (2 * count * SECTOR as u64).next_multiple_of(4096));
    daemon.add(image.clone()).await.unwrap();
    let content = |number: u64| number.to_le_bytes().repeat(SECTOR / 8);
    let mut number = count;
    while number > 0 {
        let batch = number.saturating_sub(1000)..number;
        number = batch.start;
        write_all(&only(&daemon), batch.rev().map(|number| (2 * number, content(number))).collect()).await;
    }
    let began = Instant::now();
    let stalled_us = snapshot_beside(&daemon).await;
    println!("{count} pieces: sealed in {:?}, writes waited for {stalled_us} us", began.elapsed());
    daemon.remove(0, true).await.unwrap();
    daemon.add(image).await.unwrap();
    let Shown::Overlay(overlay) = only(&daemon).device.shown().clone() else { panic!("it takes no writes") };
    let reading = only(&daemon).sealer.call(move |reactor| async move {
        let queue = overlay.open_queue(&reactor).unwrap();
        let mut bytes = [1; 2 * SECTOR];
        for number in 0..count {
            queue.read(2 * number * SECTOR as u64, &mut bytes).await.unwrap();
            assert!(bytes[..SECTOR] == content(number) && bytes[SECTOR..] == [0; SECTOR], "sector {number}");
        }
    });
    reading.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_of_an_earlier_daemon_are_merged_with_those_of_this_one() {
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let image = writable(dir.path());
    let (mut model, mut random) = (vec![0; SECTORS as usize * SECTOR], fastrand::Rng::with_seed(6));
    for _ in 0..4 {
        let daemon = daemon(state.path(), NullFrontend::new(), Vec::new());
        daemon.add(image.clone()).await.unwrap();
        let served = only(&daemon);
        assert!(read_all(&served).await == model);
        for _ in 0..5 {
            change(&served, &mut model, &mut random).await;
            snapshot_beside(&daemon).await;
        }
        wait_for_merges(dir.path()).await;
        assert!(read_all(&served).await == model);
        assert_eq!(served.device.links().len(), layers_of(dir.path()).len() + 1);
        assert_eq!(served.device.layers(|_| 0).len(), layers_of(dir.path()).len() + 1);
        // Its writable layer is empty, so that nothing but the configuration is copied, which is looked at.
        let wanted = ForkDevice { name: format!("fork-{}", random.u32(..)), to: None, id: None };
        let fork = daemon.fork(0, wanted).await.unwrap();
        daemon.remove(fork.id, true).await.unwrap();
        drop(served);
        daemon.remove(0, true).await.unwrap();
    }
    assert!(layers_of(dir.path()).len() < 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_keeps_its_layers_while_those_of_the_first_device_are_merged() {
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let daemon = daemon(state.path(), NullFrontend::new(), Vec::new());
    daemon.add(writable(dir.path())).await.unwrap();
    let served = only(&daemon);
    let (mut model, mut random) = (vec![0; SECTORS as usize * SECTOR], fastrand::Rng::with_seed(8));
    let mut forks = Vec::new();
    for round in 0..30 {
        change(&served, &mut model, &mut random).await;
        if round % 10 == 9 {
            let wanted = ForkDevice { name: format!("fork-{round}"), to: None, id: None };
            let fork = daemon.fork(0, wanted).await.unwrap();
            daemon.remove(fork.id, true).await.unwrap();
            forks.push((dir.path().join(format!("fork-{round}")), model.clone()));
        } else {
            snapshot_beside(&daemon).await;
        }
    }
    wait_for_merges(dir.path()).await;
    let merged = std::fs::read_dir(dir.path()).unwrap().filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().contains(".merged-")
    });
    let named: BTreeSet<PathBuf> =
        forks.iter().flat_map(|(fork, _)| layers_of(fork)).chain(layers_of(dir.path())).collect();
    let named_merged = named.iter().filter(|path| path.to_string_lossy().contains(".merged-")).count();
    assert_eq!(merged.count(), named_merged, "one that nobody names is left");
    for (fork, model) in forks {
        let config = ImageSpec::Config(fork.join("config.v1.json"));
        let added = daemon.add(AddDevice { image: config, ..request(None) }).await.unwrap();
        let served = daemon.table.live(added.id).unwrap();
        assert!(read_all(&served).await == model, "{}", fork.display());
        assert!(OwnLayers::of(&fork.join("config.v1.json")).unwrap().files.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_crash_leaves_of_a_merge_makes_the_same_device() {
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let daemon = daemon(state.path(), NullFrontend::new(), Vec::new());
    let image = writable(dir.path());
    daemon.add(image.clone()).await.unwrap();
    let served = only(&daemon);
    let (mut model, mut random) = (vec![0; SECTORS as usize * SECTOR], fastrand::Rng::with_seed(3));
    let mut sealed = Vec::new();
    for _ in 0..8 {
        change(&served, &mut model, &mut random).await;
        sealed.push(top_of(&served));
        snapshot_beside(&daemon).await;
    }
    wait_for_merges(dir.path()).await;
    drop(served);
    daemon.remove(0, true).await.unwrap();
    let (path, new) = (dir.path().join("config.v1.json"), configuration(dir.path()));
    let merged = layers_of(dir.path());
    assert_eq!(merged.len(), 1, "{merged:?}");
    let mut old = new.clone();
    old["lowers"] = sealed.iter().map(|file| serde_json::json!({ "file": file, "snapshot": true })).collect();
    let name = merged[0].file_name().unwrap().to_str().unwrap();
    let [mark, part] = ["unnamed", "1234abcd.part"].map(|end| dir.path().join(format!(".{name}.{end}")));
    // From the last step to the first.
    for (config, has_mark, has_merged, has_part) in [
        (&new, false, true, false),
        (&new, true, true, false),
        (&old, true, true, false),
        (&old, true, false, true),
        (&old, true, false, false),
    ] {
        std::fs::write(&path, config.to_string()).unwrap();
        if has_mark {
            std::fs::write(&mark, "").unwrap();
        }
        if has_part {
            std::fs::write(&part, "half").unwrap();
        }
        assert_eq!(merged[0].exists(), has_merged);
        daemon.add(image.clone()).await.unwrap();
        assert!(read_all(&only(&daemon)).await == model, "{config}");
        daemon.remove(0, true).await.unwrap();
        assert_eq!(merged[0].exists(), config == &new, "{config}");
        assert!(!mark.exists() && !part.exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_cannot_be_merged_is_in_the_way_of_no_snapshot() {
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let daemon = daemon(state.path(), NullFrontend::new(), Vec::new());
    daemon.add(writable(dir.path())).await.unwrap();
    let served = only(&daemon);
    let (mut model, mut random) = (vec![0; SECTORS as usize * SECTOR], fastrand::Rng::with_seed(2));
    for round in 0..20 {
        change(&served, &mut model, &mut random).await;
        let sealed = top_of(&served);
        snapshot_beside(&daemon).await;
        if round % 3 == 0 {
            // The device has all that it needs of the file in memory, but for the data.
            let file = std::fs::File::options().write(true).open(&sealed).unwrap();
            let end = file.metadata().unwrap().len();
            std::os::unix::fs::FileExt::write_all_at(&file, &[0; 16], end - 4096).unwrap();
        }
    }
    assert!(read_all(&served).await == model);
    assert_eq!(layers_of(dir.path()).len(), 20);
    let left = || {
        let names = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().contains("merged")).collect::<Vec<_>>()
    };
    let began = Instant::now();
    while !left().is_empty() {
        assert!(began.elapsed() < Duration::from_secs(60), "{:?}", left());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn half_of_the_layers_that_a_device_may_have_are_a_warning() {
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let daemon = daemon(state.path(), NullFrontend::new(), Vec::new());
    let image = writable(dir.path());
    let ImageSpec::Layers(layer) = request(None).image else { panic!("it is made of a layer") };
    let mut config = configuration(dir.path());
    config["lowers"] = vec![serde_json::json!({ "file": layer[0] }); 126].into();
    std::fs::write(dir.path().join("config.v1.json"), config.to_string()).unwrap();
    daemon.add(image).await.unwrap();
    assert!(daemon.info(0).await.unwrap().warnings.is_empty());
    snapshot_beside(&daemon).await;
    assert_eq!(daemon.info(0).await.unwrap().warnings, ["128 layers of at most 255"]);
}
