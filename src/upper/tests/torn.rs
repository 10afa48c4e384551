//! An index file whose tail is torn in the middle: what lies after the tear must not come back when the tear is filled.

use super::{
    SECTORS,
    content::{self, Change, bytes_of},
    crash::{prefix_of, reopened},
    crash_image::{CrashImage, SECTOR},
    disk::SimulatedDisk,
    fresh_disk, open, reactor,
};
use crate::{
    block::{BlockDevice, BlockQueue},
    format::lsmt::{SEGMENT_BYTES, SLOT_BYTES},
    reactor::Reactor,
};

/// Writes that one flush makes durable: entries over several sectors of the index file.
const WRITES: u64 = 75;

/// Entries that are missing from the middle of the index file.
fn torn_entries(image: &CrashImage) -> Option<usize> {
    let index = image.cached(image.file("index")?);
    let entries = index.get(SLOT_BYTES..)?.chunks_exact(SEGMENT_BYTES);
    let mut missing = entries.skip_while(|entry| entry.iter().any(|byte| *byte != 0));
    let count = missing.by_ref().take_while(|entry| entry.iter().all(|byte| *byte == 0)).count();
    // The one that ended the count was there.
    (count > 0 && missing.next().is_some()).then_some(count)
}

/// Disks after a crash in the middle of a flush that have a tear.
async fn torn_disks(reactor: &Reactor, random: &mut fastrand::Rng) -> Vec<CrashImage> {
    let disk = fresh_disk(reactor, random.u64(..)).await;
    let device = open(reactor, &disk).await;
    let queue = device.open_queue(reactor).unwrap();
    let mut image = disk.image();
    disk.take_events();
    for number in 0..WRITES {
        let sector = number * 2 % SECTORS;
        queue.write(sector * SECTOR, &bytes_of(number as u32 + 2, sector..sector + 1)).await.unwrap();
    }
    queue.flush().await.unwrap();
    let mut torn = Vec::new();
    for event in disk.take_events() {
        image.apply(&event);
        torn.extend((0..10).map(|_| image.crash(random)).filter(|image| torn_entries(image).is_some()));
    }
    torn
}

#[test]
fn what_lies_after_a_tear_does_not_come_back_when_the_tear_is_filled() {
    let reactor = reactor();
    let mut random = fastrand::Rng::with_seed(5);
    let tried = reactor.block_on(async {
        let mut tried = 0;
        let torn = torn_disks(&reactor, &mut random).await;
        assert!(!torn.is_empty());
        for image in torn {
            tried += fill_and_crash(&reactor, image, &mut random).await;
        }
        tried
    });
    println!("{} crashes", tried.unwrap());
}

/// Writes as many entries as are missing, flushes, and crashes at every boundary of it.
async fn fill_and_crash(reactor: &Reactor, mut image: CrashImage, random: &mut fastrand::Rng) -> usize {
    let missing = torn_entries(&image).unwrap();
    let disk = SimulatedDisk::new(image.clone(), random.u64(..));
    let device = open(reactor, &disk).await;
    let queue = device.open_queue(reactor).unwrap();
    let base = content::read_all(&device, &queue).await;
    let mut done = Vec::new();
    for number in 0..missing as u32 {
        let sector = random.u64(0..SECTORS);
        let change = Change { number: 0, writer: 1000 + number, sectors: sector..sector + 1 };
        queue.write(sector * SECTOR, &bytes_of(change.writer, change.sectors.clone())).await.unwrap();
        done.push((disk.events(), change));
    }
    queue.flush().await.unwrap();
    let events = disk.take_events();
    let mut tried = 0;
    for count in 0..=events.len() {
        for _ in 0..4 {
            let crashed = SimulatedDisk::new(image.crash(random), random.u64(..));
            let found = reopened(reactor, &crashed).await;
            let complete = done.partition_point(|(at, _)| *at <= count);
            let flushed = if count == events.len() { complete } else { 0 };
            prefix_of(&found, &base, &done[..complete], flushed).unwrap();
            tried += 1;
        }
        if let Some(event) = events.get(count) {
            image.apply(event);
        }
    }
    tried
}
