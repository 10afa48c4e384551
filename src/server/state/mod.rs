//! The state directory: the lock of the one daemon, and a record of each device for the next one.

mod foreground;
mod kept;
#[cfg(debug_assertions)]
mod later;
mod record;
mod records;

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

pub(in crate::server) use foreground::{ForegroundRecords, LeftRecord, RecordLock};
pub(in crate::server) use kept::{KeptRecord, on_disk};
pub use record::{FrontendKind, Granted, Phase, Record, RecordError};
pub(in crate::server) use records::Records;
pub use records::Stored;

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// Another daemon has it.
    #[error("{} is locked: another stratabd runs with this state directory", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// There is a record of this number, of a device that waits or that another version knows.
    #[error("{} is the record of another device {id}", path.display())]
    Taken {
        /// The number.
        id: u32,
        /// The record.
        path: PathBuf,
    },
    /// A process that serves the device without a daemon lives.
    #[error("device {id} is served by a process of its own, which has {}", path.display())]
    Served {
        /// The number.
        id: u32,
        /// Its lock.
        path: PathBuf,
    },
    /// A file could not be made, read or removed.
    #[error("{}: cannot {action}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

/// The state directory, locked.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    records: Records,
    lock: File,
}

impl StateDir {
    /// Makes the directory where it is missing and takes its lock, which lasts until this is dropped.
    ///
    /// # Errors
    /// When another process has the lock, or the directory cannot be used.
    pub fn open(dir: &Path) -> Result<Self, StateError> {
        let records = Records::open(dir.join("devices"))?;
        let path = dir.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|source| StateError::Io { path: path.clone(), action: "open the lock", source })?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                // With the lock newly taken: later, such a file is being written.
                records.sweep();
                Ok(Self { path: dir.to_owned(), records, lock })
            }
            Err(rustix::io::Errno::WOULDBLOCK) => Err(StateError::Locked { path }),
            Err(errno) => Err(StateError::Io { path, action: "take the lock", source: errno.into() }),
        }
    }

    /// The records in `dir`, which another process may have: each is there whole.
    ///
    /// # Errors
    /// When the directory cannot be used.
    pub(in crate::server) fn look(dir: &Path) -> Result<Vec<Stored>, StateError> {
        Records::open(dir.join("devices"))?.all()
    }

    /// All records in `dir`, also those of processes that serve one device alone; nothing is made there.
    ///
    /// # Errors
    /// When a folder cannot be listed.
    pub(in crate::server) fn all_of(dir: &Path) -> Result<Vec<Stored>, StateError> {
        let mut all = Vec::new();
        for folder in
            ["devices", "foreground"].map(|name| dir.join(name)).into_iter().filter(|it| it.is_dir())
        {
            all.extend(Records::open(folder)?.all()?);
        }
        Ok(all)
    }

    /// Where it is.
    pub(in crate::server) fn path(&self) -> &Path {
        &self.path
    }

    /// The records of its devices, to be written to for as long as this lives.
    pub(in crate::server) fn records(&self) -> &Records {
        &self.records
    }
}

impl Drop for StateDir {
    /// Closing the file would end the lock too, but not while a program that this process is just starting still has its files.
    fn drop(&mut self) {
        // One that cannot be given back goes with the file.
        let _ = flock(&self.lock, FlockOperation::Unlock);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::server::api::types::{AddDevice, ImageSpec};

    fn record(id: u32) -> Record {
        let image = ImageSpec::Config("/i/config.v1.json".into());
        Record::new(id, AddDevice { id: Some(id), depth: Some(64), ..AddDevice::of(image) })
    }

    /// The records that are understood, and the numbers of those that are not.
    fn found(state: &StateDir) -> (Vec<Record>, Vec<u32>) {
        let (mut known, mut others) = (Vec::new(), Vec::new());
        for stored in state.records.all().unwrap() {
            stored.record.map_or_else(|_| others.push(stored.id), |record| known.push(record));
        }
        (known, others)
    }

    #[test]
    fn records_come_back_until_they_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        for id in [10, 2] {
            state.records.create(&record(id)).unwrap();
        }
        assert_eq!(found(&state).0, [record(2), record(10)]);
        let live = record(2).in_phase(Phase::Live);
        state.records.save(&live).unwrap();
        assert_eq!(found(&state).0, [live, record(10)]);
        state.records.forget(2).unwrap();
        state.records.forget(2).unwrap();
        assert_eq!(found(&state).0, [record(10)]);
        assert_eq!(fs::read_dir(dir.path().join("devices")).unwrap().count(), 1);
    }

    #[test]
    fn a_record_of_another_device_is_never_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let path = dir.path().join("devices/2.json");
        for there in [serde_json::to_string(&record(2)).unwrap(), "torn".to_owned()] {
            fs::write(&path, &there).unwrap();
            assert!(matches!(state.records.create(&record(2)), Err(StateError::Taken { id: 2, .. })));
            assert_eq!(fs::read_to_string(&path).unwrap(), there);
        }
        assert_eq!(
            fs::read_dir(dir.path().join("devices")).unwrap().count(),
            1,
            "nothing is left of the try"
        );
    }

    #[test]
    fn a_torn_or_strange_record_harms_no_other_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        state.records.create(&record(1)).unwrap();
        let devices = dir.path().join("devices");
        fs::write(devices.join("2.json"), b"{\"version\":1,\"id\":2").unwrap();
        fs::write(devices.join("3.json"), serde_json::to_vec(&record(4)).unwrap()).unwrap();
        let future = serde_json::to_string(&record(6)).unwrap().replace("_by\":2", "_by\":3");
        fs::write(devices.join("6.json"), future).unwrap();
        for strange in ["07.json", "+8.json", "x.json", "9.txt"] {
            fs::write(devices.join(strange), b"").unwrap();
        }
        assert_eq!(found(&state), (vec![record(1)], vec![2, 3, 6]));
        let others: Vec<bool> = state
            .records
            .all()
            .unwrap()
            .iter()
            .filter_map(|stored| Some(stored.record.as_ref().err()?.is_of_another()))
            .collect();
        assert_eq!(others, [false, false, true]);
    }

    #[test]
    fn a_record_that_is_being_written_survives_a_listing_and_not_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let half = dir.path().join("devices/5.new");
        fs::write(&half, b"half").unwrap();
        assert_eq!(found(&state), (vec![], vec![]));
        assert!(half.exists());
        drop(state);
        StateDir::open(dir.path()).unwrap();
        assert!(!half.exists());
    }

    #[test]
    fn a_second_daemon_is_refused_until_the_first_has_gone() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateDir::open(dir.path()).unwrap();
        assert!(matches!(StateDir::open(dir.path()), Err(StateError::Locked { .. })));
        drop(first);
        StateDir::open(dir.path()).unwrap();
    }
}
