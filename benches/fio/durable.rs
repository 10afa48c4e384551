//! How fast writes become durable: a writable layer of ours beside the kernel's loop device, on files of one file system.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use super::{median, targets::pause_ms};

const SIZE_BYTES: u64 = 256 << 20;
const TRANSACTIONS: u32 = 150;

/// Attaches both in turn, `rounds` times, each new, with its files in `dir`, and prints medians.
pub(super) fn run(dir: &Path, rounds: usize) {
    fs::create_dir_all(dir).unwrap();
    let mut rates: BTreeMap<(&str, &str), Vec<f64>> = BTreeMap::new();
    for _ in 0..rounds {
        for (name, attach) in [("loop", attach_loop as fn(&Path) -> Attached), ("ours", attach_ours)] {
            let device = attach(dir);
            for jobs in ["1", "4", "16"] {
                rates.entry((jobs, name)).or_default().push(fio(&device.path, jobs));
            }
            rates.entry(("sqlite", name)).or_default().push(sqlite(&device.path, dir));
            device.detach();
        }
    }
    println!(
        "| 4 KiB random, fsync after each; jobs | loop, writes a second | stratabd | of loop, same round |"
    );
    println!("|---|---|---|---|");
    for jobs in ["1", "4", "16", "sqlite"] {
        let (base, ours) = (&rates[&(jobs, "loop")], &rates[&(jobs, "ours")]);
        let ratios = ours.iter().zip(base).map(|(ours, base)| ours / base).collect();
        let (base, ours) = (median(base.clone()), median(ours.clone()));
        let what = if jobs == "sqlite" { "SQLite on ext4, transactions" } else { jobs };
        println!("| {what} | {base:.0} | {ours:.0} | {:.2} |", median(ratios));
    }
}

struct Attached {
    path: PathBuf,
    detach: Box<dyn FnOnce()>,
}

impl Attached {
    fn detach(self) {
        (self.detach)();
        pause_ms(200);
    }
}

fn attach_loop(dir: &Path) -> Attached {
    let file = dir.join("loop.img");
    succeed(Command::new("fallocate").arg("-l").arg(SIZE_BYTES.to_string()).arg(&file));
    let output = Command::new("losetup").args(["-f", "--show"]).arg(&file).output().unwrap();
    let path = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
    let device = path.clone();
    let detach = Box::new(move || {
        succeed(Command::new("losetup").arg("-d").arg(device));
        fs::remove_file(file).unwrap();
    });
    Attached { path, detach }
}

fn attach_ours(dir: &Path) -> Attached {
    let files = dir.join("ours");
    fs::create_dir(&files).unwrap();
    let (data, index, config) = (files.join("data"), files.join("index"), files.join("config.v1.json"));
    let size = SIZE_BYTES.to_string();
    succeed(Command::new("ublk-ctl").args(["layer", "create"]).args([&data, &index]).args(["--size", &size]));
    fs::write(&config, serde_json::json!({"upper": {"data": data, "index": index}}).to_string()).unwrap();
    let printed = files.join("path");
    let mut server = Command::new("ublk-ctl")
        .args(["add", "--foreground", "--config"])
        .arg(&config)
        .stdout(fs::File::create(&printed).unwrap())
        .spawn()
        .unwrap();
    let path = loop {
        match fs::read_to_string(&printed).unwrap() {
            text if text.ends_with('\n') => break PathBuf::from(text.trim()),
            _ => pause_ms(5),
        }
    };
    let detach = Box::new(move || {
        succeed(Command::new("kill").args(["-TERM", &server.id().to_string()]));
        assert!(server.wait().unwrap().success());
        fs::remove_dir_all(files).unwrap();
    });
    Attached { path, detach }
}

/// Writes a second.
fn fio(path: &Path, jobs: &str) -> f64 {
    let output = Command::new("fio")
        .args(["--name=durable", "--rw=randwrite", "--bs=4k", "--size=200m", "--fsync=1", "--direct=1"])
        .args([
            "--ioengine=psync",
            "--group_reporting",
            "--runtime=4",
            "--time_based",
            "--output-format=json",
        ])
        .arg(format!("--numjobs={jobs}"))
        .arg(format!("--filename={}", path.display()))
        .output()
        .expect("fio is installed");
    let text = String::from_utf8(output.stdout).unwrap();
    let report: serde_json::Value = serde_json::from_str(&text[text.find('{').unwrap_or(0)..]).unwrap();
    report["jobs"][0]["write"]["iops"].as_f64().unwrap()
}

/// Transactions a second, each of one row, in the journal mode that SQLite has by itself.
fn sqlite(device: &Path, dir: &Path) -> f64 {
    let point = dir.join("mount");
    fs::create_dir_all(&point).unwrap();
    succeed(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(device));
    succeed(Command::new("mount").args([device, &point]));
    let row = "insert into t(b) values('a row of some fifty bytes, as short as they come');\n";
    let script =
        format!("create table t(a integer primary key, b text);\n{}", row.repeat(TRANSACTIONS as usize));
    let file = dir.join("script.sql");
    fs::write(&file, script).unwrap();
    let began = Instant::now();
    succeed(Command::new("sqlite3").arg(point.join("db")).stdin(fs::File::open(&file).unwrap()));
    let rate = f64::from(TRANSACTIONS) / began.elapsed().as_secs_f64();
    succeed(Command::new("umount").arg(&point));
    rate
}

fn succeed(command: &mut Command) {
    let status = command.stdout(Stdio::null()).status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}
