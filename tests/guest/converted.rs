//! The whole way: an ordinary image of Debian's packages, pushed, converted, attached and mounted, whose programs run.

use std::{fs, path::Path, process::Command};

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
    let [image, changes, work, container] =
        ["image", "changes", "work", "container"].map(|name| root.path().join(name).display().to_string());
    [&image, &changes, &work, &container].iter().for_each(|folder| fs::create_dir(folder).unwrap());
    let mut mounts = Mounts::default();
    mounts.add(&["-t", "ext4", "-o", "ro", path, &image]);
    tree::compare(Path::new(&image), Path::new(TREE));
    // As for a container, which needs a /dev.
    let layers = format!("lowerdir={image},upperdir={changes},workdir={work}");
    mounts.add(&["-t", "overlay", "-o", &layers, "overlay", &container]);
    let nodes = format!("{container}/dev");
    fs::create_dir(&nodes).unwrap();
    mounts.add(&["--bind", "/dev", &nodes]);
    for (program, arguments, wanted) in [
        ("/usr/bin/perl", &["-e", "print 6 * 7"][..], "42"),
        ("/srv/perl", &["-e", "print join ',', sort split / /, 'b a'"], "a,b"),
        ("/usr/bin/python3.11", &["-c", "print([sum(range(10))])"], "[45]\n"),
    ] {
        let said = output_of("env", &[&["LC_ALL=C", "chroot", &container, program], arguments].concat());
        assert!(said.starts_with(wanted), "{program}: {said}");
    }
}

/// What is mounted, until it is dropped: the device beneath cannot go before.
#[derive(Default)]
struct Mounts(Vec<String>);

impl Mounts {
    /// The last of the `arguments` is where.
    fn add(&mut self, arguments: &[&str]) {
        output_of("mount", arguments);
        self.0.extend(arguments.last().map(|at| (*at).to_owned()));
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        for at in self.0.iter().rev() {
            let ended = Command::new("umount").arg(at).status();
            assert!(
                ended.is_ok_and(|status| status.success()) || std::thread::panicking(),
                "{at} stays mounted"
            );
        }
    }
}
