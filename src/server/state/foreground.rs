//! Records of devices that a process of its own serves, without a daemon. Each has a lock, which its process holds for as long as it
//! lives: so a record without one is that of a process that has died.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use super::{Records, StateDir, StateError, Stored};

/// Where they are, beside those of the daemon.
#[derive(Debug, Clone)]
pub(in crate::server) struct ForegroundRecords {
    records: Records,
    folder: PathBuf,
}

/// The lock of one record.
#[derive(Debug)]
pub(in crate::server) struct RecordLock {
    path: PathBuf,
    file: File,
}

impl ForegroundRecords {
    /// Those of the state directory `dir`, which is made where it is missing.
    ///
    /// # Errors
    /// What the file system says.
    pub(in crate::server) fn open(dir: &Path) -> Result<Self, StateError> {
        let folder = dir.join("foreground");
        Ok(Self { records: Records::open(folder.clone())?, folder })
    }

    /// The records, each to be written to by who has its lock.
    pub(in crate::server) fn records(&self) -> &Records {
        &self.records
    }

    /// Takes the lock of the record of device `id`, whether or not there is such a record.
    ///
    /// # Errors
    /// [`StateError::Served`] where a process has it, and what the file system says.
    pub(in crate::server) fn lock(&self, id: u32) -> Result<RecordLock, StateError> {
        let path = self.folder.join(format!("{id}.lock"));
        let failed = |source| StateError::Io { path: path.clone(), action: "take the lock", source };
        loop {
            let mut options = OpenOptions::new();
            let file =
                options.create(true).truncate(false).write(true).mode(0o600).open(&path).map_err(failed)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if is_at(&file, &path).map_err(failed)? => return Ok(RecordLock { path, file }),
                // Its last holder has just removed it.
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Err(StateError::Served { id, path }),
                Err(errno) => return Err(failed(errno.into())),
            }
        }
    }

    /// All records, by number.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub(in crate::server) fn all(&self) -> Result<Vec<Stored>, StateError> {
        self.records.all()
    }
}

impl Drop for RecordLock {
    /// Removes it first, so that nobody has the lock of a file that has no name.
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

/// Whether `path` still names `file`.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let opened = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (opened.dev(), opened.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// A record that a dead process has left. Nobody else takes it as long as this lives.
#[derive(Debug)]
pub(in crate::server) struct LeftRecord {
    /// What it says.
    pub(in crate::server) stored: Stored,
    records: Records,
    lock: LeftLock,
}

/// What keeps others from it.
#[derive(Debug)]
enum LeftLock {
    OfRecord(RecordLock),
    OfDaemon(StateDir),
}

impl LeftRecord {
    /// That of device `id` in the state directory `dir`: of a process that served it alone, or, unless `has_daemon`, of a daemon.
    ///
    /// # Errors
    /// [`StateError::Served`] and [`StateError::Locked`] where its process lives, and what the file system says.
    pub(in crate::server) fn find(dir: &Path, id: u32, has_daemon: bool) -> Result<Option<Self>, StateError> {
        if !dir.is_dir() {
            return Ok(None);
        }
        let foreground = ForegroundRecords::open(dir)?;
        if foreground.records.one(id).is_some() {
            let lock = foreground.lock(id)?;
            // It may have gone meanwhile, in good order.
            let Some(stored) = foreground.records.one(id) else { return Ok(None) };
            return Ok(Some(Self { stored, records: foreground.records, lock: LeftLock::OfRecord(lock) }));
        }
        if has_daemon || !dir.join(format!("devices/{id}.json")).exists() {
            return Ok(None);
        }
        let state = StateDir::open(dir)?;
        let records = state.records().clone();
        let stored = records.one(id);
        Ok(stored.map(|stored| Self { stored, records, lock: LeftLock::OfDaemon(state) }))
    }

    /// Has it be that of a process that serves the device alone, in the same state directory, whose lock comes with it.
    ///
    /// # Errors
    /// What the file system says.
    pub(in crate::server) fn into_foreground(self, dir: &Path) -> Result<(Records, RecordLock), StateError> {
        let state = match self.lock {
            LeftLock::OfRecord(lock) => return Ok((self.records, lock)),
            LeftLock::OfDaemon(state) => state,
        };
        let foreground = ForegroundRecords::open(dir)?;
        let lock = foreground.lock(self.stored.id)?;
        if let Ok(record) = &self.stored.record {
            foreground.records.create(record)?;
            state.records().forget(self.stored.id)?;
        }
        Ok((foreground.records, lock))
    }

    /// Removes it, now that another record says the same.
    ///
    /// # Errors
    /// What the file system says.
    pub(in crate::server) fn forget(self) -> Result<(), StateError> {
        self.records.forget(self.stored.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::{
        api::types::{AddDevice, ImageSpec},
        state::{Phase, Record},
    };

    fn record(id: u32) -> Record {
        Record::new(id, AddDevice::of(ImageSpec::Config("/i/c.json".into()))).in_phase(Phase::Live)
    }

    fn names(dir: &Path) -> Vec<String> {
        let names = fs::read_dir(dir.join("foreground")).unwrap();
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_record_is_its_process_s_until_that_dies_and_then_whoevers_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        let foreground = ForegroundRecords::open(dir.path()).unwrap();
        let lock = foreground.lock(5).unwrap();
        foreground.records().create(&record(5)).unwrap();
        assert!(matches!(LeftRecord::find(dir.path(), 5, false), Err(StateError::Served { id: 5, .. })));
        drop(lock);
        let left = LeftRecord::find(dir.path(), 5, true).unwrap().unwrap();
        assert_eq!(left.stored.record.as_ref().unwrap(), &record(5));
        assert!(LeftRecord::find(dir.path(), 5, true).is_err(), "somebody has it");
        left.forget().unwrap();
        assert!(names(dir.path()).is_empty(), "neither record nor lock is left");
        assert!(LeftRecord::find(dir.path(), 5, true).unwrap().is_none());
    }

    #[test]
    fn a_record_of_a_daemon_is_left_when_that_has_died() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        state.records().create(&record(3)).unwrap();
        assert!(matches!(LeftRecord::find(dir.path(), 3, false), Err(StateError::Locked { .. })));
        assert!(LeftRecord::find(dir.path(), 3, true).unwrap().is_none(), "the daemon asks for others");
        drop(state);
        let left = LeftRecord::find(dir.path(), 3, false).unwrap().unwrap();
        assert!(StateDir::open(dir.path()).is_err(), "no daemon starts meanwhile");
        left.forget().unwrap();
        assert!(StateDir::open(dir.path()).unwrap().records().all().unwrap().is_empty());
    }
}
