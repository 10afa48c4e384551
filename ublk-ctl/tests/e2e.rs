//! From a real registry over TLS and a login to the bytes of the device, and again without the registry.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    unreachable_pub,
    reason = "a test panics where something is not as expected, reads its own files, and uses a part of the support"
)]

#[path = "../../tests/support/port.rs"]
mod port;
#[expect(dead_code, reason = "each test binary uses a part of the support")]
#[path = "../../tests/support/registry.rs"]
mod registry;
#[path = "../../tests/support/secure.rs"]
mod secure;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use registry::{Registry, Serving, digest_of, push_image};
use secure::{Certificates, Nginx, authfile, htpasswd};
use serde_json::{Value, json};

const SUM: &str = "c05be42ddd17d380d411757a8a44d21dd0a95a73e90b46587550e58b12779fd9";

struct Site {
    dir: tempfile::TempDir,
    layers: Vec<Vec<u8>>,
    certificates: Certificates,
    passwords: PathBuf,
}

impl Site {
    /// An image in the storage of a registry that does not run yet, and what a secure one needs.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/ext4");
        let layers =
            ["L0.zt4k", "L1.zt4k", "L2.zt4k"].map(|name| fs::read(fixtures.join(name)).unwrap()).to_vec();
        let certificates = Certificates::make(dir.path());
        let passwords = htpasswd(dir.path());
        let plain = Registry::start(dir.path(), &Serving::default());
        push_image(plain.address(), "sample/ext4", "latest", &layers);
        Self { dir, layers, certificates, passwords }
    }

    /// The registry with TLS and a login.
    fn secure(&self) -> Registry {
        let tls = Some((self.certificates.certificate.clone(), self.certificates.key.clone()));
        Registry::start(self.dir.path(), &Serving { tls, htpasswd: Some(self.passwords.clone()) })
    }

    fn export(&self, host: &str, cache: &str, image: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ublk-ctl"));
        command
            .args(["image", "export", "--sha256", "--json", "--ca-file"])
            .arg(&self.certificates.authority);
        command.arg("--authfile").arg(authfile(self.dir.path(), host));
        command.arg("--cache-dir").arg(self.dir.path().join(cache)).args(image);
        // A registry that is not there is soon known not to be there.
        command.args(["--set", "registry.limits.request_deadline_ms=3000"]);
        command.env_remove("RUST_LOG").output().unwrap()
    }
}

fn sum(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    let done: Value = serde_json::from_slice(&output.stdout).unwrap();
    done["sha256"].as_str().unwrap().to_owned()
}

#[test]
fn an_image_reference_becomes_the_devices_bytes_and_then_needs_no_registry() {
    let site = Site::new();
    let mut registry = site.secure();
    let host = registry.address().to_string();
    let image = format!("{host}/sample/ext4:latest");
    assert_eq!(sum(&site.export(&host, "cache", &[&image])), SUM);
    registry.stop();
    let again = site.export(&host, "cache", &[&image]);
    assert_eq!(sum(&again), SUM);
    let said = String::from_utf8(again.stderr).unwrap();
    assert!(said.contains("cannot be reached"), "a tag without its registry is used with a warning: {said}");
    let cold = site.export(&host, "another cache", &[&image]);
    assert_eq!(cold.status.code(), Some(6), "{cold:?}");
}

#[test]
fn an_image_configuration_reads_remote_layers_and_then_needs_no_registry() {
    let site = Site::new();
    let mut registry = site.secure();
    let host = registry.address().to_string();
    // The size of a layer may be left out: it is asked for once, and then known to the cache.
    let lowers: Vec<Value> =
        site.layers.iter().map(|layer| json!({"digest": digest_of(layer), "dir": ""})).collect();
    let url = format!("https://{host}/v2/sample/ext4/blobs");
    let config = site.dir.path().join("config.v1.json");
    fs::write(&config, json!({"repoBlobUrl": url, "lowers": lowers}).to_string()).unwrap();
    let arguments = ["--config", config.to_str().unwrap()];
    assert_eq!(sum(&site.export(&host, "cache", &arguments)), SUM);
    registry.stop();
    assert_eq!(sum(&site.export(&host, "cache", &arguments)), SUM);
}

#[test]
fn blobs_may_be_redirected_to_signed_storage() {
    let site = Site::new();
    let plain = Registry::start(site.dir.path(), &Serving::default());
    let nginx_dir = site.dir.path().join("nginx");
    fs::create_dir(&nginx_dir).unwrap();
    let nginx = Nginx::start(&nginx_dir, plain.address(), &site.certificates, &site.passwords);
    let host = nginx.address().to_string();
    let image = format!("{host}/sample/ext4:latest");
    assert_eq!(sum(&site.export(&host, "cache", &[&image])), SUM);
    let unranged = nginx.log().lines().filter(|line| line.contains(" 200 ") && !line.contains("GET")).count();
    assert_eq!(unranged, 0);
}

#[test]
fn a_registry_that_is_not_trusted_or_does_not_know_us_is_refused() {
    let site = Site::new();
    let registry = site.secure();
    let host = registry.address().to_string();
    let image = format!("{host}/sample/ext4:latest");
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ublk-ctl"));
        command.args(["image", "export", "--sha256", "--no-cache"]).args(arguments);
        command.env("DOCKER_CONFIG", "/nowhere").env_remove("RUST_LOG");
        let output = command.output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let authority = site.certificates.authority.to_str().unwrap();
    let (code, said) = run(&[&image]);
    assert!(matches!(code, 2 | 6), "{code}: {said}");
    assert!(said.contains("ertificate") || said.contains("authority"), "{said}");
    let (code, said) = run(&["--ca-file", authority, &image]);
    assert_eq!(code, 6, "{said}");
    let auth = authfile(site.dir.path(), &host);
    let missing = format!("{host}/sample/other:latest");
    let (code, said) = run(&["--ca-file", authority, "--authfile", auth.to_str().unwrap(), &missing]);
    assert_eq!(code, 3, "{said}");
}
