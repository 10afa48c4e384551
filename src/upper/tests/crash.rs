//! Loss of power at every boundary of a write or sync. Of a log, what is left is the state after a prefix of the completed changes
//! that contains all that a flush covered. Of a sparse layer it is for each sector a state that it had at the last flush or since.

use super::{
    BELOW_SECTORS, Kind, SECTORS,
    content::{self, Change, Writer},
    crash_image::CrashImage,
    disk::SimulatedDisk,
    fresh_disk_of, open, reactor, seeds_of_workloads,
    workload::{Record, Workload},
};
use crate::{block::BlockDevice, reactor::Reactor};

/// What a crash leaves is tried so many times at each boundary.
const SURVIVALS: usize = 3;

/// After one crash of so many, more is done and lost again.
const SECOND_CRASH_OF: usize = 4;

/// How many of the `done` changes over `base` give what was `found`, at least `flushed`.
pub(super) fn prefix_of(
    found: &[Writer],
    base: &[Writer],
    done: &[(usize, Change)],
    flushed: usize,
) -> Result<usize, String> {
    let mut model = base.to_vec();
    for count in 0..=done.len() {
        if count >= flushed && model == found {
            return Ok(count);
        }
        if let Some((_, change)) = done.get(count) {
            change.apply(&mut model);
        }
    }
    Err(format!("{} changes, {flushed} of them flushed, and found {found:?}", done.len()))
}

impl Kind {
    /// Whether a layer of this kind may hold what was `found` after a crash after so many events; also says whether something
    /// is there that no flush had covered.
    pub(super) fn check(
        self,
        found: &[Writer],
        base: &[Writer],
        record: &Record,
        events: usize,
    ) -> Result<bool, String> {
        let (done, flushed) = record.at(events);
        if self == Self::Log {
            return prefix_of(found, base, done, flushed).map(|kept| kept > flushed);
        }
        for (sector, (writer, possible)) in found.iter().zip(record.possible(base, events)).enumerate() {
            if !possible.contains(writer) {
                return Err(format!("sector {sector} was found as written by {writer}, not {possible:?}"));
            }
        }
        let mut at_flush = base.to_vec();
        done[..flushed].iter().for_each(|(_, change)| change.apply(&mut at_flush));
        Ok(found != at_flush)
    }
}

/// What a layer holds after a crash that left `image`.
pub(super) async fn reopened(reactor: &Reactor, disk: &SimulatedDisk) -> Vec<Writer> {
    let device = open(reactor, disk).await;
    let queue = device.open_queue(reactor).unwrap();
    content::read_all(&device, &queue).await
}

/// Counts of what was tried.
#[derive(Debug, Default)]
struct Tried {
    boundaries: usize,
    crashes: usize,
    /// Crashes after which changes were left that no flush had covered.
    beyond_the_flush: usize,
}

#[test]
fn a_crash_of_a_log_leaves_a_prefix_with_all_that_was_flushed() {
    crash_at_every_boundary(Kind::Log);
}

#[test]
fn a_crash_of_a_sparse_layer_leaves_each_sector_as_it_was_at_the_last_flush_or_since() {
    crash_at_every_boundary(Kind::Sparse);
}

fn crash_at_every_boundary(kind: Kind) {
    let reactor = reactor();
    let mut tried = Tried::default();
    for seed in seeds_of_workloads() {
        println!("seed {seed}");
        reactor.block_on(one_workload(&reactor, kind, seed, &mut tried)).unwrap();
    }
    println!("{kind:?}: {tried:?}");
    assert!(tried.boundaries > 200 && tried.beyond_the_flush > 0);
}

async fn one_workload(reactor: &Reactor, kind: Kind, seed: u64, tried: &mut Tried) {
    let mut random = fastrand::Rng::with_seed(seed);
    let disk = fresh_disk_of(reactor, kind, seed).await;
    let mut image = disk.image();
    disk.take_events();
    let device = open(reactor, &disk).await;
    let work = Workload::new(reactor, &disk, &device, content::model(SECTORS, BELOW_SECTORS), random.u64(..));
    work.run(250).await;
    let record = work.record.take();
    let events = disk.take_events();
    for count in 0..=events.len() {
        tried.boundaries += 1;
        for _ in 0..SURVIVALS {
            let again = random.usize(0..SECOND_CRASH_OF) == 0;
            let left = image.crash(&mut random);
            let before = again.then(|| left.clone());
            let crashed = SimulatedDisk::new(left, random.u64(..));
            let found = reopened(reactor, &crashed).await;
            let more = kind.check(&found, &work.base, &record, count);
            let more = more.unwrap_or_else(|error| panic!("seed {seed}, after event {count}: {error}"));
            tried.crashes += 1;
            tried.beyond_the_flush += usize::from(more);
            if let Some(before) = before {
                second_crash(reactor, kind, before, found, &mut random, seed).await;
                tried.crashes += 1;
            }
        }
        if let Some(event) = events.get(count) {
            image.apply(event);
        }
    }
}

#[test]
fn a_sync_that_is_lost_takes_nothing_along_that_was_flushed_before_or_after() {
    let reactor = reactor();
    for kind in [Kind::Log, Kind::Sparse] {
        for seed in 0..60 {
            reactor.block_on(one_lost_sync(&reactor, kind, seed)).unwrap();
        }
    }
}

/// Works until a sync fails and what it covered is only in memory; then the power fails, or the layer is opened again at once and
/// the power fails later.
async fn one_lost_sync(reactor: &Reactor, kind: Kind, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let disk = fresh_disk_of(reactor, kind, seed).await;
    let device = open(reactor, &disk).await;
    let base = content::model(SECTORS, BELOW_SECTORS);
    let mut work = Workload::new(reactor, &disk, &device, base, random.u64(..));
    work.may_fail = true;
    disk.lose_sync_after(random.u64(0..30));
    work.run(150).await;
    let (base, record) = (work.base.clone(), work.record.take());
    drop((work.queues, device));
    let image = disk.image();
    let crashed = SimulatedDisk::new(image.crash(&mut random), random.u64(..));
    let again = SimulatedDisk::new(image, random.u64(..));
    for (disk, what) in [(crashed, "crashed"), (again.clone(), "opened again")] {
        let found = reopened(reactor, &disk).await;
        if let Err(error) = kind.check(&found, &base, &record, usize::MAX) {
            panic!("{kind:?}, seed {seed}, {what}: {error}");
        }
    }
    for _ in 0..4 {
        let found = reopened(reactor, &again).await;
        second_crash(reactor, kind, again.image(), found, &mut random, seed).await;
    }
}

/// Opens what a crash has left, works on it, and crashes it again at some boundary, perhaps while it was being opened.
async fn second_crash(
    reactor: &Reactor,
    kind: Kind,
    mut image: CrashImage,
    base: Vec<Writer>,
    random: &mut fastrand::Rng,
    seed: u64,
) {
    let disk = SimulatedDisk::new(image.clone(), random.u64(..));
    let device = open(reactor, &disk).await;
    let work = Workload::new(reactor, &disk, &device, base, random.u64(..));
    work.run(12).await;
    let record = work.record.take();
    let events = disk.take_events();
    let count = random.usize(0..=events.len());
    events.iter().take(count).for_each(|event| image.apply(event));
    let crashed = SimulatedDisk::new(image.crash(random), random.u64(..));
    let found = reopened(reactor, &crashed).await;
    if let Err(error) = kind.check(&found, &work.base, &record, count) {
        panic!("seed {seed}, the second crash, after event {count}: {error}");
    }
}
