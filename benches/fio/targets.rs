//! The devices that are compared: ours over raw and compressed layers from files and from a registry, rublk's null and loop,
//! the kernel's loop.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// The target that the ratios are taken against.
pub(super) const BASE: &str = "rublk loop";

/// The image in the registry.
pub(super) const IMAGE: &str = "fio/lz4:v1";

/// How a device comes to be.
pub(super) struct Target {
    /// Its name in the table.
    pub(super) name: &'static str,
    /// Whether each job needs a device of its own, because the one before leaves traces.
    pub(super) is_spent_by_a_job: bool,
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
    detach: Command,
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
    pub(super) fn stop(mut self) {
        let status = self.detach.status().unwrap();
        assert!(status.success(), "{:?}: {status}", self.detach);
        if let Some(mut server) = self.server {
            let _ = server.wait();
        }
        // A server may be gone before its device is.
        pause(Duration::from_millis(300));
    }
}

/// All targets over the images in `dir`. `registry` has the image [`IMAGE`], of the compressed layer.
pub(super) fn all(dir: &Path, registry: SocketAddr) -> Vec<Target> {
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
    targets.extend(from_registry(registry));
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
        // A signal to the server would leave the device's number taken.
        let detach = command("rublk", &["del", "-n", &id.to_string()]);
        Running { path, server: Some(server), detach }
    };
    Target { name, is_spent_by_a_job: false, start: Box::new(start) }
}

fn kernel_loop(file: PathBuf) -> Target {
    let start = move || {
        let output = Command::new("losetup").args(["-r", "-f", "--show"]).arg(&file).output().unwrap();
        let path = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
        let detach = command("losetup", &["-d", &path.display().to_string()]);
        Running { path, server: None, detach }
    };
    Target { name: "kernel loop", is_spent_by_a_job: false, start: Box::new(start) }
}

fn ours(name: &'static str, layer: PathBuf, decoded_cache: &'static str) -> Target {
    let start = move || {
        let config = std::env::temp_dir().join("fio-config.v1.json");
        fs::write(&config, serde_json::json!({"lowers": [{"file": layer}]}).to_string()).unwrap();
        serve(&["--set", decoded_cache, "--config", &config.display().to_string()])
    };
    Target { name, is_spent_by_a_job: false, start: Box::new(start) }
}

/// The image in the registry, over a cache that is empty at first, and over one that has all of it.
fn from_registry(registry: SocketAddr) -> [Target; 2] {
    let image = format!("{registry}/{IMAGE}");
    let attach = move |cache: &Path| {
        let plain = format!("registry.hosts.\"{registry}\".plain_http=true");
        let cache = cache.display().to_string();
        serve(&["--set", "image.decoded_cache_mib=0", "--set", &plain, "--cache-dir", &cache, &image])
    };
    let full = std::env::temp_dir().join("fio-cache-full");
    let filling = attach(&full);
    let _ = Command::new("cat").arg(filling.path()).stdout(Stdio::null()).status();
    filling.stop();
    let empty = std::env::temp_dir().join("fio-cache-empty");
    let again = attach.clone();
    let cold = move || {
        let _ = fs::remove_dir_all(&empty);
        again(&empty)
    };
    [
        Target { name: "stratabd lz4, registry, cold", is_spent_by_a_job: true, start: Box::new(cold) },
        Target {
            name: "stratabd lz4, registry, cached",
            is_spent_by_a_job: false,
            start: Box::new(move || attach(&full)),
        },
    ]
}

fn serve(arguments: &[&str]) -> Running {
    let mut server = Command::new("ublk-ctl")
        .args(["add", "--foreground", "--depth", "128"])
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .expect("ublk-ctl is installed");
    let mut path = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut path).unwrap();
    let detach = command("kill", &["-TERM", &server.id().to_string()]);
    Running { path: PathBuf::from(path.trim()), server: Some(server), detach }
}

fn command(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).stdout(Stdio::null());
    command
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

/// Waits so many milliseconds.
pub(super) fn pause_ms(milliseconds: u64) {
    pause(Duration::from_millis(milliseconds));
}
