//! The whole way: an ordinary image of Debian's packages, pushed, converted, attached and mounted, whose programs run.

use std::{fs, path::Path};

use serde_json::Value;

use crate::{
    frame::{in_guest, output_of},
    support::{
        daemon::plain_http,
        device::Attached,
        registry::{Registry, Serving, push_blob, push_document},
    },
    tree,
};

/// What `ci/ordinary-image` has made: the image, and what umoci says that its files are.
const IMAGE: &str = "/ordinary/image";
const TREE: &str = "/ordinary/tree.jsonl";

fn blob(digest: &Value) -> Vec<u8> {
    let digest = digest.as_str().unwrap().strip_prefix("sha256:").unwrap();
    read(&Path::new(IMAGE).join("blobs/sha256").join(digest))
}

#[expect(clippy::disallowed_methods, reason = "a blob of a small image")]
fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Pushes the image of the layout.
fn push(registry: &Registry, repository: &str, tag: &str) {
    let index: Value = serde_json::from_slice(&read(&Path::new(IMAGE).join("index.json"))).unwrap();
    let entry = &index["manifests"][0];
    let text = String::from_utf8(blob(&entry["digest"])).unwrap();
    let manifest: Value = serde_json::from_str(&text).unwrap();
    for part in manifest["layers"].as_array().unwrap().iter().chain([&manifest["config"]]) {
        push_blob(registry.address(), repository, &blob(&part["digest"]));
    }
    push_document(registry.address(), repository, tag, entry["mediaType"].as_str().unwrap(), &text);
}

#[test]
fn an_ordinary_image_becomes_a_device_of_its_files_whose_programs_run() {
    if !in_guest() {
        return;
    }
    // On a disk: it is more than the memory should hold.
    let root = tempfile::tempdir_in("/var").unwrap();
    let registry = Registry::start(root.path(), &Serving::default());
    push(&registry, "app/plain", "v1");
    let host = registry.address().to_string();
    let [source, target] = ["app/plain:v1", "app/obd:v1"].map(|name| format!("{host}/{name}"));
    let spool = root.path().to_str().unwrap();
    let made = output_of(
        "ublk-ctl",
        &["convert", "--no-cache", "--plain-http", &host, "--spool", spool, &source, &target],
    );
    println!("{made}");
    let cache = root.path().join("cache");
    let plain = plain_http(&host);
    let device = Attached::add(&[&target, "--set", &plain, "--cache-dir", cache.to_str().unwrap()]);
    let path = device.path().to_str().unwrap();
    output_of("e2fsck", &["-fn", path]);
    let point = root.path().join("mounted");
    fs::create_dir(&point).unwrap();
    let at = point.to_str().unwrap();
    output_of("mount", &["-t", "ext4", "-o", "ro", path, at]);
    tree::compare(&point, Path::new(TREE));
    for (program, argument, wanted) in [
        ("/usr/bin/perl", "print 6 * 7", "42"),
        ("/srv/perl", "print join ',', sort keys %{{b => 1, a => 2}}", "a,b"),
    ] {
        assert_eq!(output_of("chroot", &[at, program, "-e", argument]), wanted);
    }
    let python = ["/usr/bin/python3.11", "-c", "import json; print(json.dumps([sum(range(10))]))"];
    assert_eq!(output_of("chroot", &[&[at], &python[..]].concat()), "[45]\n");
    assert!(output_of("chroot", &[at, "/usr/bin/redis-server", "--version"]).starts_with("Redis server"));
    output_of("umount", &[at]);
}
