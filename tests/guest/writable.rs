//! Devices with a writable layer: what programs write to them is there again after every way in which they may end.

use std::{
    fs,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use stratabd::format::{
    lsmt::{data_header, index_header},
    uuid::Uuid,
};

use crate::{
    daemon::{config, fixtures, start},
    devices::{Direct, content, pattern},
    frame::{in_guest, output_of, pause},
    support::daemon::Daemon,
    tree,
};

pub(crate) const MIB: u64 = 1 << 20;
const BLOCK: usize = 4096;

/// A writable layer that is new, of `size_bytes`, 0 for those of what lies below, and a configuration that puts it over
/// `lowers`, which are taken from the configuration of that name.
pub(crate) fn config_with_upper(dir: &Path, lowers: Option<&str>, size_bytes: u64) -> String {
    let uuid: Uuid = "ABC000FF-1111-2222-3333-0000000000FF".parse().unwrap();
    let header = data_header(false, uuid, None, size_bytes);
    let (data, index) = (dir.join("upper.data"), dir.join("upper.index"));
    fs::write(&data, header.encode()).unwrap();
    fs::write(&index, index_header(&header).encode()).unwrap();
    let mut config = lowers.map_or(serde_json::json!({}), |path| {
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    });
    config["upper"] = serde_json::json!({"data": data, "index": index});
    let path = dir.join("writable.json");
    fs::write(&path, config.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

/// As [`config_with_upper`], of a sparse layer.
pub(crate) fn config_with_sparse(daemon: &Daemon, dir: &Path, size_bytes: u64) -> String {
    let (data, config) = (dir.join("upper.data"), dir.join("writable.json"));
    daemon.json(&["layer", "create", text(&data), "--sparse", "--size", &size_bytes.to_string()]);
    let upper = serde_json::json!({"upper": {"data": data, "index": dir.join("none")}});
    fs::write(&config, upper.to_string()).unwrap();
    text(&config).to_owned()
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Mounts the ext4 on `device` for as long as `work` takes.
pub(crate) fn mounted<T>(device: &Path, dir: &Path, work: impl FnOnce(&Path) -> T) -> T {
    let point = dir.join("mount");
    fs::create_dir_all(&point).unwrap();
    output_of("mount", &["-t", "ext4", text(device), text(&point)]);
    let done = work(&point);
    output_of("umount", &[text(&point)]);
    done
}

/// Has fio write all of the device at random, or read it again, with checksums that tell each block's place.
fn fio(device: &Path, mode: &str) {
    let output = Command::new("fio")
        .args([
            "--name=verify",
            "--rw=randwrite",
            "--bs=4k",
            "--direct=1",
            "--ioengine=io_uring",
            "--iodepth=16",
        ])
        .args([
            "--size=8m",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--fsync=97",
            "--output-format=terse",
            mode,
        ])
        .arg(format!("--filename={}", text(device)))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "fio {mode}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn an_image_under_a_writable_layer_keeps_what_is_written_and_stays_as_it_is_below() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let daemon = start(dir.path());
    let below = config(dir.path(), 3);
    let config = config_with_upper(dir.path(), Some(&below), 0);
    let path = daemon.add(&["--config", &config, "--queues", "2"]);
    let info = daemon.json(&["info", text(&path)]);
    assert_eq!((&info["read_only"], info["layers"].as_array().unwrap().len()), (&false.into(), 4), "{info}");
    assert_eq!(output_of("blockdev", &["--getro", text(&path)]).trim(), "0");
    tree::compare_device(&path, &fixtures().join("ext4/tree-0..2.jsonl"));
    let busy = daemon.ctl(&["add", "--config", &config]);
    assert_eq!(busy.status.code(), Some(7), "another device must not write to the same layer: {busy:?}");
    fio(&path, "--do_verify=1");
    daemon.json(&["del", text(&path)]);

    let path = daemon.add(&["--config", &config]);
    fio(&path, "--verify_only");
    let other = daemon.add(&["--config", &below]);
    tree::compare_device(&other, &fixtures().join("ext4/tree-0..2.jsonl"));
    daemon.finish();
}

#[test]
fn a_file_system_on_a_layer_of_its_own_comes_back_clean_and_gives_room_back() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir_in("/var").unwrap();
    let daemon = start(dir.path());
    let config = config_with_upper(dir.path(), None, 256 * MIB);
    let path = daemon.add(&["--config", &config]);
    output_of("mkfs.ext4", &["-q", "-E", "lazy_itable_init=0", text(&path)]);
    let bytes = pattern(16 << 20, 3);
    mounted(&path, dir.path(), |point| {
        fs::write(point.join("kept"), &bytes[..1 << 20]).unwrap();
        fs::write(point.join("large"), &bytes).unwrap();
    });
    let stored = || fs::metadata(dir.path().join("upper.data")).unwrap().blocks() * 512;
    let full = stored();
    assert!(full > 16 * MIB, "{full}");
    mounted(&path, dir.path(), |point| {
        let file = fs::OpenOptions::new().write(true).open(point.join("large")).unwrap();
        // In their places, so that each lets go of what the one before has written.
        for number in 0..7 {
            file.write_all_at(&pattern(16 << 20, number), 0).unwrap();
            file.sync_all().unwrap();
        }
    });
    let after = stored();
    assert!(after < full + 96 * MIB, "{after} bytes after 112 MiB were written over {full}");
    mounted(&path, dir.path(), |point| {
        fs::remove_file(point.join("large")).unwrap();
        output_of("fstrim", &[text(point)]);
    });
    let info = daemon.json(&["info", text(&path)]);
    let trimmed = info["upper"].as_array().unwrap().iter().find(|asked| asked["kind"] == "zero").unwrap();
    assert!(trimmed["bytes"].as_u64().unwrap() > 200 * MIB, "{info}");
    daemon.json(&["del", text(&path)]);
    let path = daemon.add(&["--config", &config]);
    output_of("e2fsck", &["-fn", text(&path)]);
    mounted(&path, dir.path(), |point| {
        assert!(content(&point.join("kept")) == bytes[..1 << 20]);
        assert!(!point.join("large").exists());
    });
    daemon.finish();
}

/// Writes blocks one after another, each with its number all over it, and knows which of them were made durable.
pub(crate) struct Recorder {
    blocks: u64,
    /// The block that each write went to; the first write has number 1.
    written: Mutex<Vec<u64>>,
    /// Writes that a flush has covered.
    durable: Mutex<usize>,
    /// Flushes do not count any more.
    frozen: AtomicBool,
}

impl Recorder {
    pub(crate) fn new(size_bytes: u64) -> Self {
        let blocks = size_bytes / BLOCK as u64;
        Self { blocks, written: Mutex::default(), durable: Mutex::default(), frozen: AtomicBool::new(false) }
    }

    /// Writes until the device fails.
    pub(crate) fn record(&self, device: &Path) {
        let mut random = fastrand::Rng::with_seed(11);
        let node = Direct::open(device, true);
        loop {
            let block = random.u64(..self.blocks);
            let number = {
                let mut written = self.written.lock().unwrap();
                written.push(block);
                written.len()
            };
            if node.write(block * BLOCK as u64, &content_of(number)).is_err() {
                return;
            }
            if number % 7 == 0 && node.file().sync_data().is_ok() && !self.frozen.load(Ordering::SeqCst) {
                *self.durable.lock().unwrap() = number;
            }
        }
    }

    /// From now on nothing counts as durable.
    pub(crate) fn freeze(&self) {
        self.frozen.store(true, Ordering::SeqCst);
    }

    /// Waits until that many writes are durable.
    pub(crate) fn wait_for(&self, count: usize) {
        while *self.durable.lock().unwrap() < count {
            pause();
        }
    }

    /// Waits for that many writes more.
    pub(crate) fn wait_for_writes(&self, count: usize) {
        let before = self.written.lock().unwrap().len();
        while self.written.lock().unwrap().len() < before + count {
            pause();
        }
    }

    /// The device must show the state after one of the writes, and none before the last durable one.
    pub(crate) fn check(&self, device: &Path) {
        let node = Direct::open(device, false);
        let found: Vec<usize> = (0..self.blocks)
            .map(|block| {
                let bytes = node.read(block * BLOCK as u64, BLOCK).unwrap();
                let number = u64::from_le_bytes(bytes[..8].try_into().unwrap());
                let number = usize::try_from(number).unwrap();
                assert!(bytes == content_of(number), "block {block} is torn");
                number
            })
            .collect();
        let (written, durable) = (self.written.lock().unwrap(), *self.durable.lock().unwrap());
        let last = found.iter().copied().max().unwrap();
        assert!(last >= durable, "the state after write {last}, though {durable} were durable");
        let mut expected = vec![0; found.len()];
        for (index, block) in written[..last].iter().enumerate() {
            expected[usize::try_from(*block).unwrap()] = index + 1;
        }
        assert!(found == expected, "not the state after write {last}, nor after any other");
        println!("{} writes, {durable} durable, {last} there", written.len());
    }
}

/// A block full of `number`; nothing but zeroes for 0, as where nothing was written.
fn content_of(number: usize) -> Vec<u8> {
    (number as u64).to_le_bytes().repeat(BLOCK / 8)
}

#[test]
fn a_killed_daemon_has_lost_nothing_that_was_flushed() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir_in("/var").unwrap();
    let config = config_with_upper(dir.path(), None, 8 * MIB);
    let mut daemon = start(dir.path());
    let path = daemon.add(&["--config", &config, "--id", "5", "--no-recovery"]);
    for round in 1..4 {
        let recorder = Recorder::new(8 * MIB);
        output_of("blkdiscard", &[text(&path)]);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| recorder.record(&path));
            recorder.wait_for(round * 70);
            daemon.end("-KILL");
            writer.join().unwrap();
        });
        daemon = start(dir.path());
        recorder.check(&path);
    }
    daemon.finish();
}
