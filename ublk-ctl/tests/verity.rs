//! Images with Merkle trees, through a proxy before docker's registry that changes what it passes on.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    unreachable_pub,
    dead_code,
    reason = "a test panics where something is not as expected, reads small files, and uses a part of the support"
)]

#[path = "../../tests/support/fault_proxy.rs"]
mod fault_proxy;
#[path = "../../tests/support/port.rs"]
mod port;
#[path = "../../tests/support/registry.rs"]
mod registry;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use fault_proxy::{Behaviour, Fault, FaultProxy};
use registry::{Registry, Serving, digest_of, push_blob, push_document};
use serde_json::{Value, json};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const VERITY: &str = "containerd.io/snapshot/stratabd/verity";

/// An ordinary image of one layer with a file of noise, pushed as `team/plain:v1`.
fn push_ordinary(host: SocketAddr, dir: &Path) {
    let files = dir.join("files");
    fs::create_dir(&files).unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    let noise: Vec<u8> = (0..5 << 20).map(|_| random.u8(..)).collect();
    fs::write(files.join("noise"), noise).unwrap();
    let packed = Command::new("tar").arg("-C").arg(&files).args(["-cf", "-", "."]).output().unwrap();
    let layer = packed.stdout;
    let config = json!({
        "os": "linux", "architecture": "amd64", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(&layer)]},
    });
    let config = config.to_string().into_bytes();
    let entry = |bytes: &[u8], media_type: &str| json!({"mediaType": media_type, "digest": digest_of(bytes), "size": bytes.len()});
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": entry(&config, CONFIG), "layers": [entry(&layer, TAR)]});
    for blob in [&layer, &config] {
        push_blob(host, "team/plain", blob);
    }
    push_document(host, "team/plain", "v1", MANIFEST, &manifest.to_string());
}

/// The registry, the proxy before it, and what was made.
struct Site {
    dir: tempfile::TempDir,
    registry: Registry,
    proxy: FaultProxy,
    /// Digest of the device.
    device: String,
}

impl Site {
    /// With the images `plain`, ordinary; `proven`; and `unproven`, the same without a tree.
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("registry");
        fs::create_dir(&root).unwrap();
        let registry = Registry::start(&root, &Serving::default());
        let host = registry.address().to_string();
        push_ordinary(registry.address(), dir.path());
        let proxy = FaultProxy::start(&host);
        let mut site = Self { dir, registry, proxy, device: String::new() };
        let [plain, proven, unproven] =
            ["plain", "proven", "unproven"].map(|name| format!("{host}/team/{name}:v1"));
        let vsize = ["--vsize", "64MiB"];
        result(&site.run(&[&["convert", &plain, &proven], &vsize[..]].concat()));
        result(&site.run(&[&["convert", &plain, &unproven, "--no-verity"], &vsize[..]].concat()));
        site.device = sum(&site.export(&host, "proven", &["--no-cache"])).unwrap();
        site
    }

    fn host(&self) -> String {
        self.registry.address().to_string()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ublk-ctl"));
        let [host, proxy] = [self.host(), self.proxy.address()];
        command.args(["--json", "--set", "registry.limits.max_tries=2"]).args(arguments);
        command.args(["--plain-http", &host, "--plain-http", &proxy]);
        command.env_remove("RUST_LOG").env("DOCKER_CONFIG", "/nonexistent").output().unwrap()
    }

    fn export(&self, host: &str, name: &str, more: &[&str]) -> Output {
        let reference = format!("{host}/team/{name}:v1");
        self.run(&[&["image", "export", &reference, "--sha256"], more].concat())
    }

    fn fail(&self, one_in: u64, fault: Fault) {
        self.proxy.behave(Behaviour { faults: vec![(one_in, fault)], ..Behaviour::healthy() });
    }

    fn flip(&self, at: u64) {
        self.proxy.behave(Behaviour { flip: Some(at), ..Behaviour::healthy() });
    }

    fn heal(&self) {
        self.proxy.behave(Behaviour::healthy());
    }

    /// A folder for a cache that is not there yet.
    fn cache(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The manifest of an image as the registry has it.
    fn manifest(&self, name: &str) -> Value {
        let url = format!("http://{}/v2/team/{name}/manifests/v1", self.host());
        let got =
            Command::new("curl").args(["-fsS", "-H", &format!("Accept: {MANIFEST}"), &url]).output().unwrap();
        serde_json::from_slice(&got.stdout).unwrap_or_else(|_| panic!("{got:?}"))
    }
}

fn result(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn sum(output: &Output) -> Option<String> {
    output.status.success().then(|| result(output)["sha256"].as_str().unwrap().to_owned())
}

/// The exit code and the message of a failure.
fn failure(output: &Output) -> (Option<i32>, String) {
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().last().unwrap_or_default();
    let failure: Value = serde_json::from_str(last).unwrap_or_else(|_| panic!("{output:?}"));
    (output.status.code(), failure["error"]["message"].as_str().unwrap().to_owned())
}

/// Where the tree of a layer lies.
fn tree_offset(layer: &Value) -> u64 {
    layer["annotations"][VERITY].as_str().unwrap().rsplit(';').next().unwrap().parse().unwrap()
}

#[test]
fn what_a_proxy_changes_is_never_read_and_what_it_changes_now_and_then_is_mended() {
    let site = Site::start();
    let layer = site.manifest("proven")["layers"][0].clone();
    let (offset, size) = (tree_offset(&layer), layer["size"].as_u64().unwrap());
    assert!(size > offset + 10 * 4096, "several blocks of hashes");
    let proxy = site.proxy.address();
    // Of a file, of the tail that describes the rest, of the lowest hashes and of those above.
    for (number, at) in [2 << 20, offset - 5000, offset + 5, size - 1024 - 4096 + 3].into_iter().enumerate() {
        let cache = site.cache(&format!("cache{number}"));
        let cache = ["--cache-dir", cache.to_str().unwrap()];
        site.flip(at);
        let (code, said) = failure(&site.export(&proxy, "proven", &cache));
        assert!(matches!(code, Some(5 | 6)) && said.contains("Merkle tree"), "byte {at}: {code:?} {said}");
        // It was kept nowhere.
        site.heal();
        assert_eq!(sum(&site.export(&proxy, "proven", &cache)).as_ref(), Some(&site.device), "byte {at}");
    }
    site.flip(2 << 20);
    assert_eq!(sum(&site.export(&proxy, "proven", &["--no-cache"])), None);
    let mut struck = 0;
    for more in [&["--no-cache"][..], &["--cache-dir", site.cache("mended").to_str().unwrap()]] {
        // Two answers in all, so that nothing is wrong each of the three times that it is asked for.
        let faults = vec![(u64::MAX, Fault::WrongBody); 2];
        site.proxy.behave(Behaviour { faults, ..Behaviour::healthy() });
        let exported = site.export(&proxy, "proven", more);
        assert_eq!(sum(&exported).as_ref(), Some(&site.device), "{more:?}: {exported:?}");
        struck += 2;
        assert_eq!(site.proxy.counts().struck(Fault::WrongBody), struck);
    }
    // All of it is kept now: nothing is asked of a registry whose tag is known to be this.
    let digest = site.export(&proxy, "proven", &["--cache-dir", site.cache("mended").to_str().unwrap()]);
    assert_eq!(sum(&digest).as_ref(), Some(&site.device));
}

#[test]
fn an_annotation_that_is_wrong_or_of_another_blob_serves_nothing() {
    let site = Site::start();
    let (host, right) = (site.host(), site.manifest("proven"));
    let annotation = right["layers"][0]["annotations"][VERITY].as_str().unwrap().to_owned();
    let offset = tree_offset(&right["layers"][0]);
    let other = format!("sha256:{};4096;{offset}", "a1".repeat(32));
    let short = annotation.replace(&format!(";{offset}"), &format!(";{}", offset - 4096));
    for (wrong, expected) in [
        (other.as_str(), "Merkle tree"),
        (short.as_str(), "with its tree the blob has"),
        ("sha256:00", "it is not `sha256:DIGEST"),
        ("", "it is not `sha256:DIGEST"),
    ] {
        let mut manifest = right.clone();
        manifest["layers"][0]["annotations"][VERITY] = json!(wrong);
        push_document(site.registry.address(), "team/proven", "wrong", MANIFEST, &manifest.to_string());
        let reference = format!("{host}/team/proven:wrong");
        let (code, said) = failure(&site.run(&["image", "export", &reference, "--sha256", "--no-cache"]));
        assert!(matches!(code, Some(5 | 6)) && said.contains(expected), "{wrong}: {code:?} {said}");
    }
}

#[test]
fn trees_are_given_to_an_image_that_has_none_and_can_be_asked_for() {
    let site = Site::start();
    let host = site.host();
    let policy = ["--set", "image.require_merkle=true", "--no-cache"];
    let (code, said) = failure(&site.export(&host, "unproven", &policy));
    assert!(code == Some(5) && said.contains("image add-verity"), "{code:?} {said}");
    assert_eq!(sum(&site.export(&host, "unproven", &["--no-cache"])).as_ref(), Some(&site.device));

    let [source, target, plain] = ["unproven", "added", "plain"].map(|name| format!("{host}/team/{name}:v1"));
    let added = result(&site.run(&["image", "add-verity", &source, &target]));
    assert_eq!((&added["layers"], &added["proven"]), (&json!(1), &json!(0)));
    assert_eq!(sum(&site.export(&host, "added", &policy)).as_ref(), Some(&site.device));
    assert_eq!(site.manifest("added"), site.manifest("proven"), "as if it had been made so");

    // What has them stays as it is; what is no overlaybd image gets none.
    let again = result(&site.run(&["image", "add-verity", &target, &format!("{host}/team/added:v2")]));
    assert_eq!(
        (&again["digest"], &again["proven"], &again["present"]),
        (&added["digest"], &json!(1), &json!(1))
    );
    let (code, said) = failure(&site.run(&["image", "add-verity", &plain, &format!("{host}/team/x:v1")]));
    assert!(code == Some(5) && said.contains("ordinary OCI image"), "{code:?} {said}");
}
