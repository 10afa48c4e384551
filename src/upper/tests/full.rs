//! A file system that is full, mostly of garbage: what is dead makes room for what is written.

use std::time::Duration;

use futures_util::future::join_all;

use super::{
    BELOW_SECTORS, Kind, LIMITS, SECTORS,
    content::{self, Device, Queue, bytes_of},
    crash_image::SECTOR,
    disk::SimulatedDisk,
    fresh_disk, reactor, seeds_of_workloads,
    workload::Workload,
};
use crate::{
    block::{BlockDevice, BlockError, BlockQueue, ErrorKind},
    reactor::Reactor,
    upper::{LogLimits, Overlay},
};

/// As by default, little is given back and nothing rewritten for as long as there is room.
const LAZY: LogLimits = LogLimits { rewrite_entries: 1 << 20, dead_bytes: 64 << 20, ..LIMITS };

/// Sectors of a block of the file system.
const BLOCK: u64 = 2;

async fn open(reactor: &Reactor, disk: &SimulatedDisk, limits: LogLimits) -> Device {
    let below = content::below(BELOW_SECTORS, 512);
    Overlay::open(reactor, disk.layer_files(), Some(below), limits).await.unwrap()
}

async fn write(queue: &Queue, writer: u32, sectors: std::ops::Range<u64>) -> Result<(), BlockError> {
    queue.write(sectors.start * SECTOR, &bytes_of(writer, sectors)).await
}

/// Blocks for half of the device, once, beside those that the index file keeps.
const ROOM: usize = (SECTORS / 2 / BLOCK) as usize + 66;

#[test]
fn a_full_file_system_takes_writes_for_as_long_as_there_is_garbage() {
    let reactor = reactor();
    let work = async {
        let disk = fresh_disk(&reactor, 1).await;
        let device = open(&reactor, &disk, LAZY).await;
        let queue = device.open_queue(&reactor).unwrap();
        disk.limit_room(ROOM);
        for writer in 2..200 {
            write(&queue, writer, 0..12).await.unwrap();
            write(&queue, writer, 20..32).await.unwrap();
        }
        let found = content::read_all(&device, &queue).await;
        assert!(found[..12] == [199; 12] && found[20..32] == [199; 12]);
    };
    reactor.block_on(work).unwrap();
}

#[test]
fn a_file_system_without_any_room_takes_discards_and_then_writes() {
    let reactor = reactor();
    let work = async {
        let disk = fresh_disk(&reactor, 1).await;
        let device = open(&reactor, &disk, LAZY).await;
        let queue = device.open_queue(&reactor).unwrap();
        write(&queue, 2, 0..12).await.unwrap();
        queue.flush().await.unwrap();
        disk.limit_room(0);
        assert_eq!(write(&queue, 3, 0..12).await.unwrap_err().kind(), ErrorKind::NoSpace);
        assert_eq!(content::read_all(&device, &queue).await[..12], [2; 12]);
        queue.write_zeroes(0, 12 * SECTOR).await.unwrap();
        write(&queue, 4, 30..42).await.unwrap();
        assert_eq!(content::read_all(&device, &queue).await[30..42], [4; 12]);
    };
    reactor.block_on(work).unwrap();
}

/// More wait to become durable than the index file has room for: some of them make room for the others.
#[test]
fn an_index_file_grows_by_what_its_first_entries_set_free() {
    let reactor = reactor();
    let work = async {
        let disk = fresh_disk(&reactor, 1).await;
        let limits = LogLimits { pending_entries: 1 << 20, ..LAZY };
        let device = open(&reactor, &disk, limits).await;
        let queue = device.open_queue(&reactor).unwrap();
        write(&queue, 1000, 0..1).await.unwrap();
        queue.flush().await.unwrap();
        for writer in 2..10_000 {
            write(&queue, writer, 0..1).await.unwrap();
        }
        disk.limit_room(0);
        queue.flush().await.unwrap();
        drop((queue, device));
        let device = open(&reactor, &disk, LAZY).await;
        let queue = device.open_queue(&reactor).unwrap();
        assert_eq!(content::read_all(&device, &queue).await[0], 9999);
    };
    reactor.block_on(work).unwrap();
}

#[test]
fn writes_that_find_no_room_at_once_share_a_round_and_fail_once_where_there_is_no_garbage() {
    let reactor = reactor();
    let work = async {
        let disk = fresh_disk(&reactor, 1).await;
        let device = open(&reactor, &disk, LAZY).await;
        let queue = device.open_queue(&reactor).unwrap();
        queue.write_zeroes(0, SECTORS * SECTOR).await.unwrap();
        queue.flush().await.unwrap();
        disk.limit_room(0);
        let before = device.metrics().rounds.get();
        let failed = join_all((0..40).map(|at| write(&queue, 2, at..at + 8))).await;
        assert!(failed.iter().all(|it| it.as_ref().is_err_and(|error| error.kind() == ErrorKind::NoSpace)));
        let rounds = device.metrics().rounds.get() - before;
        assert!(rounds < 8, "{rounds} rounds for 40 writes");
        disk.limit_room(usize::MAX);
        write(&queue, 3, 0..8).await.unwrap();
    };
    reactor.block_on(work).unwrap();
}

#[test]
fn a_snapshot_finds_the_room_that_garbage_takes() {
    let reactor = reactor();
    let work = async {
        let disk = fresh_disk(&reactor, 1).await;
        let device = open(&reactor, &disk, LAZY).await;
        let queue = device.open_queue(&reactor).unwrap();
        disk.files_named("next").format(&reactor, &super::identity(0)).await.unwrap();
        for writer in 2..20 {
            write(&queue, writer, 0..12).await.unwrap();
        }
        disk.limit_room(1);
        device.seal(&reactor, disk.files_named("next")).await.unwrap().stack();
        assert_eq!(content::read_all(&device, &queue).await[..12], [19; 12]);
    };
    reactor.block_on(work).unwrap();
}

/// Dead blocks of the layer that are still kept, and what is to be.
async fn garbage(reactor: &Reactor, disk: &SimulatedDisk, limits: LogLimits) -> (Device, Queue, usize) {
    let device = open(reactor, disk, limits).await;
    let queue = device.open_queue(reactor).unwrap();
    write(&queue, 2, 0..12).await.unwrap();
    queue.flush().await.unwrap();
    let once = disk.blocks();
    for writer in 3..50 {
        write(&queue, writer, 0..12).await.unwrap();
    }
    assert!(disk.blocks() > once + 40);
    // One block less or more, as the writes begin in the middle of one.
    (device, queue, once + 1)
}

#[test]
fn a_layer_that_is_not_written_for_a_while_gives_back_what_is_dead() {
    let reactor = reactor();
    let work = async {
        let disk = fresh_disk(&reactor, 1).await;
        let limits = LogLimits { idle: Duration::from_millis(20), ..LAZY };
        let (device, queue, expected) = garbage(&reactor, &disk, limits).await;
        for _ in 0..1000 {
            if disk.blocks() <= expected {
                break;
            }
            reactor.sleep(Duration::from_millis(10)).await;
        }
        assert!(disk.blocks() <= expected, "{} blocks", disk.blocks());
        assert_eq!(content::read_all(&device, &queue).await[..12], [49; 12]);
    };
    reactor.block_on(work).unwrap();
}

#[test]
fn a_layer_that_is_closed_gives_back_what_is_dead() {
    let reactor = reactor();
    let work = async {
        let disk = fresh_disk(&reactor, 1).await;
        let (device, queue, expected) = garbage(&reactor, &disk, LAZY).await;
        drop(queue);
        device.close(&reactor).await.unwrap();
        assert!(disk.blocks() <= expected, "{} blocks", disk.blocks());
    };
    reactor.block_on(work).unwrap();
}

#[test]
fn a_layer_that_shares_data_between_extents_gives_nothing_back_even_where_there_is_no_room() {
    let reactor = reactor();
    let work = async {
        let disk = fresh_disk(&reactor, 1).await;
        let device = open(&reactor, &disk, LAZY).await;
        let queue = device.open_queue(&reactor).unwrap();
        queue.write(0, &[7; 4 * SECTOR as usize]).await.unwrap();
        queue.flush().await.unwrap();
        drop((queue, device));
        share_first_extent(&reactor, &disk).await;
        let device = open(&reactor, &disk, LAZY).await;
        let queue = device.open_queue(&reactor).unwrap();
        queue.write_zeroes(0, 4 * SECTOR).await.unwrap();
        queue.flush().await.unwrap();
        disk.limit_room(0);
        write(&queue, 5, 60..64).await.unwrap_err();
        let mut bytes = [0; 4 * SECTOR as usize];
        queue.read(50 * SECTOR, &mut bytes).await.unwrap();
        assert_eq!(bytes, [7; 4 * SECTOR as usize]);
    };
    reactor.block_on(work).unwrap();
}

/// Has sectors 50 to 54 lie where sectors 0 to 4 do, as no writer has it.
async fn share_first_extent(reactor: &Reactor, disk: &SimulatedDisk) {
    use crate::{format::lsmt::Segment, upper::Medium};
    let index = disk.layer_files().index.unwrap();
    let entry = Segment::new(50, 4, 8, false, 0).unwrap().encode();
    let end = index.size_bytes().unwrap();
    index.write_durably(reactor, end, &entry).await.unwrap();
}

/// Works on a disk that has room for little more than what is in use, and loses power at every boundary.
#[test]
fn a_crash_of_a_log_on_a_full_disk_leaves_a_prefix_with_all_that_was_flushed() {
    let reactor = reactor();
    let (mut tried, mut failed) = (0, 0);
    for seed in seeds_of_workloads() {
        let work = async {
            let mut random = fastrand::Rng::with_seed(seed);
            let disk = fresh_disk(&reactor, seed).await;
            let mut image = disk.image();
            disk.take_events();
            let device = open(&reactor, &disk, LogLimits { rewrite_entries: 100, ..LAZY }).await;
            let base = content::model(SECTORS, BELOW_SECTORS);
            let mut work = Workload::new(&reactor, &disk, &device, base, random.u64(..));
            work.may_fail = true;
            // Now and then there is no room for what is in use, and never for the new index file beside the old one.
            disk.limit_room((SECTORS / BLOCK) as usize * 2 + 64);
            work.run(250).await;
            assert_eq!(content::read_all(&device, &work.queues[0]).await, work.now(), "seed {seed}");
            let record = work.record.take();
            failed += record.begun.len() - record.done.len();
            let events = disk.take_events();
            for count in 0..=events.len() {
                let crashed = SimulatedDisk::new(image.crash(&mut random), random.u64(..));
                let found = super::crash::reopened(&reactor, &crashed).await;
                if let Err(error) = Kind::Log.check(&found, &work.base, &record, count) {
                    panic!("seed {seed}, after event {count}: {error}");
                }
                tried += 1;
                if let Some(event) = events.get(count) {
                    image.apply(event);
                }
            }
        };
        reactor.block_on(work).unwrap();
    }
    println!("{tried} crashes, {failed} changes failed");
}
