//! `layer apply` and `overlaybd-apply`: archives over writable images, which are then what `convert` makes of them.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test panics where something is not as expected, and reads small files"
)]

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const SIZE: &str = "64MiB";
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

/// A folder with two archives, `lower.tar` and `upper.tar`, of which the upper one removes and replaces what the lower one has.
struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Self {
        let bench = Self(tempfile::tempdir().unwrap());
        for name in ["ublk-ctl", "overlaybd-apply", "overlaybd-create"] {
            symlink(env!("CARGO_BIN_EXE_ublk-ctl"), bench.path(name)).unwrap();
        }
        let script = r#"
            mkdir -p lower/etc/old lower/many upper/etc/old
            echo lower >lower/etc/hostname; echo gone >lower/etc/gone; echo old >lower/etc/old/file
            seq 1 400000 >lower/large; ln lower/large lower/twin; ln -s etc/hostname lower/link
            for number in $(seq 300); do echo "$number" >"lower/many/a name of some length $number"; done
            echo upper >upper/etc/hostname; : >upper/etc/.wh.gone; : >upper/etc/old/.wh..wh..opq
            echo new >upper/etc/old/new; seq 1 70000 >upper/large
            for name in lower upper; do
              tar --sort=name --mtime=@1700000000 --owner=7 --group=8 --numeric-owner -C $name -cf $name.tar .
            done
            gzip -nk upper.tar lower.tar; zstd -q upper.tar; head -c 20000 upper.tar.gz >cut.tar.gz"#;
        bench.well("sh", &["-ec", script]);
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let own = self.path(program);
        let mut command = Command::new(if own.exists() { own.as_os_str() } else { program.as_ref() });
        command.args(arguments).current_dir(self.0.path()).env_remove("RUST_LOG");
        command.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
        command
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        self.command(program, arguments).output().unwrap()
    }

    fn well(&self, program: &str, arguments: &[&str]) -> String {
        let ended = self.run(program, arguments);
        assert!(ended.status.success(), "{program} {arguments:?}: {ended:?}");
        String::from_utf8_lossy(&ended.stdout).into_owned()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.well("ublk-ctl", &[&["--json"], arguments].concat())).unwrap()
    }

    /// A new writable layer over `lowers`, which the file `config` then names.
    fn writable(&self, kind: &str, lowers: &[&Path]) {
        for name in ["d", "i"] {
            let _ = fs::remove_file(self.path(name));
        }
        let create = ["layer", "create", "--size", SIZE, "--uuid", "abc00007-1111-2222-3333-000000000007"];
        self.well("ublk-ctl", &[&create[..], &[kind, "d", "i"]].concat());
        let lowers: Vec<Value> = lowers.iter().map(|path| json!({"file": path})).collect();
        let config = json!({"lowers": lowers, "upper": {"data": self.path("d"), "index": self.path("i")}});
        fs::write(self.path("config"), config.to_string()).unwrap();
    }

    /// The hash of the device that `config` makes.
    fn device(&self) -> Value {
        self.json(&["image", "export", "--config", "config", "--sha256"])["sha256"].clone()
    }

    /// The device of `config` in a file, which e2fsck has nothing to say about.
    fn checked(&self) -> PathBuf {
        let device = self.path("device");
        let _ = fs::remove_file(&device);
        self.well("ublk-ctl", &["image", "export", "--config", "config", "--output", "device"]);
        self.well("e2fsck", &["-fn", "device"]);
        device
    }

    fn debugfs(&self, request: &str) -> String {
        let said = self.run("debugfs", &["-R", request, "device"]);
        String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr)
    }

    fn names(&self) -> Vec<String> {
        let names = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> = names.map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// What the layer's files are, and all names in the folder.
    fn state(&self) -> (Vec<Vec<u8>>, Vec<String>) {
        (["d", "i"].map(|name| fs::read(self.path(name)).unwrap()).to_vec(), self.names())
    }

    /// Converts both archives as an image, and returns the layers of what is made.
    fn converted(&self) -> Vec<PathBuf> {
        let digest = |bytes: &[u8]| format!("sha256:{:x}", Sha256::digest(bytes));
        let blobs = self.path("from/blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let put = |bytes: &[u8], media_type: &str| {
            let digest = digest(bytes);
            fs::write(blobs.join(digest.strip_prefix("sha256:").unwrap()), bytes).unwrap();
            json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
        };
        let archives = ["lower.tar", "upper.tar"].map(|name| fs::read(self.path(name)).unwrap());
        let diff_ids = archives.each_ref().map(|archive| digest(archive));
        let layers = archives.each_ref().map(|archive| put(archive, TAR));
        let config = json!({
            "os": "linux", "architecture": "amd64", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = put(config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json");
        let manifest_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest =
            json!({"schemaVersion": 2, "mediaType": manifest_type, "config": config, "layers": layers});
        let manifest = put(manifest.to_string().as_bytes(), manifest_type);
        let index = json!({"schemaVersion": 2, "manifests": [manifest]});
        fs::write(self.path("from/index.json"), index.to_string()).unwrap();
        fs::write(self.path("from/oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let made = self.json(&[
            "convert",
            "--no-cache",
            "--platform=linux/amd64",
            "--vsize",
            SIZE,
            "oci:from",
            "oci:to",
        ]);
        let blob = |digest: &Value| {
            let digest = digest.as_str().unwrap().strip_prefix("sha256:").unwrap();
            self.path("to/blobs/sha256").join(digest)
        };
        let manifest: Value = serde_json::from_slice(&fs::read(blob(&made["digest"])).unwrap()).unwrap();
        manifest["layers"].as_array().unwrap().iter().map(|layer| blob(&layer["digest"])).collect()
    }
}

#[test]
fn an_archive_that_is_applied_makes_the_device_that_convert_makes() {
    let bench = Bench::new();
    let layers = bench.converted();
    let layers: Vec<&Path> = layers.iter().map(PathBuf::as_path).collect();
    let texts: Vec<&str> = layers.iter().map(|layer| layer.to_str().unwrap()).collect();
    let both = ["image", "export", "--sha256", "--layer", texts[0], "--layer", texts[1]];
    let wanted = bench.json(&both)["sha256"].clone();
    for (kind, archive) in [("--", "upper.tar"), ("--sparse", "upper.tar.gz"), ("--", "upper.tar.zst")] {
        bench.writable(kind, &layers[..1]);
        let names = bench.names();
        let applied = bench.json(&["layer", "apply", archive, "--config", "config"]);
        assert_eq!(
            applied["diff_id"],
            format!("sha256:{:x}", Sha256::digest(fs::read(bench.path("upper.tar")).unwrap()))
        );
        assert_eq!(applied["entries"], 8, "{applied}");
        assert_eq!(bench.device(), wanted, "{kind} {archive}");
        assert_eq!(bench.names(), names, "no part of a file is left");
    }
    bench.checked();
    // What it lies over may be any layer: a log that was sealed, and what it makes may become a layer.
    bench.well("ublk-ctl", &["layer", "commit", "d", "i", "committed"]);
    bench.writable("--", &[layers[0], &bench.path("committed")]);
    assert_eq!(bench.device(), wanted);
    let input = fs::File::open(bench.path("upper.tar.gz")).unwrap();
    let mut again = bench.command("ublk-ctl", &["layer", "apply", "-", "--config", "config"]);
    assert!(again.stdin(input).status().unwrap().success());
    bench.checked();
    assert!(bench.debugfs("cat /etc/hostname").starts_with("upper\n"));
}

#[test]
fn an_empty_file_system_is_made_first_where_that_is_asked_for() {
    let bench = Bench::new();
    let mut devices = Vec::new();
    for kind in ["--", "--sparse"] {
        bench.writable(kind, &[]);
        let refused = bench.run("ublk-ctl", &["layer", "apply", "lower.tar", "--config", "config"]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(5) && said.contains("ext4"), "{said}");
        // The second time over what the first one has made.
        for _ in 0..2 {
            bench.well("ublk-ctl", &["layer", "apply", "--ext4", "lower.tar", "--config", "config"]);
            devices.push(bench.device());
        }
        bench.well("ublk-ctl", &["layer", "apply", "upper.tar", "--config", "config"]);
        let device = bench.checked();
        for (name, content) in [
            ("/etc/hostname", "upper\n"),
            ("/etc/old/new", "new\n"),
            ("/many/a\\ name\\ of\\ some\\ length\\ 7", "7\n"),
        ] {
            let name = name.replace("\\ ", " ");
            assert!(bench.debugfs(&format!("cat \"{name}\"")).starts_with(content), "{name}");
        }
        for gone in ["/etc/gone", "/etc/old/file", "/etc/.wh.gone"] {
            assert!(bench.debugfs(&format!("stat {gone}")).contains("File not found"), "{gone}");
        }
        bench.debugfs("dump /large large");
        assert!(
            fs::read(bench.path("large")).unwrap() == fs::read(bench.path("upper/large")).unwrap(),
            "{}",
            device.display()
        );
        // Less than there was: what is left of it are zeroes, which the layer says as such.
        bench.well("ublk-ctl", &["layer", "apply", "--ext4", "upper.tar", "--config", "config"]);
        bench.well("ublk-ctl", &["layer", "apply", "upper.tar", "--config", "config"]);
        bench.checked();
    }
    assert!(devices.iter().all(|device| *device == devices[0]), "{devices:?}");
}

#[test]
fn what_cannot_be_applied_or_is_ended_leaves_the_layer_as_it_was() {
    let bench = Bench::new();
    let layers = bench.converted();
    for kind in ["--", "--sparse"] {
        bench.writable(kind, &[&layers[0]]);
        bench.well("ublk-ctl", &["layer", "apply", "upper.tar", "--config", "config"]);
        let before = bench.state();
        let other = format!("--checksum=sha256:{}", "7".repeat(64));
        for (arguments, code, expected) in [
            (&["cut.tar.gz"][..], 5, "ends here"),
            (&["upper.tar", &other], 5, "was to be applied"),
            (&["config"], 5, "tar header"),
            (&["nowhere"], 3, "nowhere"),
        ] {
            let arguments = [&["layer", "apply", "--config", "config"], arguments].concat();
            let refused = bench.run("ublk-ctl", &arguments);
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(refused.status.code() == Some(code) && said.contains(expected), "{arguments:?}: {said}");
            assert!(bench.state() == before, "{arguments:?}");
        }
        // The archive never ends.
        let mut waiting = bench.command("ublk-ctl", &["layer", "apply", "-", "--config", "config"]);
        let mut child = waiting.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        std::io::copy(&mut fs::File::open(bench.path("upper.tar")).unwrap(), &mut input).unwrap();
        assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
        let ended = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(ended.status.code() == Some(130) && said.contains("interrupted"), "{said}");
        drop(input);
        assert!(bench.state() == before);
    }
    fs::write(bench.path("config"), json!({"lowers": [{"file": layers[0]}]}).to_string()).unwrap();
    let refused = bench.run("ublk-ctl", &["layer", "apply", "upper.tar", "--config", "config"]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
}

/// A layer that is applied is killed at any moment, and is the old one or the new one.
#[test]
fn a_layer_is_the_old_one_or_the_new_one_whenever_the_program_dies() {
    let bench = Bench::new();
    let layers = bench.converted();
    bench.writable("--", &[&layers[0]]);
    let old = bench.device();
    for delay_ms in [0, 20, 60, 200] {
        let mut applying = bench
            .command("ublk-ctl", &["layer", "apply", "upper.tar.gz", "--config", "config"])
            .spawn()
            .unwrap();
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(delay_ms) {
            std::hint::spin_loop();
        }
        applying.kill().unwrap();
        applying.wait().unwrap();
        let device = bench.device();
        bench.checked();
        let is_new = bench.debugfs("cat /etc/hostname").starts_with("upper");
        assert!(is_new || device == old);
    }
}

#[test]
fn overlaybd_apply_has_upstreams_flags_and_words() {
    let bench = Bench::new();
    bench.well("overlaybd-create", &["d", "i", "1"]);
    fs::write(bench.path("config"), r#"{"lowers":[],"upper":{"data":"d","index":"i"}}"#).unwrap();
    let diff_id = format!("sha256:{:x}", Sha256::digest(fs::read(bench.path("lower.tar")).unwrap()));
    let checksum = format!("--checksum={diff_id}");
    let done = bench.run("overlaybd-apply", &["--mkfs", "--verbose", &checksum, "lower.tar.gz", "config"]);
    let texts = [done.stdout, done.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert_eq!(texts, ["overlaybd-apply done\n".to_owned(), format!("{diff_id}\n")]);
    bench.well("overlaybd-apply", &["--raw=off", "upper.tar.zst", "config"]);
    let wanted = bench.device();
    bench.checked();

    // A file system in a file is the same.
    bench.well("overlaybd-create", &["--raw", "raw", "raw.i", "1"]);
    bench.well("overlaybd-apply", &["--raw", "--mkfs", "lower.tar", "raw"]);
    bench.well("overlaybd-apply", &["--raw", "upper.tar", "raw"]);
    let sum = bench.well("sha256sum", &["raw"]);
    assert_eq!(sum.split_whitespace().next(), wanted.as_str());

    for (arguments, code, expected) in [
        (&["lower.tar"][..], 106, "required"),
        (&["nowhere", "config"], 105, "does not exist"),
        (&["lower.tar", "nowhere"], 105, "does not exist"),
        (&["--service_config_path", "nowhere", "lower.tar", "config"], 105, "does not exist"),
        (&["--bogus", "lower.tar", "config"], 109, "--bogus"),
        (&["--from_qcow2", "lower.tar", "config"], 255, "not yet supported"),
        (&["--gz_index_path", "x", "lower.tar", "config"], 255, "not yet supported"),
        (&["--checksum", "sha256:12", "lower.tar", "config"], 255, "64 hexadecimal"),
        (&["cut.tar.gz", "config"], 255, "ends here"),
        (&["lower.tar", "lower.tar"], 255, "not JSON"),
    ] {
        let refused = bench.run("overlaybd-apply", arguments);
        let said = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(expected) && refused.stdout.is_empty(), "{arguments:?}: {said}");
    }
    assert_eq!(bench.device(), wanted);
}
