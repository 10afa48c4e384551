//! One fio run and what it says.

use std::{fs, path::Path, process::Command};

/// A job file of this folder.
pub(super) struct Job {
    /// The name of the file without its ending.
    pub(super) name: &'static str,
    text: &'static str,
}

/// Every job, in the order of the table's columns.
pub(super) const JOBS: &[Job] = &[
    Job { name: "randread-4k-qd1", text: include_str!("randread-4k-qd1.fio") },
    Job { name: "randread-4k-qd32", text: include_str!("randread-4k-qd32.fio") },
    Job { name: "randread-4k-qd128", text: include_str!("randread-4k-qd128.fio") },
    Job { name: "read-128k", text: include_str!("read-128k.fio") },
];

/// What one run came to.
pub(super) struct Sample {
    /// Requests a second.
    pub(super) iops: f64,
    /// Requests in all.
    pub(super) requests: f64,
    /// CPU that the serving process used meanwhile, in seconds.
    pub(super) cpu_seconds: f64,
}

/// Runs `job` on the device at `path`.
pub(super) fn fio(path: &Path, job: &Job) -> Sample {
    let file = std::env::temp_dir().join(format!("{}.fio", job.name));
    fs::write(&file, job.text).unwrap();
    let output = Command::new("fio")
        .args(["--output-format=json", "--readonly", "--filename"])
        .arg(path)
        .arg(&file)
        .output()
        .expect("fio is installed");
    assert!(
        output.status.success(),
        "fio on {}: {}",
        path.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let json = text.find('{').map_or("", |start| &text[start..]);
    let report: serde_json::Value = serde_json::from_str(json).expect("fio prints JSON");
    let read = &report["jobs"][0]["read"];
    Sample {
        iops: read["iops"].as_f64().unwrap(),
        requests: read["total_ios"].as_f64().unwrap().max(1.0),
        cpu_seconds: 0.0,
    }
}
