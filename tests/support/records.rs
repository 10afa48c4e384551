//! Files that are made durable one after another, and what a loss of power may have left of them.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    path::{Path, PathBuf},
};

/// Files in the folder that is worked on.
pub const FILES: u64 = 24;
const BLOCK: usize = 4096;
const BLOCKS: u64 = 8;

/// The version of each file that has been made durable; a file that is not in it has none.
pub type Durable = BTreeMap<u64, u64>;

/// What makes a version of a file out of the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    /// A new file is written, made durable, and takes the name by rename.
    Replace,
    /// All blocks are written in their places.
    Overwrite,
    /// There is none.
    Remove,
}

impl Change {
    /// The one that makes that version. Version 0 is what there is before the first one: nothing.
    fn to(file: u64, version: u64) -> Self {
        match (version, (file + version) % 7) {
            (0, _) | (2.., 0) => Self::Remove,
            (1, _) | (_, 1) => Self::Replace,
            (_, step) if step % 2 == 0 => Self::Replace,
            _ => Self::Overwrite,
        }
    }
}

/// Makes version after version of those of the files whose number leaves `turn` when divided by `turns`, in the empty
/// folder `dir`, chosen at random. Says of each that it is durable; ends when `durable` says so.
///
/// # Errors
/// Those of the file system.
pub fn work(dir: &Path, (turn, turns): (u64, u64), durable: impl Fn(u64, u64) -> bool) -> io::Result<()> {
    let mut random = fastrand::Rng::with_seed(turn);
    let mut versions = Durable::new();
    loop {
        let file = random.u64(..FILES / turns) * turns + turn;
        let version = versions.entry(file).or_default();
        *version += 1;
        make(dir, file, *version)?;
        if !durable(file, *version) {
            return Ok(());
        }
    }
}

fn make(dir: &Path, file: u64, version: u64) -> io::Result<()> {
    let path = path_of(dir, file);
    match Change::to(file, version) {
        Change::Replace => {
            let new = dir.join(format!("new-{file}"));
            let mut target = File::create(&new)?;
            target.write_all(&content(file, version))?;
            target.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(dir)?.sync_all()
        }
        Change::Overwrite => {
            let mut target = OpenOptions::new().write(true).open(&path)?;
            target.write_all(&content(file, version))?;
            target.sync_data()
        }
        Change::Remove => {
            fs::remove_file(&path)?;
            File::open(dir)?.sync_all()
        }
    }
}

/// Looks for what was durable: each file must have that version, or the next one, of which nobody has been told; while
/// that is written in place, some blocks may have it and others not. Returns how many files went on to the next one.
///
/// # Errors
/// Says which file has what instead.
pub fn check(dir: &Path, durable: &Durable) -> Result<usize, String> {
    let mut ahead = 0;
    for file in 0..FILES {
        let version = durable.get(&file).copied().unwrap_or_default();
        let found = versions_in(&path_of(dir, file), file)?;
        let next = Change::to(file, version + 1);
        let between = next == Change::Overwrite
            && found.len() as u64 == BLOCKS
            && found.iter().all(|block| (version..=version + 1).contains(block));
        if found == versions_of(file, version) {
            continue;
        } else if between || found == versions_of(file, version + 1) {
            ahead += 1;
        } else {
            return Err(format!(
                "file {file}: version {version} was durable, the next one was to {next:?}; its blocks have {found:?}"
            ));
        }
    }
    Ok(ahead)
}

fn path_of(dir: &Path, file: u64) -> PathBuf {
    dir.join(format!("file-{file}"))
}

/// All blocks of that version: each is full of words that say whose it is.
fn content(file: u64, version: u64) -> Vec<u8> {
    (0..BLOCKS).flat_map(|block| block_of(file, version, block)).collect()
}

fn block_of(file: u64, version: u64, block: u64) -> Vec<u8> {
    let words = [file + 1, version, block, !version].map(u64::to_le_bytes);
    words.concat().repeat(BLOCK / 32)
}

/// The versions that the blocks of a file should have; none for a file that should not be there.
fn versions_of(file: u64, version: u64) -> Vec<u64> {
    let count = if Change::to(file, version) == Change::Remove { 0 } else { BLOCKS };
    (0..count).map(|_| version).collect()
}

/// The versions that the blocks of the file at `path` have; none when it is not there.
fn versions_in(path: &Path, file: u64) -> Result<Vec<u64>, String> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)) {
        Ok(count) if count as u64 == BLOCKS * BLOCK as u64 => {}
        Ok(count) => return Err(format!("file {file} has {count} bytes")),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(format!("file {file} cannot be read: {error}")),
    }
    let versions = (0..).zip(bytes.chunks(BLOCK)).map(|(block, bytes)| {
        let version = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
        let is_whole = bytes == block_of(file, version, block);
        is_whole.then_some(version).ok_or_else(|| format!("block {block} of file {file} is torn"))
    });
    versions.collect()
}
