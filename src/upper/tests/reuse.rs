//! A data file that is not to become larger: room in it is used again, and whoever reads, crashes or seals does not notice.

use super::{
    BELOW_SECTORS, Kind, LIMITS, SECTORS,
    content::{self, Device, bytes_of},
    crash_image::SECTOR,
    disk::SimulatedDisk,
    fresh_disk, identity, reactor, seeds_of_workloads,
    workload::Workload,
};
use crate::{
    block::{BlockDevice, BlockQueue, ErrorKind},
    reactor::Reactor,
    upper::{LogLimits, Medium, Overlay},
};

async fn open(reactor: &Reactor, disk: &SimulatedDisk, limits: LogLimits) -> Device {
    let below = content::below(BELOW_SECTORS, 512);
    Overlay::open(reactor, disk.layer_files(), Some(below), limits).await.unwrap()
}

fn data_bytes(disk: &SimulatedDisk) -> u64 {
    disk.layer_files().data.size_bytes().unwrap()
}

#[test]
fn many_times_the_limit_of_a_file_is_written_to_it() {
    const LIMIT: u64 = 8 * SECTORS * SECTOR;
    let reactor = reactor();
    let work = async {
        for seed in 1..4 {
            let disk = fresh_disk(&reactor, seed).await;
            if seed % 2 == 1 {
                // It is the file system's.
                disk.limit_size(LIMIT);
            }
            let limits = if seed % 2 == 0 { LogLimits { file_bytes: LIMIT, ..LIMITS } } else { LIMITS };
            let mut base = content::model(SECTORS, BELOW_SECTORS);
            for writer in 2..8 {
                let device = open(&reactor, &disk, limits).await;
                let work = Workload::new(&reactor, &disk, &device, base, seed);
                work.run(400).await;
                base = work.now();
                assert_eq!(content::read_all(&device, &work.queues[0]).await, base, "seed {seed}");
                // All of the device at once, in as many pieces as it takes.
                let bytes = bytes_of(writer, 0..SECTORS);
                work.queues[1].write(0, &bytes).await.unwrap();
                work.queues[1].flush().await.unwrap();
                base.fill(writer);
                assert!(device.room_bytes().is_some_and(|room| room > 0 && room <= LIMIT));
                assert_eq!(content::read_all(&device, &work.queues[0]).await, base, "seed {seed}");
                drop(work.queues);
                device.close(&reactor).await.unwrap();
            }
            assert!(data_bytes(&disk) <= LIMIT);
        }
    };
    reactor.block_on(work).unwrap();
}

/// Loses power at every boundary while room is used again all the time.
#[test]
fn a_crash_while_room_is_used_again_leaves_a_prefix_with_all_that_was_flushed() {
    let reactor = reactor();
    let mut tried = 0;
    for seed in seeds_of_workloads() {
        tried += reactor.block_on(one_workload(&reactor, seed)).unwrap();
    }
    println!("{tried} crashes");
    assert!(tried > 500);
}

async fn one_workload(reactor: &Reactor, seed: u64) -> usize {
    let mut random = fastrand::Rng::with_seed(seed);
    // Room is used again from the first write on, dead blocks are kept, given back at once, or now and then.
    let dead_bytes = *random.choice(&[0, 2000, 1 << 20]).unwrap();
    let limits = LogLimits { file_bytes: 6 * SECTORS * SECTOR, dead_bytes, ..LIMITS };
    let disk = fresh_disk(reactor, seed).await;
    let device = open(reactor, &disk, limits).await;
    let queue = device.open_queue(reactor).unwrap();
    for writer in 2..6 {
        for start in (0..SECTORS).step_by(12) {
            queue.write(start * SECTOR, &bytes_of(writer, start..start + 12)).await.unwrap();
        }
    }
    device.settle(reactor).await.unwrap();
    drop((queue, device));
    let (mut image, before) = (disk.image(), data_bytes(&disk));
    disk.take_events();
    let device = open(reactor, &disk, limits).await;
    let base = vec![5; SECTORS as usize];
    let work = Workload::new(reactor, &disk, &device, base, random.u64(..));
    work.run(200).await;
    assert_eq!(content::read_all(&device, &work.queues[0]).await, work.now(), "seed {seed}");
    assert!(data_bytes(&disk) < before + SECTORS * SECTOR, "seed {seed}: most of it is used again");
    let record = work.record.take();
    let events = disk.take_events();
    let mut tried = 0;
    for count in 0..=events.len() {
        for _ in 0..3 {
            let crashed = SimulatedDisk::new(image.crash(&mut random), random.u64(..));
            let device = open(reactor, &crashed, limits).await;
            let queue = device.open_queue(reactor).unwrap();
            let found = content::read_all(&device, &queue).await;
            if let Err(error) = Kind::Log.check(&found, &work.base, &record, count) {
                panic!("seed {seed}, after event {count}: {error}");
            }
            tried += 1;
        }
        if let Some(event) = events.get(count) {
            image.apply(event);
        }
    }
    tried
}

#[test]
fn a_layer_whose_room_was_used_again_is_sealed_and_goes_on_behind_what_that_has_left() {
    let reactor = reactor();
    let work = async {
        let disk = fresh_disk(&reactor, 3).await;
        let limits = LogLimits { file_bytes: 12 * SECTORS * SECTOR, ..LIMITS };
        let device = open(&reactor, &disk, limits).await;
        let mut base = content::model(SECTORS, BELOW_SECTORS);
        for name in ["a", "b"] {
            let work = Workload::new(&reactor, &disk, &device, base, 3);
            work.run(400).await;
            base = work.now();
            disk.files_named(name).format(&reactor, &identity(0)).await.unwrap();
            let sealed = device.seal(&reactor, disk.files_named(name)).await.unwrap();
            let layer = content::below(BELOW_SECTORS, 512).under(&disk.image(), "data");
            let mut bytes = vec![0; (SECTORS * SECTOR) as usize];
            layer.open_queue(&reactor).unwrap().read(0, &mut bytes).await.unwrap();
            assert_eq!(content::writers(&bytes, 0), base, "as a read-only layer");
            sealed.give_up();
            let end = data_bytes(&disk);
            work.queues[0].write(5 * SECTOR, &bytes_of(9000, 5..6)).await.unwrap();
            base[5] = 9000;
            assert!(data_bytes(&disk) > end, "whoever takes it for a sealed layer finds none");
            assert_eq!(content::read_all(&device, &work.queues[0]).await, base);
        }
    };
    reactor.block_on(work).unwrap();
}

#[test]
fn a_file_that_has_no_room_for_what_is_in_use_refuses_writes_and_takes_them_again_after_a_discard() {
    let reactor = reactor();
    let work = async {
        let disk = fresh_disk(&reactor, 1).await;
        let limits = LogLimits { file_bytes: 60 * SECTOR, ..LIMITS };
        let device = open(&reactor, &disk, limits).await;
        let queue = device.open_queue(&reactor).unwrap();
        let error = queue.write(0, &bytes_of(5, 0..SECTORS)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert_eq!(content::read_all(&device, &queue).await, content::model(SECTORS, BELOW_SECTORS));
        queue.write(0, &bytes_of(6, 0..30)).await.unwrap();
        queue.write(0, &bytes_of(7, 30..60)).await.unwrap_err();
        queue.write_zeroes(0, 30 * SECTOR).await.unwrap();
        queue.write(30 * SECTOR, &bytes_of(8, 30..60)).await.unwrap();
        assert_eq!(content::read_all(&device, &queue).await[30..60], [8; 30]);
    };
    reactor.block_on(work).unwrap();
}
