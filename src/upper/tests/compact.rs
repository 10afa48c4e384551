//! A log in many pieces is put into the order of the device under work: nothing is lost, whenever power is.

use super::{
    BELOW_SECTORS, Kind, SECTORS,
    content::{self, Device, bytes_of},
    crash::reopened,
    crash_image::SECTOR,
    disk::SimulatedDisk,
    fresh_disk, open, reactor, seeds_of_workloads,
    workload::Workload,
};
use crate::{
    block::{BlockDevice, BlockQueue},
    reactor::Reactor,
    upper::log::Pieces,
};

const FEW: Pieces = Pieces { aim: 4, limit: 30 };
/// Whatever lies between is filled.
const ONE: Pieces = Pieces { aim: 1, limit: 1 };

/// Writes every `step`th sector, in an order that leaves no two of them beside one another in the file.
async fn scatter(device: &Device, reactor: &Reactor, step: u64) {
    let queue = device.open_queue(reactor).unwrap();
    let sectors: Vec<u64> = (0..SECTORS).step_by(step as usize).collect();
    for sector in sectors.iter().rev() {
        queue.write(sector * SECTOR, &bytes_of(9, *sector..sector + 1)).await.unwrap();
    }
}

#[test]
fn what_was_written_in_another_order_is_in_one_piece_afterwards_and_gaps_are_filled_only_if_they_must() {
    let reactor = reactor();
    let work = async {
        for (step, limit, left) in [(1, 30, 1), (2, 48, 48), (2, 47, 1), (4, 1, 1)] {
            let disk = fresh_disk(&reactor, 1).await;
            let device = open(&reactor, &disk).await;
            scatter(&device, &reactor, step).await;
            let before = device.piece_count();
            assert_eq!(before as u64, SECTORS.div_ceil(step));
            let queue = device.open_queue(&reactor).unwrap();
            let expected = content::read_all(&device, &queue).await;
            device.compact_to(&reactor, Pieces { limit, ..FEW }).await.unwrap();
            assert_eq!(device.piece_count(), left, "of {before}, every {step}th");
            assert_eq!(content::read_all(&device, &queue).await, expected);
            queue.flush().await.unwrap();
            let crashed = disk.image().crash(&mut fastrand::Rng::with_seed(1));
            assert_eq!(reopened(&reactor, &SimulatedDisk::new(crashed, 1)).await, expected);
        }
    };
    reactor.block_on(work).unwrap();
}

#[test]
fn a_crash_while_a_log_is_compacted_under_work_leaves_a_prefix_with_all_that_was_flushed() {
    let reactor = reactor();
    let work = async {
        for seed in seeds_of_workloads() {
            let mut random = fastrand::Rng::with_seed(seed);
            let disk = fresh_disk(&reactor, seed).await;
            let mut image = disk.image();
            disk.take_events();
            let device = open(&reactor, &disk).await;
            let base = content::model(SECTORS, BELOW_SECTORS);
            let work = Workload::new(&reactor, &disk, &device, base, random.u64(..));
            work.run(60).await;
            let compacting = async {
                for pieces in [FEW, ONE, FEW] {
                    device.compact_to(&reactor, pieces).await.unwrap();
                }
            };
            futures_util::join!(compacting, work.run(150));
            device.compact_to(&reactor, ONE).await.unwrap();
            assert_eq!(device.piece_count(), 1);
            assert_eq!(content::read_all(&device, &work.queues[0]).await, work.now(), "seed {seed}");
            let (record, events) = (work.record.take(), disk.take_events());
            for count in 0..=events.len() {
                let left = image.crash(&mut random);
                let found = reopened(&reactor, &SimulatedDisk::new(left, random.u64(..))).await;
                if let Err(error) = Kind::Log.check(&found, &work.base, &record, count) {
                    panic!("seed {seed}, after event {count}: {error}");
                }
                if let Some(event) = events.get(count) {
                    image.apply(event);
                }
            }
        }
    };
    reactor.block_on(work).unwrap();
}
