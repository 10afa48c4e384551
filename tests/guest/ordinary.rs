//! Ordinary images through the real driver: one command from a registry to a device, which outlives its daemon as any other.

use std::{fs, io::Read, path::Path};

use crate::{
    frame::{in_guest, output_of},
    support::{
        daemon::{Daemon, plain_http},
        ordinary::{archive, push_ordinary},
        registry::{Registry, Serving},
    },
    writable::{mounted, text},
};

/// Contents that say which file they are of.
fn files() -> Vec<(String, Vec<u8>)> {
    let content = |number: usize| format!("{number:08}").repeat(1 + number * 97).into_bytes();
    (0..200).map(|number| (format!("app/{}/file-{number}", number % 7), content(number))).collect()
}

fn assert_is_the_image(point: &Path) {
    for (name, content) in files() {
        let mut found = Vec::new();
        fs::File::open(point.join(&name)).unwrap().read_to_end(&mut found).unwrap();
        assert!(found == content, "{name}");
    }
    assert_eq!(fs::read_to_string(point.join("etc/hostname")).unwrap(), "upper\n");
    assert!(!point.join("etc/gone").exists());
}

#[test]
fn an_ordinary_image_becomes_a_device_that_outlives_daemon_and_registry() {
    if !in_guest() {
        return;
    }
    // On the disk: the store is too large for a test's memory.
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let dir = dir.path();
    let mut registry = Registry::start(dir, &Serving::default());
    let address = registry.address();
    let files = files();
    let lower: Vec<(&str, &[u8])> =
        files.iter().map(|(name, content)| (name.as_str(), content.as_slice())).collect();
    let lower = archive(&[&lower[..], &[("etc/hostname", b"lower\n"), ("etc/gone", b"gone")]].concat());
    push_ordinary(
        address,
        "team/app",
        "v1",
        &[lower, archive(&[("etc/hostname", b"upper\n"), ("etc/.wh.gone", b"")])],
    );
    let reference = format!("{address}/team/app:v1");
    let store = format!("store.dir={}", text(&dir.join("store")));
    let settings =
        [&plain_http(address), &store, "registry.limits.max_tries=2", "daemon.private_mounts=true"];
    // The tool converts as the settings say.
    let sets: Vec<&str> = settings.iter().flat_map(|setting| ["--set", *setting]).collect();
    let add = |daemon: &Daemon, more: &[&str]| daemon.add(&[more, &sets[..], &[&reference]].concat());

    let daemon = Daemon::start(dir, &settings);
    let device = add(&daemon, &[]);
    mounted_read_only(&device, dir, assert_is_the_image);
    output_of("e2fsck", &["-fn", text(&device)]);
    registry.stop();
    let upper = dir.join("box");
    let writable = add(&daemon, &["--upper", text(&upper)]);
    mounted(&writable, dir, |point| {
        assert_is_the_image(point);
        fs::write(point.join("hello"), "hello").unwrap();
    });
    assert_eq!(daemon.end("-KILL"), None);

    let daemon = Daemon::start(dir, &settings);
    assert_eq!(daemon.json(&[&["store", "prune"], &sets[..]].concat())["removed_images"], 0);
    let listed = daemon.json(&["list"]);
    assert!(
        listed["devices"][0]["image"]["converted"]["reference"].as_str().unwrap().starts_with(&reference),
        "{listed}"
    );
    mounted_read_only(&device, dir, assert_is_the_image);
    mounted(&writable, dir, |point| {
        assert_is_the_image(point);
        assert_eq!(fs::read_to_string(point.join("hello")).unwrap(), "hello");
    });
    daemon.finish();
}

fn mounted_read_only(device: &Path, dir: &Path, work: impl FnOnce(&Path)) {
    let point = dir.join("read-only");
    fs::create_dir_all(&point).unwrap();
    output_of("mount", &["-t", "ext4", "-o", "ro,noload", text(device), text(&point)]);
    work(&point);
    output_of("umount", &[text(&point)]);
}
