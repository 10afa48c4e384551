//! A folder that makes an image of a registry writable, from `add` to the next version of the image, with a frontend that needs no
//! driver.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    unreachable_pub,
    reason = "a test panics where something is not as expected, and the support is a crate's own elsewhere"
)]
#![expect(dead_code, reason = "each test binary uses a part of the support")]

#[path = "../../tests/support/fixtures.rs"]
mod fixtures;
#[path = "../../tests/support/null_port.rs"]
mod null_port;
#[path = "../../tests/support/port.rs"]
mod port;
#[path = "../../tests/support/registry.rs"]
mod registry;

use std::{
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use fixtures::Fixture;
use null_port::NullPort;
use registry::{Registry, Serving};
use serde_json::{Value, json};
use stratabd::{
    format::lsmt::Segment,
    frontend::NullFrontend,
    server::{
        api::types::{AddDevice, DeviceState, ForkDevice, ImageSpec},
        config::{Config, HostSection},
        daemon::{Daemon, DaemonParts, SnapshotTarget},
        failure::FailureClass,
        metrics::{Exposition, MetricsDetail},
        service::Service,
        state::StateDir,
    },
};

/// A daemon that speaks plain HTTP to `host`.
fn daemon(dir: &Path, host: &str) -> Arc<Daemon> {
    let mut config = Config::default();
    config.cache.enabled = false;
    config
        .registry
        .hosts
        .insert(host.parse().unwrap(), HostSection { plain_http: true, ..HostSection::default() });
    let service = Service::start(config, tokio::runtime::Handle::current(), || Ok(())).unwrap();
    let port = Arc::new(NullPort(NullFrontend::new()));
    Daemon::new(DaemonParts { service, port }, StateDir::open(&dir.join("state")).unwrap())
}

/// The same, with a cache.
fn daemon_with_cache(dir: &Path, host: &str) -> Arc<Daemon> {
    let mut config = Config::default();
    config.cache.dir = dir.join("cache");
    config
        .registry
        .hosts
        .insert(host.parse().unwrap(), HostSection { plain_http: true, ..HostSection::default() });
    let service = Service::start(config, tokio::runtime::Handle::current(), || Ok(())).unwrap();
    let port = Arc::new(NullPort(NullFrontend::new()));
    Daemon::new(DaemonParts { service, port }, StateDir::open(&dir.join("state")).unwrap())
}

fn over(image: ImageSpec, upper: &Path) -> AddDevice {
    AddDevice { upper: Some(upper.to_owned()), ..AddDevice::of(image) }
}

fn reference(text: &str) -> ImageSpec {
    ImageSpec::Reference(text.to_owned())
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/ext4").join(name)
}

/// What the tool answers, which must work, by plain HTTP to `host`.
fn ctl(host: &str, arguments: &[&str]) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ublk-ctl"));
    command.arg("--json").args(arguments).env_remove("RUST_LOG").env("DOCKER_CONFIG", "/nonexistent");
    if arguments[0] == "image" {
        command.args(["--no-cache", "--plain-http", host]);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn bytes_of(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    fs::File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

/// The layers of the configuration in `folder`.
fn lowers(folder: &Path) -> Value {
    serde_json::from_str::<Value>(&read(&folder.join("config.v1.json"))).unwrap()["lowers"].clone()
}

/// A registry with L0 as `team/base:v1`.
fn with_base(root: &Path) -> (Registry, String) {
    let registry = Registry::start(root, &Serving::default());
    let host = registry.address().to_string();
    ctl(&host, &["image", "push", "--layer", text(&fixture("L0.zt4k")), &format!("{host}/team/base:v1")]);
    (registry, host)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_over_an_image_of_a_registry_becomes_its_next_version() {
    let root = tempfile::tempdir().unwrap();
    let (_registry, host) = with_base(root.path());
    let daemon = daemon(root.path(), &host);
    let (base, folder) = (format!("{host}/team/base:v1"), root.path().join("box"));
    let added = daemon.add(over(reference(&base), &folder)).await.unwrap();
    let config = folder.join("config.v1.json");
    assert_eq!((added.read_only, added.image), (false, Some(ImageSpec::Config(config.clone()))));
    let image_ref = read(&folder.join("image_ref")).trim().to_owned();
    assert!(image_ref.starts_with(&format!("{base}@sha256:")), "{image_ref}");
    daemon.remove(added.id, true).await.unwrap();

    // As if it had been written to. Meanwhile the tag has moved on.
    for (name, written) in [("upper.data", "ext4/rw1.d.xz"), ("upper.index", "ext4/rw1.i")] {
        fs::write(folder.join(name), Fixture::named(written).read()).unwrap();
    }
    let other = fixture("L0.zstd64kt");
    ctl(&host, &["image", "push", "--platform", "linux/none", "--layer", text(&other), &base]);
    let added = daemon.add(over(reference(&base), &folder)).await.unwrap();
    assert_eq!(daemon.info(added.id).await.unwrap().layers.len(), 2);
    let next = folder.join("2");
    let taken = daemon.snapshot(added.id, SnapshotTarget::Folder(next.clone())).await.unwrap();
    assert_eq!((taken.config, taken.data), (config, next.join("upper.data")));
    assert_eq!(lowers(&folder)[1], json!({"file": folder.join("upper.data"), "snapshot": true}));

    // While the device goes on.
    let layer = root.path().join("layer.obd");
    ctl(&host, &["layer", "commit", "--tar", text(&taken.sealed), text(&layer)]);
    let target = format!("{host}/team/app:v2");
    let pushed = ctl(&host, &["image", "push", "--base", &image_ref, "--layer", text(&layer), &target]);
    assert_eq!(pushed["layers"], 2);
    let sum = ctl(&host, &["image", "export", &target, "--sha256"])["sha256"].clone();
    assert_eq!(sum, "a2cbed8b08692468295794111ded9df4b453bb25fb41c9c5f0c155f5bba1ccbf");

    let fork = ForkDevice { name: "fork".into(), to: None, id: None };
    let forked = daemon.fork(added.id, fork).await.unwrap();
    assert_eq!(daemon.info(forked.id).await.unwrap().layers.len(), 3);
    // The mark of a layer that may be merged is the first device's alone.
    let mut shared = lowers(&folder);
    shared[1].as_object_mut().unwrap().remove("snapshot");
    assert_eq!(lowers(&folder.join("fork")), shared, "nothing was written since");
    assert_eq!(read(&folder.join("fork/image_ref")).trim(), image_ref);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_is_for_one_image_and_is_never_written_over() {
    let root = tempfile::tempdir().unwrap();
    let (_registry, host) = with_base(root.path());
    let daemon = daemon(root.path(), &host);
    let (base, folder) = (format!("{host}/team/base:v1"), root.path().join("box"));
    let first = daemon.add(over(reference(&base), &folder)).await.unwrap();
    let image_ref = read(&folder.join("image_ref")).trim().to_owned();
    let kept = || {
        ["config.v1.json", "upper.data", "upper.index"]
            .map(|name| fs::metadata(folder.join(name)).unwrap().len())
    };
    let before = kept();
    let elsewhere = format!("{host}/team/base:v2");
    let layers = ImageSpec::Layers(vec![fixture("L0.zt4k")]);
    for (image, class, words) in [
        (reference(&elsewhere), FailureClass::Conflict, image_ref.as_str()),
        (layers.clone(), FailureClass::Conflict, "its layers are others"),
        (ImageSpec::Config(folder.join("config.v1.json")), FailureClass::Usage, "names its own upper"),
        // It is in use.
        (reference(&base), FailureClass::Conflict, "upper.data"),
        (reference(&image_ref), FailureClass::Conflict, "upper.data"),
    ] {
        let failure = daemon.add(over(image, &folder)).await.unwrap_err();
        assert_eq!(failure.class(), class, "{}", failure.full_text());
        assert!(failure.full_text().contains(words), "{}", failure.full_text());
    }
    assert_eq!(kept(), before);
    daemon.remove(first.id, true).await.unwrap();
    daemon.add(over(reference(&image_ref), &folder)).await.unwrap();

    let relative = daemon.add(over(layers.clone(), Path::new("box"))).await.unwrap_err();
    assert_eq!(relative.class(), FailureClass::Usage);
    let half = root.path().join("half");
    fs::create_dir(&half).unwrap();
    fs::write(half.join("upper.data"), "precious").unwrap();
    let other = root.path().join("other");
    fs::create_dir_all(other.join("lost+found")).unwrap();
    fs::write(other.join("notes"), "precious").unwrap();
    for (folder, name) in [(&half, "upper.data"), (&other, "notes")] {
        let failure = daemon.add(over(layers.clone(), folder)).await.unwrap_err();
        let text = failure.full_text();
        assert!(failure.class() == FailureClass::Conflict && text.contains(name), "{text}");
    }
    fs::remove_file(other.join("notes")).unwrap();
    // As a file system of its own has it.
    daemon.add(over(layers, &other)).await.unwrap();
    let missing = daemon.add(over(reference(&elsewhere), &root.path().join("none"))).await.unwrap_err();
    assert_eq!(missing.class(), FailureClass::NotFound);
    assert!(!root.path().join("none").exists());
    assert_eq!(fs::read_dir(&half).unwrap().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn layer_files_and_images_that_are_read_only_get_a_folder_too() {
    let root = tempfile::tempdir().unwrap();
    let (_registry, host) = with_base(root.path());
    let daemon = daemon(root.path(), &host);
    let (layers, folder) = (ImageSpec::Layers(vec![fixture("L0.zt4k")]), root.path().join("box"));
    let added = daemon.add(over(layers.clone(), &folder)).await.unwrap();
    assert!(!added.read_only && !folder.join("image_ref").exists());
    daemon.remove(added.id, true).await.unwrap();
    let added = daemon.add(over(layers, &folder)).await.unwrap();
    assert!(!added.read_only);

    let base = format!("{host}/team/base:v1");
    let image = AddDevice { upper: None, ..over(reference(&base), root.path()) };
    let read_only = daemon.add(image).await.unwrap();
    let fork = |to: Option<&Path>| ForkDevice { name: "fork".into(), to: to.map(Path::to_owned), id: None };
    let nowhere = daemon.fork(read_only.id, fork(None)).await.unwrap_err();
    assert!(nowhere.class() == FailureClass::Usage && nowhere.full_text().contains("--to"), "{nowhere}");
    let forked = daemon.fork(read_only.id, fork(Some(root.path()))).await.unwrap();
    assert!(!forked.read_only);
    let made_of = read(&root.path().join("fork/image_ref"));
    assert!(made_of.starts_with(&format!("{base}@sha256:")), "{made_of}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_platforms_the_one_that_is_asked_for_is_added_and_no_other_image() {
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    let root = tempfile::tempdir().unwrap();
    let (registry, host) = with_base(root.path());
    let layers = [("amd64", "L0.zt4k"), ("s390x", "L0.zstd64kt")];
    let manifests = layers.map(|(architecture, layer)| {
        let (target, platform) =
            (format!("{host}/team/base:{architecture}"), format!("linux/{architecture}"));
        let layer = fixture(layer);
        let push = ["image", "push", "--platform", &platform, "--layer", text(&layer), &target];
        let digest = ctl(&host, &push)["digest"].clone();
        let platform = json!({"os": "linux", "architecture": architecture});
        let kind = "application/vnd.oci.image.manifest.v1+json";
        json!({"mediaType": kind, "digest": digest, "size": 500, "platform": platform})
    });
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests.clone()});
    registry::push_document(registry.address(), "team/base", "all", INDEX, &index.to_string());

    let daemon = daemon(root.path(), &host);
    let wanted = |tag: &str, platform: &str, folder: &str| AddDevice {
        platform: Some(platform.to_owned()),
        ..over(reference(&format!("{host}/team/base:{tag}")), &root.path().join(folder))
    };
    for (tag, folder) in [("all", "box"), ("s390x", "single")] {
        daemon.add(wanted(tag, "linux/s390x", folder)).await.unwrap();
        let image_ref = read(&root.path().join(folder).join("image_ref"));
        let pinned = format!("{host}/team/base:{tag}@{}", manifests[1]["digest"].as_str().unwrap());
        assert_eq!(image_ref.trim_end(), pinned);
    }
    for (request, words) in [
        (wanted("all", "linux/mips", "none"), "linux/amd64, linux/s390x"),
        (wanted("s390x", "linux/amd64", "none"), "is for linux/s390x, and not for linux/amd64"),
        (wanted("all", "linux", "none"), "os/architecture"),
        (
            AddDevice {
                image: ImageSpec::Layers(vec![fixture("L0.zt4k")]),
                ..wanted("all", "linux/s390x", "none")
            },
            "image of a registry",
        ),
        // What the folder is of is another platform's.
        (wanted("all", "linux/amd64", "box"), "and not over"),
    ] {
        let failure = daemon.add(request).await.unwrap_err();
        assert!(failure.full_text().contains(words), "{}", failure.full_text());
    }
    assert!(!root.path().join("none").exists());
}

/// Ids of the images that devices show, and the bytes of the index of each image that is open, from the metrics.
async fn images(daemon: &Arc<Daemon>) -> (Vec<String>, Vec<u64>) {
    let metrics = daemon.metrics(MetricsDetail::Totals, Exposition::Text).await.unwrap();
    let of = |family: &str| -> Vec<(String, u64)> {
        let lines = metrics.lines().filter(|line| line.starts_with(&format!("stratabd_{family}{{")));
        lines
            .map(|line| {
                let (_, name) = line.split_once("image_id=\"").unwrap();
                let value = line.rsplit(' ').next().unwrap().parse().unwrap();
                (name.split('"').next().unwrap().to_owned(), value)
            })
            .collect()
    };
    let shown = of("device_image").into_iter().map(|(name, _)| name).collect();
    (shown, of("image_index_bytes").into_iter().map(|(_, bytes)| bytes).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn forks_of_ten_layers_share_one_index() {
    const LAYERS: u64 = 10;
    const SEGMENTS: u64 = 1_000;
    let root = tempfile::tempdir().unwrap();
    let files = (0..LAYERS).map(|layer| {
        let [data, index, made] =
            ["data", "index", "layer"].map(|name| root.path().join(format!("{name}-{layer}")));
        ctl("", &["layer", "create", text(&data), text(&index), "--size", "1GiB"]);
        // Each has pages at places of its own, so that the merged index has them all.
        let entries = (0..SEGMENTS)
            .map(|number| Segment::new((number * LAYERS + layer) * 16, 8, 8 + number * 8, false, 0));
        let entries: Vec<u8> = entries.flat_map(|entry| entry.unwrap().encode()).collect();
        for (path, bytes) in
            [(&data, &vec![7; usize::try_from(SEGMENTS * 4096).unwrap()]), (&index, &entries)]
        {
            fs::File::options().append(true).open(path).unwrap().write_all(bytes).unwrap();
        }
        ctl("", &["layer", "commit", text(&data), text(&index), text(&made)]);
        made
    });
    let daemon = daemon(root.path(), "none.example");
    let first = daemon.add(over(ImageSpec::Layers(files.collect()), &root.path().join("box"))).await.unwrap();
    let (_, alone) = images(&daemon).await;
    assert!(alone.len() == 1 && alone[0] > LAYERS * SEGMENTS * 16, "{alone:?}");
    for number in 0..16 {
        let wanted = ForkDevice { name: format!("fork-{number}"), to: None, id: None };
        let fork = daemon.fork(first.id, wanted).await.unwrap();
        assert!(!fork.read_only);
    }
    let (mut shown, open) = images(&daemon).await;
    assert_eq!(shown.len(), 17);
    shown.dedup();
    assert_eq!((shown.len(), open), (1, alone), "nothing was written, so that all lie over the same image");
    let layer = root.path().join("box/fork-3/upper.data");
    assert_eq!(fs::metadata(layer).unwrap().len(), 4096, "an empty layer is a header");
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_whose_tag_has_moved_come_back_from_the_cache_while_their_registry_hangs() {
    let root = tempfile::tempdir().unwrap();
    let (registry, host) = with_base(root.path());
    let first = daemon_with_cache(root.path(), &host);
    let base = reference(&format!("{host}/team/base:v1"));
    let read_only = first.add(AddDevice::of(base.clone())).await.unwrap();
    let writable = first.add(over(base, &root.path().join("box"))).await.unwrap();
    let size_bytes = read_only.size_bytes;
    drop(first);
    let others = ["L0.zt4k", "L1.zt4k"].map(|name| bytes_of(&fixture(name)));
    registry::push_image(registry.address(), "team/base", "v1", &others);
    // It takes connections, and answers none.
    registry.signal("-STOP");
    let next = daemon_with_cache(root.path(), &host);
    let began = std::time::Instant::now();
    next.reattach().await.unwrap();
    for id in [read_only.id, writable.id] {
        let info = next.info(id).await.unwrap();
        assert_eq!((info.state, info.size_bytes), (DeviceState::Live, size_bytes), "{info:?}");
    }
    // A try at the registry would take half a minute.
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
}
