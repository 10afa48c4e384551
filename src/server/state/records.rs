//! A folder of records, one file for each device. Each is there whole, or not at all, also after a crash.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::{
    StateError,
    record::{Record, RecordError},
};

/// A record is an image specification of at most 255 paths, the paths of what is made for a device, and some numbers.
const MAX_RECORD_BYTES: u64 = 2 << 20;

/// A file that was found under the name of a record.
#[derive(Debug)]
pub struct Stored {
    /// The number in its name.
    pub id: u32,
    /// What it says.
    pub record: Result<Record, RecordError>,
}

/// The folder. Nobody else may write to what has the name of the same device meanwhile.
#[derive(Debug, Clone)]
pub(in crate::server) struct Records {
    folder: PathBuf,
}

impl Records {
    /// Makes the folder where it is missing, its owner's alone.
    pub(super) fn open(folder: PathBuf) -> Result<Self, StateError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.map_err(|source| failed(&folder, "make the directory", source))?;
        Ok(Self { folder })
    }

    /// Writes `record` in the place of the one that its device has, all of it or nothing, durably.
    ///
    /// # Errors
    /// What the file system says; then the former record, if any, is as it was.
    pub(in crate::server) fn save(&self, record: &Record) -> Result<(), StateError> {
        self.write(record, |hidden, path| fs::rename(hidden, path))
    }

    /// As [`Records::save`], for a device that has none.
    ///
    /// # Errors
    /// [`StateError::Taken`] where there is one of its number, and what the file system says.
    pub(in crate::server) fn create(&self, record: &Record) -> Result<(), StateError> {
        let created = self.write(record, |hidden, path| {
            fs::hard_link(hidden, path)?;
            fs::remove_file(hidden)
        });
        created.map_err(|error| match error {
            StateError::Io { path, source, .. } if source.kind() == io::ErrorKind::AlreadyExists => {
                StateError::Taken { id: record.id, path }
            }
            error => error,
        })
    }

    fn write(
        &self,
        record: &Record,
        name: impl FnOnce(&Path, &Path) -> io::Result<()>,
    ) -> Result<(), StateError> {
        let path = self.path(record.id);
        let hidden = path.with_extension("new");
        let written = record.encode().map_err(io::Error::from).and_then(|bytes| {
            let mut options = OpenOptions::new();
            let mut file = options.create(true).truncate(true).write(true).mode(0o600).open(&hidden)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            name(&hidden, &path)?;
            self.sync()
        });
        written.map_err(|source| {
            let _ = fs::remove_file(&hidden);
            failed(&path, "write the record", source)
        })
    }

    /// Removes the record of device `id`, durably; one that is not there is as good.
    ///
    /// # Errors
    /// What the file system says.
    pub(in crate::server) fn forget(&self, id: u32) -> Result<(), StateError> {
        let path = self.path(id);
        match fs::remove_file(&path).and_then(|()| self.sync()) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(failed(&path, "remove the record", source))
            }
            _ => Ok(()),
        }
    }

    /// All that have the name of a record, by number, also those that say nothing here. What has another name is nobody's.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub(in crate::server) fn all(&self) -> Result<Vec<Stored>, StateError> {
        let listing = |source| failed(&self.folder, "list the directory", source);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(listing)? {
            let path = entry.map_err(listing)?.path();
            let Some(id) = id_of(&path) else { continue };
            // Its device may have just gone.
            found.extend(self.one(id));
        }
        found.sort_by_key(|stored| stored.id);
        Ok(found)
    }

    /// What there is under the name of the record of device `id`.
    pub(in crate::server) fn one(&self, id: u32) -> Option<Stored> {
        match read(&self.path(id), id) {
            Err(RecordError::Unreadable(error)) if error.kind() == io::ErrorKind::NotFound => None,
            record => Some(Stored { id, record }),
        }
    }

    /// Removes what a process left that ended while it wrote. Only where nobody writes.
    pub(super) fn sweep(&self) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        let is_hidden = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "new");
        for path in entries.flatten().map(|entry| entry.path()).filter(is_hidden) {
            let _ = fs::remove_file(&path);
        }
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }

    /// Where the record of device `id` is.
    pub(super) fn path(&self, id: u32) -> PathBuf {
        self.folder.join(format!("{id}.json"))
    }
}

/// The number in the name of a record, which is written in one way only.
fn id_of(path: &Path) -> Option<u32> {
    let digits = path.file_name()?.to_str()?.strip_suffix(".json")?;
    digits.parse().ok().filter(|id: &u32| id.to_string() == digits)
}

fn read(path: &Path, id: u32) -> Result<Record, RecordError> {
    let mut bytes = Vec::new();
    let opened = File::open(path).and_then(|file| file.take(MAX_RECORD_BYTES).read_to_end(&mut bytes));
    opened.map_err(RecordError::Unreadable)?;
    let record = Record::decode(&bytes)?;
    if record.id != id {
        return Err(RecordError::Misplaced(record.id));
    }
    Ok(record)
}

fn failed(path: &Path, action: &'static str, source: io::Error) -> StateError {
    StateError::Io { path: path.to_owned(), action, source }
}
