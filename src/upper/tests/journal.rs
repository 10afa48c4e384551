//! Whose journal is believed, when it is there, and what happens when it is full.

use futures_util::{FutureExt, future::join_all};

use super::{
    BELOW_SECTORS, Kind, LIMITS, SECTORS,
    content::{self, Device, Writer, bytes_of},
    crash_image::SECTOR,
    disk::SimulatedDisk,
    fresh_disk, fresh_disk_of, identity,
    memory::Files,
    open, reactor,
};
use crate::{
    block::{BlockDevice, BlockQueue},
    format::lsmt::{JournalError, JournalHeader, Segment, decode_journal},
    reactor::Reactor,
    upper::{LogLimits, Overlay, UpperError},
};

/// Writes sectors 3 and 4, and returns what a process that dies then leaves.
async fn written(reactor: &Reactor, disk: &SimulatedDisk) -> Files {
    let device = open(reactor, disk).await;
    let queue = device.open_queue(reactor).unwrap();
    for (writer, sector) in [(5, 3), (6, 4)] {
        queue.write(sector * SECTOR, &bytes_of(writer, sector..sector + 1)).await.unwrap();
    }
    disk.memory(|memory| memory.now())
}

/// Opens what was left, with these files in memory.
async fn next(reactor: &Reactor, disk: &SimulatedDisk, files: &Files) -> Result<Device, UpperError> {
    let disk = SimulatedDisk::new(disk.image(), 1).with_memory(files);
    let below = content::below(BELOW_SECTORS, 512);
    Overlay::open(reactor, disk.layer_files(), Some(below), LIMITS).await
}

async fn found(reactor: &Reactor, device: &Device) -> Vec<Writer> {
    content::read_all(device, &device.open_queue(reactor).unwrap()).await
}

/// The one journal among `files`, made anew.
fn changed(files: &Files, change: impl FnOnce(JournalHeader, Vec<Segment>) -> Vec<u8>) -> Files {
    let (name, bytes) = files.first_key_value().unwrap();
    let (header, entries) = decode_journal(bytes).unwrap();
    Files::from([(name.clone(), change(header, entries))])
}

#[test]
fn the_journal_of_another_boot_is_dropped_and_one_that_is_damaged_or_foreign_refused() {
    let reactor = reactor();
    let work = async {
        let disk = fresh_disk(&reactor, 1).await;
        let files = written(&reactor, &disk).await;
        let before = content::model(SECTORS, BELOW_SECTORS);
        let device = next(&reactor, &disk, &files).await.unwrap();
        assert_eq!(found(&reactor, &device).await[3..5], [5, 6]);
        let other_boot = |header, entries: Vec<_>| JournalHeader { boot: [0; 16], ..header }.encode(&entries);
        let device = next(&reactor, &disk, &changed(&files, other_boot)).await.unwrap();
        assert_eq!(found(&reactor, &device).await, before);
        let foreign = |header, entries: Vec<_>| JournalHeader { inode: 99, ..header }.encode(&entries);
        let beyond =
            |header: JournalHeader, _| header.encode(&[Segment::new(0, 8, 1 << 20, false, 0).unwrap()]);
        let newer = |header: JournalHeader, entries: Vec<_>| {
            let mut bytes = header.encode(&entries);
            bytes[8] = 2;
            bytes
        };
        for (files, is_expected) in [
            (changed(&files, foreign), (|error| matches!(error, JournalError::Foreign)) as fn(_) -> bool),
            (changed(&files, beyond), |error| matches!(error, JournalError::Entry { number: 0, .. })),
            (changed(&files, newer), |error| matches!(error, JournalError::Version(2))),
        ] {
            let refused = next(&reactor, &disk, &files).await.unwrap_err();
            let UpperError::Journal { source, .. } = &refused else { panic!("{refused}") };
            assert!(is_expected(*source), "{source}");
        }
    };
    reactor.block_on(work).unwrap();
}

#[test]
fn a_journal_is_another_layers_whatever_its_uuid() {
    let reactor = reactor();
    let work = async {
        let disk = fresh_disk(&reactor, 1).await;
        disk.files_named("copy").format(&reactor, &identity(SECTORS * SECTOR)).await.unwrap();
        written(&reactor, &disk).await;
        let below = content::below(BELOW_SECTORS, 512);
        let device = Overlay::open(&reactor, disk.files_named("copy"), Some(below), LIMITS).await.unwrap();
        assert_eq!(found(&reactor, &device).await, content::model(SECTORS, BELOW_SECTORS));
        let device = open(&reactor, &disk).await;
        assert_eq!(found(&reactor, &device).await[3..5], [5, 6]);
    };
    reactor.block_on(work).unwrap();
}

#[test]
fn a_journal_goes_when_nothing_is_left_in_it() {
    let reactor = reactor();
    let work = async {
        for kind in Kind::ALL {
            let disk = fresh_disk_of(&reactor, kind, 1).await;
            let names = || disk.memory(|memory| memory.now()).len();
            let left = written(&reactor, &disk).await.len();
            assert_eq!((left, names()), if kind == Kind::Log { (1, 1) } else { (0, 0) }, "{kind:?}");
            let device = open(&reactor, &disk).await;
            device.close(&reactor).await.unwrap();
            assert_eq!(names(), 0, "closed");
        }
        let disk = fresh_disk(&reactor, 1).await;
        let device = open(&reactor, &disk).await;
        let queue = device.open_queue(&reactor).unwrap();
        queue.write(0, &bytes_of(5, 0..1)).await.unwrap();
        disk.files_named("next").format(&reactor, &Kind::Sparse.identity(0)).await.unwrap();
        let sealed = device.seal(&reactor, disk.files_named("next")).await.unwrap();
        let left = disk.memory(|memory| memory.now());
        assert!(decode_journal(left.values().next().unwrap()).unwrap().1.is_empty(), "it may be given up");
        sealed.stack();
        assert_eq!(disk.memory(|memory| memory.now()).len(), 0, "sealed");
    };
    reactor.block_on(work).unwrap();
}

#[test]
fn a_journal_without_room_has_writes_wait_for_a_flush() {
    let reactor = reactor();
    let work = async {
        let disk = fresh_disk(&reactor, 1).await;
        let limits = LogLimits { pending_entries: 1 << 16, journal_entries: 64, ..LIMITS };
        let below = content::below(BELOW_SECTORS, 512);
        let device = Overlay::open(&reactor, disk.layer_files(), Some(below), limits).await.unwrap();
        let queue = device.open_queue(&reactor).unwrap();
        let mut expected = content::model(SECTORS, BELOW_SECTORS);
        for round in 0..5_u32 {
            let writes = (0..40).map(|number| {
                let (writer, sector) = (10 + 100 * round + number, u64::from(number));
                expected[number as usize] = writer;
                let bytes = bytes_of(writer, sector..sector + 1);
                let queue = &queue;
                async move { queue.write(sector * SECTOR, &bytes).await.unwrap() }
            });
            join_all(writes).await;
            let files = disk.memory(|memory| memory.now());
            let device = next(&reactor, &disk, &files).await.unwrap();
            assert_eq!(found(&reactor, &device).await, expected);
        }
        queue.write_zeroes(0, SECTORS * SECTOR).await.unwrap();
    };
    reactor.block_on(work).unwrap();
}

#[test]
fn a_flush_whose_thread_ends_loses_nothing_and_a_sync_that_fails_leaves_what_the_disk_has() {
    let (first, second) = (reactor(), reactor());
    let disk = second.block_on(fresh_disk(&second, 1)).unwrap();
    let device = second.block_on(open(&second, &disk)).unwrap();
    let queue = device.open_queue(&first).unwrap();
    let begun = async {
        queue.write(3 * SECTOR, &bytes_of(5, 3..4)).await.unwrap();
        disk.set_slowest(1000);
        assert!(queue.flush().now_or_never().is_none());
    };
    first.block_on(begun).unwrap();
    drop((queue, first));
    disk.set_slowest(4);
    let files = disk.memory(|memory| memory.now());
    let rest = async {
        let device = next(&second, &disk, &files).await.unwrap();
        assert_eq!(found(&second, &device).await[3], 5);
        let disk = fresh_disk(&second, 1).await;
        let device = open(&second, &disk).await;
        let queue = device.open_queue(&second).unwrap();
        queue.write(3 * SECTOR, &bytes_of(5, 3..4)).await.unwrap();
        disk.lose_sync_after(0);
        queue.flush().await.unwrap_err();
        let files = disk.memory(|memory| memory.now());
        let device = next(&second, &disk, &files).await.unwrap();
        assert_eq!(found(&second, &device).await, content::model(SECTORS, BELOW_SECTORS));
    };
    second.block_on(rest).unwrap();
}
