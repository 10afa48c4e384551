//! Measures the two ways in which the data of a ublk request moves, in turn: user copy and buffers of tags.
//!
//! Found under QEMU TCG on two shared processors, as the ratio of user copy's latency to tag buffers' (medians of 9):
//! Linux 7.2.12: 4 KiB 1.06 from memory and 1.03 from a file, 128 KiB 0.33 and 0.20; Linux 6.12.107: 1.05, 1.07, 1.04, 1.04.
//! One system call more for a small read, and much less copying for a large one where the kernel is new; and an idle tag
//! costs no memory, so user copy is the default.
//!
//! Reads at depth 1, of 4 KiB and 128 KiB, from a device in memory and from a file in the page cache, with the CPU time of
//! the serving thread. Where there is no driver it says so; in the guest: `ci/vm/run -a BINARY:/usr/bin/ublk_copy --
//! ublk_copy`.

use std::{
    error::Error,
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use stratabd::{
    block::{BlockDevice, Geometry},
    device::{FileDevice, MemoryDevice},
    frontend::{
        AttachRequest, Attachment, Frontend,
        ublk::{CopyMode, Ublk, prepare_serving_thread},
    },
    reactor::{ReactorConfig, ReactorHandle, ReactorThread},
};

type Failure = Box<dyn Error>;

const DEVICE_BYTES: u64 = 32 << 20;
const ROUNDS: usize = 9;
const MODES: [CopyMode; 2] = [CopyMode::User, CopyMode::TagBuffer];
/// Block in bytes, and requests in a round.
const SHAPES: [(usize, u64); 2] = [(4096, 1500), (131_072, 400)];
const FILE: &str = "/var/tmp/ublk-copy";

/// Medians over all rounds, in nanoseconds a request.
struct Sample {
    latency_ns: u64,
    cpu_ns: u64,
}

fn main() -> Result<(), Failure> {
    if let Err(error) = Ublk::new().features() {
        println!("ublk_copy skipped: {error}");
        return Ok(());
    }
    let thread = ReactorThread::start("serving", ReactorConfig::default(), prepare_serving_thread)?;
    let handles = [thread.handle()];
    println!("source  block   user copy us (cpu)   tag buffer us (cpu)   user/tag (cpu)");
    let bytes = usize::try_from(DEVICE_BYTES)?;
    let memory = MemoryDevice::with_bytes(Geometry::read_only(DEVICE_BYTES, 512), vec![7; bytes])?;
    measure("memory", &Arc::new(memory), &handles)?;
    File::create(FILE)?.write_all(&vec![7; bytes])?;
    measure("file", &Arc::new(FileDevice::open(Path::new(FILE), true)?), &handles)?;
    fs::remove_file(FILE)?;
    Ok(())
}

fn measure<D: BlockDevice>(source: &str, device: &Arc<D>, handles: &[ReactorHandle]) -> Result<(), Failure> {
    let mut attachments = Vec::new();
    for mode in MODES {
        attachments.push(Ublk::with_copy(mode).attach(device, &AttachRequest::default(), handles)?);
    }
    for (block, requests) in SHAPES {
        let mut rounds = [Vec::new(), Vec::new()];
        // One round more than counts: the first warms caches and the pool.
        for round in 0..=ROUNDS {
            for (attachment, samples) in attachments.iter().zip(&mut rounds) {
                let sample = run(&**attachment, block, requests)?;
                if round > 0 {
                    samples.push(sample);
                }
            }
        }
        let [user, tag] = rounds.map(|samples| Sample {
            latency_ns: median(samples.iter().map(|sample| sample.latency_ns)),
            cpu_ns: median(samples.iter().map(|sample| sample.cpu_ns)),
        });
        let us = |ns: u64| ns as f64 / 1000.0;
        println!(
            "{source:<7} {block:>6}   {:>8.1} ({:>6.1})    {:>8.1} ({:>6.1})     {:.2} ({:.2})",
            us(user.latency_ns),
            us(user.cpu_ns),
            us(tag.latency_ns),
            us(tag.cpu_ns),
            user.latency_ns as f64 / tag.latency_ns as f64,
            user.cpu_ns as f64 / tag.cpu_ns as f64,
        );
    }
    for attachment in attachments {
        attachment.detach(Duration::from_secs(10))?;
    }
    Ok(())
}

/// One round of scattered reads, past the page cache of the device.
fn run(attachment: &dyn Attachment, block: usize, requests: u64) -> Result<Sample, Failure> {
    const ALIGNMENT: usize = 4096;
    let flags = i32::try_from(rustix::fs::OFlags::DIRECT.bits())?;
    let node = OpenOptions::new().read(true).custom_flags(flags).open(attachment.path())?;
    let mut memory = vec![0; block + ALIGNMENT];
    let start = memory.as_ptr().align_offset(ALIGNMENT);
    let place = memory.get_mut(start..).and_then(|place| place.get_mut(..block)).ok_or("no room")?;
    let blocks = DEVICE_BYTES / block as u64;
    let cpu_before = serving_ns()?;
    let began = Instant::now();
    for number in 0..requests {
        let offset = number.wrapping_mul(0x9e37_79b9) % blocks * block as u64;
        node.read_exact_at(place, offset)?;
    }
    let latency_ns = u64::try_from(began.elapsed().as_nanos())? / requests;
    Ok(Sample { latency_ns, cpu_ns: (serving_ns()? - cpu_before) / requests })
}

/// CPU time that the serving thread has used.
fn serving_ns() -> Result<u64, Failure> {
    for task in fs::read_dir("/proc/self/task")? {
        let task = task?.path();
        if fs::read_to_string(task.join("comm"))?.trim() == "serving" {
            let used = fs::read_to_string(task.join("schedstat"))?;
            return Ok(used.split(' ').next().ok_or("an empty schedstat")?.parse()?);
        }
    }
    Err("no serving thread".into())
}

fn median(values: impl Iterator<Item = u64>) -> u64 {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}
