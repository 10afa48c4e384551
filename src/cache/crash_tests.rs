//! A model of a disk under the ledger, stopped at every operation: by a kill, and by loss of power with any part of the
//! unsynced writes lost.
//!
//! `STRATABD_CACHE_CRASHES` is the number of sweeps over all operations, `STRATABD_CACHE_SEED` the first one's seed.

use std::{cell::RefCell, collections::BTreeMap, io, rc::Rc};

use futures_util::FutureExt;

use super::{
    grain::{GRAIN_BYTES, Sum, bytes_of, grain_count, sums_of},
    ledger::Ledger,
    map_file::{MAP_SECTOR_BYTES, MapKind, RawSector},
    medium::Medium,
};
use crate::block::ByteRange;

/// Over two sectors of the map, and with a partial last grain.
const SIZE_BYTES: u64 = 3900 * GRAIN_BYTES - 700;
const KEY: [u8; 32] = [5; 32];
const SECTOR: u64 = MAP_SECTOR_BYTES as u64;

/// A sparse file of whole sectors: nearly all of the data file is a hole.
#[derive(Debug, Clone, Default)]
struct Sectors {
    len: u64,
    written: BTreeMap<u64, RawSector>,
}

#[derive(Debug, Clone)]
enum Change {
    Sector(u64, Box<RawSector>, u64),
    Length(u64),
    Hole(std::ops::Range<u64>),
}

impl Change {
    fn apply(&self, file: &mut Sectors) {
        match self {
            Self::Sector(index, raw, end) => {
                file.len = file.len.max(*end);
                file.written.insert(*index, **raw);
            }
            Self::Length(len) => {
                file.len = *len;
                file.written.retain(|index, _| index * SECTOR < *len);
            }
            Self::Hole(sectors) => file.written.retain(|index, _| !sectors.contains(index)),
        }
    }

    /// The pieces of a write that a disk may keep or lose by themselves.
    fn write(offset: u64, bytes: &[u8]) -> Vec<Self> {
        assert!(offset.is_multiple_of(SECTOR));
        let pieces = bytes.chunks(MAP_SECTOR_BYTES).zip(offset / SECTOR..);
        let sector = |(piece, index): (&[u8], u64)| {
            let mut raw = [0; MAP_SECTOR_BYTES];
            raw[..piece.len()].copy_from_slice(piece);
            Self::Sector(index, Box::new(raw), index * SECTOR + piece.len() as u64)
        };
        pieces.map(sector).collect()
    }
}

/// What the disk holds, and what is on its way there.
#[derive(Debug, Clone, Default)]
struct ModelFile {
    stable: Sectors,
    unsynced: Vec<Change>,
    cached: Sectors,
}

#[derive(Debug, Clone, Default)]
struct Disk {
    files: [ModelFile; 3],
    operations: usize,
    cut: Option<usize>,
    ignores_syncs: bool,
    /// A write takes a turn of the executor, as on a disk that is asked and answers.
    slow_writes: bool,
}

#[derive(Debug, Clone, Default)]
struct ModelDisk(Rc<RefCell<Disk>>);

const DATA: usize = 0;

fn place(kind: MapKind) -> usize {
    match kind {
        MapKind::Boot => 1,
        MapKind::Durable => 2,
    }
}

fn dead() -> io::Error {
    io::Error::other("the process is dead")
}

impl ModelDisk {
    fn change(&self, file: usize, mut pieces: Vec<Change>) -> io::Result<()> {
        let disk = &mut *self.0.borrow_mut();
        disk.operations += 1;
        let before = disk.cut.is_none_or(|cut| disk.operations <= cut);
        let at_cut = disk.cut.is_some_and(|cut| disk.operations == cut + 1);
        if at_cut {
            pieces.truncate(pieces.len() / 2);
        } else if !before {
            return Err(dead());
        }
        for piece in pieces {
            piece.apply(&mut disk.files[file].cached);
            disk.files[file].unsynced.push(piece);
        }
        if at_cut { Err(dead()) } else { Ok(()) }
    }

    fn sync(&self, file: usize) -> io::Result<()> {
        let disk = &mut *self.0.borrow_mut();
        disk.operations += 1;
        if disk.cut.is_some_and(|cut| disk.operations > cut) {
            return Err(dead());
        }
        if !disk.ignores_syncs {
            disk.files[file].unsynced.clear();
            disk.files[file].stable = disk.files[file].cached.clone();
        }
        Ok(())
    }

    /// The disk after the power was lost, which kept each unsynced change with probability `kept`.
    fn after_power_loss(&self, kept: f64, random: &mut fastrand::Rng) -> Self {
        let mut disk = self.0.borrow().clone();
        for file in &mut disk.files {
            let mut survivors: Vec<Change> = std::mem::take(&mut file.unsynced);
            survivors.retain(|_| random.f64() < kept);
            survivors.iter().for_each(|change| change.apply(&mut file.stable));
            file.cached = file.stable.clone();
        }
        disk.cut = None;
        Self(Rc::new(RefCell::new(disk)))
    }

    fn after_kill(&self) -> Self {
        let mut disk = self.0.borrow().clone();
        disk.cut = None;
        Self(Rc::new(RefCell::new(disk)))
    }
}

impl Medium for ModelDisk {
    async fn locked<T>(&self, act: impl FnOnce() -> T) -> Option<T> {
        Some(act())
    }

    fn is_fresh(&self) -> bool {
        false
    }

    fn is_alone(&self) -> bool {
        true
    }

    fn data_len(&self) -> io::Result<u64> {
        Ok(self.0.borrow().files[DATA].cached.len)
    }

    fn set_data_len(&self, size_bytes: u64) -> io::Result<()> {
        self.change(DATA, vec![Change::Length(size_bytes)])
    }

    async fn write_data(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.0.borrow().slow_writes {
            futures_util::pending!();
        }
        self.change(DATA, Change::write(offset, bytes))
    }

    async fn sync_data(&self) -> io::Result<()> {
        self.sync(DATA)
    }

    fn punch_data(&self, range: ByteRange) -> io::Result<()> {
        self.change(DATA, vec![Change::Hole(range.start() / SECTOR..range.end().div_ceil(SECTOR))])
    }

    fn next_sectors(&self, kind: MapKind, sector: u64) -> io::Result<Option<(u64, Vec<u8>)>> {
        let disk = self.0.borrow();
        let mut written = disk.files[place(kind)].cached.written.range(sector..);
        Ok(written.next().map(|(index, raw)| (*index, raw.to_vec())))
    }

    fn read_sector(&self, kind: MapKind, sector: u64) -> io::Result<RawSector> {
        let disk = self.0.borrow();
        Ok(disk.files[place(kind)].cached.written.get(&sector).copied().unwrap_or([0; MAP_SECTOR_BYTES]))
    }

    fn write_sector(&self, kind: MapKind, sector: u64, raw: &RawSector) -> io::Result<()> {
        self.change(place(kind), Change::write(sector * SECTOR, raw))
    }

    fn truncate_map(&self, kind: MapKind) -> io::Result<()> {
        self.change(place(kind), vec![Change::Length(0)])
    }

    async fn sync_map(&self, kind: MapKind) -> io::Result<()> {
        self.sync(place(kind))
    }
}

fn content() -> Vec<u8> {
    (0..SIZE_BYTES).map(|at| 1 + u8::try_from((at / 512 * 31 + at) % 255).unwrap()).collect()
}

async fn store(
    ledger: &Ledger,
    disk: &ModelDisk,
    content: &[u8],
    grains: std::ops::Range<u64>,
) -> io::Result<()> {
    let range = bytes_of(&grains, SIZE_BYTES);
    let (start, end) = (usize::try_from(range.start()).unwrap(), usize::try_from(range.end()).unwrap());
    ledger.store(disk, range.start(), &content[start..end], || true).await
}

/// A life of an entry with everything that changes the disk in it.
async fn live(disk: &ModelDisk, content: &[u8], boot: [u8; 16]) -> io::Result<()> {
    let ledger = Ledger::open(disk, SIZE_BYTES, KEY, boot).await?;
    store(&ledger, disk, content, 0..4).await?;
    store(&ledger, disk, content, 3838..3843).await?;
    ledger.sync(disk).await?;
    store(&ledger, disk, content, 10..12).await?;
    store(&ledger, disk, content, 3899..3900).await?;
    ledger.punch(disk, &[2..4, 3838..3841]).await?;
    store(&ledger, disk, content, 3..6).await?;
    ledger.sync(disk).await?;
    store(&ledger, disk, content, 3838..3840).await?;
    ledger.punch(disk, &[0..1, 3..4, 3838..3839]).await?;
    store(&ledger, disk, content, 0..1).await?;
    ledger.refute(&(10..11));
    store(&ledger, disk, content, 10..11).await?;
    ledger.settle(disk).await;
    let again = Ledger::open(disk, SIZE_BYTES, KEY, boot).await?;
    again.sync(disk).await?;
    store(&again, disk, content, 7..9).await
}

/// The bytes of a grain on the disk.
fn grain_on(disk: &ModelDisk, grain: u64) -> Vec<u8> {
    let range = bytes_of(&(grain..grain + 1), SIZE_BYTES);
    let sectors = range.start() / SECTOR..range.end().div_ceil(SECTOR);
    let disk = disk.0.borrow();
    let sector =
        |index| disk.files[DATA].cached.written.get(&index).copied().unwrap_or([0; MAP_SECTOR_BYTES]);
    let mut bytes: Vec<u8> = sectors.flat_map(sector).collect();
    bytes.truncate(usize::try_from(range.len()).unwrap());
    bytes
}

/// How many grains a reopened entry claims and proves, and how many of those it claims, and of those it proves, are wrong.
#[derive(Debug, PartialEq, Eq)]
struct Audit {
    claimed: u64,
    proven: u64,
    wrong: u64,
    wrong_proven: u64,
}

fn audit(disk: &ModelDisk, content: &[u8], boot: [u8; 16]) -> Audit {
    let ledger = Ledger::open(disk, SIZE_BYTES, KEY, boot).now_or_never().unwrap().unwrap();
    let presence = ledger.presence();
    let claimed = presence.unproven(&(0..grain_count(SIZE_BYTES)));
    let mut audit = Audit { claimed: presence.count(), proven: 0, wrong: 0, wrong_proven: 0 };
    for grain in claimed.into_iter().flatten() {
        let found = grain_on(disk, grain);
        let start = usize::try_from(grain * GRAIN_BYTES).unwrap();
        let is_wrong = found != content[start..start + found.len()];
        let wanted: Vec<Sum> = presence.sums(&(grain..grain + 1)).collect();
        ledger.judge(grain, &wanted, sums_of(&found));
        let is_proven = presence.is_proven(&(grain..grain + 1));
        assert_eq!(is_proven, presence.holds(&(grain..grain + 1)), "what is not proven is missing");
        audit.wrong += u64::from(is_wrong);
        audit.proven += u64::from(is_proven);
        audit.wrong_proven += u64::from(is_wrong && is_proven);
    }
    audit
}

impl Audit {
    /// Claims that are not true, of the bytes or of their checksums.
    fn faults(&self) -> u64 {
        self.wrong + self.claimed - self.proven
    }
}

/// Runs the life up to each operation, three lives in a row, and returns the worst of what reopening finds.
fn sweep(ignores_syncs: bool, seed: u64) -> (u64, u64, u64) {
    let content = content();
    let mut random = fastrand::Rng::with_seed(seed);
    let whole = ModelDisk::default();
    live(&whole, &content, [1; 16]).now_or_never().unwrap().unwrap();
    let operations = whole.0.borrow().operations;
    assert!(operations > 40);
    let (mut kept_by_kill, mut kept_by_power_loss, mut wrong) = (0, 0, 0);
    for cut in 0..=operations {
        let disk = ModelDisk::default();
        disk.0.borrow_mut().ignores_syncs = ignores_syncs;
        disk.0.borrow_mut().cut = Some(cut);
        let _ = live(&disk, &content, [1; 16]).now_or_never().unwrap();
        let found = audit(&disk.after_kill(), &content, [1; 16]);
        kept_by_kill = found.proven.max(kept_by_kill);
        wrong += found.faults();
        for kept in [0.0, 0.3, 0.5, 0.5, 0.7, 0.9, 1.0] {
            let after = disk.after_power_loss(kept, &mut random);
            let found = audit(&after, &content, [2; 16]);
            kept_by_power_loss = found.proven.max(kept_by_power_loss);
            wrong += found.faults();
            // A second life over what is left, cut short as well.
            let next = after.0.borrow().operations;
            after.0.borrow_mut().cut = Some(next + random.usize(0..operations));
            let _ = live(&after, &content, [2; 16]).now_or_never().unwrap();
            wrong += audit(&after.after_kill(), &content, [2; 16]).faults();
            wrong += audit(&after.after_power_loss(kept, &mut random), &content, [3; 16]).faults();
        }
    }
    (kept_by_kill, kept_by_power_loss, wrong)
}

#[test]
fn whatever_a_reopened_entry_claims_has_the_right_bytes_after_every_cut() {
    let setting = |name: &str, default| std::env::var(name).map_or(default, |text| text.parse().expect(name));
    let first: u64 = setting("STRATABD_CACHE_SEED", 3);
    for seed in first..first + setting("STRATABD_CACHE_CRASHES", 1) {
        let (kept_by_kill, kept_by_power_loss, wrong) = sweep(false, seed);
        assert_eq!(wrong, 0, "seed {seed}");
        assert!(kept_by_kill >= 12, "a kill may cost next to nothing, and {kept_by_kill} grains were left");
        assert!(kept_by_power_loss >= 8, "what was synced stays, and {kept_by_power_loss} grains were left");
    }
}

#[test]
fn what_has_rotted_on_the_disk_is_never_proven_and_the_rest_of_it_is() {
    let content = content();
    let mut random = fastrand::Rng::with_seed(4);
    let whole = ModelDisk::default();
    live(&whole, &content, [1; 16]).now_or_never().unwrap().unwrap();
    let sound = audit(&whole.after_kill(), &content, [1; 16]);
    let (mut noticed, mut kept) = (0, 0);
    for _ in 0..300 {
        let disk = whole.after_kill();
        for _ in 0..random.usize(1..4) {
            let disk = &mut *disk.0.borrow_mut();
            let sectors = &mut disk.files[random.usize(0..3)].cached.written;
            let victim = random.usize(0..sectors.len());
            let raw = sectors.values_mut().nth(victim).unwrap();
            raw[random.usize(0..MAP_SECTOR_BYTES)] ^= random.u8(1..);
        }
        let found = audit(&disk, &content, [1; 16]);
        assert_eq!(found.wrong_proven, 0);
        noticed += found.wrong;
        kept += found.proven;
        assert_eq!(
            audit(&disk, &content, [1; 16]).proven,
            found.proven,
            "what was forgotten in memory alone"
        );
    }
    assert!(noticed > 50, "only {noticed} grains of data were hit");
    assert!(
        kept > sound.proven * 300 / 2,
        "only {kept} of {} grains were kept in 300 trials",
        sound.proven * 300
    );
}

#[test]
fn the_model_catches_a_disk_that_ignores_syncs() {
    assert!(sweep(true, 3).2 > 0);
}

#[test]
fn a_refuted_write_does_not_land_on_the_one_that_replaces_it() {
    let disk = ModelDisk::default();
    let content = content();
    let wrong = vec![0xEE; 2 * 4096];
    let right = &content[..2 * 4096];
    let ledger = Ledger::open(&disk, SIZE_BYTES, KEY, [1; 16]).now_or_never().unwrap().unwrap();
    disk.0.borrow_mut().slow_writes = true;
    let stands = std::cell::Cell::new(true);
    let mut old = Box::pin(ledger.store(&disk, 0, &wrong, || stands.get()));
    let mut new = Box::pin(ledger.store(&disk, 0, right, || true));
    assert!((&mut old).now_or_never().is_none());
    stands.set(false);
    ledger.refute(&(0..2));
    assert!((&mut new).now_or_never().is_none() && (&mut new).now_or_never().is_none());
    (&mut old).now_or_never().unwrap().unwrap();
    assert!((&mut new).now_or_never().is_none());
    (&mut new).now_or_never().unwrap().unwrap();
    drop((old, new));
    let right = Audit { claimed: 2, proven: 2, wrong: 0, wrong_proven: 0 };
    assert_eq!(audit(&disk, &content, [1; 16]), right);
}
