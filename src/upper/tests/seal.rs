//! A layer is sealed under work, and another takes its place, or does not: nothing is lost, whenever power is.

use super::{
    LIMITS, SECTORS,
    content::{self, Device, Writer},
    crash::{prefix_of, reopened},
    crash_image::{CrashImage, SECTOR},
    disk::SimulatedDisk,
    fresh_disk, identity, open, reactor,
    workload::Workload,
};
use crate::{
    block::{BlockDevice, Geometry},
    device::MemoryDevice,
    format::lsmt::{LayerLayout, SLOT_BYTES, Segment},
    reactor::Reactor,
    upper::{Identity, Medium, Overlay, UpperError},
};

/// Crashes that are tried at each boundary.
const SURVIVALS: usize = 2;

/// Seals the layer of a device at work, and has another come over it if `stacks`; returns at which event of the disk it did.
async fn seal_at_work(
    reactor: &Reactor,
    disk: &SimulatedDisk,
    device: &Device,
    work: &Workload<'_>,
    stacks: bool,
) -> usize {
    let mut stacked_at = 0;
    let sealing = async {
        let next = disk.files_named("next");
        next.format(reactor, &identity(0)).await.unwrap();
        for _ in 0..30 {
            reactor.sleep(std::time::Duration::ZERO).await;
        }
        let sealed = device.seal(reactor, disk.files_named("next")).await.unwrap();
        // Reads go on meanwhile, and writes wait.
        reactor.sleep(std::time::Duration::from_millis(1)).await;
        stacked_at = disk.events();
        if stacks {
            sealed.stack();
        }
    };
    futures_util::join!(sealing, work.run(150));
    stacked_at
}

/// What the sealed layer of `image` and the one over it hold.
async fn stacked(reactor: &Reactor, image: CrashImage, seed: u64) -> Vec<Writer> {
    let data = image.cached(image.file("data").unwrap()).to_vec();
    let size = data.len() as u64;
    let slot = |at: u64| &data[at as usize..][..SLOT_BYTES];
    let trailer = LayerLayout::trailer_range(size).unwrap();
    let layout = LayerLayout::decode(slot(0), slot(trailer.start()), size).unwrap();
    let index = layout.index_range();
    let layer = layout.decode_index(&data[index.start() as usize..index.end() as usize]).unwrap();
    let mut bytes = content::bytes_of(content::BELOW, 0..super::BELOW_SECTORS);
    bytes.resize((SECTORS * SECTOR) as usize, 0);
    for segment in layer.into_segments() {
        let bytes_of = |sector: u64| (sector * SECTOR) as usize;
        let dest = &mut bytes[bytes_of(segment.offset())..bytes_of(segment.end())];
        match segment.zeroed() {
            true => dest.fill(0),
            false => dest.copy_from_slice(&data[bytes_of(segment.moffset())..][..dest.len()]),
        }
    }
    let below = MemoryDevice::with_bytes(Geometry::read_only(SECTORS * SECTOR, 512), bytes).unwrap();
    let disk = SimulatedDisk::new(image, seed);
    let device: Device = Overlay::open(reactor, disk.files_named("next"), Some(below), LIMITS).await.unwrap();
    let queue = device.open_queue(reactor).unwrap();
    content::read_all(&device, &queue).await
}

async fn crash_at_every_boundary(reactor: &Reactor, seed: u64, stacks: bool) {
    let mut random = fastrand::Rng::with_seed(seed);
    let disk = fresh_disk(reactor, seed).await;
    let mut image = disk.image();
    disk.take_events();
    let device = open(reactor, &disk).await;
    let base = content::model(SECTORS, super::BELOW_SECTORS);
    let work = Workload::new(reactor, &disk, &device, base, random.u64(..));
    work.run(60).await;
    let stacked_at = seal_at_work(reactor, &disk, &device, &work, stacks).await;
    assert_eq!(content::read_all(&device, &work.queues[0]).await, work.now(), "seed {seed}");
    let record = work.record.take();
    let events = disk.take_events();
    assert!(stacked_at < events.len(), "there was work afterwards");
    for count in 0..=events.len() {
        let (done, flushed) = record.at(count);
        for _ in 0..SURVIVALS {
            let left = image.crash(&mut random);
            let found = if stacks && count >= stacked_at {
                stacked(reactor, left, random.u64(..)).await
            } else {
                reopened(reactor, &SimulatedDisk::new(left, random.u64(..))).await
            };
            if let Err(error) = prefix_of(&found, &work.base, done, flushed) {
                panic!("seed {seed}, after event {count}, stacked after {stacked_at}: {error}");
            }
        }
        if let Some(event) = events.get(count) {
            image.apply(event);
        }
    }
}

#[test]
fn a_crash_around_a_snapshot_leaves_the_old_layers_or_the_new_ones() {
    let reactor = reactor();
    for seed in 1..4 {
        reactor.block_on(crash_at_every_boundary(&reactor, seed, true)).unwrap();
    }
}

#[test]
fn a_snapshot_that_is_given_up_leaves_a_layer_that_goes_on() {
    let reactor = reactor();
    for seed in 1..4 {
        reactor.block_on(crash_at_every_boundary(&reactor, seed, false)).unwrap();
    }
}

#[test]
fn several_snapshots_lie_over_one_another() {
    let reactor = reactor();
    let work = async {
        let disk = fresh_disk(&reactor, 9).await;
        let device = open(&reactor, &disk).await;
        let base = content::model(SECTORS, super::BELOW_SECTORS);
        let work = Workload::new(&reactor, &disk, &device, base, 9);
        for name in ["a", "b", "c", "d"] {
            work.run(40).await;
            let next = disk.files_named(name);
            next.format(&reactor, &identity(SECTORS * SECTOR)).await.unwrap();
            device.seal(&reactor, disk.files_named(name)).await.unwrap().stack();
            assert_eq!(content::read_all(&device, &work.queues[1]).await, work.now(), "after {name}");
        }
        work.run(100).await;
        assert_eq!(content::read_all(&device, &work.queues[0]).await, work.now());
        assert_eq!(device.links().len(), 5);
    };
    reactor.block_on(work).unwrap();
}

#[test]
fn a_layer_that_cannot_take_the_place_is_refused_and_writes_go_on() {
    let reactor = reactor();
    let work = async {
        let disk = fresh_disk(&reactor, 1).await;
        let device = open(&reactor, &disk).await;
        let base = content::model(SECTORS, super::BELOW_SECTORS);
        let work = Workload::new(&reactor, &disk, &device, base, 1);
        let format = async |name: &str, identity: Identity| {
            disk.files_named(name).format(&reactor, &identity).await.unwrap();
            device.seal(&reactor, disk.files_named(name)).await.unwrap_err()
        };
        let size = format("size", identity((SECTORS + 8) * SECTOR)).await;
        assert!(matches!(size, UpperError::OtherSize { .. }), "{size}");
        let stranger = "ABC00009-1111-2222-3333-000000000007".parse().unwrap();
        let parent = format("parent", Identity { parent_uuid: Some(stranger), ..identity(0) }).await;
        assert!(matches!(parent, UpperError::Parent { .. }), "{parent}");
        disk.files_named("full").format(&reactor, &identity(0)).await.unwrap();
        let full = disk.files_named("full");
        let entry = Segment::new(0, 1, 8, true, 0).unwrap().encode();
        full.index.as_ref().unwrap().write_at(&reactor, SLOT_BYTES as u64, &entry).await.unwrap();
        let full = device.seal(&reactor, disk.files_named("full")).await.unwrap_err();
        assert!(matches!(full, UpperError::NotEmpty(_)), "{full}");
        work.run(50).await;
        assert_eq!(content::read_all(&device, &work.queues[0]).await, work.now());
    };
    reactor.block_on(work).unwrap();
}
