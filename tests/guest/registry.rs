//! Stacks of upstream's own layers, served from real registries, as devices of the real driver.

use std::{fs, io::Read, path::Path, process::Command, sync::atomic::Ordering};

use sha2::{Digest, Sha256};

use crate::{
    frame::in_guest,
    support::{
        device::Attached,
        fault_proxy::FaultProxy,
        registry::{Registry, Serving, push_image},
        secure::{Certificates, Nginx, authfile, htpasswd},
    },
};

/// Layers of the fixtures, lowest first, and what the stack must read as by their manifest.
const STACK: [&str; 3] = ["ext4/L0.zt4k", "ext4/L1.z32kt", "ext4/L2.zt4k"];
const STACK_SHA256: &str = "c05be42ddd17d380d411757a8a44d21dd0a95a73e90b46587550e58b12779fd9";

fn layers() -> Vec<Vec<u8>> {
    let root = std::env::var("STRATABD_FIXTURES").unwrap_or_else(|_| "/fixtures".to_owned());
    STACK.iter().map(|name| read(&Path::new(&root).join(name))).collect()
}

fn read(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut file = fs::File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

/// The digest of a whole device, read in large pieces.
fn sha256(device: &Path) -> String {
    let mut file = fs::File::open(device).unwrap();
    let mut hasher = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut piece).unwrap();
        if count == 0 {
            return hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        }
        hasher.update(&piece[..count]);
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
        push_image(plain.address(), "team/app", "v1", &layers());
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
    assert_eq!(sha256(device.path()), STACK_SHA256);
    drop(device);

    // Cut off: what is cached needs no registry, nor does attaching it again.
    registry.stop();
    let device = Attached::add(&good);
    assert_eq!(sha256(device.path()), STACK_SHA256);
    drop(device);

    let nobody = dir.join("nobody.json");
    fs::write(&nobody, "{}").unwrap();
    let _registry = Registry::start_at(dir, &serving, registry.address());
    let without_login =
        ["--no-cache", "--ca-file", authority, "--authfile", nobody.to_str().unwrap(), &image];
    assert_eq!(add_refused(&without_login), Some(6), "no login");
    assert_eq!(
        add_refused(&["--no-cache", "--authfile", auth, &image]),
        Some(2),
        "an authority nobody trusts is for the settings to mend"
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
    push_image(plain.address(), "team/app", "v1", &layers());
    let certificates = Certificates::make(dir);
    let nginx = Nginx::start(dir, plain.address(), &certificates, &htpasswd(dir));
    let host = nginx.address().to_string();
    let (auth, cache) = (authfile(dir, &host), dir.join("cache"));
    let [authority, auth, cache] =
        [&certificates.authority, &auth, &cache].map(|path| path.to_str().unwrap());
    let image = format!("{host}/team/app:v1");
    let device = Attached::add(&[&image, "--ca-file", authority, "--authfile", auth, "--cache-dir", cache]);
    assert_eq!(sha256(device.path()), STACK_SHA256);
    let log = nginx.log();
    let count = |status: &str| log.lines().filter(|line| line.contains(&format!(" {status} "))).count();
    println!("{} redirects, {} answers from storage", count("307"), count("206"));
    assert_eq!(count("307"), STACK.len(), "each blob is looked for once:\n{log}");
    assert_eq!(count("400"), 0, "a credential went to storage:\n{log}");
    assert_eq!(count("403"), 0, "a signature was lost:\n{log}");
    assert!(count("206") > 0);
}

#[test]
fn two_processes_with_one_image_and_one_cache_fetch_each_byte_once() {
    if !in_guest() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let dir = root.path();
    let plain = Registry::start(dir, &Serving::default());
    push_image(plain.address(), "team/app", "v1", &layers());
    let proxy = FaultProxy::start(&plain.address().to_string());
    let host = proxy.address();
    let cache = dir.join("cache");
    let image = format!("{host}/team/app:v1");
    let arguments = [&image, "--plain-http", &host, "--cache-dir", cache.to_str().unwrap()];
    let devices = [Attached::add(&arguments), Attached::add(&arguments)];
    std::thread::scope(|scope| {
        for device in &devices {
            scope.spawn(|| assert_eq!(sha256(device.path()), STACK_SHA256));
        }
    });
    let blobs: usize = layers().iter().map(Vec::len).sum();
    let fetched = proxy.counts().blob_bytes.load(Ordering::SeqCst);
    println!("{fetched} bytes fetched for blobs of {blobs}");
    assert!(fetched <= (blobs + blobs / 20) as u64, "{fetched} bytes fetched for blobs of {blobs}");
}
