//! Proofs of the writable layer: against a model, against crashes, and against files of upstream.

mod content;
mod crash;
mod crash_image;
mod disk;
mod model;
mod resize;
mod seal;
mod torn;
mod trouble;
mod workload;

use super::{Identity, LogLimits, Overlay};
use crate::{
    device::MemoryDevice,
    reactor::{Reactor, ReactorConfig},
};

/// So small that short tests rewrite the index, punch holes and hold writes up.
const LIMITS: LogLimits =
    LogLimits { pending_entries: 80, rewrite_entries: 100, rewrite_ratio: 2, dead_bytes: 2000 };

/// Sectors of the device, and of the one below it.
const SECTORS: u64 = 96;
const BELOW_SECTORS: u64 = 70;

fn reactor() -> Reactor {
    Reactor::new(&ReactorConfig::default()).unwrap()
}

fn identity(virtual_size_bytes: u64) -> Identity {
    let uuid = "ABC00007-1111-2222-3333-000000000007".parse().unwrap();
    Identity { uuid, parent_uuid: None, virtual_size_bytes }
}

/// A disk with an empty layer on it.
async fn fresh_disk(reactor: &Reactor, seed: u64) -> disk::SimulatedDisk {
    let disk = disk::SimulatedDisk::new(crash_image::CrashImage::default(), seed);
    disk.layer_files().format(reactor, &identity(SECTORS * crash_image::SECTOR)).await.unwrap();
    disk
}

/// The layer on `disk` over a device that is smaller.
async fn open(reactor: &Reactor, disk: &disk::SimulatedDisk) -> content::Device {
    let below: MemoryDevice = content::below(BELOW_SECTORS, 512);
    Overlay::open(reactor, disk.layer_files(), Some(below), LIMITS).await.unwrap()
}
