//! Random operations on one file of a file system, with every read held against a copy in memory.

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    ops::Range,
    os::unix::fs::FileExt,
    path::Path,
};

use rustix::fs::{Advice, FallocateFlags, copy_file_range, fadvise, fallocate};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

/// Small enough that operations meet one another's ranges all the time.
const FILE_BYTES: usize = 1 << 20;
/// Some pages, so that there are requests of several segments.
const OPERATION_BYTES: usize = 48 << 10;
const PAGE: usize = 4096;
/// Operations that the message of a failure lists.
const LAST: usize = 12;

#[derive(Debug, Clone, Copy)]
enum Operation {
    Write,
    MappedWrite,
    Read,
    MappedRead,
    /// From one place of the file to another.
    Copy,
    Punch,
    Zero,
    Allocate,
    Truncate,
    Sync,
    /// Makes the file durable and has the kernel forget it, so that what follows reads the device.
    Evict,
}

/// How often each operation is chosen, relative to the others.
const WEIGHTS: [(Operation, usize); 11] = [
    (Operation::Write, 10),
    (Operation::MappedWrite, 7),
    (Operation::Read, 8),
    (Operation::MappedRead, 5),
    (Operation::Copy, 3),
    (Operation::Punch, 4),
    (Operation::Zero, 3),
    (Operation::Allocate, 2),
    (Operation::Truncate, 3),
    (Operation::Sync, 3),
    (Operation::Evict, 2),
];

/// A file and what must be in it. The same seed makes the same operations.
pub(crate) struct Exerciser {
    file: File,
    expected: Vec<u8>,
    random: fastrand::Rng,
    seed: u64,
    count: u64,
    last: VecDeque<String>,
}

impl Exerciser {
    /// Makes a new file at `path`.
    pub(crate) fn create(path: &Path, seed: u64) -> Self {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path).unwrap();
        let (expected, random) = (Vec::new(), fastrand::Rng::with_seed(seed));
        Self { file, expected, random, seed, count: 0, last: VecDeque::new() }
    }

    /// Does one operation.
    ///
    /// # Panics
    /// When it fails, or reads what was not written; with the seed and the last operations.
    pub(crate) fn step(&mut self) {
        let total: usize = WEIGHTS.iter().map(|(_, weight)| weight).sum();
        let mut chosen = self.random.usize(..total);
        let operation = WEIGHTS.iter().find(|(_, weight)| {
            let is_chosen = chosen < *weight;
            chosen = chosen.saturating_sub(*weight);
            is_chosen
        });
        let (operation, _) = *operation.unwrap();
        let range = self.range(operation);
        self.count += 1;
        self.last.push_back(format!("{} {operation:?} {range:?} of {}", self.count, self.expected.len()));
        if self.last.len() > LAST {
            self.last.pop_front();
        }
        self.apply(operation, range);
    }

    /// Holds all of the file against what must be in it, and returns that.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.evict();
        let size_bytes = self.file.metadata().unwrap().len();
        assert_eq!(size_bytes, self.expected.len() as u64, "{}", self.context());
        self.read(0..self.expected.len());
        self.expected
    }

    /// Where the operation goes; at whole pages half of the time. Reads stay inside the file.
    fn range(&mut self, operation: Operation) -> Range<usize> {
        let limit = match operation {
            Operation::Read | Operation::MappedRead => self.expected.len(),
            _ => FILE_BYTES,
        };
        let mut start = self.random.usize(..limit.max(1));
        let mut end = start + self.random.usize(1..=OPERATION_BYTES);
        if self.random.bool() {
            (start, end) = (start / PAGE * PAGE, end.next_multiple_of(PAGE));
        }
        start..end.min(limit)
    }

    fn apply(&mut self, operation: Operation, range: Range<usize>) {
        match operation {
            Operation::Write => self.write(range),
            Operation::MappedWrite => self.mapped_write(range),
            Operation::Read => self.read(range),
            Operation::MappedRead => self.mapped_read(range),
            Operation::Copy => self.copy(range),
            Operation::Punch => self.zero(range, FallocateFlags::PUNCH_HOLE),
            Operation::Zero => self.zero(range, FallocateFlags::ZERO_RANGE),
            Operation::Allocate => {
                fallocate(&self.file, FallocateFlags::empty(), range.start as u64, range.len() as u64)
                    .unwrap();
                self.reach(range.end);
            }
            Operation::Truncate => {
                self.file.set_len(range.start as u64).unwrap();
                self.expected.resize(range.start, 0);
            }
            Operation::Sync => self.file.sync_all().unwrap(),
            Operation::Evict => self.evict(),
        }
    }

    /// Has the copy be as long as a file that was written up to `end`.
    fn reach(&mut self, end: usize) {
        self.expected.resize(self.expected.len().max(end), 0);
    }

    /// Puts random bytes into that range of the copy.
    fn fill(&mut self, range: &Range<usize>) {
        self.reach(range.end);
        self.random.fill(&mut self.expected[range.clone()]);
    }

    fn write(&mut self, range: Range<usize>) {
        self.fill(&range);
        self.file.write_all_at(&self.expected[range.clone()], range.start as u64).unwrap();
    }

    fn mapped_write(&mut self, range: Range<usize>) {
        self.fill(&range);
        // There is nothing to map past the end of a file.
        self.file.set_len(self.expected.len() as u64).unwrap();
        let (mapping, skip) = self.map(&range);
        mapping.get_slice(skip, range.len()).unwrap().copy_from(&self.expected[range]);
    }

    fn read(&self, range: Range<usize>) {
        let mut found = vec![0xa5; range.len()];
        self.file.read_exact_at(&mut found, range.start as u64).unwrap();
        self.compare(range, &found);
    }

    fn mapped_read(&self, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        let mut found = vec![0xa5; range.len()];
        let (mapping, skip) = self.map(&range);
        mapping.get_slice(skip, range.len()).unwrap().copy_to(&mut found);
        self.compare(range, &found);
    }

    /// A mapping of that range, which is not empty, and where in it the range begins.
    fn map(&self, range: &Range<usize>) -> (MmapRegion, usize) {
        let skip = range.start % PAGE;
        let place = FileOffset::new(self.file.try_clone().unwrap(), (range.start - skip) as u64);
        (MmapRegion::from_file(place, range.len() + skip).unwrap(), skip)
    }

    /// Copies what precedes `to`, or as much of it as there is.
    fn copy(&mut self, to: Range<usize>) {
        let available = to.start.min(self.expected.len());
        let from = available.saturating_sub(to.len())..available;
        let (mut source, mut target) = (from.start as u64, to.start as u64);
        while source < from.end as u64 {
            let rest = from.end - usize::try_from(source).unwrap();
            let count =
                copy_file_range(&self.file, Some(&mut source), &self.file, Some(&mut target), rest).unwrap();
            assert!(count > 0, "{}", self.context());
        }
        if !from.is_empty() {
            self.reach(to.start + from.len());
            self.expected.copy_within(from, to.start);
        }
    }

    /// What lies past the end stays there.
    fn zero(&mut self, range: Range<usize>, flags: FallocateFlags) {
        let flags = flags | FallocateFlags::KEEP_SIZE;
        fallocate(&self.file, flags, range.start as u64, range.len() as u64).unwrap();
        let end = self.expected.len();
        self.expected[range.start.min(end)..range.end.min(end)].fill(0);
    }

    fn evict(&mut self) {
        self.file.sync_data().unwrap();
        fadvise(&self.file, 0, None, Advice::DontNeed).unwrap();
    }

    fn compare(&self, range: Range<usize>, found: &[u8]) {
        let expected = &self.expected[range.clone()];
        if expected == found {
            return;
        }
        if let Some(at) = expected.iter().zip(found).position(|(expected, found)| expected != found) {
            let (right, wrong) = (expected[at], found[at]);
            panic!("byte {} is {wrong:#x} instead of {right:#x}: {}", range.start + at, self.context());
        }
    }

    fn context(&self) -> String {
        let last: Vec<_> = self.last.iter().map(String::as_str).collect();
        format!("seed {}, after {}", self.seed, last.join(", "))
    }
}
