//! Devices that grow while they are in use.

use std::{
    env, fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use stratabd::format::lsmt::Header;

use crate::{
    daemon::{config, start},
    devices::{Direct, content, pattern},
    frame::{in_guest, output_of},
    support::daemon::Daemon,
    writable::{MIB, config_with_upper, mounted, text},
};

/// Whether this kernel's driver lets devices grow, as those since Linux 6.16 do.
fn grows(daemon: &Daemon) -> bool {
    let grows = env::var("STRATABD_GUEST_KERNEL").unwrap() != "6.12";
    let offered = daemon.json(&["features"])["names"].as_array().unwrap().contains(&"UPDATE_SIZE".into());
    assert_eq!(offered, grows);
    grows
}

fn size_of(device: &Path) -> u64 {
    output_of("blockdev", &["--getsize64", text(device)]).trim().parse().unwrap()
}

/// The sizes in the headers of the two files.
fn sizes_in_headers(dir: &Path) -> [u64; 2] {
    ["upper.data", "upper.index"].map(|name| {
        let mut bytes = [0; 8];
        let file = fs::File::open(dir.join(name)).unwrap();
        file.read_exact_at(&mut bytes, Header::VIRTUAL_SIZE_OFFSET).unwrap();
        u64::from_le_bytes(bytes)
    })
}

/// What the program says that refuses, and its exit code.
fn refused(daemon: &Daemon, device: &Path, size: &str) -> (i32, String) {
    let output = daemon.ctl(&["resize", text(device), "--size", size]);
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_mounted_file_system_grows_with_its_device() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir_in("/var").unwrap();
    let mut daemon = start(dir.path());
    let config = config_with_upper(dir.path(), None, 32 * MIB);
    let add =
        |daemon: &Daemon| -> PathBuf { daemon.add(&["--config", &config, "--id", "7", "--queues", "2"]) };
    let path = add(&daemon);
    output_of("mkfs.ext4", &["-q", "-E", "lazy_itable_init=0", text(&path)]);
    let grows = grows(&daemon);
    let (small, large) = (pattern(4 << 20, 1), pattern(40 << 20, 2));
    let expected = if grows { 96 * MIB } else { 32 * MIB };
    mounted(&path, dir.path(), |point| {
        fs::write(point.join("kept"), &small).unwrap();
        let (code, said) = refused(&daemon, &path, "16MiB");
        assert!(code == if grows { 2 } else { 4 }, "{code}: {said}");
        if grows {
            assert!(said.contains("does not shrink"), "{said}");
            let info = daemon.json(&["resize", text(&path), "--size", "96MiB"]);
            assert_eq!(info["size_bytes"], expected);
            output_of("resize2fs", &[text(&path)]);
            fs::write(point.join("large"), &large).unwrap();
        } else {
            let (code, said) = refused(&daemon, &path, "96MiB");
            assert!(code == 4 && said.contains("Linux 6.16"), "{code}: {said}");
        }
    });
    assert_eq!((size_of(&path), sizes_in_headers(dir.path())), (expected, [expected; 2]));
    assert_eq!(daemon.json(&["info", text(&path)])["size_bytes"], expected);
    let check = |path: &Path| {
        assert_eq!(size_of(path), expected);
        output_of("e2fsck", &["-fn", text(path)]);
        mounted(path, dir.path(), |point| {
            assert!(content(&point.join("kept")) == small);
            assert!(!grows || content(&point.join("large")) == large);
        });
    };
    daemon.json(&["del", text(&path)]);
    check(&add(&daemon));
    daemon.end("-KILL");
    daemon = start(dir.path());
    check(&path);
    daemon.finish();
}

#[test]
fn an_image_grows_under_its_writable_layer_and_not_without_one() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir_in("/var").unwrap();
    let daemon = start(dir.path());
    let below = config(dir.path(), 3);
    let image = daemon.add(&["--config", &below]);
    let (code, said) = refused(&daemon, &image, "1GiB");
    assert!(code == 7 && said.contains("no writable layer"), "{code}: {said}");
    let config = config_with_upper(dir.path(), Some(&below), 0);
    let path = daemon.add(&["--config", &config]);
    if grows(&daemon) {
        let before = size_of(&path);
        let after = before + 64 * MIB;
        daemon.json(&["resize", text(&path), "--size", &after.to_string()]);
        let node = Direct::open_durable(&path);
        assert!(node.read(before, 4096).unwrap() == vec![0; 4096], "what is new reads as zeroes");
        node.write(after - 4096, &pattern(4096, 4)).unwrap();
        drop(node);
        let next = dir.path().join("next");
        fs::create_dir(&next).unwrap();
        daemon.json(&["snapshot", text(&path), "--to", text(&next)]);
        assert_eq!(sizes_in_headers(&next), [after; 2]);
        daemon.json(&["del", text(&path)]);
        let path = daemon.add(&["--config", &config]);
        assert_eq!(size_of(&path), after);
        assert!(Direct::open(&path, false).read(after - 4096, 4096).unwrap() == pattern(4096, 4));
    }
    daemon.finish();
}
