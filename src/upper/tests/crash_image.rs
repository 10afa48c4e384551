//! What a disk holds, durably and not, as a machine that is driven by events; and what a crash may leave of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

pub(super) const SECTOR: u64 = 512;
const PAGE: usize = 4096;

/// A change of the disk. Writes and syncs take time: what began may or may not have happened until it has ended.
#[derive(Debug, Clone)]
pub(super) enum Event {
    WriteBegan {
        file: usize,
        id: u64,
        offset: u64,
        bytes: Vec<u8>,
    },
    PunchBegan {
        file: usize,
        id: u64,
        offset: u64,
        len: u64,
    },
    SizeSet {
        file: usize,
        id: u64,
        size: u64,
    },
    Ended {
        file: usize,
        id: u64,
    },
    SyncBegan {
        file: usize,
        id: u64,
    },
    SyncEnded {
        file: usize,
        id: u64,
    },
    /// It has failed: what it covered stays in memory, and is taken for written.
    SyncLost {
        file: usize,
        id: u64,
    },
    /// Clean pages are dropped.
    Forgotten {
        file: usize,
    },
    Created {
        name: String,
        file: usize,
    },
    Renamed {
        from: String,
        to: String,
    },
    Removed {
        name: String,
    },
    NamesSynced,
}

/// The bytes of a file, and the blocks that it keeps: all others are holes.
#[derive(Debug, Clone, Default)]
struct Content {
    bytes: Vec<u8>,
    kept: BTreeSet<u64>,
}

/// A file: what reads see, what a crash leaves for certain, and what it may leave.
#[derive(Debug, Clone, Default)]
struct File {
    cached: Content,
    durable: Content,
    changes: Vec<Change>,
    /// Changes that each sync under way covers: those that had ended when it began.
    syncs: BTreeMap<u64, Vec<u64>>,
}

#[derive(Debug, Clone)]
struct Change {
    id: u64,
    ended: bool,
    what: What,
    /// The size afterwards.
    size: u64,
    /// What was there before, of what takes time.
    before: Before,
}

/// What a change took the place of.
#[derive(Debug, Clone, Default)]
struct Before {
    offset: usize,
    /// Where what changed it ends.
    end: usize,
    bytes: Vec<u8>,
    size: usize,
    /// The blocks that the file kept.
    kept: Vec<u64>,
}

#[derive(Debug, Clone)]
enum What {
    /// Whole sectors as the cache had them afterwards, for a disk writes no less; and their blocks.
    Write {
        sectors: Vec<(u64, Vec<u8>)>,
        blocks: Vec<(u64, Vec<u8>)>,
    },
    Punch(Range<u64>),
    Size,
}

/// How a file system brings blocks of a file to the disk.
#[derive(Debug, Clone, Copy)]
pub(super) struct FileSystem {
    pub(super) block_bytes: u64,
    /// A block that is new to a file is there as it was written, or not at all; else any of its sectors may be zeroes.
    pub(super) whole_blocks: bool,
}

impl Default for FileSystem {
    fn default() -> Self {
        // Smaller than real ones, so that small tests fill and free many.
        Self { block_bytes: 1024, whole_blocks: false }
    }
}

#[derive(Debug, Clone, Default)]
pub(super) struct CrashImage {
    pub(super) system: FileSystem,
    files: Vec<File>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    /// States of the folder since the last sync of it.
    name_states: Vec<BTreeMap<String, usize>>,
}

impl CrashImage {
    pub(super) fn on(system: FileSystem) -> Self {
        Self { system, ..Self::default() }
    }

    pub(super) fn apply(&mut self, event: &Event) {
        let system = self.system;
        match event {
            Event::WriteBegan { file, id, offset, bytes } => {
                let cached = &mut self.files[*file].cached;
                let before = cached.before(system.block_bytes, *offset, bytes.len() as u64);
                let end = *offset as usize + bytes.len();
                if cached.bytes.len() < end {
                    cached.bytes.resize(end, 0);
                }
                cached.bytes[*offset as usize..end].copy_from_slice(bytes);
                let blocks = offset / system.block_bytes..(end as u64).div_ceil(system.block_bytes);
                cached.kept.extend(blocks.clone());
                let pieces = |unit: u64, numbers: Range<u64>| {
                    numbers.map(|number| (number, cached.piece(unit, number))).collect()
                };
                let what = What::Write {
                    sectors: pieces(SECTOR, offset / SECTOR..(end as u64).div_ceil(SECTOR)),
                    blocks: pieces(system.block_bytes, blocks),
                };
                self.change(*file, *id, what, Some(before));
            }
            Event::PunchBegan { file, id, offset, len } => {
                let blocks = offset / system.block_bytes..(offset + len) / system.block_bytes;
                let cached = &mut self.files[*file].cached;
                let before = cached.before(system.block_bytes, *offset, *len);
                blocks.clone().for_each(|block| cached.punch(system.block_bytes, block));
                self.change(*file, *id, What::Punch(blocks), Some(before));
            }
            Event::SizeSet { file, id, size } => {
                self.files[*file].cached.set_size(system.block_bytes, *size);
                self.change(*file, *id, What::Size, None);
            }
            Event::Ended { file, id } => {
                let changes = self.files[*file].changes.iter_mut();
                changes.filter(|change| change.id == *id).for_each(|change| change.ended = true);
            }
            Event::SyncBegan { file, id } => {
                let file = &mut self.files[*file];
                let ended = file.changes.iter().filter(|change| change.ended);
                file.syncs.insert(*id, ended.map(|change| change.id).collect());
            }
            Event::SyncEnded { file, id } => self.files[*file].synced(system, *id),
            Event::SyncLost { file, id } => self.files[*file].lost(*id),
            Event::Forgotten { file } => self.files[*file].forget(system),
            Event::Created { name, file } => {
                self.files.resize(self.files.len().max(file + 1), File::default());
                self.names.insert(name.clone(), *file);
                self.name_states.push(self.names.clone());
            }
            Event::Renamed { from, to } => {
                let file = self.names.remove(from).unwrap();
                self.names.insert(to.clone(), file);
                self.name_states.push(self.names.clone());
            }
            Event::Removed { name } => {
                self.names.remove(name);
                self.name_states.push(self.names.clone());
            }
            Event::NamesSynced => {
                self.durable_names = self.names.clone();
                self.name_states.clear();
            }
        }
    }

    /// Of a change that takes time, what was there `before`.
    fn change(&mut self, file: usize, id: u64, what: What, before: Option<Before>) {
        let file = &mut self.files[file];
        let size = file.cached.bytes.len() as u64;
        let ended = before.is_none();
        file.changes.push(Change { id, ended, what, size, before: before.unwrap_or_default() });
    }

    pub(super) fn file(&self, name: &str) -> Option<usize> {
        self.names.get(name).copied()
    }

    pub(super) fn files(&self) -> usize {
        self.files.len()
    }

    /// The files that have a name.
    pub(super) fn named(&self) -> impl Iterator<Item = usize> {
        self.names.values().copied()
    }

    /// The blocks that a file keeps.
    pub(super) fn kept(&self, file: usize) -> &BTreeSet<u64> {
        &self.files[file].cached.kept
    }

    pub(super) fn cached(&self, file: usize) -> &[u8] {
        &self.files[file].cached.bytes
    }

    /// The first run of bytes from `offset` on that the file keeps.
    pub(super) fn next_data(&self, file: usize, offset: u64) -> Option<Range<u64>> {
        let Content { bytes, kept } = &self.files[file].cached;
        let (unit, size) = (self.system.block_bytes, bytes.len() as u64);
        let first = *kept.range(offset / unit..).next()?;
        let last = (first..).take_while(|block| kept.contains(block)).last()?;
        let run = (first * unit).max(offset)..((last + 1) * unit).min(size);
        (run.start < size).then_some(run)
    }

    /// The number of the last change that is not durable.
    pub(super) fn last_id(&self) -> u64 {
        self.files.iter().flat_map(|file| &file.changes).map(|change| change.id).max().unwrap_or(0)
    }

    /// The disk after the death of the process: all that had ended is there, and what was under way has ended, some of it in the
    /// middle. Nothing has become durable by it.
    pub(super) fn die(&self, random: &mut fastrand::Rng) -> Self {
        let mut left = self.clone();
        for file in &mut left.files {
            file.syncs.clear();
            let File { cached, changes, .. } = file;
            for change in changes.iter_mut().rev().filter(|change| !change.ended) {
                change.end_early(cached, self.system, random);
            }
        }
        left
    }

    /// A disk after a loss of power: any part of what was not synced, in any order.
    pub(super) fn crash(&self, random: &mut fastrand::Rng) -> Self {
        let kept = random.usize(0..=self.name_states.len());
        let names = kept.checked_sub(1).map_or(&self.durable_names, |last| &self.name_states[last]).clone();
        let files = self.files.iter().map(|file| file.crash(self.system, random)).collect();
        let (durable_names, name_states) = (names.clone(), Vec::new());
        Self { system: self.system, files, names, durable_names, name_states }
    }
}

impl Content {
    /// The bytes of a sector or block, as far as the file goes.
    fn piece(&self, unit: u64, number: u64) -> Vec<u8> {
        let start = (number * unit) as usize;
        self.bytes[start..self.bytes.len().min(start + unit as usize)].to_vec()
    }

    fn before(&self, unit: u64, offset: u64, len: u64) -> Before {
        let range = (offset as usize).min(self.bytes.len())..((offset + len) as usize).min(self.bytes.len());
        let kept = self.kept.range(offset / unit..(offset + len).div_ceil(unit)).copied().collect();
        let end = (offset + len) as usize;
        Before {
            offset: offset as usize,
            end,
            bytes: self.bytes[range].to_vec(),
            size: self.bytes.len(),
            kept,
        }
    }

    fn put(&mut self, unit: u64, number: u64, bytes: &[u8]) {
        let start = (number * unit) as usize;
        let end = start + bytes.len();
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[start..end].copy_from_slice(bytes);
    }

    fn punch(&mut self, unit: u64, block: u64) {
        let end = self.bytes.len().min(((block + 1) * unit) as usize);
        let start = end.min((block * unit) as usize);
        self.bytes[start..end].fill(0);
        self.kept.remove(&block);
    }

    fn set_size(&mut self, unit: u64, size: u64) {
        self.bytes.resize(size as usize, 0);
        self.kept.retain(|block| *block < size.div_ceil(unit));
    }
}

impl File {
    fn lost(&mut self, id: u64) {
        let covered = self.syncs.remove(&id).unwrap();
        self.changes.retain(|change| !covered.contains(&change.id));
    }

    fn forget(&mut self, system: FileSystem) {
        let mut left = self.durable.clone();
        self.changes.iter().for_each(|change| change.apply(&mut left, system, || true));
        // The inode remembers its size.
        left.bytes.resize(self.cached.bytes.len(), 0);
        self.cached = left;
    }

    fn synced(&mut self, system: FileSystem, id: u64) {
        let covered = self.syncs.remove(&id).unwrap();
        for change in self.changes.iter().filter(|change| covered.contains(&change.id)) {
            change.apply(&mut self.durable, system, || true);
        }
        self.changes.retain(|change| !covered.contains(&change.id));
    }

    fn crash(&self, system: FileSystem, random: &mut fastrand::Rng) -> Self {
        let mut left = self.durable.clone();
        let of_ten = *random.choice(&[0, 1, 5, 9, 10]).unwrap();
        let mut order: Vec<&Change> = self.changes.iter().collect();
        if random.bool() {
            random.shuffle(&mut order);
        }
        let mut cut = false;
        for change in order {
            cut |= matches!(change.what, What::Size);
            change.apply(&mut left, system, || random.u8(0..10) < of_ten);
        }
        // The size may lag behind what was written.
        let durable = self.durable.bytes.len();
        if !cut && left.bytes.len() > durable && random.u8(0..4) == 0 {
            left.set_size(system.block_bytes, random.usize(durable..=left.bytes.len()) as u64);
        }
        Self { cached: left.clone(), durable: left, ..Self::default() }
    }
}

impl Change {
    /// Takes back all but the first sectors of a write, or all of a hole, or nothing.
    fn end_early(&mut self, cached: &mut Content, system: FileSystem, random: &mut fastrand::Rng) {
        self.ended = true;
        let unit = system.block_bytes;
        let Before { offset, end: last, bytes, size, kept } = &self.before;
        let mut restore = |from: usize, to: usize| {
            for at in from..to.min(cached.bytes.len()) {
                cached.bytes[at] = bytes.get(at - offset).copied().unwrap_or(0);
            }
        };
        match &mut self.what {
            What::Size => {}
            What::Punch(_) if random.bool() => {}
            What::Punch(blocks) => {
                restore(*offset, (blocks.end * unit) as usize);
                cached.kept.extend(kept);
                *blocks = 0..0;
            }
            What::Write { sectors, blocks } => {
                let whole = sectors.len();
                // The kernel ends a write between two pages.
                let page = if system.whole_blocks { PAGE } else { SECTOR as usize };
                let middle = offset + random.usize(0..=whole) * SECTOR as usize;
                let middle = (middle - middle % page).saturating_sub(*offset) / SECTOR as usize;
                let left = *random.choice(&[0, whole, middle]).unwrap();
                if left == whole {
                    return;
                }
                // The header's size is less than a sector.
                let written = (self.size as usize).min(*last);
                let end = offset + left * SECTOR as usize;
                restore(end, written);
                sectors.truncate(left);
                // Where the file ends with it, it ends earlier.
                if cached.bytes.len() == written && *size < written {
                    cached.bytes.truncate(end.max(*size));
                }
                let reached = |block: u64| left > 0 && block * unit < end as u64;
                for (block, _) in blocks.iter().filter(|(block, _)| !reached(*block)) {
                    if !kept.contains(block) {
                        cached.kept.remove(block);
                    }
                }
                blocks.retain(|(block, _)| reached(*block));
                blocks.iter_mut().for_each(|(block, bytes)| *bytes = cached.piece(unit, *block));
            }
        }
        self.size = cached.bytes.len() as u64;
    }

    fn apply(&self, to: &mut Content, system: FileSystem, mut survives: impl FnMut() -> bool) {
        let unit = system.block_bytes;
        match &self.what {
            What::Size if survives() => to.set_size(unit, self.size),
            What::Size => {}
            What::Punch(blocks) => {
                blocks.clone().filter(|_| survives()).for_each(|block| to.punch(unit, block));
            }
            What::Write { sectors, blocks } => {
                for (block, bytes) in blocks {
                    let is_new = !to.kept.contains(block);
                    if is_new && system.whole_blocks {
                        if survives() {
                            to.kept.insert(*block);
                            to.put(unit, *block, bytes);
                        }
                        continue;
                    }
                    for (sector, bytes) in
                        sectors.iter().filter(|(sector, _)| sector * SECTOR / unit == *block)
                    {
                        if survives() {
                            to.kept.insert(*block);
                            to.put(SECTOR, *sector, bytes);
                        }
                    }
                }
            }
        }
    }
}
