//! What a disk holds, durably and not, as a machine that is driven by events; and what a crash may leave of it.

use std::collections::BTreeMap;

pub(super) const SECTOR: u64 = 512;

/// A change of the disk. Writes and syncs take time: what began may or may not have happened until it has ended.
#[derive(Debug, Clone)]
pub(super) enum Event {
    WriteBegan { file: usize, id: u64, offset: u64, bytes: Vec<u8> },
    PunchBegan { file: usize, id: u64, offset: u64, len: u64 },
    SizeSet { file: usize, id: u64, size: u64 },
    Ended { file: usize, id: u64 },
    SyncBegan { file: usize, id: u64 },
    SyncEnded { file: usize, id: u64 },
    Created { name: String, file: usize },
    Renamed { from: String, to: String },
    NamesSynced,
}

/// A file: what reads see, what a crash leaves for certain, and what it may leave.
#[derive(Debug, Clone, Default)]
struct File {
    cached: Vec<u8>,
    durable: Vec<u8>,
    changes: Vec<Change>,
    /// Changes that each sync under way covers: those that had ended when it began.
    syncs: BTreeMap<u64, Vec<u64>>,
}

#[derive(Debug, Clone)]
struct Change {
    id: u64,
    ended: bool,
    /// Whole sectors as the cache had them afterwards: a disk writes no less.
    sectors: Vec<(u64, [u8; SECTOR as usize])>,
    /// The size afterwards.
    size: u64,
    cuts: bool,
}

#[derive(Debug, Clone, Default)]
pub(super) struct CrashImage {
    files: Vec<File>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    /// States of the folder since the last sync of it.
    name_states: Vec<BTreeMap<String, usize>>,
}

impl CrashImage {
    pub(super) fn apply(&mut self, event: &Event) {
        match event {
            Event::WriteBegan { file, id, offset, bytes } => {
                let cached = &mut self.files[*file].cached;
                let end = *offset as usize + bytes.len();
                if cached.len() < end {
                    cached.resize(end, 0);
                }
                cached[*offset as usize..end].copy_from_slice(bytes);
                self.change(*file, *id, *offset..end as u64, false, false);
            }
            Event::PunchBegan { file, id, offset, len } => {
                let cached = &mut self.files[*file].cached;
                let end = ((offset + len) as usize).min(cached.len());
                let start = (*offset as usize).min(end);
                cached[start..end].fill(0);
                self.change(*file, *id, start as u64..end as u64, false, false);
            }
            Event::SizeSet { file, id, size } => {
                self.files[*file].cached.resize(*size as usize, 0);
                self.change(*file, *id, 0..0, true, true);
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
            Event::SyncEnded { file, id } => self.files[*file].synced(*id),
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
            Event::NamesSynced => {
                self.durable_names = self.names.clone();
                self.name_states.clear();
            }
        }
    }

    fn change(&mut self, file: usize, id: u64, range: std::ops::Range<u64>, ended: bool, cuts: bool) {
        let file = &mut self.files[file];
        let sectors = range.start / SECTOR..range.end.div_ceil(SECTOR);
        let content = |sector: u64| {
            let mut bytes = [0; SECTOR as usize];
            let start = (sector * SECTOR) as usize;
            let end = file.cached.len().min(start + SECTOR as usize);
            bytes[..end - start].copy_from_slice(&file.cached[start..end]);
            (sector, bytes)
        };
        let sectors = if range.is_empty() { Vec::new() } else { sectors.map(content).collect() };
        let size = file.cached.len() as u64;
        file.changes.push(Change { id, ended, sectors, size, cuts });
    }

    pub(super) fn file(&self, name: &str) -> Option<usize> {
        self.names.get(name).copied()
    }

    pub(super) fn files(&self) -> usize {
        self.files.len()
    }

    pub(super) fn cached(&self, file: usize) -> &[u8] {
        &self.files[file].cached
    }

    /// A disk after a loss of power: any part of what was not synced, in any order.
    pub(super) fn crash(&self, random: &mut fastrand::Rng) -> Self {
        let kept = random.usize(0..=self.name_states.len());
        let names = kept.checked_sub(1).map_or(&self.durable_names, |last| &self.name_states[last]).clone();
        let files = self.files.iter().map(|file| file.crash(random)).collect();
        Self { files, names: names.clone(), durable_names: names, name_states: Vec::new() }
    }
}

impl File {
    fn synced(&mut self, id: u64) {
        let covered = self.syncs.remove(&id).unwrap();
        for change in self.changes.iter().filter(|change| covered.contains(&change.id)) {
            change.apply(&mut self.durable, |_| true);
        }
        self.changes.retain(|change| !covered.contains(&change.id));
    }

    fn crash(&self, random: &mut fastrand::Rng) -> Self {
        let mut bytes = self.durable.clone();
        let of_ten = *random.choice(&[0, 1, 5, 9, 10]).unwrap();
        let mut order: Vec<&Change> = self.changes.iter().collect();
        if random.bool() {
            random.shuffle(&mut order);
        }
        let mut cut = false;
        for change in order {
            cut |= change.cuts;
            if change.cuts && random.u8(0..10) >= of_ten {
                continue;
            }
            change.apply(&mut bytes, |_| random.u8(0..10) < of_ten);
        }
        // The size may lag behind what was written.
        if !cut && bytes.len() > self.durable.len() && random.u8(0..4) == 0 {
            bytes.truncate(random.usize(self.durable.len()..=bytes.len()));
        }
        Self { cached: bytes.clone(), durable: bytes, ..Self::default() }
    }
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>, mut survives: impl FnMut(u64) -> bool) {
        if self.cuts {
            bytes.resize(self.size as usize, 0);
        }
        for (sector, content) in self.sectors.iter().filter(|(sector, _)| survives(*sector)) {
            let start = (sector * SECTOR) as usize;
            let end = (self.size as usize).min(start + SECTOR as usize);
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[start..end].copy_from_slice(&content[..end - start]);
        }
    }
}
