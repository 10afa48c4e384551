//! The layer against a model in memory: random, overlapping and concurrent work, reopened and crashed now and then.
//!
//! `STRATABD_UPPER_OPERATIONS` and `STRATABD_UPPER_SEED` make it longer and begin it elsewhere.

use super::{
    BELOW_SECTORS, SECTORS, content,
    crash::{prefix_of, reopened},
    disk::SimulatedDisk,
    fresh_disk, open, reactor,
    workload::Workload,
};
use crate::{block::BlockQueue, reactor::Reactor};

/// Operations on one disk, whose files grow in memory.
const PER_DISK: usize = 2500;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect(name))
}

#[test]
fn random_work_on_two_queues_agrees_with_a_model() {
    let operations = setting("STRATABD_UPPER_OPERATIONS", 100_000) as usize;
    let first_seed = setting("STRATABD_UPPER_SEED", 1);
    let reactor = reactor();
    let (mut done, mut punched) = (0, 0);
    for seed in first_seed.. {
        if done >= operations {
            break;
        }
        println!("seed {seed}");
        punched += reactor.block_on(one_disk(&reactor, seed)).unwrap();
        done += PER_DISK;
    }
    println!("{done} operations, {punched} bytes punched out");
    assert!(punched > 0);
}

async fn one_disk(reactor: &Reactor, seed: u64) -> u64 {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut disk = fresh_disk(reactor, seed).await;
    let mut base = content::model(SECTORS, BELOW_SECTORS);
    let (mut done, mut punched) = (0, 0);
    while done < PER_DISK {
        let device = open(reactor, &disk).await;
        let work = Workload::new(reactor, &disk, &device, base, random.u64(..));
        assert_eq!(content::read_all(&device, &work.queues[0]).await, work.base, "after it was opened");
        let operations = random.usize(1..500);
        work.run(operations).await;
        done += operations;
        let expected = work.now();
        assert_eq!(content::read_all(&device, &work.queues[1]).await, expected, "while it is open");
        base = if random.bool() {
            work.queues[0].flush().await.unwrap();
            expected
        } else {
            let crashed = SimulatedDisk::new(disk.image().crash(&mut random), random.u64(..));
            let found = reopened(reactor, &crashed).await;
            let record = work.record.take();
            let (done, flushed) = record.at(usize::MAX);
            prefix_of(&found, &work.base, done, flushed).unwrap();
            punched += disk.punched_bytes();
            drop(work);
            disk = crashed;
            found
        };
        disk.take_events();
    }
    punched + disk.punched_bytes()
}
