//! What a device does to another one that the same thread serves: a quiet one reads 4 KiB now and then of what the cache has, alone,
//! beside a device with 128 reads of 128 KiB under way that have to be decoded, and beside one with 128 reads under way whose registry
//! takes connections and never answers.
//!
//! Images, cache and registry client are those of the daemon, and so is what stands before the devices; only the driver is missing.
//! A read's time counts from when it was due, so that the turns of others before it are in it. `cargo bench --bench neighbours`.
#![expect(clippy::cast_possible_truncation, reason = "a bench runs where usize has 64 bits")]

#[path = "../tests/support/layer_writer.rs"]
#[expect(dead_code, unreachable_pub, reason = "the writer is shared with the tests, which use more of it")]
#[expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "as in tests, what fails has nothing to recover"
)]
mod layer_writer;
#[path = "support/load.rs"]
mod load;
#[path = "support/silent_registry.rs"]
mod silent_registry;
#[path = "support/synthetic.rs"]
#[expect(dead_code, reason = "its layers are made by the other writer")]
mod synthetic;

use std::{error::Error, path::Path, time::Duration};

use layer_writer::{Algorithm, lsmt_of, zfile};
use load::{Load, Work};
use sha2::{Digest, Sha256};
use silent_registry::SilentRegistry;
use stratabd::{
    frontend::{AttachRequest, Attachment},
    reactor::{ReactorConfig, ReactorHandle, ReactorThread},
    server::{
        api::types::ImageSpec,
        config::{Config, Overrides},
        device::Device,
        factory::Factory,
        runtimes,
    },
};

type Failure = Box<dyn Error>;

/// Pages of each image: 64 MiB.
const PAGES: usize = 16 << 10;

/// Rounds of each neighbourhood, which take turns.
const ROUNDS: usize = 7;

/// Most that the 99th percentile may grow by. A flood is decoded 128 KiB a turn, which is 0.2 to 0.3 ms.
const MOST_BESIDE_FLOOD: Duration = Duration::from_millis(1);

/// Most times the 99th percentile beside a registry that is silent.
const MOST_BESIDE_SILENCE: f64 = 2.0;

fn main() -> Result<(), Failure> {
    let dir = tempfile::tempdir()?;
    let mut random = fastrand::Rng::with_seed(1);
    let contents: [Vec<u8>; 3] = std::array::from_fn(|_| {
        zfile(&lsmt_of(&synthetic::pages(PAGES, &mut random)), Algorithm::Zstd, 4096)
    });
    let [quiet, flood, silent] = contents.map(SilentRegistry::serve);
    let street = Street::new(dir.path(), [&quiet, &flood, &silent])?;
    let [quiet_home, flood_home, silent_home] =
        [&quiet, &flood, &silent].map(|registry| street.open(registry));
    let (quiet_home, flood_home, silent_home) = (quiet_home?, flood_home?, silent_home?);
    for home in [&quiet_home, &flood_home] {
        street.run(home, Work::All)?.times()?;
    }
    silent.fall_silent();
    let neighbours = [None, Some((&flood_home, 128 << 10)), Some((&silent_home, 4 << 10))];
    let mut all: [Vec<Duration>; 3] = Default::default();
    for _ in 0..ROUNDS {
        for (times, neighbour) in all.iter_mut().zip(neighbours) {
            let beside = neighbour.map(|(home, bytes)| street.run(home, Work::Flood(bytes)));
            let _beside = beside.transpose()?;
            times.push(percentile(street.run(&quiet_home, Work::Now)?.times()?, 99));
        }
    }
    let [alone, beside_flood, beside_silence] = all.map(|times| percentile(times, 50));
    let ratio = |time: Duration| time.as_secs_f64() / alone.as_secs_f64();
    let verdict = |met: bool| if met { "met" } else { "MISSED" };
    println!(
        "99th percentile of a cached read of 4 KiB of a quiet device, median of {ROUNDS} rounds in turn"
    );
    println!("alone {alone:.0?}");
    println!(
        "beside a flood {beside_flood:.0?}, ratio {:.1} (at most {MOST_BESIDE_FLOOD:?} more: {})",
        ratio(beside_flood),
        verdict(beside_flood <= alone + MOST_BESIDE_FLOOD)
    );
    println!(
        "beside a silent registry {beside_silence:.0?}, ratio {:.2} (at most {MOST_BESIDE_SILENCE}: {})",
        ratio(beside_silence),
        verdict(ratio(beside_silence) <= MOST_BESIDE_SILENCE)
    );
    Ok(())
}

/// The part in a hundred of `times` that is reached by so many of them.
fn percentile(mut times: Vec<Duration>, percent: usize) -> Duration {
    times.sort_unstable();
    times.get(times.len() * percent / 100).copied().unwrap_or_default()
}

/// What the daemon has for all of its devices.
struct Street {
    runtime: tokio::runtime::Runtime,
    factory: Factory,
    reactor: ReactorThread,
    dir: std::path::PathBuf,
}

/// A device with work under way; the work ends with it.
struct Busy {
    load: Load,
    _attachment: Box<dyn Attachment>,
}

impl Busy {
    fn times(self) -> Result<Vec<Duration>, Failure> {
        Ok(self.load.times()?)
    }
}

impl Street {
    fn new(dir: &Path, registries: [&SilentRegistry; 3]) -> Result<Self, Failure> {
        let mut text = format!("[cache]\ndir = {:?}\n[image]\ndecoded_cache_mib = 1\n", dir.join("cache"));
        for registry in registries {
            text += &format!("[registry.hosts.\"{}\"]\nplain_http = true\n", registry.address());
        }
        let config = Config::parse("bench", &text, &Overrides::default())?;
        let runtime = runtimes::of_threads("network", 2)?;
        let factory = Factory::new(&config, runtime.handle().clone())?;
        let reactor = ReactorThread::start("reactor-0", ReactorConfig::default(), || Ok(()))?;
        Ok(Self { runtime, factory, reactor, dir: dir.to_owned() })
    }

    fn reactor(&self) -> ReactorHandle {
        self.reactor.handle()
    }

    fn open(&self, registry: &SilentRegistry) -> Result<Device, Failure> {
        let (address, content) = (registry.address(), registry.content());
        let digest: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
        let text = format!(
            r#"{{"repoBlobUrl":"http://{address}/v2/app/blobs","lowers":[{{"digest":"sha256:{digest}","size":{}}}]}}"#,
            content.len()
        );
        let path = self.dir.join(format!("{}.json", address.port()));
        std::fs::write(&path, text)?;
        let (reactor, spec) = (self.reactor(), ImageSpec::Config(path));
        let opened = self.runtime.block_on(self.factory.open(&reactor, &spec))?;
        let image = opened.image.ok_or("an image has layers")?;
        Ok(Device::read_only(image, Duration::from_secs(30)))
    }

    fn run(&self, device: &Device, work: Work) -> Result<Busy, Failure> {
        let load = Load::new(work);
        let attachment = device.attach_to(&load, &AttachRequest::default(), &[self.reactor()])?;
        Ok(Busy { load, _attachment: attachment })
    }
}
