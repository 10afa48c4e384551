//! `layer commit` beside `cp` of the same data to the same disk, and what its layout is worth: the size of the layer and the cost
//! of random 4 KiB reads through the engine, packed as upstream packs and as we do.
//!
//! `cargo bench --bench layer_commit`. The files are made in the directory `TMPDIR`, or /tmp, which should have 2 GB free.
#![expect(
    clippy::cast_possible_truncation,
    reason = "a bench runs where usize has 64 bits and lengths are small"
)]

mod support;
#[path = "support/synthetic.rs"]
#[expect(dead_code, reason = "the other benches use more of it")]
mod synthetic;

use std::{
    error::Error,
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Instant,
};

use stratabd::{
    block::{BlockDevice, BlockQueue},
    format::{
        lsmt::{Packing, Segment, data_header, index_header},
        uuid::Uuid,
        zfile::{Algorithm, BlockFormat},
    },
    image::{Image, ImageOptions, ImageQueue},
    offline::{Naming, PackOptions, Watch, commit, default_threads},
    reactor::{Reactor, ReactorConfig},
    source::{BlobSource, FileSource},
};
use support::{paired, verdict};
use synthetic::PAGE;

/// Pages of the device: 256 MiB.
const PAGES: usize = 64 << 10;
const ROUNDS: usize = 5;
const READS: usize = 8192;

/// A writable pair.
struct Pair {
    data: PathBuf,
    index: PathBuf,
}

/// A way to commit.
type Form = (&'static str, Packing, Option<(Algorithm, u32)>);

const FORMS: [Form; 6] = [
    ("plain, upstream's layout", Packing::AsUpstream, None),
    ("plain, ours", Packing::Aligned, None),
    ("lz4 4 KiB, upstream's layout", Packing::AsUpstream, Some((Algorithm::Lz4, 4096))),
    ("lz4 4 KiB, ours", Packing::Aligned, Some((Algorithm::Lz4, 4096))),
    ("zstd 4 KiB, upstream's layout", Packing::AsUpstream, Some((Algorithm::Zstd, 4096))),
    ("zstd 4 KiB, ours", Packing::Aligned, Some((Algorithm::Zstd, 4096))),
];

fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let mut random = fastrand::Rng::with_seed(7);
    let pair = write_pair(dir.path(), &mut random)?;
    let bytes = fs::metadata(&pair.data)?.len();
    let outputs: Vec<PathBuf> = (0..FORMS.len()).map(|number| dir.path().join(format!("{number}"))).collect();
    let seconds = commit_all(&pair, dir.path(), &outputs)?;
    let reactor = Reactor::new(&ReactorConfig::default())?;
    let pages: Vec<usize> = (0..READS).map(|_| random.usize(0..PAGES)).collect();

    println!("{} MiB of writes, a fifth of the pages zero, one write in 16 ends within a page", bytes >> 20);
    println!(
        "{} threads; medians of {ROUNDS} rounds in turn, the file durable at the end",
        default_threads()
    );
    println!("{:>30} | {:>6} {:>5} | {:>7} | us a random 4 KiB read", "", "MiB/s", "of cp", "MiB");
    let copy = seconds.first().copied().unwrap_or(f64::NAN);
    let speed = |seconds: f64| bytes as f64 / seconds / f64::from(1 << 20);
    println!("{:>30} | {:>6.0} {:>5} | {:>7.1} |", "cp", speed(copy), "", bytes as f64 / f64::from(1 << 20));
    for (number, pair) in outputs.chunks_exact(2).enumerate() {
        let [theirs, ours] = pair else { continue };
        let costs = read_cost(&reactor, theirs, ours, &pages)?;
        for (at, path) in pair.iter().enumerate() {
            let form = number * 2 + at;
            let [taken, cost] =
                [seconds.get(form + 1), costs.get(at)].map(|it| it.copied().unwrap_or(f64::NAN));
            let aim = if form == 1 { verdict(taken <= copy) } else { "" };
            let mib = fs::metadata(path)?.len() as f64 / f64::from(1 << 20);
            let name = FORMS.get(form).map_or("", |form| form.0);
            println!(
                "{name:>30} | {:>6.0} {:>5.2} | {mib:>7.1} | {cost:.2} {aim}",
                speed(taken),
                copy / taken
            );
        }
    }
    Ok(())
}

/// Writes the device in runs of pages, in random order. Of every 16th run only some sectors of the last page are written, as
/// programs do that write less than a page: upstream packs what follows off the page.
fn write_pair(dir: &Path, random: &mut fastrand::Rng) -> Result<Pair, Box<dyn Error>> {
    let device = synthetic::pages(PAGES, random);
    let mut runs = Vec::new();
    let mut at = 0;
    while at < PAGES {
        let pages = random.usize(1..=32).min(PAGES - at);
        runs.push((at, pages));
        at += pages;
    }
    random.shuffle(&mut runs);
    let pair = Pair { data: dir.join("data"), index: dir.join("index") };
    let header = data_header(false, Uuid::NULL, None, (2 * PAGES * PAGE) as u64);
    let (mut data, mut index) =
        (BufWriter::new(File::create(&pair.data)?), BufWriter::new(File::create(&pair.index)?));
    data.write_all(&header.encode())?;
    index.write_all(&index_header(&header).encode())?;
    let mut place = 8;
    let mut append = |offset: usize, bytes: &[u8]| -> Result<(), Box<dyn Error>> {
        let sectors = (bytes.len() / 512) as u32;
        let entry = Segment::new(offset as u64, sectors, place, false, 0).ok_or("too large")?;
        place += u64::from(sectors);
        index.write_all(&entry.encode())?;
        Ok(data.write_all(bytes)?)
    };
    for (number, (start, pages)) in runs.iter().enumerate() {
        let mut bytes = device.get(start * PAGE..(start + pages) * PAGE).unwrap_or_default().to_vec();
        bytes.chunks_exact_mut(PAGE).filter(|_| random.u8(0..5) == 0).for_each(|page| page.fill(0));
        if number.is_multiple_of(16) {
            bytes.truncate(bytes.len() - random.usize(1..8) * 512);
        }
        append(start * 8, &bytes)?;
    }
    data.flush()?;
    index.flush()?;
    Ok(pair)
}

/// Median seconds of `cp` and of each form, in that order.
fn commit_all(pair: &Pair, dir: &Path, outputs: &[PathBuf]) -> Result<Vec<f64>, Box<dyn Error>> {
    let copy = dir.join("copy");
    let mut times = vec![Vec::new(); FORMS.len() + 1];
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let copied = Command::new("cp").arg(&pair.data).arg(&copy).status()?.success();
        File::open(&copy)?.sync_all()?;
        times.first_mut().ok_or("no forms")?.push(began.elapsed().as_secs_f64());
        assert!(copied, "cp has failed");
        fs::remove_file(&copy)?;
        for (number, ((_, packing, compression), output)) in FORMS.iter().zip(outputs).enumerate() {
            let compression = compression.map(|(algorithm, size)| BlockFormat::new(algorithm, size));
            let options = PackOptions {
                packing: *packing,
                compression: compression.transpose()?,
                tar: false,
                final_header: true,
                threads: default_threads(),
                overwrite: false,
                allow_torn: false,
            };
            let _ = fs::remove_file(output);
            let watch = Watch { progress: |_, _| {}, cancelled: false.into() };
            let began = Instant::now();
            commit(&pair.data, Some(&pair.index), output, &Naming::default(), &options, &watch)?;
            times.get_mut(number + 1).ok_or("no forms")?.push(began.elapsed().as_secs_f64());
        }
    }
    let median = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times.get(ROUNDS / 2).copied().unwrap_or(f64::NAN)
    };
    Ok(times.into_iter().map(median).collect())
}

/// Microseconds of processor time of a random read of a page, of both layers.
fn read_cost(
    reactor: &Reactor,
    theirs: &Path,
    ours: &Path,
    pages: &[usize],
) -> Result<[f64; 2], Box<dyn Error>> {
    let open = |path: &Path| -> Result<ImageQueue, Box<dyn Error>> {
        let layers: Vec<Arc<dyn BlobSource>> = vec![Arc::new(FileSource::open(path)?)];
        let options = ImageOptions { decoded_cache_bytes: 0, ..ImageOptions::default() };
        let image = reactor.block_on(Image::open(reactor, layers, options))??;
        Ok(image.open_queue(reactor)?)
    };
    let (theirs, ours) = (open(theirs)?, open(ours)?);
    let read = |queue: &ImageQueue| {
        let mut dest = vec![0; PAGE];
        let mut sum = 0_u64;
        for page in pages {
            reactor
                .block_on(queue.read((page * PAGE) as u64, &mut dest))
                .expect("the reactor runs")
                .expect("a read");
            sum = dest.iter().step_by(64).fold(sum, |sum, byte| sum.rotate_left(5) ^ u64::from(*byte));
        }
        sum
    };
    let costs = paired([&mut || read(&theirs), &mut || read(&ours)]);
    Ok(costs.map(|ns| ns / pages.len() as f64 / 1e3))
}
