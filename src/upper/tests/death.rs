//! The process dies and the kernel does not, at every boundary of a write or sync: nothing that has completed is missing, what was
//! under way may run again, and a loss of power that follows leaves what it would have left anyway.
//!
//! `STRATABD_UPPER_CRASHES` is the number of workloads of each kind, `STRATABD_UPPER_SEED` the first one's seed.

use super::{
    BELOW_SECTORS, Kind, LIMITS, SECTORS,
    content::{self, Change, Device, Writer, ZERO, bytes_of},
    crash::prefix_of,
    crash_image::{CrashImage, SECTOR},
    disk::SimulatedDisk,
    fresh_disk_of,
    memory::Files,
    reactor, seeds_of_workloads,
    workload::{Record, Workload},
};
use crate::{
    block::{BlockDevice, BlockQueue},
    reactor::Reactor,
    upper::{LogLimits, Overlay, log::Pieces},
};

/// In the short form one boundary of so many is tried.
const BOUNDARY_OF: usize = 4;

/// After one death of so many, the next process works and dies too.
const SECOND_DEATH_OF: usize = 4;

const CRASHES: &str = "STRATABD_UPPER_CRASHES";

/// What one workload lets happen.
struct Setting<'a> {
    reactor: &'a Reactor,
    kind: Kind,
    limits: LogLimits,
    seed: u64,
    boundary_of: usize,
}

/// What was done until a process died.
pub(super) struct Life<'a> {
    pub(super) base: &'a [Writer],
    /// Whether a loss of power leaves that at least.
    pub(super) is_durable: bool,
    pub(super) record: &'a Record,
    /// After so many events of the disk.
    pub(super) events: usize,
}

impl Life<'_> {
    /// What all that has completed makes.
    fn completed(&self) -> Vec<Writer> {
        let mut model = self.base.to_vec();
        self.record.at(self.events).0.iter().for_each(|(_, change)| change.apply(&mut model));
        model
    }

    /// The changes that were under way.
    fn under_way(&self) -> Vec<Change> {
        let (done, _) = self.record.at(self.events);
        let is_done = |change: &&Change| done.iter().any(|(_, done)| done.number == change.number);
        let begun = self.record.begun.iter().take_while(|(at, _)| *at <= self.events);
        begun.map(|(_, change)| change).filter(|change| !is_done(change)).cloned().collect()
    }

    /// Whether nothing that has completed is missing: each sector is as it made it, or as something made it that was under way.
    pub(super) fn check(&self, found: &[Writer]) {
        let under_way = self.under_way();
        for (sector, (found, completed)) in found.iter().zip(self.completed()).enumerate() {
            let may_be =
                |change: &Change| change.writer == *found && change.sectors.contains(&(sector as u64));
            assert!(
                *found == completed || under_way.iter().any(may_be),
                "sector {sector} was completed as written by {completed}, and found as written by {found}"
            );
        }
    }
}

#[test]
fn the_death_of_the_process_takes_nothing_of_a_log_that_has_completed() {
    die_at_every_boundary(Kind::Log);
}

#[test]
fn the_death_of_the_process_takes_nothing_of_a_sparse_layer_that_has_completed() {
    die_at_every_boundary(Kind::Sparse);
}

/// One boundary of so many is tried.
pub(super) fn boundary_of() -> usize {
    if std::env::var_os(CRASHES).is_some() { 1 } else { BOUNDARY_OF }
}

fn die_at_every_boundary(kind: Kind) {
    let boundary_of = boundary_of();
    let reactor = reactor();
    for seed in seeds_of_workloads() {
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let limits = LogLimits {
            journal_entries: random.usize(64..100),
            dead_bytes: *random.choice(&[0, 2000]).unwrap(),
            file_bytes: *random.choice(&[u64::MAX, 8 * SECTORS * SECTOR]).unwrap(),
            ..LIMITS
        };
        let setting = Setting { reactor: &reactor, kind, limits, seed, boundary_of };
        reactor.block_on(setting.one_workload(&mut random)).unwrap();
    }
}

impl Setting<'_> {
    async fn open(&self, disk: &SimulatedDisk) -> Device {
        let below = content::below(BELOW_SECTORS, 512);
        Overlay::open(self.reactor, disk.layer_files(), Some(below), self.limits).await.unwrap()
    }

    async fn one_workload(&self, random: &mut fastrand::Rng) {
        let disk = fresh_disk_of(self.reactor, self.kind, self.seed).await;
        let mut image = disk.image();
        disk.take_events();
        disk.memory(|memory| memory.watch());
        let device = self.open(&disk).await;
        let base = content::model(SECTORS, BELOW_SECTORS);
        let work = Workload::new(self.reactor, &disk, &device, base, random.u64(..));
        work.run(150).await;
        // Both leave the layer to its device.
        device.compact_to(self.reactor, Pieces { aim: 4, limit: 40 }).await.unwrap();
        disk.files_named("next").format(self.reactor, &self.kind.identity(0)).await.unwrap();
        device.seal(self.reactor, disk.files_named("next")).await.unwrap().give_up();
        work.run(100).await;
        let (record, events) = (work.record.take(), disk.take_events());
        let history = disk.memory(|memory| memory.take_history());
        assert!(events.len() > 100);
        for (count, files) in history.iter().enumerate() {
            if random.usize(0..self.boundary_of) > 0 {
                events.get(count).into_iter().for_each(|event| image.apply(event));
                continue;
            }
            println!("after event {count} of seed {}", self.seed);
            let life = Life { base: &work.base, is_durable: true, record: &record, events: count };
            self.next_life(&life, image.die(random), files, random).await;
            if random.usize(0..SECOND_DEATH_OF) == 0 {
                self.second_death(&life, image.die(random), files, random).await;
            }
            if let Some(event) = events.get(count) {
                image.apply(event);
            }
        }
    }

    /// Another process opens what was left, and what was under way runs again; then the power fails.
    async fn next_life(&self, life: &Life<'_>, left: CrashImage, files: &Files, random: &mut fastrand::Rng) {
        let disk = SimulatedDisk::new(left, random.u64(..)).with_memory(files);
        let device = self.open(&disk).await;
        let queue = device.open_queue(self.reactor).unwrap();
        let found = content::read_all(&device, &queue).await;
        life.check(&found);
        let mut expected = life.completed();
        let (mut under_way, is_flushed) = (life.under_way(), random.bool() || !life.is_durable);
        let was_partly_done = found != expected;
        random.shuffle(&mut under_way);
        for change in &under_way {
            let (offset, len) = (change.sectors.start * SECTOR, change.sectors.end - change.sectors.start);
            match change.writer {
                ZERO => queue.write_zeroes(offset, len * SECTOR).await.unwrap(),
                writer => queue.write(offset, &bytes_of(writer, change.sectors.clone())).await.unwrap(),
            }
            change.apply(&mut expected);
        }
        assert_eq!(content::read_all(&device, &queue).await, expected, "what has run again");
        if is_flushed {
            queue.flush().await.unwrap();
        }
        let image = disk.image();
        drop((queue, device));
        let crashed = SimulatedDisk::new(image.crash(random), random.u64(..));
        let device = self.open(&crashed).await;
        let found = content::read_all(&device, &device.open_queue(self.reactor).unwrap()).await;
        let (done, flushed) = life.record.at(life.events);
        if is_flushed {
            assert_eq!(found, expected, "it was flushed");
        } else if self.kind == Kind::Log && !was_partly_done {
            let again = under_way.into_iter().map(|change| (life.events, change));
            let done: Vec<_> = done.iter().cloned().chain(again).collect();
            prefix_of(&found, life.base, &done, flushed).unwrap();
        } else {
            Kind::Sparse.check(&found, life.base, life.record, life.events).unwrap();
        }
    }

    /// Another process opens what was left, works on it, and dies at some boundary, perhaps while it was opening it.
    async fn second_death(
        &self,
        life: &Life<'_>,
        mut image: CrashImage,
        files: &Files,
        random: &mut fastrand::Rng,
    ) {
        let disk = SimulatedDisk::new(image.clone(), random.u64(..)).with_memory(files);
        disk.memory(|memory| memory.watch());
        let device = self.open(&disk).await;
        let base = content::read_all(&device, &device.open_queue(self.reactor).unwrap()).await;
        life.check(&base);
        let work = Workload::new(self.reactor, &disk, &device, base, random.u64(..));
        work.run(40).await;
        let (record, events) = (work.record.take(), disk.take_events());
        let history = disk.memory(|memory| memory.take_history());
        let count = random.usize(0..=events.len());
        events.iter().take(count).for_each(|event| image.apply(event));
        let second = Life { base: &work.base, is_durable: false, record: &record, events: count };
        self.next_life(&second, image.die(random), &history[count], random).await;
    }
}
