//! The devices that are compared: ours over raw and compressed layers, rublk's null and loop, the kernel's loop.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// The target that the ratios are taken against.
pub(super) const BASE: &str = "rublk loop";

/// How a device comes to be.
pub(super) struct Target {
    /// Its name in the table.
    pub(super) name: &'static str,
    start: Box<dyn Fn() -> Running>,
}

impl Target {
    /// Attaches it; returns when the device can be opened.
    pub(super) fn start(&self) -> Running {
        (self.start)()
    }
}

/// An attached device.
pub(super) struct Running {
    path: PathBuf,
    server: Option<Child>,
}

impl Running {
    /// The block device.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// CPU used so far by the serving process, in seconds; none for a driver of the kernel.
    pub(super) fn cpu_seconds(&self) -> f64 {
        let Some(server) = &self.server else { return 0.0 };
        let stat = fs::read_to_string(format!("/proc/{}/stat", server.id())).unwrap();
        let after_name = stat.rsplit_once(") ").unwrap().1;
        // utime and stime, fields 14 and 15 of proc(5), in ticks of 10 ms.
        after_name.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<f64>().unwrap() / 100.0).sum()
    }

    /// Detaches it.
    pub(super) fn stop(self) {
        match self.server {
            Some(mut server) => {
                let _ = Command::new("kill").args(["-TERM", &server.id().to_string()]).status();
                let _ = server.wait();
            }
            None => drop(Command::new("losetup").arg("-d").arg(&self.path).status()),
        }
        // A server may be gone before its device is.
        pause(Duration::from_millis(300));
    }
}

/// All targets over the images in `dir`.
pub(super) fn all(dir: &Path) -> Vec<Target> {
    let flat = dir.join("flat");
    let mut targets = vec![
        rublk("rublk null", 20, vec!["null".into()]),
        rublk(
            BASE,
            21,
            vec![
                "loop".into(),
                "--buffered-io".into(),
                "--read-only".into(),
                "-f".into(),
                flat.display().to_string(),
            ],
        ),
        kernel_loop(flat.clone()),
    ];
    for (name, layer, decoded) in [
        ("stratabd raw", "raw.layer", "image.decoded_cache_mib=0"),
        ("stratabd lz4, decoded cache off", "lz4.layer", "image.decoded_cache_mib=0"),
        ("stratabd lz4, decoded cache 512 MiB", "lz4.layer", "image.decoded_cache_mib=512"),
    ] {
        targets.push(ours(name, dir.join(layer), decoded));
    }
    for file in [flat, dir.join("raw.layer"), dir.join("lz4.layer")] {
        // All bytes in the page cache, for every target alike.
        let _ = Command::new("cat").arg(file).stdout(Stdio::null()).status();
    }
    targets
}

fn rublk(name: &'static str, id: u32, arguments: Vec<String>) -> Target {
    let start = move || {
        let server = Command::new("rublk")
            .arg("add")
            .args(&arguments)
            .args(["-n", &id.to_string(), "-q", "1", "-d", "128", "--foreground", "--quiet"])
            .stdout(Stdio::null())
            .spawn()
            .expect("rublk is installed");
        let path = PathBuf::from(format!("/dev/ublkb{id}"));
        wait_for(&path);
        Running { path, server: Some(server) }
    };
    Target { name, start: Box::new(start) }
}

fn kernel_loop(file: PathBuf) -> Target {
    let start = move || {
        let output = Command::new("losetup").args(["-r", "-f", "--show"]).arg(&file).output().unwrap();
        let path = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
        Running { path, server: None }
    };
    Target { name: "kernel loop", start: Box::new(start) }
}

fn ours(name: &'static str, layer: PathBuf, decoded_cache: &'static str) -> Target {
    let start = move || {
        let config = std::env::temp_dir().join("fio-config.v1.json");
        fs::write(&config, serde_json::json!({"lowers": [{"file": layer}]}).to_string()).unwrap();
        let mut server = Command::new("ublk-ctl")
            .args(["add", "--foreground", "--depth", "128", "--set", decoded_cache, "--config"])
            .arg(&config)
            .stdout(Stdio::piped())
            .spawn()
            .expect("ublk-ctl is installed");
        let mut path = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut path).unwrap();
        Running { path: PathBuf::from(path.trim()), server: Some(server) }
    };
    Target { name, start: Box::new(start) }
}

fn wait_for(path: &Path) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while fs::File::open(path).is_err() {
        assert!(Instant::now() < deadline, "{} never came", path.display());
        pause(Duration::from_millis(5));
    }
}

#[expect(clippy::disallowed_methods, reason = "a measurement waits for other processes")]
fn pause(duration: Duration) {
    std::thread::sleep(duration);
}
