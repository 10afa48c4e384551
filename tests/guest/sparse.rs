//! Devices over a sparse layer: what was made durable is there again after a kill, and what was discarded is not.

use std::{
    fs,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    daemon::{config, fixtures, start},
    devices::{Direct, content, pattern},
    frame::{in_guest, output_of},
    support::daemon::Daemon,
    tree,
    writable::{MIB, mounted, text},
};

/// A sparse layer that is new, made by the tool, and a configuration that puts it over the lowers of another one. There is no
/// index file where the configuration says.
fn config_with_sparse_upper(daemon: &Daemon, dir: &Path, lowers: Option<&str>, size_bytes: u64) -> String {
    let data = dir.join("sparse.data");
    daemon.json(&["layer", "create", text(&data), "--sparse", "--size", &size_bytes.to_string()]);
    let mut config = lowers.map_or(serde_json::json!({}), |path| {
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    });
    config["upper"] = serde_json::json!({"data": data, "index": dir.join("none")});
    let path = dir.join("sparse.json");
    fs::write(&path, config.to_string()).unwrap();
    text(&path).to_owned()
}

fn stored(dir: &Path) -> u64 {
    fs::metadata(dir.join("sparse.data")).unwrap().blocks() * 512
}

#[test]
fn a_file_system_on_a_sparse_layer_over_an_image_comes_back_clean_after_a_kill() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir_in("/var").unwrap();
    let mut daemon = start(dir.path());
    let below = config(dir.path(), 3);
    let config = config_with_sparse_upper(&daemon, dir.path(), Some(&below), 1 << 30);
    let path = daemon.add(&["--config", &config, "--id", "5", "--queues", "2"]);
    tree::compare_device(&path, &fixtures().join("ext4/tree-0..2.jsonl"));
    // Upstream's tools leave a wrong index of lost+found and wrong counts, which this mends.
    let mended = Command::new("e2fsck").args(["-fy", text(&path)]).status().unwrap();
    assert!(mended.code().is_some_and(|code| code <= 1), "{mended:?}");
    let bytes = pattern(16 << 20, 3);
    mounted(&path, dir.path(), |point| {
        fs::write(point.join("kept"), &bytes).unwrap();
        fs::write(point.join("large"), &bytes).unwrap();
        output_of("sync", &["-f", text(point)]);
    });
    let full = stored(dir.path());
    assert!(full > 32 * MIB, "{full}");
    mounted(&path, dir.path(), |point| {
        fs::remove_file(point.join("large")).unwrap();
        output_of("fstrim", &[text(point)]);
        output_of("sync", &["-f", text(point)]);
    });
    let trimmed = stored(dir.path());
    assert!(trimmed < full, "{trimmed} bytes after a trim, {full} before");
    daemon.end("-KILL");
    daemon = start(dir.path());
    output_of("e2fsck", &["-fn", text(&path)]);
    mounted(&path, dir.path(), |point| {
        assert!(content(&point.join("kept")) == bytes);
        assert!(!point.join("large").exists());
    });
    let other = daemon.add(&["--config", &below]);
    tree::compare_device(&other, &fixtures().join("ext4/tree-0..2.jsonl"));
    daemon.finish();
}

#[test]
fn a_new_file_system_over_an_old_one_hides_it_and_a_discard_stays_after_a_kill() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir_in("/var").unwrap();
    let mut daemon = start(dir.path());
    let below = config(dir.path(), 1);
    let config = config_with_sparse_upper(&daemon, dir.path(), Some(&below), 1 << 30);
    let path = daemon.add(&["--config", &config, "--id", "5"]);
    output_of("blkdiscard", &[text(&path)]);
    let zeroes = stored(dir.path());
    assert!(zeroes < 64 * MIB, "{zeroes} bytes to hide what lies below");
    output_of("sync", &[text(&path)]);
    daemon.end("-KILL");
    daemon = start(dir.path());
    output_of("cmp", &["-n", "256MiB", text(&path), "/dev/zero"]);

    output_of("mkfs.ext4", &["-q", "-E", "lazy_itable_init=0", text(&path)]);
    let bytes = pattern(8 << 20, 4);
    mounted(&path, dir.path(), |point| {
        fs::write(point.join("kept"), &bytes).unwrap();
        output_of("sync", &["-f", text(point)]);
    });
    let to: PathBuf = dir.path().join("next");
    fs::create_dir(&to).unwrap();
    daemon.json(&["snapshot", text(&path), "--to", text(&to)]);
    mounted(&path, dir.path(), |point| {
        fs::write(point.join("later"), &bytes).unwrap();
        output_of("sync", &["-f", text(point)]);
    });
    daemon.end("-KILL");
    daemon = start(dir.path());
    output_of("e2fsck", &["-fn", text(&path)]);
    mounted(&path, dir.path(), |point| {
        assert!(content(&point.join("kept")) == bytes && content(&point.join("later")) == bytes);
    });
    // The sealed layer and the one over it are of the same kind.
    let mut flags = [0; 4];
    fs::File::open(to.join("upper.data")).unwrap().read_exact_at(&mut flags, 28).unwrap();
    assert_eq!(flags, [0x13, 0, 0, 0]);
    daemon.finish();
}

#[test]
fn a_sparse_layer_of_its_own_keeps_sectors_apart_and_may_end_in_the_middle_of_a_block() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir_in("/var").unwrap();
    let daemon = start(dir.path());
    let config = config_with_sparse_upper(&daemon, dir.path(), None, 8 * MIB + 512);
    let path = daemon.add(&["--config", &config, "--id", "5"]);
    let node = Direct::open(&path, true);
    let last = 8 * MIB / 512;
    for sector in (0..100).step_by(3).chain([last]) {
        node.write(sector * 512, &pattern(512, sector)).unwrap();
    }
    node.file().sync_data().unwrap();
    drop(node);
    daemon.json(&["del", text(&path)]);
    let path = daemon.add(&["--config", &config, "--id", "5"]);
    let node = Direct::open(&path, false);
    for sector in 0..100 {
        let expected = if sector % 3 == 0 { pattern(512, sector) } else { vec![0; 512] };
        assert!(node.read(sector * 512, 512).unwrap() == expected, "sector {sector}");
    }
    assert!(node.read(last * 512, 512).unwrap() == pattern(512, last));
    drop(node);
    daemon.finish();
}
