//! Snapshots and forks of devices in use: nothing is lost, nothing is shared that is written afterwards.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::Value;

use crate::{
    daemon::{config, fixtures, start},
    devices::{Direct, pattern},
    frame::{in_guest, output_of, pause},
    support::daemon::Daemon,
    tree,
    writable::{MIB, Recorder, config_with_upper, mounted, text},
};

fn layers(daemon: &Daemon, device: &Path) -> Vec<String> {
    let info = daemon.json(&["info", text(device)]);
    info["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| layer["name"].as_str().unwrap().to_owned())
        .collect()
}

fn folder(dir: &Path, name: &str) -> PathBuf {
    let folder = dir.join(name);
    fs::create_dir(&folder).unwrap();
    folder
}

/// Random writes with checksums, that are read again at the end, by several jobs.
fn start_fio(device: &Path) -> Child {
    Command::new("fio")
        .args([
            "--name=verify",
            "--rw=randwrite",
            "--bs=4k",
            "--direct=1",
            "--ioengine=io_uring",
            "--iodepth=8",
        ])
        .args(["--size=4m", "--loops=2", "--verify=crc32c", "--verify_fatal=1", "--fsync=31"])
        .args(["--numjobs=2", "--offset_increment=4m", "--group_reporting", "--output-format=terse"])
        .arg(format!("--filename={}", text(device)))
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// A copy of what [`start_fio`] has written to a device, and of some of what follows.
struct Kept(PathBuf);

impl Kept {
    fn of(device: &Path, dir: &Path) -> Self {
        let copy = dir.join("kept");
        let (from, to) = (format!("if={}", text(device)), format!("of={}", text(&copy)));
        output_of("dd", &[&from, &to, "bs=1M", "count=24", "status=none"]);
        Self(copy)
    }

    /// Compares bytes: to hash them takes an emulated machine many times as long.
    fn assert_is(&self, device: &Path, what: &str) {
        let status = Command::new("cmp").args(["-n", "24M"]).arg(&self.0).arg(device).status();
        assert!(status.unwrap().success(), "{what}");
    }
}

#[test]
fn snapshots_under_load_lose_nothing_and_their_layers_make_the_same_device() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir_in("/var").unwrap();
    let mut daemon = start(dir.path());
    let below = config(dir.path(), 3);
    let config = config_with_upper(dir.path(), Some(&below), 0);
    let path = daemon.add(&["--config", &config, "--id", "3", "--queues", "2"]);
    let mut fio = start_fio(&path);
    let mut stalls = Vec::new();
    for number in 0..3 {
        let to = folder(dir.path(), &format!("next-{number}"));
        let taken = daemon.json(&["snapshot", text(&path), "--to", text(&to)]);
        assert_eq!(taken["data"], text(&to.join("upper.data")));
        stalls.push(taken["stalled_us"].as_u64().unwrap());
        let verified = daemon.ctl(&["layer", "verify", taken["sealed"].as_str().unwrap()]);
        assert!(verified.status.success(), "{verified:?}");
    }
    println!("writes waited for {stalls:?} microseconds");
    assert!(fio.wait().unwrap().success());
    assert_eq!(layers(&daemon, &path).len(), 3 + 4);
    let refused = daemon.ctl(&["snapshot", text(&path), "--to", text(&dir.path().join("next-2"))]);
    assert_eq!(refused.status.code(), Some(7), "files of that name are there: {refused:?}");

    // All that was written, and some of what lies below.
    let kept = Kept::of(&path, dir.path());
    daemon.json(&["del", text(&path)]);
    assert_eq!(daemon.add(&["--config", &config, "--id", "3"]), path);
    kept.assert_is(&path, "the layers of the configuration make another device");
    daemon.end("-KILL");
    daemon = start(dir.path());
    kept.assert_is(&path, "after a kill");
    let other = daemon.add(&["--config", &below]);
    tree::compare_device(&other, &fixtures().join("ext4/tree-0..2.jsonl"));
    daemon.finish();
}

#[test]
fn snapshots_in_a_row_under_load_leave_few_layers_and_the_same_device() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir_in("/var").unwrap();
    let mut daemon = start(dir.path());
    let config = config_with_upper(dir.path(), None, 64 * MIB);
    let path = daemon.add(&["--config", &config, "--id", "3", "--queues", "2"]);
    let mut fio = start_fio(&path);
    let (mut stalls, mut sealed) = (Vec::new(), Vec::new());
    for number in 0..9 {
        let to = dir.path().join(format!("next-{number}"));
        let taken = daemon.json(&["snapshot", text(&path), "--to", text(&to)]);
        stalls.push(taken["stalled_us"].as_u64().unwrap());
        sealed.push(taken["sealed"].as_str().unwrap().to_owned());
    }
    println!("writes waited for {stalls:?} microseconds");
    // The limit of the test ends this where nothing is merged.
    while layers(&daemon, &path).len() >= 9 {
        pause();
    }
    assert!(sealed.iter().all(|layer| Path::new(layer).exists()), "what a snapshot has named stays");
    assert!(fio.wait().unwrap().success());
    let kept = Kept::of(&path, dir.path());
    // Fio does not flush its last writes, and a removal does.
    daemon.json(&["del", text(&path)]);
    assert_eq!(daemon.add(&["--config", &config, "--id", "3"]), path);
    kept.assert_is(&path, "the layers of the configuration make another device");
    daemon.end("-KILL");
    daemon = start(dir.path());
    kept.assert_is(&path, "after a kill");
    daemon.finish();
}

#[test]
fn upstreams_request_puts_the_layer_of_another_configuration_over_the_device() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir_in("/var").unwrap();
    let daemon = start(dir.path());
    let config = config_with_upper(dir.path(), None, 8 * MIB);
    let path = daemon.add(&["--config", &config, "--id", "4"]);
    let node = Direct::open_durable(&path);
    node.write(0, &pattern(4096, 1)).unwrap();
    let next = folder(dir.path(), "next");
    let files = config_with_upper(&next, None, 8 * MIB);
    let mut wanted: Value = serde_json::from_str(&fs::read_to_string(&files).unwrap()).unwrap();
    let ask = |query: &str| {
        let socket = dir.path().join("state/stratabd.sock");
        let url = format!("http://localhost/snapshot{query}");
        let arguments = ["-s", "-w", " %{http_code}", "--unix-socket", text(&socket), &url];
        output_of("curl", &arguments)
    };
    let query = format!("?dev_id=4&config={}", files.replace('/', "%2F"));
    let refused = ask(&query);
    assert!(refused.ends_with(" 500") && refused.contains("its lowers must be"), "{refused}");
    wanted["lowers"] = serde_json::json!([{"file": dir.path().join("upper.data")}]);
    fs::write(&files, wanted.to_string()).unwrap();
    assert!(ask("?dev_id=4").ends_with(" 400"));
    assert!(ask(&query.replace("=4&", "=5&")).ends_with(" 404"));
    let done = ask(&query);
    assert!(done.contains("Snapshot created successfully") && done.ends_with(" 200"), "{done}");
    assert!(!Path::new(&files).exists(), "it has taken the place of the other");
    assert_eq!(serde_json::from_str::<Value>(&fs::read_to_string(&config).unwrap()).unwrap(), wanted);
    node.write(4096, &pattern(4096, 2)).unwrap();
    assert!(node.read(0, 8192).unwrap() == [pattern(4096, 1), pattern(4096, 2)].concat());
    assert_eq!(layers(&daemon, &path).len(), 2);
    drop(node);
    daemon.finish();
}

#[test]
fn forks_begin_alike_and_go_their_own_ways() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir_in("/var").unwrap();
    let daemon = start(dir.path());
    let config = config_with_upper(dir.path(), None, 64 * MIB);
    let first = daemon.add(&["--config", &config]);
    output_of("mkfs.ext4", &["-q", "-E", "lazy_itable_init=0", text(&first)]);
    mounted(&first, dir.path(), |point| fs::write(point.join("common"), pattern(1 << 20, 1)).unwrap());
    let forks: Vec<PathBuf> = (0..8)
        .map(|number| {
            let name = format!("fork-{number}");
            daemon.json(&["fork", text(&first), "--name", &name])["path"].as_str().unwrap().into()
        })
        .collect();
    for (number, fork) in (0..).zip(&forks) {
        mounted(fork, dir.path(), |point| {
            assert!(crate::devices::content(&point.join("common")) == pattern(1 << 20, 1));
            fs::write(point.join("own"), pattern(4096, number)).unwrap();
        });
    }
    mounted(&first, dir.path(), |point| assert!(!point.join("own").exists()));
    for (number, fork) in (0..).zip(&forks) {
        mounted(fork, dir.path(), |point| {
            assert!(crate::devices::content(&point.join("own")) == pattern(4096, number));
        });
    }
    // The first fork has sealed what was written; nothing was written since, so that all share that layer.
    let shared = dir.path().join("upper.data");
    assert!(
        forks
            .iter()
            .all(|fork| layers(&daemon, fork).len() == 2 && layers(&daemon, fork)[0] == text(&shared))
    );
    let again = daemon.ctl(&["fork", text(&first), "--name", "fork-0"]);
    assert_eq!(again.status.code(), Some(7), "{again:?}");
    let nested = daemon.ctl(&["fork", text(&first), "--name", "a/b"]);
    assert_eq!(nested.status.code(), Some(2), "{nested:?}");
    let info = daemon.metrics();
    assert_eq!(info.matches("stratabd_image_index_bytes{").count(), 1, "one index for all forks: {info}");
    daemon.finish();
}

#[test]
fn a_daemon_killed_at_a_snapshot_leaves_the_old_configuration_or_the_new_one() {
    if !in_guest() {
        return;
    }
    const ROUNDS: usize = 6;
    let dir = tempfile::tempdir_in("/var").unwrap();
    let config = config_with_upper(dir.path(), None, 8 * MIB);
    let mut daemon = start(dir.path());
    let path = daemon.add(&["--config", &config, "--id", "5", "--no-recovery"]);
    for round in 0..ROUNDS {
        let recorder = Recorder::new(8 * MIB);
        output_of("blkdiscard", &[text(&path)]);
        let to = folder(dir.path(), &format!("next-{round}"));
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| recorder.record(&path));
            recorder.wait_for(70);
            let mut snapshot = daemon.command(&["snapshot", text(&path), "--to", text(&to)]).spawn().unwrap();
            // Later in each round, so that it meets another step.
            recorder.wait_for_writes(round * 15);
            if round == ROUNDS - 1 {
                let _ = snapshot.wait();
            }
            daemon.end("-KILL");
            let _ = snapshot.wait();
            writer.join().unwrap();
        });
        daemon = start(dir.path());
        recorder.check(&path);
    }
    let made = layers(&daemon, &path).len() - 1;
    println!("{made} snapshots were made before the kill");
    assert!(made > 0, "the last one was waited for");
    daemon.finish();
}
