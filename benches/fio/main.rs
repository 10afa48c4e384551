//! Measures devices with fio, ours and others of the same bytes in turn, and prints one table.
//!
//! `prepare DIR` writes the images (anywhere); `run DIR` attaches and measures, `attach DIR` only attaches, `durable DIR` writes
//! to new layers (as root, where ublk is). `ci/perf` does all, the latter three in the guest.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a measurement that fails has nothing to recover"
)]

mod attach;
mod durable;
mod measure;
#[path = "../../tests/support/mod.rs"]
#[expect(dead_code, reason = "the support is the tests', which use more of it")]
mod support;
mod targets;

use std::{collections::BTreeMap, fs, io::Read, path::Path, time::Instant};

use measure::{JOBS, Job, Sample};
use support::{
    layer_writer,
    registry::{Registry, Serving, push_image},
};
use targets::Target;

/// Rounds in which every target has its turn; the table shows medians over them.
const ROUNDS: usize = 5;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["prepare", dir] => prepare(Path::new(dir)),
        ["run", dir] => run(Path::new(dir), ROUNDS),
        ["run", dir, rounds] => run(Path::new(dir), rounds.parse().unwrap()),
        ["durable", _, rounds] => durable::run(Path::new("/var/tmp/durable"), rounds.parse().unwrap()),
        ["attach", dir, rounds] => attach::run(Path::new(dir), rounds.parse().unwrap()),
        _ => println!(
            "fio: needs `prepare DIR`, `run DIR [ROUNDS]`, `attach DIR ROUNDS` or `durable DIR ROUNDS`; ci/perf calls them"
        ),
    }
}

/// Writes `flat` (the bytes all targets serve) and its layers.
fn prepare(dir: &Path) {
    const SIZE: usize = 192 << 20;
    fs::create_dir_all(dir).unwrap();
    let flat = layer_like_bytes(SIZE);
    fs::write(dir.join("flat"), &flat).unwrap();
    let layer = layer_writer::lsmt_of(&flat);
    fs::write(dir.join("raw.layer"), &layer).unwrap();
    let packed = layer_writer::zfile(&layer, layer_writer::Algorithm::Lz4, 4096);
    fs::write(dir.join("lz4.layer"), layer_writer::tar(&packed)).unwrap();
    println!("prepared {} MiB; lz4 keeps {:.2} of it", SIZE >> 20, packed.len() as f64 / layer.len() as f64);
}

/// Bytes that compress about as programs and texts do: words of a small vocabulary between runs of noise.
fn layer_like_bytes(size: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    let words: Vec<Vec<u8>> =
        (0..40).map(|_| (0..random.usize(6..16)).map(|_| random.u8(..)).collect()).collect();
    let mut out = Vec::with_capacity(size + 64);
    while out.len() < size {
        if random.u8(..) < 40 {
            out.extend((0..32).map(|_| random.u8(..)));
        } else {
            out.extend_from_slice(&words[random.usize(..words.len())]);
        }
    }
    out.truncate(size);
    out
}

fn run(dir: &Path, rounds: usize) {
    let storage = tempfile::tempdir().unwrap();
    let registry = Registry::start(storage.path(), &Serving::default());
    let (repository, tag) = targets::IMAGE.split_once(':').unwrap();
    let mut layer = Vec::new();
    fs::File::open(dir.join("lz4.layer")).unwrap().read_to_end(&mut layer).unwrap();
    push_image(registry.address(), repository, tag, &[layer]);
    let targets = targets::all(dir, registry.address());
    let mut attach: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let mut samples: BTreeMap<(&str, &str), Vec<Sample>> = BTreeMap::new();
    for round in 0..rounds {
        for target in &targets {
            let mut attached = || {
                let began = Instant::now();
                let running = target.start();
                attach.entry(target.name).or_default().push(began.elapsed().as_secs_f64() * 1e3);
                running
            };
            let mut running = attached();
            for (number, job) in JOBS.iter().enumerate() {
                if number > 0 && target.is_spent_by_a_job {
                    running.stop();
                    running = attached();
                }
                let before = running.cpu_seconds();
                let mut sample = measure::fio(running.path(), job);
                sample.cpu_seconds = running.cpu_seconds() - before;
                samples.entry((job.name, target.name)).or_default().push(sample);
            }
            running.stop();
            eprintln!("round {} of {rounds}: {}", round + 1, target.name);
        }
    }
    print_table(&targets, &samples, &attach);
}

fn print_table(
    targets: &[Target],
    samples: &BTreeMap<(&str, &str), Vec<Sample>>,
    attach: &BTreeMap<&str, Vec<f64>>,
) {
    println!(
        "| target | attach ms |{}",
        JOBS.iter()
            .map(|job| format!(" {} IOPS | of rublk loop | daemon CPU s a 100 k |", job.name))
            .collect::<String>()
    );
    println!("|---|---|{}", "---|---|---|".repeat(JOBS.len()));
    for target in targets {
        print!("| {} | {:.0} |", target.name, median(attach[target.name].clone()));
        for Job { name, .. } in JOBS {
            let own = &samples[&(*name, target.name)];
            let base = &samples[&(*name, targets::BASE)];
            let ratios = own.iter().zip(base).map(|(own, base)| own.iops / base.iops).collect();
            let cpu = own.iter().map(|sample| sample.cpu_seconds / sample.requests * 1e5).collect();
            let iops = own.iter().map(|sample| sample.iops).collect();
            print!(" {:.0} | {:.2} | {:.1} |", median(iops), median(ratios), median(cpu));
        }
        println!();
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
