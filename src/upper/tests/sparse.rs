//! What only the sparse kind does: completing blocks, holes and zeroes, and its file as a whole.

use std::pin::pin;

use futures_util::{FutureExt, poll};

use super::{
    BELOW_SECTORS, Kind, LIMITS, SECTORS,
    content::{self, BELOW, Device, Writer, ZERO, bytes_of},
    crash_image::{CrashImage, FileSystem, SECTOR},
    disk::SimulatedDisk,
    fresh_disk_of, open, reactor,
    workload::Workload,
};
use crate::{
    block::{BlockDevice, BlockQueue, ErrorKind},
    reactor::Reactor,
    upper::{Overlay, UpperError},
};

/// Crashes that are tried at each boundary.
const SURVIVALS: usize = 3;

/// Sectors of a device that grows, which end in the middle of a block each time.
const SIZES: [u64; 3] = [90, 101, 107];

async fn disk_of(reactor: &Reactor, block_bytes: u64, sectors: u64) -> SimulatedDisk {
    let system = FileSystem { block_bytes, whole_blocks: true };
    let disk = SimulatedDisk::new(CrashImage::on(system), 7);
    disk.layer_files().format(reactor, &Kind::Sparse.identity(sectors * SECTOR)).await.unwrap();
    disk
}

/// The sectors of the device that the file has.
fn kept(disk: &SimulatedDisk) -> Vec<std::ops::Range<u64>> {
    let image = disk.image();
    let file = image.file("data").unwrap();
    let (mut runs, mut at) = (Vec::new(), 4096);
    while let Some(run) = image.next_data(file, at) {
        runs.push(run.start / SECTOR - 8..run.end / SECTOR - 8);
        at = run.end;
    }
    runs
}

async fn holds(device: &Device, reactor: &Reactor) -> Vec<Writer> {
    content::read_all(device, &device.open_queue(reactor).unwrap()).await
}

#[test]
fn a_discard_makes_holes_only_where_nothing_shows_through_them() {
    let reactor = reactor();
    let work = async {
        let disk = disk_of(&reactor, 4096, SECTORS).await;
        let device = open(&reactor, &disk).await;
        let queue = device.open_queue(&reactor).unwrap();
        queue.write_zeroes(0, SECTORS * SECTOR).await.unwrap();
        // Below, sectors 30 to 50 and all from 70 on are zeroes, and sector 43 is not known to be.
        assert_eq!(kept(&disk), [0..32, 40..72]);
        queue.write(0, &bytes_of(9, 0..SECTORS)).await.unwrap();
        assert_eq!(kept(&disk).first(), Some(&(0..SECTORS)));
        queue.write_zeroes(35 * SECTOR, (91 - 35) * SECTOR).await.unwrap();
        assert_eq!(kept(&disk), [0..72, 88..96]);
        queue.flush().await.unwrap();
        let mut expected = vec![9; SECTORS as usize];
        expected[35..91].fill(ZERO);
        assert_eq!(holds(&device, &reactor).await, expected);
        drop((device, queue));
        let device = open(&reactor, &disk).await;
        assert_eq!(holds(&device, &reactor).await, expected, "opened again");
        // What is a hole already takes no room when a part of its block is discarded.
        let queue = device.open_queue(&reactor).unwrap();
        queue.write_zeroes(74 * SECTOR, 3 * SECTOR).await.unwrap();
        assert_eq!(kept(&disk), [0..72, 88..96]);
    };
    reactor.block_on(work).unwrap();
}

#[test]
fn a_write_of_one_sector_keeps_the_rest_of_its_block_as_it_is_below() {
    let reactor = reactor();
    for block_bytes in [512, 1024, 4096] {
        let work = async {
            let disk = disk_of(&reactor, block_bytes, SECTORS).await;
            let device = open(&reactor, &disk).await;
            let queue = device.open_queue(&reactor).unwrap();
            for sector in [3, 13, 69, 95] {
                queue.write(sector * SECTOR, &bytes_of(5, sector..sector + 1)).await.unwrap();
            }
            queue.flush().await.unwrap();
            let mut expected = content::model(SECTORS, BELOW_SECTORS);
            [3, 13, 69, 95].into_iter().for_each(|sector: usize| expected[sector] = 5);
            drop((device, queue));
            let device = open(&reactor, &disk).await;
            assert_eq!(holds(&device, &reactor).await, expected, "blocks of {block_bytes}");
        };
        reactor.block_on(work).unwrap();
    }
}

#[test]
fn reads_wait_for_a_write_to_their_blocks_and_no_others_do() {
    let reactor = reactor();
    let work = async {
        let disk = disk_of(&reactor, 4096, SECTORS).await;
        let device = open(&reactor, &disk).await;
        let queue = device.open_queue(&reactor).unwrap();
        queue.write(0, &bytes_of(5, 0..32)).await.unwrap();
        disk.set_slowest(1000);
        let mut write = pin!(queue.write(4 * SECTOR, &[6; 512]));
        assert!(poll!(write.as_mut()).is_pending());
        disk.set_slowest(0);
        let mut dest = [0; 512];
        for sector in [8, 20] {
            queue.read(sector * SECTOR, &mut dest).await.unwrap();
        }
        {
            let mut read = pin!(queue.read(7 * SECTOR, &mut dest));
            for _ in 0..20 {
                assert!(poll!(read.as_mut()).is_pending());
            }
        }
        write.await.unwrap();
        queue.read(4 * SECTOR, &mut dest).await.unwrap();
        assert_eq!(dest, [6; 512]);
    };
    reactor.block_on(work).unwrap();
}

#[test]
fn what_a_failed_write_has_left_in_the_file_is_not_forgotten_by_a_discard() {
    let reactor = reactor();
    let work = async {
        let disk = disk_of(&reactor, 4096, SECTORS).await;
        let device = open(&reactor, &disk).await;
        let queue = device.open_queue(&reactor).unwrap();
        disk.cut_next_write(8192);
        let error = queue.write(72 * SECTOR, &bytes_of(5, 72..96)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        let found = holds(&device, &reactor).await;
        assert_eq!([found[72], found[87], found[88]], [5, 5, ZERO], "any part of it may be there");
        queue.write_zeroes(64 * SECTOR, 32 * SECTOR).await.unwrap();
        queue.flush().await.unwrap();
        drop((device, queue));
        let device = open(&reactor, &disk).await;
        assert_eq!(holds(&device, &reactor).await[64..96], [ZERO; 32]);
    };
    reactor.block_on(work).unwrap();
}

#[test]
fn a_write_that_is_given_up_in_the_middle_is_not_written_over() {
    let reactor = reactor();
    let work = async {
        let disk = disk_of(&reactor, 4096, SECTORS).await;
        let device = open(&reactor, &disk).await;
        let queue = device.open_queue(&reactor).unwrap();
        disk.set_slowest(1000);
        assert!(queue.write(0, &bytes_of(5, 0..8)).now_or_never().is_none());
        disk.set_slowest(0);
        let error = queue.write(7 * SECTOR, &bytes_of(6, 7..9)).await.unwrap_err();
        assert!(error.to_string().contains("given up"), "{error}");
        assert!(queue.write_zeroes(0, SECTOR).await.is_err());
        queue.write(8 * SECTOR, &bytes_of(6, 8..9)).await.unwrap();
        queue.flush().await.unwrap();
        assert_eq!(holds(&device, &reactor).await[8], 6);
    };
    reactor.block_on(work).unwrap();
}

#[test]
fn flushes_share_a_sync_and_after_a_failed_one_nothing_is_written() {
    let reactor = reactor();
    let work = async {
        let disk = disk_of(&reactor, 4096, SECTORS).await;
        let device = open(&reactor, &disk).await;
        let queue = device.open_queue(&reactor).unwrap();
        let before = disk.syncs();
        let jobs = (0..60).map(|sector| {
            let queue = &queue;
            async move {
                queue.write(sector * SECTOR, &bytes_of(2, sector..sector + 1)).await.unwrap();
                queue.flush().await.unwrap();
            }
        });
        futures_util::future::join_all(jobs).await;
        let syncs = disk.syncs() - before;
        assert!((2..30).contains(&syncs), "{syncs} syncs for 60 flushes");
        queue.flush().await.unwrap();
        assert_eq!(disk.syncs() - before, syncs, "nothing was written since");
        queue.write(0, &bytes_of(3, 0..1)).await.unwrap();
        disk.fail_next_sync();
        assert!(queue.flush().await.is_err());
        assert!(queue.flush().await.is_err() && queue.write_zeroes(0, SECTOR).await.is_err());
        assert_eq!(holds(&device, &reactor).await[..2], [3, 2]);
    };
    reactor.block_on(work).unwrap();
}

#[test]
fn a_file_system_of_large_blocks_is_refused() {
    let reactor = reactor();
    let work = async {
        let disk = disk_of(&reactor, 8192, SECTORS).await;
        let opened: Result<Device, _> = Overlay::open(&reactor, disk.layer_files(), None, LIMITS).await;
        let error = opened.map(drop).unwrap_err();
        assert!(matches!(error, UpperError::FileBlocks { block_bytes: 8192, .. }), "{error}");
    };
    reactor.block_on(work).unwrap();
}

/// Opens a layer over a device that is larger than it.
async fn over_all(reactor: &Reactor, disk: &SimulatedDisk) -> Device {
    let below = content::below(160, 512);
    Overlay::open(reactor, disk.layer_files(), Some(below), LIMITS).await.unwrap()
}

#[test]
fn a_crash_in_the_middle_of_growing_leaves_a_size_and_what_lies_below() {
    let reactor = reactor();
    let work = async {
        let (mut random, mut crashes) = (fastrand::Rng::with_seed(3), 0);
        let disk = disk_of(&reactor, 4096, SIZES[0]).await;
        let mut image = disk.image();
        disk.take_events();
        let device = over_all(&reactor, &disk).await;
        let mut model = content::model(160, 160);
        for (writer, size) in (5..).zip(SIZES) {
            if device.geometry().size_bytes < size * SECTOR {
                device.resize(&reactor, size * SECTOR).await.unwrap();
            }
            // The last sector, in a block that the device has only a part of.
            let queue = device.open_queue(&reactor).unwrap();
            queue.write((size - 1) * SECTOR, &bytes_of(writer, size - 1..size)).await.unwrap();
            queue.flush().await.unwrap();
            model[size as usize - 1] = writer;
        }
        assert_eq!(holds(&device, &reactor).await, model[..SIZES[2] as usize]);
        for event in disk.take_events() {
            for _ in 0..SURVIVALS {
                let crashed = SimulatedDisk::new(image.crash(&mut random), random.u64(..));
                let device = over_all(&reactor, &crashed).await;
                let found = holds(&device, &reactor).await;
                assert!(SIZES.contains(&(found.len() as u64)), "{} sectors", found.len());
                for (sector, writer) in found.iter().enumerate() {
                    let is_below = *writer == content::model(160, 160)[sector];
                    assert!(
                        is_below || *writer == model[sector],
                        "sector {sector} of {}: {writer}",
                        found.len()
                    );
                }
                crashes += 1;
            }
            image.apply(&event);
        }
        drop(device);
        let device = over_all(&reactor, &disk).await;
        assert_eq!(holds(&device, &reactor).await, model[..SIZES[2] as usize], "opened again");
        println!("{crashes} crashes");
    };
    reactor.block_on(work).unwrap();
}

#[test]
fn a_size_that_cannot_be_had_changes_nothing() {
    let reactor = reactor();
    let work = async {
        let disk = disk_of(&reactor, 4096, SIZES[0]).await;
        let device = over_all(&reactor, &disk).await;
        let queue = device.open_queue(&reactor).unwrap();
        queue.write(89 * SECTOR, &bytes_of(5, 89..90)).await.unwrap();
        // The last block can be completed, and the header cannot be written.
        disk.limit_size(4096 + 104 * SECTOR);
        disk.cut_after(1, 0);
        let refused = device.resize(&reactor, SIZES[1] * SECTOR).await.unwrap_err();
        assert!(matches!(refused, UpperError::Io { .. }), "{refused}");
        assert_eq!(device.geometry().size_bytes, SIZES[0] * SECTOR);
        disk.limit_size(u64::MAX);
        queue.flush().await.unwrap();
        device.resize(&reactor, SIZES[2] * SECTOR).await.unwrap();
        let mut expected = content::model(SIZES[2], 160);
        expected[89] = 5;
        assert_eq!(holds(&device, &reactor).await, expected);
        drop((device, queue));
        assert_eq!(holds(&over_all(&reactor, &disk).await, &reactor).await, expected);
    };
    reactor.block_on(work).unwrap();
}

#[test]
fn a_layer_without_a_size_takes_the_one_below_and_says_it_from_then_on() {
    let reactor = reactor();
    let work = async {
        let disk = disk_of(&reactor, 4096, 0).await;
        let device = open(&reactor, &disk).await;
        assert_eq!(device.geometry().size_bytes, BELOW_SECTORS * SECTOR);
        let queue = device.open_queue(&reactor).unwrap();
        queue.write(0, &bytes_of(5, 0..1)).await.unwrap();
        queue.flush().await.unwrap();
        drop((device, queue));
        let device: Device = Overlay::open(&reactor, disk.layer_files(), None, LIMITS).await.unwrap();
        let found = holds(&device, &reactor).await;
        assert_eq!((found.len() as u64, &found[..2]), (BELOW_SECTORS, &[5, BELOW][..]));
    };
    reactor.block_on(work).unwrap();
}

#[test]
fn a_sealed_layer_that_is_opened_to_be_written_is_not_sealed_any_more() {
    let reactor = reactor();
    let work = async {
        let disk = fresh_disk_of(&reactor, Kind::Sparse, 4).await;
        let device = open(&reactor, &disk).await;
        let base = content::model(SECTORS, BELOW_SECTORS);
        let work = Workload::new(&reactor, &disk, &device, base, 4);
        work.run(50).await;
        disk.files_named("next").format(&reactor, &Kind::Sparse.identity(0)).await.unwrap();
        let sealed = device.seal(&reactor, disk.files_named("next")).await.unwrap();
        let left = disk.image();
        let file = left.file("data").unwrap();
        assert!(left.cached(file).len() as u64 > 4096 + SECTORS * SECTOR);
        // Power is lost here; the configuration still says that the layer is written.
        let crashed = SimulatedDisk::new(left, 1);
        assert_eq!(holds(&open(&reactor, &crashed).await, &reactor).await, work.now());
        assert_eq!(crashed.image().cached(file).len() as u64, 4096 + SECTORS * SECTOR);
        sealed.give_up();
        assert_eq!(disk.image().cached(file).len() as u64, 4096 + SECTORS * SECTOR);
    };
    reactor.block_on(work).unwrap();
}
