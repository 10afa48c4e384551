//! The journal: the entries that wait for a flush, in memory that the death of the process leaves. See [`JournalHeader`].
//!
//! A write is acknowledged when its entry is in the journal, at the price of three stores. What a round has made durable is cut
//! off, and not before: so each acknowledged entry is in the index file, or in the journal, or for a moment in both. Whoever opens
//! the layer next has those wait for a flush that the index file lacks. After a loss of power the journal is gone, or of another
//! boot: then its entries may name data that the disk has not.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::atomic::Ordering,
};

use rustix::fs::{FallocateFlags, OFlags, fallocate};

use crate::{
    format::{
        lsmt::{
            Header, JOURNAL_ENTRY_LIMIT, JournalError, JournalHeader, Segment, check_entries, decode_journal,
        },
        uuid::Uuid,
    },
    reactor::MappedWords,
    source::boot_id,
    upper::{
        UpperError,
        error::failed,
        medium::{FileId, Medium},
    },
};

/// Everybody may look whether a layer has a journal, which is then to be named, and only its owner may read it.
const FOLDER_MODE: u32 = 0o711;
const FILE_MODE: u32 = 0o600;

/// What a journal's name ends with until it is whole.
const NEW_SUFFIX: &str = "new";

/// Where the journal of a layer lies, whether there is one or not. Whoever has the lock of the layer's data file has it too.
#[derive(Debug)]
pub(super) struct JournalPlace {
    path: PathBuf,
    header: JournalHeader,
}

/// An open journal. Dropped, its file goes if no entry is left in it.
#[derive(Debug)]
pub(super) struct Journal {
    words: MappedWords,
    place: JournalPlace,
    first: u64,
    end: u64,
    is_void: bool,
}

impl JournalPlace {
    /// In `folder`, of the layer with the data file `data` and its header, for at most so many entries.
    pub(super) fn of<M: Medium>(
        folder: &Path,
        data: &M,
        header: &Header,
        entries: usize,
    ) -> Result<Self, UpperError> {
        let FileId { device, inode } =
            data.id().map_err(|error| failed(data, "ask for the number of", error))?;
        let boot = boot_id().map_err(unkept(folder, "ask for this boot, for"))?;
        let uuid = header.uuid.unwrap_or(Uuid::NULL);
        let capacity = (entries as u64).clamp(1, JOURNAL_ENTRY_LIMIT);
        let header = JournalHeader { boot, uuid, device, inode, capacity };
        Ok(Self { path: folder.join(header.file_name()), header })
    }

    /// The entries that a process of this boot has left, for a layer whose data file has this header and so many bytes.
    ///
    /// # Errors
    /// [`UpperError::JournalFile`] and [`UpperError::Journal`].
    pub(super) fn entries(&self, data: &Header, data_bytes: u64) -> Result<Vec<Segment>, UpperError> {
        let Some(bytes) = self.read()? else { return Ok(Vec::new()) };
        let wrong = |source| UpperError::Journal { name: self.path.display().to_string(), source };
        let (found, entries) = decode_journal(&bytes).map_err(wrong)?;
        let JournalHeader { boot, capacity, .. } = self.header;
        if (JournalHeader { boot, capacity, ..found }) != self.header {
            return Err(wrong(JournalError::Foreign));
        }
        if found.boot != boot {
            let (journal, count) = (self.path.display(), entries.len());
            tracing::warn!(%journal, count, "dropped the journal of another boot: what was not flushed then is lost");
            return Ok(Vec::new());
        }
        check_entries(&entries, data, data_bytes).map_err(wrong)?;
        Ok(entries)
    }

    fn read(&self) -> Result<Option<Vec<u8>>, UpperError> {
        let read = || -> io::Result<Vec<u8>> {
            let options = OFlags::NOFOLLOW.bits().cast_signed();
            let file = OpenOptions::new().read(true).custom_flags(options).open(&self.path)?;
            let most = JournalHeader { capacity: JOURNAL_ENTRY_LIMIT, ..self.header }.size_bytes();
            let mut bytes = Vec::new();
            file.take(most).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        match read() {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unkept(&self.path, "read")(error)),
        }
    }

    /// Forgets what is there: a sync has failed, and nobody knows whether the disk has the data.
    pub(super) fn discard(&self) {
        remove(&self.path);
    }

    /// Begins a journal with these entries, in the place of the one that is there.
    ///
    /// # Errors
    /// [`UpperError::JournalFile`], for example where memory has no room for it.
    pub(super) fn begin(mut self, entries: &[Segment]) -> Result<Journal, UpperError> {
        let count = entries.len() as u64;
        self.header.capacity = self.header.capacity.max(count);
        let failed = unkept(&self.path, "make");
        let words = self.make(entries).map_err(failed)?;
        Ok(Journal { words, place: self, first: 0, end: count, is_void: false })
    }

    fn make(&self, entries: &[Segment]) -> io::Result<MappedWords> {
        let new = self.path.with_added_extension(NEW_SUFFIX);
        if let Some(folder) = self.path.parent() {
            DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder)?;
        }
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(FILE_MODE).open(&new)?;
        let made = self.fill(file, entries).and_then(|words| {
            std::fs::rename(&new, &self.path)?;
            Ok(words)
        });
        if made.is_err() {
            remove(&new);
        }
        made
    }

    fn fill(&self, mut file: File, entries: &[Segment]) -> io::Result<MappedWords> {
        // Where there is no room, this says so; a store to a mapping without would end the process.
        fallocate(&file, FallocateFlags::empty(), 0, self.header.size_bytes())?;
        file.write_all(&self.header.encode(entries))?;
        MappedWords::map(&OwnedFd::from(file), self.header.words())
    }
}

impl Journal {
    /// How many entries there is room for.
    pub(super) fn room(&self) -> usize {
        let used = self.end.saturating_sub(self.first);
        usize::try_from(self.place.header.capacity.saturating_sub(used)).unwrap_or(usize::MAX)
    }

    /// Most entries that it holds.
    pub(super) fn capacity(&self) -> usize {
        usize::try_from(self.place.header.capacity).unwrap_or(usize::MAX)
    }

    /// Adds entries, for which there must be room.
    pub(super) fn push(&mut self, entries: &[Segment]) {
        if self.is_void {
            return;
        }
        debug_assert!(entries.len() <= self.room(), "whoever adds has looked");
        for entry in entries {
            let at = self.place.header.entry_word(self.end);
            let bytes = entry.encode();
            let (halves, _) = bytes.as_chunks();
            for (word, half) in self.words.iter().skip(at).zip(halves) {
                word.store(u64::from_ne_bytes(*half), Ordering::Relaxed);
            }
            self.end = self.end.saturating_add(1);
        }
        self.set(JournalHeader::END_WORD, self.end);
    }

    /// Lets go of the oldest entries, which are durable.
    pub(super) fn cut(&mut self, entries: usize) {
        self.first = self.first.saturating_add(entries as u64).min(self.end);
        self.set(JournalHeader::FIRST_WORD, self.first);
    }

    /// Lets go of all, and takes no more: a sync has failed, and whoever opens the layer next is to find what the disk has.
    pub(super) fn discard(&mut self) {
        self.cut(usize::MAX);
        self.is_void = true;
    }

    /// What was stored before is there where this is.
    fn set(&self, number: usize, value: u64) {
        if let Some(word) = self.words.get(number) {
            word.store(value, Ordering::Release);
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if self.first == self.end {
            remove(&self.place.path);
        }
    }
}

/// How many of the `entries` of a journal, from the first on, the index file has, of whose entries `last` are the last.
///
/// What a round had written when the process died is the end of the one and the beginning of the other. Where more is alike, it
/// does as well: entries that are put over themselves change nothing.
pub(super) fn count_in_index(entries: &[Segment], last: &[Segment]) -> usize {
    // For each beginning of `entries`, how long the longest shorter one is that it ends with.
    let mut ends_with: Vec<usize> = Vec::with_capacity(entries.len());
    let longer = |mut matched: usize, next: &Segment, ends_with: &[usize]| loop {
        if entries.get(matched) == Some(next) {
            return matched + 1;
        }
        match matched.checked_sub(1).and_then(|before| ends_with.get(before)) {
            Some(shorter) => matched = *shorter,
            None => return 0,
        }
    };
    for (number, entry) in entries.iter().enumerate() {
        let before = ends_with.last().copied().unwrap_or(0);
        ends_with.push(if number == 0 { 0 } else { longer(before, entry, &ends_with) });
    }
    last.iter().fold(0, |matched, entry| longer(matched, entry, &ends_with))
}

fn remove(path: &Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            tracing::warn!(journal = %path.display(), %error, "cannot remove the journal of a writable layer");
        }
        _ => {}
    }
}

fn unkept(path: &Path, action: &'static str) -> impl Fn(io::Error) -> UpperError {
    let name = path.display().to_string();
    move |source| UpperError::JournalFile { name: name.clone(), action, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(offset: u64) -> Segment {
        Segment::new(offset, 1, 8, false, 0).unwrap()
    }

    #[test]
    fn the_end_of_the_index_that_a_journal_begins_with_is_found_however_alike_entries_are() {
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..3000 {
            let mut of = |most: usize| -> Vec<Segment> {
                (0..random.usize(0..=most)).map(|_| entry(random.u64(0..2))).collect()
            };
            let (entries, last) = (of(6), of(9));
            let longest = (0..=entries.len()).rev().find(|count| last.ends_with(&entries[..*count]));
            assert_eq!(count_in_index(&entries, &last), longest.unwrap(), "{entries:?} {last:?}");
        }
    }
}
