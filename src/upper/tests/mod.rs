//! Proofs of the writable layer, of both kinds: against a model, and against crashes.
//!
//! Settings make them longer, for `ci/soak`: `STRATABD_UPPER_CRASHES` is the number of workloads of each test of crashes,
//! `STRATABD_UPPER_OPERATIONS` that of operations on the model, `STRATABD_UPPER_SEED` the first seed.

mod compact;
mod content;
mod crash;
mod crash_image;
mod death;
mod discard;
mod disk;
mod full;
mod index_file;
mod journal;
mod killed;
mod memory;
mod model;
mod neighbours;
mod patchwork;
mod resize;
mod reuse;
mod seal;
mod sparse;
mod torn;
mod trouble;
mod workload;

use std::{ops::Range, time::Duration};

use super::{Identity, LogLimits, Overlay};
use crate::reactor::{Reactor, ReactorConfig};
use crash_image::{CrashImage, FileSystem, SECTOR};
use disk::SimulatedDisk;
use memory::Files;

/// So small that short tests rewrite the index, punch holes and hold writes up.
const LIMITS: LogLimits = LogLimits {
    pending_entries: 80,
    journal_entries: 90,
    rewrite_entries: 100,
    rewrite_ratio: 2,
    dead_bytes: 2000,
    idle: Duration::from_secs(3600),
    file_bytes: u64::MAX,
};

/// Sectors of the device, and of the one below it.
const SECTORS: u64 = 96;
const BELOW_SECTORS: u64 = 70;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect(name))
}

/// One for each workload of a test of crashes.
fn seeds_of_workloads() -> Range<u64> {
    let first = setting("STRATABD_UPPER_SEED", 1);
    first..first + setting("STRATABD_UPPER_CRASHES", 1)
}

fn reactor() -> Reactor {
    Reactor::new(&ReactorConfig::default()).unwrap()
}

/// Kinds of layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Log,
    Sparse,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Log, Self::Sparse];

    fn identity(self, virtual_size_bytes: u64) -> Identity {
        Identity { sparse: self == Self::Sparse, ..identity(virtual_size_bytes) }
    }

    /// What a layer of this kind counts on.
    fn file_system(self, random: &mut fastrand::Rng) -> FileSystem {
        match self {
            Self::Log => FileSystem::default(),
            Self::Sparse => {
                let block_bytes = *random.choice(&[512, 1024, 4096, 4096]).unwrap();
                FileSystem { block_bytes, whole_blocks: true }
            }
        }
    }
}

fn identity(virtual_size_bytes: u64) -> Identity {
    let uuid = "ABC00007-1111-2222-3333-000000000007".parse().unwrap();
    Identity { uuid, parent_uuid: None, virtual_size_bytes, sparse: false }
}

/// A disk with an empty log-structured layer on it.
async fn fresh_disk(reactor: &Reactor, seed: u64) -> SimulatedDisk {
    fresh_disk_of(reactor, Kind::Log, seed).await
}

/// A disk with an empty layer of this kind on it.
async fn fresh_disk_of(reactor: &Reactor, kind: Kind, seed: u64) -> SimulatedDisk {
    let system = kind.file_system(&mut fastrand::Rng::with_seed(seed));
    let disk = SimulatedDisk::new(CrashImage::on(system), seed).with_memory(&Files::new());
    disk.layer_files().format(reactor, &kind.identity(SECTORS * SECTOR)).await.unwrap();
    disk
}

/// The layer on `disk` over a device that is smaller.
async fn open(reactor: &Reactor, disk: &SimulatedDisk) -> content::Device {
    let below = content::below(BELOW_SECTORS, 512);
    Overlay::open(reactor, disk.layer_files(), Some(below), LIMITS).await.unwrap()
}
