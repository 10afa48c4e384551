//! What goes wrong below: no room, syncs that fail, flushes that are given up; and how often a disk is synced.

use std::{pin::pin, time::Duration};

use futures_util::{FutureExt, future::join_all, poll};

use super::{
    Kind, SECTORS,
    content::{self, bytes_of},
    crash::reopened,
    crash_image::SECTOR,
    disk::SimulatedDisk,
    fresh_disk, fresh_disk_of, open, reactor,
};
use crate::{
    block::{BlockDevice, BlockQueue, ErrorKind},
    upper::UpperError,
};

fn one(writer: u32, sector: u64) -> (u64, Vec<u8>) {
    (sector * SECTOR, bytes_of(writer, sector..sector + 1))
}

#[test]
fn a_write_without_room_fails_alone() {
    let reactor = reactor();
    let work = async {
        let disk = fresh_disk(&reactor, 1).await;
        let device = open(&reactor, &disk).await;
        let queue = device.open_queue(&reactor).unwrap();
        let (offset, bytes) = one(5, 3);
        queue.write(offset, &bytes).await.unwrap();
        disk.limit_room(0);
        let error = queue.write(offset, &bytes_of(6, 3..11)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        queue.flush().await.unwrap();
        disk.limit_room(usize::MAX);
        let (offset, bytes) = one(7, 4);
        queue.write(offset, &bytes).await.unwrap();
        queue.flush().await.unwrap();
        let mut expected = content::read_all(&device, &queue).await;
        assert_eq!(expected[3..5], [5, 7]);
        drop((device, queue));
        let device = open(&reactor, &disk).await;
        let queue = device.open_queue(&reactor).unwrap();
        expected.truncate(SECTORS as usize);
        assert_eq!(content::read_all(&device, &queue).await, expected);
    };
    reactor.block_on(work).unwrap();
}

#[test]
fn a_flush_without_room_for_the_index_may_be_tried_again() {
    let reactor = reactor();
    let work = async {
        let disk = fresh_disk(&reactor, 1).await;
        let device = open(&reactor, &disk).await;
        let queues = [device.open_queue(&reactor).unwrap(), device.open_queue(&reactor).unwrap()];
        queues[0].write_zeroes(0, 4 * SECTOR).await.unwrap();
        disk.limit_size(4096);
        let flushes = join_all(queues.iter().map(BlockQueue::flush)).await;
        assert!(
            flushes.iter().all(|flush| flush.as_ref().is_err_and(|error| error.kind() == ErrorKind::NoSpace))
        );
        disk.limit_size(u64::MAX);
        queues[1].write_zeroes(8 * SECTOR, SECTOR).await.unwrap();
        queues[1].flush().await.unwrap();
        drop((device, queues));
        let device = open(&reactor, &disk).await;
        let found = content::read_all(&device, &device.open_queue(&reactor).unwrap()).await;
        assert_eq!(found[..10], [0, 0, 0, 0, 1, 1, 1, 1, 0, 1]);
    };
    reactor.block_on(work).unwrap();
}

#[test]
fn after_a_failed_sync_nothing_is_written_and_reads_go_on() {
    let reactor = reactor();
    let work = async {
        let disk = fresh_disk(&reactor, 1).await;
        let device = open(&reactor, &disk).await;
        let queue = device.open_queue(&reactor).unwrap();
        let (offset, bytes) = one(5, 3);
        queue.write(offset, &bytes).await.unwrap();
        disk.fail_next_sync();
        let error = queue.flush().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.to_string().contains("a sync of the writable layer has failed"), "{error}");
        assert!(queue.flush().await.is_err(), "a sync that is tried again succeeds and says nothing");
        assert!(queue.write(offset, &bytes).await.is_err());
        assert!(queue.write_zeroes(offset, SECTOR).await.is_err());
        assert_eq!(content::read_all(&device, &queue).await[3], 5);
    };
    reactor.block_on(work).unwrap();
}

#[test]
fn after_a_failed_sync_of_a_seal_no_flush_says_that_all_is_well() {
    for kind in [Kind::Log, Kind::Sparse] {
        let reactor = reactor();
        let work = async {
            let disk = fresh_disk_of(&reactor, kind, 1).await;
            let device = open(&reactor, &disk).await;
            let queue = device.open_queue(&reactor).unwrap();
            let (offset, bytes) = one(5, 3);
            queue.write(offset, &bytes).await.unwrap();
            disk.fail_next_sync();
            device.stack.layers().top.seal(&reactor).await.unwrap_err();
            assert_eq!(queue.flush().await.unwrap_err().kind(), ErrorKind::Io, "{kind:?}");
            assert!(queue.write(offset, &bytes).await.is_err(), "{kind:?}");
        };
        reactor.block_on(work).unwrap();
    }
}

#[test]
fn what_a_sealed_log_has_is_in_its_index_file_too() {
    let reactor = reactor();
    let work = async {
        let disk = fresh_disk(&reactor, 1).await;
        let device = open(&reactor, &disk).await;
        let queue = device.open_queue(&reactor).unwrap();
        let (offset, bytes) = one(5, 3);
        queue.write(offset, &bytes).await.unwrap();
        device.stack.layers().top.seal(&reactor).await.unwrap();
        drop((device, queue));
        let device = open(&reactor, &disk).await;
        let found = content::read_all(&device, &device.open_queue(&reactor).unwrap()).await;
        assert_eq!(found[3], 5);
    };
    reactor.block_on(work).unwrap();
}

#[test]
fn flushes_that_come_together_share_their_syncs() {
    let reactor = reactor();
    let work = async {
        let disk = fresh_disk(&reactor, 1).await;
        let device = open(&reactor, &disk).await;
        let queues = [device.open_queue(&reactor).unwrap(), device.open_queue(&reactor).unwrap()];
        let before = disk.syncs();
        let jobs = (0..60).map(|number| {
            let queue = &queues[number % 2];
            async move {
                let (offset, bytes) = one(2, number as u64);
                queue.write(offset, &bytes).await.unwrap();
                queue.flush().await.unwrap();
            }
        });
        join_all(jobs).await;
        let syncs = disk.syncs() - before;
        assert!((4..40).contains(&syncs), "{syncs} syncs for 60 flushes");
        queues[0].flush().await.unwrap();
        assert_eq!(disk.syncs() - before, syncs, "nothing was written since");
    };
    reactor.block_on(work).unwrap();
}

#[test]
fn a_flush_that_is_given_up_does_not_take_the_round_along() {
    let reactor = reactor();
    let work = async {
        let disk = fresh_disk(&reactor, 1).await;
        let device = open(&reactor, &disk).await;
        let queue = device.open_queue(&reactor).unwrap();
        disk.set_slowest(20);
        queue.write_zeroes(0, SECTOR).await.unwrap();
        {
            let mut given_up = pin!(queue.flush());
            assert!(poll!(given_up.as_mut()).is_pending());
        }
        queue.flush().await.unwrap();
        assert_eq!(disk.syncs(), 6, "two to make the layer, two to open it, two of the one round");
    };
    reactor.block_on(work).unwrap();
}

#[test]
fn a_round_whose_reactor_ends_in_the_middle_of_it_counts_as_a_failed_sync() {
    let (first, second) = (reactor(), reactor());
    let disk = second.block_on(fresh_disk(&second, 1)).unwrap();
    let device = second.block_on(open(&second, &disk)).unwrap();
    disk.set_slowest(1000);
    let queue = device.open_queue(&first).unwrap();
    let begun = async {
        queue.write_zeroes(0, SECTOR).await.unwrap();
        assert!(queue.flush().now_or_never().is_none());
    };
    first.block_on(begun).unwrap();
    drop((queue, first));
    let queue = device.open_queue(&second).unwrap();
    assert!(second.block_on(queue.flush()).unwrap().is_err());
}

/// The kernel keeps pages that it could not write, as clean ones: whoever opens the layer again must not believe them.
#[test]
fn what_a_failed_sync_has_left_in_memory_does_not_take_later_flushes_along() {
    let reactor = reactor();
    let work = async {
        let disk = fresh_disk(&reactor, 1).await;
        let device = open(&reactor, &disk).await;
        let queue = device.open_queue(&reactor).unwrap();
        // Entries over several sectors of the index file.
        for number in 0..75 {
            let sector = number % SECTORS;
            queue.write(sector * SECTOR, &bytes_of(5, sector..sector + 1)).await.unwrap();
        }
        // That of the data file; the one of the index file fails.
        disk.lose_sync_after(1);
        queue.flush().await.unwrap_err();
        drop((device, queue));
        let device = open(&reactor, &disk).await;
        let queue = device.open_queue(&reactor).unwrap();
        let before = content::read_all(&device, &queue).await;
        queue.write(90 * SECTOR, &bytes_of(9, 90..91)).await.unwrap();
        queue.flush().await.unwrap();
        let mut expected = before;
        expected[90] = 9;
        assert_eq!(content::read_all(&device, &queue).await, expected);
        let image = disk.image();
        drop((device, queue));
        let mut random = fastrand::Rng::with_seed(1);
        let crashed = SimulatedDisk::new(image.crash(&mut random), 1);
        let found = reopened(&reactor, &crashed).await;
        assert_eq!(found[90], 9, "it was flushed");
        assert_eq!(found, expected);
    };
    reactor.block_on(work).unwrap();
}

#[test]
fn a_write_that_does_not_end_keeps_no_other_out_for_longer_than_the_limit() {
    const LIMIT: Duration = Duration::from_millis(20);
    let reactor = reactor();
    let work = async {
        let disk = fresh_disk(&reactor, 1).await;
        let device = open(&reactor, &disk).await;
        let queue = device.open_queue(&reactor).unwrap();
        disk.files_named("next").format(&reactor, &Kind::Log.identity(0)).await.unwrap();
        let hanging = device.stack.gate.enter().await;
        let mut sealing = pin!(device.stack.seal(&reactor, disk.files_named("next"), LIMIT));
        assert!(poll!(sealing.as_mut()).is_pending());
        let refused = sealing.await.unwrap_err();
        assert!(matches!(refused, UpperError::Undrained { limit: LIMIT, .. }), "{refused}");
        let (offset, bytes) = one(5, 3);
        queue.write(offset, &bytes).await.unwrap();
        drop(hanging);
        device.seal(&reactor, disk.files_named("next")).await.unwrap().stack();
        assert_eq!(content::read_all(&device, &queue).await[3], 5);
    };
    reactor.block_on(work).unwrap();
}
