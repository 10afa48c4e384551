//! What a killed daemon left is attached again with the same bytes, whatever its registry does meanwhile.

use std::path::Path;

use crate::{
    frame::{in_guest, wait_until},
    holdings::{Holdings, cache_pins},
    registry::{RANDOM, content_of},
    support::{
        daemon::{Daemon, plain_http},
        registry::{Registry, Serving, push_image},
    },
};

#[test]
fn a_cached_image_comes_back_without_its_registry_and_with_its_bytes_after_the_tag_has_moved() {
    if !in_guest() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let dir = root.path();
    let mut registry = Registry::start(dir, &Serving::default());
    let address = registry.address();
    push_image(address, "team/app", "v1", &RANDOM.blobs());
    let image = format!("{address}/team/app:v1");
    let start = || Daemon::start(dir, &[&plain_http(address)]);

    let daemon = start();
    let added = daemon.json(&["add", &image, "--id", "4"]);
    assert_eq!(added["image"]["reference"], image.as_str());
    let device = Path::new("/dev/ublkb4");
    assert_eq!(content_of(device), RANDOM.content);

    registry.stop();
    daemon.end("-KILL");
    let daemon = start();
    assert_eq!(content_of(device), RANDOM.content, "without the registry");

    let _registry = Registry::start_at(dir, &Serving::default(), address);
    push_image(address, "team/app", "v1", &RANDOM.blobs()[..2]);
    daemon.end("-KILL");
    let daemon = start();
    assert_eq!(content_of(device), RANDOM.content, "after the tag has moved");
    assert_ne!(content_of(&daemon.add(&[&image])), RANDOM.content, "the tag has not moved");
    daemon.finish();
}

#[test]
fn kills_and_upgrades_leave_no_blob_pinned_in_the_cache_that_no_device_has() {
    if !in_guest() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let dir = root.path();
    let registry = Registry::start(dir, &Serving::default());
    let address = registry.address();
    let images = [("a", &RANDOM.blobs()[..]), ("b", &RANDOM.blobs()[..2])].map(|(name, blobs)| {
        push_image(address, name, "v1", blobs);
        format!("{address}/{name}:v1")
    });
    let start = || Daemon::start(dir, &[&plain_http(address)]);
    let mut daemon = start();
    for (id, image) in [("1", &images[0]), ("2", &images[0]), ("3", &images[1])] {
        content_of(&daemon.add(&[image, "--id", id]));
    }
    let held = Holdings::of(&daemon, dir);
    assert!(cache_pins(dir) >= RANDOM.blobs().len(), "{held:?}");
    for round in 0..4 {
        match round % 2 {
            0 => {
                daemon.end("-KILL");
                daemon = start();
            }
            _ => daemon.upgrade(&["--timeout", "120"]).unwrap(),
        }
        assert_eq!(content_of(Path::new("/dev/ublkb2")), RANDOM.content);
        daemon.json(&["del", "3"]);
        content_of(&daemon.add(&[&images[1], "--id", "3"]));
        held.check(&daemon, dir);
    }
    daemon.json(&["del", "--all"]);
    wait_until("no blob is pinned", || cache_pins(dir) == 0);
    daemon.finish();
}
