//! What `layer compress` does beside the bare compressor on the same blocks and as many threads.
//!
//! The input lies in the page cache and the output in memory, so that no disk is measured.
//! `cargo bench --bench layer_compress [-- THREADS...]`

#[path = "../tests/support/layer_writer.rs"]
#[expect(dead_code, unreachable_pub, reason = "the writer is shared with the tests, which use more of it")]
#[expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "as in tests, what fails has nothing to recover"
)]
mod layer_writer;
#[path = "support/synthetic.rs"]
#[expect(dead_code, reason = "the other benches use more of it")]
mod synthetic;

use std::{error::Error, fs, num::NonZeroUsize, path::Path, thread, time::Instant};

use stratabd::{
    format::zfile::{Algorithm, BlockFormat, EncodeError, Encoder},
    offline::{CompressOptions, Watch, compress, default_threads},
};

/// Content in bytes.
const PAGES: usize = 48 << 10;
const ROUNDS: usize = 7;
/// At least this part of the bare compressor's speed is the aim, for LZ4 in blocks of 4 KiB.
const AIM: f64 = 0.9;

fn main() -> Result<(), Box<dyn Error>> {
    let mut threads: Vec<usize> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    if threads.is_empty() {
        threads = vec![1, default_threads().get()];
    }
    let pages = synthetic::pages(PAGES, &mut fastrand::Rng::with_seed(3));
    let layer = layer_writer::lsmt_of(&pages);
    let dir = tempfile::tempdir_in("/dev/shm")?;
    let input = dir.path().join("layer");
    fs::write(&input, &layer)?;
    println!("{} MiB; MiB a second, medians of {ROUNDS} rounds in turn", layer.len() >> 20);
    println!("{:>5} {:>6} {:>7} | {:>7} {:>7} {:>5}", "codec", "block", "threads", "bare", "ours", "ratio");
    for (algorithm, name) in [(Algorithm::Lz4, "lz4"), (Algorithm::Zstd, "zstd")] {
        for block_size in [4096, 16_384, 32_768] {
            for threads in threads.iter().filter_map(|count| NonZeroUsize::new(*count)) {
                let format = BlockFormat::new(algorithm, block_size)?;
                let [bare, ours] = measure(format, threads, &layer, &input)?;
                let speed = |seconds: f64| layer.len() as f64 / seconds / f64::from(1 << 20);
                let aim = match (algorithm, block_size) {
                    (Algorithm::Lz4, 4096) if bare / ours >= AIM => "met",
                    (Algorithm::Lz4, 4096) => "MISSED",
                    _ => "",
                };
                println!(
                    "{name:>5} {block_size:>6} {threads:>7} | {:>7.0} {:>7.0} {:>5.2} {aim}",
                    speed(bare),
                    speed(ours),
                    bare / ours
                );
            }
        }
    }
    Ok(())
}

/// Median seconds, bare and ours.
fn measure(
    format: BlockFormat,
    threads: NonZeroUsize,
    layer: &[u8],
    input: &Path,
) -> Result<[f64; 2], Box<dyn Error>> {
    let output = input.with_file_name("output");
    let watch = Watch { progress: |_, _| {}, cancelled: false.into() };
    let options = CompressOptions { format, tar: true, threads, overwrite: false };
    let (mut bare, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let began = Instant::now();
        bare_compress(format, threads, layer)?;
        bare.push(began.elapsed().as_secs_f64());
        // To give the memory of an old one back is no part of it.
        let _ = fs::remove_file(&output);
        let began = Instant::now();
        compress(input, &output, &options, &watch)?;
        ours.push(began.elapsed().as_secs_f64());
    }
    Ok([bare, ours].map(|mut times| {
        times.sort_by(f64::total_cmp);
        times.get(ROUNDS / 2).copied().unwrap_or(f64::NAN)
    }))
}

/// Each thread compresses its share of the blocks, with checksums, and forgets the result.
fn bare_compress(format: BlockFormat, threads: NonZeroUsize, layer: &[u8]) -> Result<(), EncodeError> {
    let block = format.block_size() as usize;
    let share = layer.len().div_ceil(threads.get()).next_multiple_of(block);
    thread::scope(|scope| {
        let work = |part: &[u8]| {
            let (mut encoder, mut out) = (Encoder::new(format)?, Vec::new());
            for block in part.chunks(block) {
                out.clear();
                std::hint::black_box(encoder.encode(block, &mut out)?);
            }
            Ok(())
        };
        let running: Vec<_> = layer.chunks(share).map(|part| scope.spawn(move || work(part))).collect();
        running.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
    })
}
