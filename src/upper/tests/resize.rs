//! A device grows under work: the old size or the new one after every crash, and nothing is lost in either.

use std::pin::pin;

use futures_util::poll;

use super::{
    BELOW_SECTORS, Kind, LIMITS, SECTORS,
    content::{self, Device, Writer, ZERO, bytes_of},
    crash::prefix_of,
    crash_image::{CrashImage, SECTOR},
    death::{Life, boundary_of},
    disk::SimulatedDisk,
    fresh_disk, fresh_disk_of, identity, open, reactor, seeds_of_workloads,
    workload::Workload,
};
use crate::{
    block::{BlockDevice, BlockQueue},
    format::lsmt::Header,
    reactor::Reactor,
    upper::{Overlay, UpperError},
};

/// Crashes that are tried at each boundary.
const SURVIVALS: usize = 3;

/// Sectors of the device afterwards, and some of the new ones with who writes them.
const GROWN: u64 = 130;
const NEW: std::ops::Range<u64> = 100..110;
const WRITER: Writer = 1 << 20;

fn size_in_header(image: &CrashImage, name: &str) -> u64 {
    let at = Header::VIRTUAL_SIZE_OFFSET as usize;
    let bytes = &image.cached(image.file(name).unwrap())[at..at + 8];
    u64::from_le_bytes(bytes.try_into().unwrap()) / SECTOR
}

fn sectors_of(device: &Device) -> u64 {
    device.geometry().size_bytes / SECTOR
}

/// After so many events the device had its new size, then what was written to the new sectors was there, and then durable.
struct Grown {
    resized: usize,
    written: usize,
    durable: usize,
}

async fn grow_at_work(
    reactor: &Reactor,
    disk: &SimulatedDisk,
    device: &Device,
    work: &Workload<'_>,
) -> Grown {
    let growing = async {
        for _ in 0..20 {
            reactor.sleep(std::time::Duration::ZERO).await;
        }
        device.resize(reactor, GROWN * SECTOR).await.unwrap();
        let resized = disk.events();
        work.queues[1].write(NEW.start * SECTOR, &bytes_of(WRITER, NEW)).await.unwrap();
        let written = disk.events();
        work.queues[1].flush().await.unwrap();
        Grown { resized, written, durable: disk.events() }
    };
    futures_util::join!(growing, work.run(250)).0
}

/// What was found in the new sectors is all of what was written to them, or nothing.
fn is_written(found: &[Writer]) -> bool {
    let (new, rest): (Vec<_>, Vec<_>) = (SECTORS..).zip(found).partition(|(sector, _)| NEW.contains(sector));
    assert!(rest.iter().all(|(_, writer)| **writer == ZERO), "{found:?}");
    let is_written = new.iter().all(|(_, writer)| **writer == WRITER);
    assert!(is_written || new.iter().all(|(_, writer)| **writer == ZERO), "{found:?}");
    is_written
}

async fn crash_at_every_boundary(reactor: &Reactor, seed: u64) -> (usize, usize) {
    let mut random = fastrand::Rng::with_seed(seed);
    let disk = fresh_disk(reactor, seed).await;
    let mut image = disk.image();
    disk.take_events();
    let device = open(reactor, &disk).await;
    let base = content::model(SECTORS, BELOW_SECTORS);
    let work = Workload::new(reactor, &disk, &device, base, random.u64(..));
    work.run(60).await;
    let begun = disk.events();
    let grown = grow_at_work(reactor, &disk, &device, &work).await;
    assert_eq!([&device, &device.clone()].map(sectors_of), [GROWN; 2]);
    work.queues[0].flush().await.unwrap();
    let sizes = ["data", "index"].map(|name| size_in_header(&disk.image(), name));
    assert_eq!(sizes, [GROWN; 2], "an index file that is rewritten says it too");
    let record = work.record.take();
    let events = disk.take_events();
    let (mut old, mut new) = (0, 0);
    for count in 0..=events.len() {
        let (done, flushed) = record.at(count);
        for _ in 0..SURVIVALS {
            let crashed = SimulatedDisk::new(image.crash(&mut random), random.u64(..));
            let device = open(reactor, &crashed).await;
            let queue = device.open_queue(reactor).unwrap();
            let mut found = content::read_all(&device, &queue).await;
            match found.len() as u64 {
                SECTORS => {
                    assert!(count < grown.resized, "seed {seed}: the size is lost after event {count}");
                    old += usize::from(count > begun);
                }
                GROWN => {
                    assert!(count > begun, "seed {seed}: it has grown too early, after event {count}");
                    new += usize::from(count < grown.resized);
                }
                other => panic!("seed {seed}: {other} sectors after event {count}"),
            }
            let written = is_written(&found[SECTORS as usize..]);
            assert!(written || count < grown.durable, "seed {seed}: a flush is lost after event {count}");
            found.truncate(SECTORS as usize);
            if let Err(error) = prefix_of(&found, &work.base, done, flushed) {
                panic!("seed {seed}, after event {count}: {error}");
            }
            // Whichever headers a crash has left can be given a size again.
            device.resize(reactor, (GROWN + 8) * SECTOR).await.unwrap();
            drop((device, queue));
            assert_eq!(sectors_of(&open(reactor, &crashed).await), GROWN + 8);
        }
        if let Some(event) = events.get(count) {
            image.apply(event);
        }
    }
    println!(
        "seed {seed}: {} boundaries, in the middle {old} times the old size, {new} times the new",
        events.len()
    );
    (old, new)
}

#[test]
fn a_crash_at_any_boundary_leaves_the_old_size_or_the_new_one_and_loses_nothing() {
    let reactor = reactor();
    let (mut old, mut new) = (0, 0);
    for seed in seeds_of_workloads() {
        let found = reactor.block_on(crash_at_every_boundary(&reactor, seed)).unwrap();
        (old, new) = (old + found.0, new + found.1);
    }
    assert!(old > 0 && new > 0);
}

/// The process dies at every boundary, and the kernel does not.
async fn die_at_every_boundary(reactor: &Reactor, seed: u64, kind: Kind) {
    let mut random = fastrand::Rng::with_seed(seed);
    let disk = fresh_disk_of(reactor, kind, seed).await;
    let mut image = disk.image();
    disk.take_events();
    disk.memory(|memory| memory.watch());
    let device = open(reactor, &disk).await;
    let base = content::model(SECTORS, BELOW_SECTORS);
    let work = Workload::new(reactor, &disk, &device, base, random.u64(..));
    work.run(60).await;
    let begun = disk.events();
    let grown = grow_at_work(reactor, &disk, &device, &work).await;
    let (record, events) = (work.record.take(), disk.take_events());
    let history = disk.memory(|memory| memory.take_history());
    let mut sizes = [0, 0];
    for (count, files) in history.iter().enumerate() {
        if random.usize(0..boundary_of()) > 0 {
            events.get(count).into_iter().for_each(|event| image.apply(event));
            continue;
        }
        let left = SimulatedDisk::new(image.die(&mut random), random.u64(..)).with_memory(files);
        let device = open(reactor, &left).await;
        let mut found = content::read_all(&device, &device.open_queue(reactor).unwrap()).await;
        let is_grown = found.len() as u64 == GROWN;
        sizes[usize::from(is_grown)] += usize::from(count > begun && count < grown.resized);
        assert!(is_grown || found.len() as u64 == SECTORS, "{} sectors after event {count}", found.len());
        assert!(is_grown == (count >= grown.resized) || (begun..grown.resized).contains(&count));
        if count >= grown.written {
            assert!(
                is_written(&found[SECTORS as usize..]),
                "seed {seed}: a write is lost after event {count}"
            );
        }
        found.truncate(SECTORS as usize);
        Life { base: &work.base, is_durable: true, record: &record, events: count }.check(&found);
        device.resize(reactor, (GROWN + 8) * SECTOR).await.unwrap();
        if let Some(event) = events.get(count) {
            image.apply(event);
        }
    }
    println!("{kind:?}, seed {seed}: {sizes:?} times the old and the new size in the middle");
}

#[test]
fn the_death_of_the_process_leaves_the_old_size_or_the_new_one_and_takes_nothing_that_has_completed() {
    let reactor = reactor();
    for seed in seeds_of_workloads() {
        for kind in Kind::ALL {
            reactor.block_on(die_at_every_boundary(&reactor, seed, kind)).unwrap();
        }
    }
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let reactor = reactor();
    let work = async {
        let disk = fresh_disk(&reactor, 1).await;
        let below = content::below(64, 4096);
        let device: Device = Overlay::open(&reactor, disk.layer_files(), Some(below), LIMITS).await.unwrap();
        disk.take_events();
        let refused = async |size_bytes: u64| device.resize(&reactor, size_bytes).await.unwrap_err();
        assert!(matches!(refused((SECTORS - 8) * SECTOR).await, UpperError::Shrinks { .. }));
        assert!(matches!(refused(GROWN * SECTOR + 1).await, UpperError::Blocks { .. }));
        assert!(matches!(refused(1 << 60).await, UpperError::Size { .. }));
        assert!(matches!(
            refused((SECTORS + 1) * SECTOR).await,
            UpperError::Blocks { block_bytes: 4096, .. }
        ));
        assert_eq!((disk.events(), sectors_of(&device)), (0, SECTORS));
        // No header can be written.
        disk.limit_size(4);
        assert!(matches!(refused(SECTORS * 2 * SECTOR).await, UpperError::Io { .. }));
        assert_eq!(sectors_of(&device), SECTORS);
        disk.limit_size(u64::MAX);
        let queue = device.open_queue(&reactor).unwrap();
        queue.write_zeroes(0, 4096).await.unwrap();
        queue.flush().await.unwrap();
        device.resize(&reactor, SECTORS * 2 * SECTOR).await.unwrap();
        let syncs = disk.syncs();
        queue.flush().await.unwrap();
        assert_eq!(disk.syncs(), syncs, "all is as durable as before");
        disk.fail_next_sync();
        assert!(matches!(refused(SECTORS * 3 * SECTOR).await, UpperError::Unresized { .. }));
        assert_eq!(sectors_of(&device), SECTORS * 2);
        assert!(queue.write_zeroes(0, 4096).await.is_err(), "nobody knows what is durable");
        assert!(matches!(refused(SECTORS * 3 * SECTOR).await, UpperError::Unresized { .. }));
    };
    reactor.block_on(work).unwrap();
}

/// The kernel may still be writing what it was given.
#[test]
fn after_a_resize_that_was_given_up_nothing_is_written() {
    let reactor = reactor();
    let work = async {
        for kind in [Kind::Log, Kind::Sparse] {
            let disk = fresh_disk_of(&reactor, kind, 1).await;
            let device = open(&reactor, &disk).await;
            let queue = device.open_queue(&reactor).unwrap();
            queue.write_zeroes(0, 4096).await.unwrap();
            {
                let mut resizing = pin!(device.resize(&reactor, GROWN * SECTOR));
                assert!(poll!(resizing.as_mut()).is_pending());
            }
            let ended = queue.write_zeroes(0, 4096).await.and(queue.flush().await);
            assert!(ended.is_err(), "{kind:?}");
        }
    };
    reactor.block_on(work).unwrap();
}

#[test]
fn two_sizes_at_once_leave_the_larger_one_and_a_device_that_had_its_size_from_below_has_its_own() {
    let reactor = reactor();
    let work = async {
        let disk = SimulatedDisk::new(CrashImage::default(), 5);
        disk.layer_files().format(&reactor, &identity(0)).await.unwrap();
        let device = open(&reactor, &disk).await;
        assert_eq!(sectors_of(&device), BELOW_SECTORS);
        let (larger, smaller) = futures_util::join!(
            device.resize(&reactor, GROWN * SECTOR),
            device.resize(&reactor, SECTORS * SECTOR)
        );
        larger.unwrap();
        assert!(matches!(smaller, Err(UpperError::Shrinks { .. })));
        drop(device);
        assert_eq!(sectors_of(&open(&reactor, &disk).await), GROWN);
    };
    reactor.block_on(work).unwrap();
}

#[test]
fn a_snapshot_of_a_device_that_has_grown_has_its_size() {
    let reactor = reactor();
    let work = async {
        let disk = fresh_disk(&reactor, 1).await;
        let device = open(&reactor, &disk).await;
        for (name, sectors) in [("old", SECTORS), ("next", GROWN)] {
            disk.files_named(name).format(&reactor, &identity(sectors * SECTOR)).await.unwrap();
        }
        let (resized, sealed) = futures_util::join!(
            device.resize(&reactor, GROWN * SECTOR),
            device.seal(&reactor, disk.files_named("old"))
        );
        resized.unwrap();
        assert!(matches!(sealed, Err(UpperError::OtherSize { .. })));
        device.seal(&reactor, disk.files_named("next")).await.unwrap().stack();
        let image = disk.image();
        let data = image.cached(image.file("data").unwrap());
        let trailer = Header::decode(&data[data.len() - 4096..], 0).unwrap();
        assert_eq!((trailer.virtual_size_bytes, trailer.sealed), (GROWN * SECTOR, true));
    };
    reactor.block_on(work).unwrap();
}
