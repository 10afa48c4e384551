//! Random work on two queues, as concurrent as the queues allow, and a record of what completed when.

use std::{cell::RefCell, collections::BTreeSet, ops::Range};

use futures_util::future::join_all;

use super::{
    SECTORS,
    content::{Change, Device, Queue, Writer, ZERO, bytes_of, writers},
    crash_image::SECTOR,
    disk::SimulatedDisk,
};
use crate::{
    block::{BlockDevice, BlockError, BlockQueue},
    reactor::Reactor,
};

/// Sectors of the longest request.
const LONGEST: u64 = 12;

/// What began and completed, in order, and after how many events of the disk.
#[derive(Debug, Default)]
pub(super) struct Record {
    pub(super) begun: Vec<(usize, Change)>,
    pub(super) done: Vec<(usize, Change)>,
    /// Completed flushes: after how many events, and how many changes were complete when each began.
    pub(super) flushed: Vec<(usize, usize)>,
}

impl Record {
    /// The changes that had completed, and how many of them a flush covered, after so many events.
    pub(super) fn at(&self, events: usize) -> (&[(usize, Change)], usize) {
        let done = self.done.partition_point(|(at, _)| *at <= events);
        let flushed = self.flushed.iter().filter(|(at, _)| *at <= events).map(|(_, covered)| *covered);
        (&self.done[..done], flushed.max().unwrap_or(0))
    }

    /// Who may have written each sector that is found after a crash after so many events: as on a disk, whoever wrote it last
    /// before the last flush, or anybody later, as far as he had begun.
    pub(super) fn possible(&self, base: &[Writer], events: usize) -> Vec<BTreeSet<Writer>> {
        let (_, flushed) = self.at(events);
        let mut durable = base.to_vec();
        self.done[..flushed].iter().for_each(|(_, change)| change.apply(&mut durable));
        let mut possible: Vec<BTreeSet<Writer>> =
            durable.into_iter().map(|writer| BTreeSet::from([writer])).collect();
        let is_flushed =
            |change: &Change| self.done[..flushed].iter().any(|(_, done)| done.number == change.number);
        let begun = self.begun.iter().take_while(|(at, _)| *at <= events).map(|(_, change)| change);
        for change in begun.filter(|change| !is_flushed(change)) {
            let sectors = change.sectors.start as usize..change.sectors.end as usize;
            possible[sectors].iter_mut().for_each(|writers| {
                writers.insert(change.writer);
            });
        }
        possible
    }
}

/// A device at work, and what it must hold.
pub(super) struct Workload<'a> {
    pub(super) disk: &'a SimulatedDisk,
    pub(super) queues: [Queue; 2],
    /// Who wrote each sector before.
    pub(super) base: Vec<Writer>,
    pub(super) record: RefCell<Record>,
    /// Whether what changes something may fail.
    pub(super) may_fail: bool,
    random: RefCell<fastrand::Rng>,
    next_writer: RefCell<Writer>,
}

impl<'a> Workload<'a> {
    pub(super) fn new(
        reactor: &Reactor,
        disk: &'a SimulatedDisk,
        device: &Device,
        base: Vec<Writer>,
        seed: u64,
    ) -> Self {
        let next_writer = base.iter().max().unwrap() + 1;
        Self {
            disk,
            queues: [device.open_queue(reactor).unwrap(), device.open_queue(reactor).unwrap()],
            base,
            record: RefCell::default(),
            may_fail: false,
            random: RefCell::new(fastrand::Rng::with_seed(seed)),
            next_writer: RefCell::new(next_writer),
        }
    }

    /// So many operations, some of them at once.
    pub(super) async fn run(&self, operations: usize) {
        let mut left = operations;
        while left > 0 {
            let at_once = self.random.borrow_mut().usize(1..=20).min(left);
            join_all((0..at_once).map(|_| self.operation())).await;
            left -= at_once;
        }
    }

    /// What the device must hold after all that completed.
    pub(super) fn now(&self) -> Vec<Writer> {
        let mut model = self.base.clone();
        self.record.borrow().done.iter().for_each(|(_, change)| change.apply(&mut model));
        model
    }

    fn range(&self) -> Range<u64> {
        let mut random = self.random.borrow_mut();
        let start = random.u64(0..SECTORS);
        start..random.u64(start + 1..=SECTORS.min(start + LONGEST))
    }

    async fn operation(&self) {
        let sectors = self.range();
        let (kind, queue) = {
            let mut random = self.random.borrow_mut();
            (random.u8(0..100), random.usize(0..2))
        };
        let queue = &self.queues[queue];
        let (offset, len) = (sectors.start * SECTOR, (sectors.end - sectors.start) * SECTOR);
        match kind {
            0..45 => {
                let writer = self.next_writer.replace_with(|writer| *writer + 1);
                let change = self.begun(writer, sectors.clone());
                let written = queue.write(offset, &bytes_of(writer, sectors)).await;
                if self.is_well(written) {
                    self.done(change);
                }
            }
            45..55 => {
                let change = self.begun(ZERO, sectors);
                let written = queue.write_zeroes(offset, len).await;
                if self.is_well(written) {
                    self.done(change);
                }
            }
            55..65 => {
                let covered = self.record.borrow().done.len();
                let flushed = queue.flush().await;
                if self.is_well(flushed) {
                    self.flushed(covered);
                }
            }
            _ => self.check_read(queue, sectors).await,
        }
    }

    fn is_well(&self, outcome: Result<(), BlockError>) -> bool {
        assert!(outcome.is_ok() || self.may_fail, "{outcome:?}");
        outcome.is_ok()
    }

    fn begun(&self, writer: Writer, sectors: Range<u64>) -> Change {
        let mut record = self.record.borrow_mut();
        let change = Change { number: record.begun.len(), writer, sectors };
        record.begun.push((self.disk.events(), change.clone()));
        change
    }

    /// All that has completed is durable.
    pub(super) fn flushed(&self, covered: usize) {
        self.record.borrow_mut().flushed.push((self.disk.events(), covered));
    }

    fn done(&self, change: Change) {
        self.record.borrow_mut().done.push((self.disk.events(), change));
    }

    /// Each sector of a read is as it was at the read's begin, or as something made it that completed meanwhile.
    async fn check_read(&self, queue: &Queue, sectors: Range<u64>) {
        let before = self.record.borrow().done.len();
        let mut bytes = vec![0; ((sectors.end - sectors.start) * SECTOR) as usize];
        queue.read(sectors.start * SECTOR, &mut bytes).await.unwrap();
        let record = self.record.borrow();
        for (writer, sector) in writers(&bytes, sectors.start).into_iter().zip(sectors) {
            let mut covering = record.done.iter().map(|(_, change)| change).enumerate().rev();
            let mut allowed = covering.by_ref().filter(|(_, change)| change.sectors.contains(&sector));
            let found = loop {
                match allowed.next() {
                    Some((_, change)) if change.writer == writer => break true,
                    Some((number, _)) if number >= before => {}
                    Some(_) => break false,
                    None => break self.base[sector as usize] == writer,
                }
            };
            assert!(found, "sector {sector} was read as written by {writer}");
        }
    }
}
