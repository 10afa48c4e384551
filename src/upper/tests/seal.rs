//! A layer is sealed under work, and another takes its place, or does not: nothing is lost, whenever power is.

use std::cell::Cell;

use super::{
    BELOW_SECTORS, Kind, LIMITS, SECTORS,
    content::{self, Device, Writer},
    crash::reopened,
    crash_image::{CrashImage, SECTOR},
    death::{Life, boundary_of},
    disk::SimulatedDisk,
    fresh_disk, identity,
    memory::Files,
    open, reactor,
    workload::Workload,
};
use crate::{
    block::{BlockDevice, BlockQueue, ErrorKind},
    format::lsmt::{SLOT_BYTES, Segment},
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
    next: Option<Kind>,
) -> usize {
    let mut stacked_at = 0;
    let is_sealed = Cell::new(false);
    let sealing = async {
        let files = disk.files_named("next");
        files.format(reactor, &next.unwrap_or(Kind::Log).identity(0)).await.unwrap();
        for _ in 0..10 {
            reactor.sleep(std::time::Duration::ZERO).await;
        }
        let covered = work.record.borrow().done.len();
        let sealed = device.seal(reactor, disk.files_named("next")).await.unwrap();
        work.flushed(covered);
        // Reads go on meanwhile, and writes wait.
        reactor.sleep(std::time::Duration::from_millis(1)).await;
        stacked_at = disk.events();
        if next.is_some() {
            sealed.stack();
        } else {
            sealed.give_up();
        }
        is_sealed.set(true);
    };
    let working = async {
        while !is_sealed.get() {
            work.run(20).await;
        }
        work.run(60).await;
    };
    futures_util::join!(sealing, working);
    stacked_at
}

/// What the sealed layer of `disk` and the one over it hold.
async fn stacked(reactor: &Reactor, disk: &SimulatedDisk) -> Vec<Writer> {
    let below = content::below(BELOW_SECTORS, 512).under(&disk.image(), "data");
    let device: Device = Overlay::open(reactor, disk.files_named("next"), Some(below), LIMITS).await.unwrap();
    let queue = device.open_queue(reactor).unwrap();
    content::read_all(&device, &queue).await
}

/// Crashes a layer of one kind that is sealed, under one of the other or the same kind, or none.
async fn crash_at_every_boundary(reactor: &Reactor, seed: u64, kind: Kind, next: Option<Kind>) {
    let mut random = fastrand::Rng::with_seed(seed);
    let rule = if next == Some(Kind::Sparse) { Kind::Sparse } else { kind };
    let disk = SimulatedDisk::new(CrashImage::on(rule.file_system(&mut random)), seed);
    disk.layer_files().format(reactor, &kind.identity(SECTORS * SECTOR)).await.unwrap();
    let mut image = disk.image();
    disk.take_events();
    let device = open(reactor, &disk).await;
    let base = content::model(SECTORS, BELOW_SECTORS);
    let work = Workload::new(reactor, &disk, &device, base, random.u64(..));
    work.run(60).await;
    let stacked_at = seal_at_work(reactor, &disk, &device, &work, next).await;
    assert_eq!(content::read_all(&device, &work.queues[0]).await, work.now(), "seed {seed}");
    let record = work.record.take();
    let events = disk.take_events();
    assert!(stacked_at < events.len(), "there was work afterwards");
    for count in 0..=events.len() {
        for _ in 0..SURVIVALS {
            let left = image.crash(&mut random);
            let found = if next.is_some() && count >= stacked_at {
                stacked(reactor, &SimulatedDisk::new(left, random.u64(..))).await
            } else {
                reopened(reactor, &SimulatedDisk::new(left, random.u64(..))).await
            };
            if let Err(error) = rule.check(&found, &work.base, &record, count) {
                panic!("seed {seed}, after event {count}, stacked after {stacked_at}: {error}");
            }
        }
        if let Some(event) = events.get(count) {
            image.apply(event);
        }
    }
}

/// The process dies at boundaries around a snapshot, and the kernel does not.
async fn die_around_a_snapshot(reactor: &Reactor, seed: u64, kind: Kind, next: Option<Kind>) {
    let mut random = fastrand::Rng::with_seed(seed);
    // A log can do with less than a sparse file.
    let system = if next == Some(Kind::Sparse) { Kind::Sparse } else { kind }.file_system(&mut random);
    let disk = SimulatedDisk::new(CrashImage::on(system), seed).with_memory(&Files::new());
    disk.layer_files().format(reactor, &kind.identity(SECTORS * SECTOR)).await.unwrap();
    let mut image = disk.image();
    disk.take_events();
    disk.memory(|memory| memory.watch());
    let device = open(reactor, &disk).await;
    let base = content::model(SECTORS, BELOW_SECTORS);
    let work = Workload::new(reactor, &disk, &device, base, random.u64(..));
    work.run(60).await;
    let stacked_at = seal_at_work(reactor, &disk, &device, &work, next).await;
    let (record, events) = (work.record.take(), disk.take_events());
    let history = disk.memory(|memory| memory.take_history());
    for (count, files) in history.iter().enumerate() {
        if random.usize(0..boundary_of()) == 0 {
            let left = SimulatedDisk::new(image.die(&mut random), random.u64(..)).with_memory(files);
            let found = match next.is_some() && count >= stacked_at {
                true => stacked(reactor, &left).await,
                false => reopened(reactor, &left).await,
            };
            println!("after event {count} of seed {seed}, stacked after {stacked_at}");
            Life { base: &work.base, is_durable: true, record: &record, events: count }.check(&found);
        }
        if let Some(event) = events.get(count) {
            image.apply(event);
        }
    }
}

#[test]
fn the_death_of_the_process_around_a_snapshot_takes_nothing_that_has_completed() {
    let reactor = reactor();
    for (seed, kind) in (1..).zip(Kind::ALL) {
        for next in [None, Some(Kind::Log), Some(Kind::Sparse)] {
            reactor.block_on(die_around_a_snapshot(&reactor, seed, kind, next)).unwrap();
        }
    }
}

#[test]
fn a_crash_around_a_snapshot_leaves_the_old_layers_or_the_new_ones() {
    let reactor = reactor();
    for (seed, kinds) in (1..).zip(Kind::ALL.into_iter().flat_map(|kind| Kind::ALL.map(|next| (kind, next))))
    {
        reactor.block_on(crash_at_every_boundary(&reactor, seed, kinds.0, Some(kinds.1))).unwrap();
    }
}

#[test]
fn a_snapshot_that_is_given_up_leaves_a_layer_that_goes_on() {
    let reactor = reactor();
    for (seed, kind) in (1..5).zip(Kind::ALL.into_iter().cycle()) {
        reactor.block_on(crash_at_every_boundary(&reactor, seed, kind, None)).unwrap();
    }
}

#[test]
fn several_snapshots_lie_over_one_another() {
    let reactor = reactor();
    let work = async {
        let disk = fresh_disk(&reactor, 9).await;
        let device = open(&reactor, &disk).await;
        let base = content::model(SECTORS, BELOW_SECTORS);
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
        let base = content::model(SECTORS, BELOW_SECTORS);
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

#[test]
fn a_layer_that_a_crash_may_take_away_promises_nothing() {
    let reactor = reactor();
    let work = async {
        let disk = fresh_disk(&reactor, 1).await;
        let device = open(&reactor, &disk).await;
        let queue = device.open_queue(&reactor).unwrap();
        queue.write(0, &content::bytes_of(5, 0..1)).await.unwrap();
        disk.files_named("next").format(&reactor, &identity(0)).await.unwrap();
        let sealed = device.seal(&reactor, disk.files_named("next")).await.unwrap();
        sealed.stack_in_doubt(std::io::Error::other("told to fail"));
        for failed in [queue.flush().await, queue.write(SECTOR, &content::bytes_of(5, 1..2)).await] {
            assert_eq!(failed.unwrap_err().kind(), ErrorKind::Io);
        }
        assert_eq!(content::read_all(&device, &queue).await[0], 5);
    };
    reactor.block_on(work).unwrap();
}
