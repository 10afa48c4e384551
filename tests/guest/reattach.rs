//! What a killed daemon left is attached again with the same bytes, whatever its registry does meanwhile.

use std::path::Path;

use crate::{
    frame::in_guest,
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
