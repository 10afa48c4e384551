//! `convert`: ordinary images of layouts and of docker's registry become overlaybd images of their files.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    unreachable_pub,
    dead_code,
    reason = "a test panics where something is not as expected, reads small files, and uses a part of the support"
)]

#[path = "convert/archives.rs"]
mod archives;
#[path = "convert/index.rs"]
mod index;
#[path = "convert/interrupted.rs"]
mod interrupted;
#[path = "../../tests/support/port.rs"]
mod port;
#[path = "../../tests/support/registry.rs"]
mod registry;

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use registry::{Registry, Serving, digest_of, push_blob, push_document};
use serde_json::{Value, json};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

/// An ordinary image: its manifest, and all blobs that it names.
struct Ordinary {
    manifest: Vec<u8>,
    blobs: Vec<Vec<u8>>,
}

fn tar(folder: &Path) -> Vec<u8> {
    let arguments = ["--sort=name", "--mtime=@1700000000", "--owner=0", "--group=0", "--numeric-owner", "-C"];
    let packed = Command::new("tar").args(arguments).arg(folder).args(["-cf", "-", "."]).output().unwrap();
    assert!(packed.status.success(), "{packed:?}");
    packed.stdout
}

fn gzip(bytes: &[u8], dir: &Path) -> Vec<u8> {
    let path = dir.join("to-compress");
    fs::write(&path, bytes).unwrap();
    let packed = Command::new("gzip").arg("-nc").arg(&path).output().unwrap();
    assert!(packed.status.success(), "{packed:?}");
    packed.stdout
}

/// Two layers, of which the upper one, not compressed, removes and replaces what the lower one has.
fn ordinary(dir: &Path) -> Ordinary {
    let [lower, upper] = ["lower", "upper"].map(|name| dir.join(name));
    fs::create_dir_all(lower.join("etc/old")).unwrap();
    fs::create_dir_all(upper.join("etc/old")).unwrap();
    fs::write(lower.join("etc/hostname"), "lower\n").unwrap();
    fs::write(lower.join("etc/gone"), "gone").unwrap();
    fs::write(lower.join("etc/old/file"), "old").unwrap();
    fs::write(lower.join("large"), (0..3 << 20).map(|at: u32| at.to_le_bytes()[2]).collect::<Vec<u8>>())
        .unwrap();
    fs::hard_link(lower.join("large"), lower.join("twin")).unwrap();
    symlink("etc/hostname", lower.join("link")).unwrap();
    fs::write(upper.join("etc/hostname"), "upper\n").unwrap();
    fs::write(upper.join("etc/.wh.gone"), "").unwrap();
    fs::write(upper.join("etc/old/.wh..wh..opq"), "").unwrap();
    fs::write(upper.join("etc/old/new"), "new").unwrap();
    let archives = [tar(&lower), tar(&upper)];
    image(&[(gzip(&archives[0], dir), format!("{TAR}+gzip")), (archives[1].clone(), TAR.into())], &archives)
}

fn image(layers: &[(Vec<u8>, String)], archives: &[Vec<u8>]) -> Ordinary {
    image_for("amd64", layers, archives)
}

fn image_for(architecture: &str, layers: &[(Vec<u8>, String)], archives: &[Vec<u8>]) -> Ordinary {
    let diff_ids: Vec<String> = archives.iter().map(|archive| digest_of(archive)).collect();
    let config = json!({
        "os": "linux", "architecture": architecture, "config": {"Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}, "history": [{"created_by": "a test"}],
    });
    let config = config.to_string().into_bytes();
    let entry = |bytes: &[u8], media_type: &str| json!({"mediaType": media_type, "digest": digest_of(bytes), "size": bytes.len()});
    let entries: Vec<Value> = layers.iter().map(|(bytes, media_type)| entry(bytes, media_type)).collect();
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": entry(&config, CONFIG), "layers": entries});
    let blobs = layers.iter().map(|(bytes, _)| bytes.clone()).chain([config]).collect();
    Ordinary { manifest: manifest.to_string().into_bytes(), blobs }
}

impl Ordinary {
    /// Puts it into a repository under `tag`.
    fn push(&self, host: SocketAddr, repository: &str, tag: &str) {
        for bytes in &self.blobs {
            push_blob(host, repository, bytes);
        }
        push_document(host, repository, tag, MANIFEST, str::from_utf8(&self.manifest).unwrap());
    }

    /// Writes it to a layout in `folder`, under the name `app`.
    fn lay_out(&self, folder: &Path) {
        fs::create_dir_all(folder.join("blobs/sha256")).unwrap();
        for bytes in self.blobs.iter().chain([&self.manifest]) {
            fs::write(blob(folder, &digest_of(bytes)), bytes).unwrap();
        }
        let entry = json!({
            "mediaType": MANIFEST, "digest": digest_of(&self.manifest), "size": self.manifest.len(),
            "annotations": {"org.opencontainers.image.ref.name": "app"},
        });
        fs::write(folder.join("index.json"), json!({"schemaVersion": 2, "manifests": [entry]}).to_string())
            .unwrap();
        fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    }
}

fn blob(folder: &Path, digest: &str) -> PathBuf {
    folder.join("blobs/sha256").join(digest.strip_prefix("sha256:").unwrap())
}

fn ublk_ctl(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ublk-ctl"));
    command.args(["--json", "--set", "registry.limits.max_tries=2"]).args(arguments);
    command.env_remove("RUST_LOG").env("DOCKER_CONFIG", "/nonexistent").output().unwrap()
}

fn convert(source: &str, target: &str, more: &[&str]) -> Output {
    ublk_ctl(&[&["convert", "--no-cache", source, target], more].concat())
}

/// A device that can be hashed in a moment.
const SMALL: [&str; 2] = ["--vsize", "256MiB"];

/// What skopeo says, which is to succeed.
fn skopeo(arguments: &[&str]) -> Vec<u8> {
    let said = Command::new("skopeo").arg("--insecure-policy").args(arguments).output().unwrap();
    assert!(said.status.success(), "{arguments:?}: {said:?}");
    said.stdout
}

/// The document that skopeo finds at a place.
fn raw(place: &str) -> Value {
    serde_json::from_slice(&skopeo(&["inspect", "--raw", "--tls-verify=false", place])).unwrap()
}

fn result(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The exit code and the message of a failure.
fn failure(output: &Output) -> (Option<i32>, String) {
    let failure: Value = serde_json::from_slice(&output.stderr).unwrap_or_else(|_| panic!("{output:?}"));
    (output.status.code(), failure["error"]["message"].as_str().unwrap().to_owned())
}

/// The device of the image that `folder` calls `name`, as a file.
fn exported(folder: &Path, digest: &Value, to: &Path) {
    let manifest: Value =
        serde_json::from_slice(&fs::read(blob(folder, digest.as_str().unwrap())).unwrap()).unwrap();
    let layers: Vec<String> = manifest["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| blob(folder, layer["digest"].as_str().unwrap()).display().to_string())
        .collect();
    let arguments: Vec<&str> = layers.iter().flat_map(|layer| ["--layer", layer]).collect();
    result(&ublk_ctl(
        &[&["image", "export", "--output", to.to_str().unwrap()], arguments.as_slice()].concat(),
    ));
}

fn debugfs(device: &Path, request: &str) -> String {
    let said = Command::new("debugfs")
        .args(["-R", request])
        .arg(device)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .unwrap();
    String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr)
}

#[test]
fn an_image_of_a_layout_becomes_a_file_system_of_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let [from, to, device] = ["from", "to", "device"].map(|name| dir.path().join(name));
    ordinary(dir.path()).lay_out(&from);
    let [source, target] = [format!("oci:{}:app", from.display()), format!("oci:{}:obd", to.display())];
    let made = result(&convert(&source, &target, &[]));
    assert_eq!((&made["layers"], &made["present"]), (&json!(2), &json!(0)));
    exported(&to, &made["digest"], &device);
    let checked = Command::new("e2fsck")
        .arg("-fn")
        .arg(&device)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin")
        .output()
        .unwrap();
    assert!(checked.status.success(), "{checked:?}");
    assert!(debugfs(&device, "cat /etc/hostname").starts_with("upper\n"));
    assert!(debugfs(&device, "cat /etc/old/new").starts_with("new"));
    for gone in ["/etc/gone", "/etc/old/file", "/etc/.wh.gone", "/etc/old/.wh..wh..opq"] {
        assert!(debugfs(&device, &format!("stat {gone}")).contains("File not found"), "{gone}");
    }
    assert!(debugfs(&device, "stat /twin").contains("Links: 2"));
    let large = dir.path().join("dumped");
    debugfs(&device, &format!("dump /large {}", large.display()));
    assert!(fs::read(&large).unwrap() == fs::read(dir.path().join("lower/large")).unwrap());

    // Once more, with another number of threads: the same bytes, and so nothing is written.
    let again = result(&convert(&source, &target, &["--threads", "3"]));
    assert_eq!((&again["digest"], &again["present"]), (&made["digest"], &json!(2)));
    let index: Value = serde_json::from_slice(&fs::read(to.join("index.json")).unwrap()).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 1);
}

#[test]
fn an_image_of_a_registry_is_converted_into_another_repository() {
    let dir = tempfile::tempdir().unwrap();
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::start(root.path(), &Serving::default());
    let host = registry.address();
    let image = ordinary(dir.path());
    image.push(host, "team/plain", "v1");
    let [source, target] = ["team/plain:v1", "team/obd:v1"].map(|name| format!("{host}/{name}"));
    let plain = host.to_string();
    let made = result(&convert(&source, &target, &[&SMALL, &["--plain-http", plain.as_str()][..]].concat()));
    assert_eq!(made["source_digest"], digest_of(&image.manifest));
    assert_eq!(made["reference"], format!("{target}@{}", made["digest"].as_str().unwrap()));

    // The same as of a layout to a layout.
    let [from, to, device] = ["from", "to", "device"].map(|name| dir.path().join(name));
    image.lay_out(&from);
    let laid_out =
        result(&convert(&format!("oci:{}", from.display()), &format!("oci:{}", to.display()), &SMALL));
    assert_eq!(laid_out["digest"], made["digest"]);
    exported(&to, &laid_out["digest"], &device);
    let reference = ["image", "export", "--no-cache", "--plain-http", &plain, &target, "--sha256"];
    let sum = result(&ublk_ctl(&reference))["sha256"].clone();
    assert_eq!(format!("sha256:{}", sum.as_str().unwrap()), digest_of(&fs::read(&device).unwrap()));

    // It is one now, and stays what it is.
    let (code, said) =
        failure(&convert(&target, &format!("{host}/team/twice:v1"), &["--plain-http", &plain]));
    assert!(code == Some(7) && said.contains("overlaybd image already"), "{code:?} {said}");
}

#[test]
fn a_layer_that_is_not_what_the_image_says_is_named_and_no_image_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    let image = ordinary(dir.path());
    image.lay_out(&from);
    let source = format!("oci:{}:app", from.display());
    let upper = digest_of(&image.blobs[1]);
    let mut changed = image.blobs[1].clone();
    // In the content of a file: nothing but the digest knows.
    let place = changed.windows(6).position(|part| part == b"upper\n").unwrap();
    changed[place] = b'U';
    for (bytes, expected) in
        [(changed, "digest"), (image.blobs[1][..5000].to_vec(), "layer 1"), (Vec::new(), "layer 1")]
    {
        fs::write(blob(&from, &upper), bytes).unwrap();
        let to = dir.path().join("to");
        let (code, said) = failure(&convert(&source, &format!("oci:{}:obd", to.display()), &[]));
        assert!(code == Some(5) && said.contains(expected) && said.contains(&upper), "{code:?} {said}");
        assert!(!to.join("index.json").exists());
    }
    fs::remove_file(blob(&from, &upper)).unwrap();
    let target = format!("oci:{}:obd", dir.path().join("to").display());
    assert_eq!(failure(&convert(&source, &target, &[])).0, Some(3));
}

#[test]
fn what_cannot_be_converted_is_refused_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    let archives = [tar(&{
        let folder = dir.path().join("files");
        fs::create_dir(&folder).unwrap();
        folder
    })];
    image(&[(archives[0].clone(), format!("{TAR}+gzip+encrypted"))], &archives).lay_out(&from);
    let [source, to] =
        [format!("oci:{}", from.display()), format!("oci:{}", dir.path().join("to").display())];
    let (code, said) = failure(&convert(&source, &to, &[]));
    assert!(code == Some(5) && said.contains("+encrypted"), "{code:?} {said}");
    assert_eq!(failure(&convert(&format!("{source}:other"), &to, &[])).0, Some(3));
    assert_eq!(failure(&convert(&format!("{source}-not"), &to, &[])).0, Some(3));
    for wrong in ["docker-daemon:image:1", "oci:"] {
        assert_eq!(failure(&convert(wrong, &to, &[])).0, Some(2), "{wrong}");
    }
    assert!(!dir.path().join("to").exists());

    image(&[(archives[0].clone(), TAR.into())], &archives).lay_out(&from);
    let (code, said) = failure(&convert(&source, &format!("oci:{}", dir.path().display()), &[]));
    assert!(code == Some(7) && said.contains("nor empty"), "{code:?} {said}");
    let (code, said) = failure(&convert(&source, &to, &["--vsize", "4096"]));
    assert!(code == Some(5), "{code:?} {said}");
}
