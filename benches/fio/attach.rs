//! How long each program takes from its start to a device that can be read, in turn with the others.

use std::{
    fs,
    io::{Read, Write},
    os::unix::{fs::FileExt, net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Instant,
};

use super::{median, targets::pause_ms};

/// A way to a device, and back.
struct Way {
    name: &'static str,
    attach: Vec<String>,
    /// The device's path, where the program does not print it.
    path: Option<&'static str>,
    detach: Vec<&'static str>,
}

/// Measures every way `rounds` times, in turn, and prints the medians. The daemon runs throughout, as it does on a host.
pub(super) fn run(dir: &Path, rounds: usize) {
    let config = std::env::temp_dir().join("attach-config.v1.json");
    fs::write(&config, serde_json::json!({"lowers": [{"file": dir.join("lz4.layer")}]}).to_string()).unwrap();
    let mut daemon = daemon();
    let ways = ways(&dir.join("flat"), &config);
    let mut took = vec![Vec::new(); ways.len()];
    let mut by_socket = Vec::new();
    // The first round reads programs and images from the disk and is left out.
    for round in 0..=rounds {
        for (way, took) in ways.iter().zip(&mut took) {
            let ms = way.measure();
            if round > 0 {
                took.push(ms);
            }
        }
        let ms = measure_socket(&config);
        if round > 0 {
            by_socket.push(ms);
        }
    }
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    println!("| way | ms | of `rublk add loop`, same round |\n|---|---|---|");
    let names = ways.iter().map(|way| way.name).chain(["POST /v1/devices, on the daemon's socket"]);
    for (name, own) in names.zip(took.iter().chain([&by_socket])) {
        let ratios = own.iter().zip(&took[0]).map(|(own, base)| own / base).collect();
        println!("| {} | {:.0} | {:.2} |", name, median(own.clone()), median(ratios));
    }
}

fn ways(flat: &Path, config: &Path) -> Vec<Way> {
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let (flat, config) = (flat.display(), config.display());
    let nothing = || Vec::new();
    vec![
        Way {
            name: "rublk add loop",
            attach: words(&format!("rublk add loop --buffered-io --read-only -f {flat} -n 31 -q 1 -d 128")),
            path: Some("/dev/ublkb31"),
            detach: vec!["rublk", "del", "-n", "31"],
        },
        Way {
            name: "losetup",
            attach: words(&format!("losetup -r -f --show {flat}")),
            path: None,
            detach: vec!["losetup", "-d"],
        },
        Way {
            name: "ublk-ctl add, through the daemon",
            attach: words(&format!("ublk-ctl add --depth 128 --config {config}")),
            path: None,
            detach: vec!["ublk-ctl", "del"],
        },
        Way {
            name: "ublk-ctl add --foreground",
            attach: words(&format!("ublk-ctl add --foreground --depth 128 --config {config}")),
            path: None,
            detach: nothing(),
        },
        Way {
            name: "rublk --version",
            attach: words("rublk --version"),
            path: Some("/dev/null"),
            detach: nothing(),
        },
        Way {
            name: "ublk-ctl --version",
            attach: words("ublk-ctl --version"),
            path: Some("/dev/null"),
            detach: nothing(),
        },
    ]
}

impl Way {
    /// Milliseconds until the device could be opened and its first block read.
    fn measure(&self) -> f64 {
        let output = std::env::temp_dir().join("attach-output");
        let began = Instant::now();
        let mut child = Command::new(&self.attach[0])
            .args(&self.attach[1..])
            .stdout(fs::File::create(&output).unwrap())
            .spawn()
            .unwrap();
        let serves = self.attach.iter().any(|word| word == "--foreground");
        if !serves {
            assert!(child.wait().unwrap().success(), "{}", self.name);
        }
        let path = loop {
            let printed = fs::read_to_string(&output).unwrap();
            match self.path {
                Some(path) => break PathBuf::from(path),
                None if printed.ends_with('\n') => break PathBuf::from(printed.trim()),
                None => pause_ms(1),
            }
        };
        if path.starts_with("/dev/ublkb") || path.starts_with("/dev/loop") {
            read_first(&path);
        }
        let ms = began.elapsed().as_secs_f64() * 1e3;
        self.undo(&mut child, &path, serves);
        ms
    }

    fn undo(&self, child: &mut Child, path: &Path, serves: bool) {
        let mut undo = match &self.detach[..] {
            [] if serves => {
                let mut kill = Command::new("kill");
                kill.args(["-TERM", &child.id().to_string()]);
                kill
            }
            [] => return,
            [program, arguments @ ..] => {
                let mut command = Command::new(program);
                command.args(arguments);
                if self.path.is_none() {
                    command.arg(path);
                }
                command
            }
        };
        assert!(undo.stdout(Stdio::null()).status().unwrap().success(), "{}", self.name);
        child.wait().unwrap();
        // A server may be gone before its device is.
        pause_ms(200);
    }
}

/// As programs attach that keep no other program for it.
fn measure_socket(config: &Path) -> f64 {
    let body = serde_json::json!({"image": {"config": config}, "depth": 128}).to_string();
    let began = Instant::now();
    let mut socket = UnixStream::connect("/run/stratabd/stratabd.sock").unwrap();
    let len = body.len();
    let head =
        "POST /v1/devices HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json";
    write!(socket, "{head}\r\ncontent-length: {len}\r\n\r\n{body}").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let info: serde_json::Value = serde_json::from_str(body).unwrap();
    let path = PathBuf::from(info["path"].as_str().unwrap());
    read_first(&path);
    let ms = began.elapsed().as_secs_f64() * 1e3;
    assert!(Command::new("ublk-ctl").arg("del").arg(&path).status().unwrap().success());
    ms
}

fn read_first(path: &Path) {
    let mut first = [0; 4096];
    fs::File::open(path).unwrap().read_exact_at(&mut first, 0).unwrap();
}

fn daemon() -> Child {
    fs::create_dir_all("/run/stratabd").unwrap();
    let daemon = Command::new("stratabd").stderr(Stdio::null()).spawn().unwrap();
    while !Command::new("ublk-ctl")
        .arg("list")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap()
        .success()
    {
        pause_ms(50);
    }
    daemon
}
