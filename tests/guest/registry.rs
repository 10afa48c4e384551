//! Stacks of upstream's own layers, served from real registries, as devices of the real driver.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::Ordering,
};

use crate::{
    content_digest::ContentDigest,
    frame::in_guest,
    support::{
        daemon::{Daemon, plain_http},
        device::Attached,
        fault_proxy::FaultProxy,
        registry::{Registry, Serving, push_image},
        secure::{Certificates, Nginx, authfile, htpasswd},
    },
    tree,
};

/// Layers of the fixtures, lowest first, what the stack must read as, and the files that are in it. `tests/image/whole.rs` shows that
/// these are the digests of the devices in upstream's manifest.
pub(crate) struct Stack {
    layers: &'static [&'static str],
    pub(crate) content: &'static str,
    /// `None` where no file system is in it.
    tree: Option<&'static str>,
}

/// LZ4 with blocks of 16 KiB.
const ONE: Stack = Stack {
    layers: &["ext4/L0.z16k"],
    content: "83747716f91a642bd5aa89f67143d3e703d02b841d9fd5ed4b11e85f2d1d8a50",
    tree: Some("ext4/tree-0..0.jsonl"),
};
/// zstd with blocks of 64 and 8 KiB, the first in a tar.
const TWO: Stack = Stack {
    layers: &["ext4/L0.zstd64kt", "ext4/L1.zstd8k"],
    content: "c011bf094072d3516044e6ac724be4eb4b4204086c29d4fd3279987b28575f1b",
    tree: Some("ext4/tree-0..1.jsonl"),
};
/// LZ4 with blocks of 4 and 32 KiB, all in tars.
const THREE: Stack = Stack {
    layers: &["ext4/L0.zt4k", "ext4/L1.z32kt", "ext4/L2.zt4k"],
    content: "5bbf3c6b55f9012f504f34765db134e6915eaa59e51875f192e966472b5f5a4b",
    tree: Some("ext4/tree-0..2.jsonl"),
};

/// Not compressed, mapped sector by sector, and small.
pub(crate) const RANDOM: Stack = Stack {
    layers: &["lsmt/g0.lsmt.xz", "lsmt/g1.lsmt", "lsmt/g2.lsmt"],
    content: "be56aa516e8e18b7a34f2bbd921c79982ad22cb7bb08819f736b536e86c20b33",
    tree: None,
};

/// Not compressed, and small. No layer hides a part of another, so that all of the blob is wanted.
const WHOLE: Stack = Stack {
    layers: &["lsmt/g0.lsmt.xz"],
    content: "873bb087e743ad3099d3ba79002558ec2d702a8198b66cb6dc38f308f0d41094",
    tree: None,
};

impl Stack {
    pub(crate) fn blobs(&self) -> Vec<Vec<u8>> {
        let unpacked = |name: &&str| {
            let bytes = read(&fixture(name));
            if !name.ends_with(".xz") {
                return bytes;
            }
            let mut unpacked = Vec::new();
            lzma_rs::xz_decompress(&mut bytes.as_slice(), &mut unpacked).unwrap();
            unpacked
        };
        self.layers.iter().map(unpacked).collect()
    }

    fn assert_is(&self, device: &Path) {
        assert_eq!(content_of(device), self.content, "{:?}", self.layers);
    }

    fn assert_shows_its_files(&self, device: &Path) {
        tree::compare_device(device, &fixture(self.tree.expect("a file system is in it")));
    }
}

fn fixture(name: &str) -> PathBuf {
    let root = std::env::var("STRATABD_FIXTURES").unwrap_or_else(|_| "/fixtures".to_owned());
    Path::new(&root).join(name)
}

fn read(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut file = fs::File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

/// The digest of a whole device, read in large pieces.
pub(crate) fn content_of(device: &Path) -> String {
    let mut file = fs::File::open(device).unwrap();
    let mut digest = ContentDigest::default();
    let mut piece = vec![0; 1 << 20];
    loop {
        // A device gives all that is asked for, up to its end.
        let count = file.read(&mut piece).unwrap();
        if count == 0 {
            return digest.finish();
        }
        digest.update(&piece[..count]);
    }
}

fn add_refused(arguments: &[&str]) -> Option<i32> {
    let output = Command::new("ublk-ctl").args(["add", "--foreground"]).args(arguments).output().unwrap();
    println!("refused: {}", String::from_utf8_lossy(&output.stderr));
    output.status.code()
}

#[test]
fn a_registry_with_tls_and_a_login_serves_the_bytes_of_the_manifest() {
    if !in_guest() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let dir = root.path();
    {
        let plain = Registry::start(dir, &Serving::default());
        push_image(plain.address(), "team/app", "v1", &THREE.blobs());
    }
    let certificates = Certificates::make(dir);
    let tls = Some((certificates.certificate.clone(), certificates.key.clone()));
    let serving = Serving { tls, htpasswd: Some(htpasswd(dir)) };
    let mut registry = Registry::start(dir, &serving);
    let host = registry.address().to_string();
    let image = format!("{host}/team/app:v1");
    let (auth, cache) = (authfile(dir, &host), dir.join("cache"));
    let [authority, auth, cache] =
        [&certificates.authority, &auth, &cache].map(|path| path.to_str().unwrap());
    let good = [&image, "--ca-file", authority, "--authfile", auth, "--cache-dir", cache];
    let device = Attached::add(&good);
    THREE.assert_shows_its_files(device.path());
    THREE.assert_is(device.path());
    drop(device);

    // Cut off: what is cached needs no registry, nor does attaching it again.
    registry.stop();
    let device = Attached::add(&good);
    THREE.assert_shows_its_files(device.path());
    drop(device);

    let nobody = dir.join("nobody.json");
    fs::write(&nobody, "{}").unwrap();
    let _registry = Registry::start_at(dir, &serving, registry.address());
    let without_login =
        ["--no-cache", "--ca-file", authority, "--authfile", nobody.to_str().unwrap(), &image];
    assert_eq!(add_refused(&without_login), Some(6), "no login");
    assert_eq!(
        add_refused(&["--no-cache", "--authfile", auth, &image]),
        Some(6),
        "an authority nobody trusts is a failure of TLS as any other"
    );
}

#[test]
fn redirects_to_signed_storage_get_no_credential_and_are_asked_for_once_a_blob() {
    if !in_guest() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let dir = root.path();
    let plain = Registry::start(dir, &Serving::default());
    push_image(plain.address(), "team/one", "v1", &ONE.blobs());
    push_image(plain.address(), "team/two", "v1", &TWO.blobs());
    let certificates = Certificates::make(dir);
    let nginx = Nginx::start(dir, plain.address(), &certificates, &htpasswd(dir));
    let host = nginx.address().to_string();
    let (auth, cache) = (authfile(dir, &host), dir.join("cache"));
    let [authority, auth, cache] =
        [&certificates.authority, &auth, &cache].map(|path| path.to_str().unwrap());
    let attach = |name: &str| {
        let image = format!("{host}/team/{name}:v1");
        Attached::add(&[&image, "--ca-file", authority, "--authfile", auth, "--cache-dir", cache])
    };
    let device = attach("two");
    TWO.assert_shows_its_files(device.path());
    TWO.assert_is(device.path());
    ONE.assert_shows_its_files(attach("one").path());
    let log = nginx.log();
    let count = |status: &str| log.lines().filter(|line| line.contains(&format!(" {status} "))).count();
    println!("{} redirects, {} answers from storage", count("307"), count("206"));
    assert_eq!(count("307"), ONE.layers.len() + TWO.layers.len(), "each blob is looked for once:\n{log}");
    assert_eq!(count("400"), 0, "a credential went to storage:\n{log}");
    assert_eq!(count("403"), 0, "a signature was lost:\n{log}");
    assert!(count("206") > 0);
}

/// A registry with one image behind a proxy that counts what is asked of it.
struct Counted {
    _registry: Registry,
    proxy: FaultProxy,
    /// Bytes of all blobs.
    blob_bytes: u64,
    digest: String,
}

impl Counted {
    fn start(dir: &Path, stack: &Stack) -> Self {
        let registry = Registry::start(dir, &Serving::default());
        let blobs = stack.blobs();
        let digest = push_image(registry.address(), "team/app", "v1", &blobs);
        let proxy = FaultProxy::start(&registry.address().to_string());
        let blob_bytes = blobs.iter().map(Vec::len).sum::<usize>() as u64;
        Self { _registry: registry, proxy, blob_bytes, digest }
    }

    fn fetched(&self) -> u64 {
        self.proxy.counts().blob_bytes.load(Ordering::SeqCst)
    }
}

/// Reads all of the devices at the same time; each must be the stack.
fn assert_all_are(stack: &Stack, devices: &[&Path]) {
    std::thread::scope(|scope| {
        for device in devices {
            scope.spawn(|| stack.assert_is(device));
        }
    });
}

#[test]
fn two_processes_with_one_image_and_one_cache_fetch_each_byte_once() {
    if !in_guest() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let counted = Counted::start(root.path(), &WHOLE);
    let host = counted.proxy.address();
    let cache = root.path().join("cache");
    let image = format!("{host}/team/app:v1");
    let arguments = [&image, "--plain-http", &host, "--cache-dir", cache.to_str().unwrap()];
    let devices = [Attached::add(&arguments), Attached::add(&arguments)];
    assert_all_are(&WHOLE, &[devices[0].path(), devices[1].path()]);
    let (fetched, blobs) = (counted.fetched(), counted.blob_bytes);
    println!("{fetched} bytes fetched for blobs of {blobs}");
    // One process may ask for the end of a unit that the other has just marked: a twentieth is room for that.
    assert!(fetched <= blobs + blobs / 20, "{fetched} bytes fetched for blobs of {blobs}");
}

#[test]
fn two_devices_of_one_daemon_fetch_each_byte_once_and_the_second_asks_for_nothing() {
    if !in_guest() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let counted = Counted::start(root.path(), &WHOLE);
    let host = counted.proxy.address();
    let daemon = Daemon::start(root.path(), &[&plain_http(&host)]);
    // A tag may mean another image tomorrow, and is asked for each time; a digest never does.
    let image = format!("{host}/team/app@{}", counted.digest);
    let first = daemon.add(&[&image]);
    let before = counted.proxy.requests();
    let second = daemon.add(&[&image]);
    assert_eq!(counted.proxy.requests(), before, "requests to attach the second device");
    assert_all_are(&WHOLE, &[&first, &second]);
    let (fetched, blobs) = (counted.fetched(), counted.blob_bytes);
    println!("{fetched} bytes fetched for blobs of {blobs}");
    assert!(fetched <= blobs, "{fetched} bytes fetched for blobs of {blobs}");
    let before = counted.proxy.requests();
    WHOLE.assert_is(&daemon.add(&[&image]));
    assert_eq!(counted.proxy.requests(), before, "requests for what is cached");
}
