//! The state directory: the lock of the one daemon, and a record of each device for the next one.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::api::types::AddDevice;

/// A record is an image specification of at most 255 paths and some numbers.
const MAX_RECORD_BYTES: u64 = 2 << 20;

/// Number of the record's format; a record of another one is reported and left alone.
const RECORD_VERSION: u32 = 1;

/// What is remembered of one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    version: u32,
    /// The number of the device.
    pub id: u32,
    /// The request that made it.
    pub request: AddDevice,
}

impl Record {
    /// The record of device `id`.
    #[must_use]
    pub fn new(id: u32, request: AddDevice) -> Self {
        Self { version: RECORD_VERSION, id, request }
    }

    /// Reads a record as it was saved.
    ///
    /// # Errors
    /// When it is none, or one of another version.
    pub fn decode(bytes: &[u8]) -> io::Result<Self> {
        let record: Self = serde_json::from_slice(bytes)?;
        if record.version != RECORD_VERSION {
            return Err(io::Error::other(format!(
                "record version {} is not {RECORD_VERSION}",
                record.version
            )));
        }
        Ok(record)
    }
}

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
    devices: PathBuf,
    lock: File,
}

impl StateDir {
    /// Makes the directory where it is missing and takes its lock, which lasts until this is dropped.
    ///
    /// # Errors
    /// When another process has the lock, or the directory cannot be used.
    pub fn open(dir: &Path) -> Result<Self, StateError> {
        let devices = dir.join("devices");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&devices).map_err(|source| {
            StateError::Io { path: devices.clone(), action: "make the directory", source }
        })?;
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
                sweep(&devices);
                Ok(Self { devices, lock })
            }
            Err(rustix::io::Errno::WOULDBLOCK) => Err(StateError::Locked { path }),
            Err(errno) => Err(StateError::Io { path, action: "take the lock", source: errno.into() }),
        }
    }

    /// Writes `record`, all of it or nothing.
    ///
    /// # Errors
    /// What the file system says; then the former record, if any, is as it was.
    pub fn save(&self, record: &Record) -> Result<(), StateError> {
        let path = self.path(record.id);
        let hidden = path.with_extension("new");
        let written = serde_json::to_vec(record).map_err(io::Error::from).and_then(|bytes| {
            let mut options = OpenOptions::new();
            let mut file = options.create(true).truncate(true).write(true).mode(0o600).open(&hidden)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&hidden, &path)
        });
        written.map_err(|source| {
            let _ = fs::remove_file(&hidden);
            StateError::Io { path, action: "write the record", source }
        })
    }

    /// Removes the record of device `id`; one that is not there is as good.
    ///
    /// # Errors
    /// What the file system says.
    pub fn forget(&self, id: u32) -> Result<(), StateError> {
        let path = self.path(id);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(StateError::Io { path, action: "remove the record", source })
            }
            _ => Ok(()),
        }
    }

    /// All records that can be read, by number; those that cannot are logged and stay.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub fn records(&self) -> Result<Vec<Record>, StateError> {
        let listing =
            |source| StateError::Io { path: self.devices.clone(), action: "list the directory", source };
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.devices).map_err(listing)? {
            let path = entry.map_err(listing)?.path();
            if !has_extension(&path, "json") {
                continue;
            }
            match read_record(&path) {
                Ok(record) if self.path(record.id) == path => records.push(record),
                Ok(record) => {
                    tracing::warn!(path = %path.display(), id = record.id, "a record under another's name is ignored");
                }
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a record cannot be read and is ignored")
                }
            }
        }
        records.sort_by_key(|record| record.id);
        Ok(records)
    }

    fn path(&self, id: u32) -> PathBuf {
        self.devices.join(format!("{id}.json"))
    }
}

impl Drop for StateDir {
    /// Closing the file would end the lock too, but not while a program that this process is just starting still has its files.
    fn drop(&mut self) {
        // One that cannot be given back goes with the file.
        let _ = flock(&self.lock, FlockOperation::Unlock);
    }
}

/// Removes what a process left that ended while it wrote. Only with the lock newly taken: later, such a file is being written.
fn sweep(devices: &Path) {
    let Ok(entries) = fs::read_dir(devices) else { return };
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| has_extension(path, "new")) {
        let _ = fs::remove_file(&path);
    }
}

fn has_extension(path: &Path, wanted: &str) -> bool {
    path.extension().is_some_and(|extension| extension == wanted)
}

fn read_record(path: &Path) -> io::Result<Record> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_RECORD_BYTES).read_to_end(&mut bytes)?;
    Record::decode(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::api::types::ImageSpec;

    fn record(id: u32) -> Record {
        let image = ImageSpec::Config("/i/config.v1.json".into());
        Record::new(
            id,
            AddDevice { image, platform: None, id: Some(id), queues: None, depth: Some(64), upper: None },
        )
    }

    #[test]
    fn records_come_back_until_they_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        for id in [10, 2] {
            state.save(&record(id)).unwrap();
        }
        assert_eq!(state.records().unwrap(), [record(2), record(10)]);
        state.forget(2).unwrap();
        state.forget(2).unwrap();
        assert_eq!(state.records().unwrap(), [record(10)]);
    }

    #[test]
    fn a_torn_or_strange_record_harms_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        state.save(&record(1)).unwrap();
        let devices = dir.path().join("devices");
        fs::write(devices.join("2.json"), b"{\"version\":1,\"id\":2").unwrap();
        fs::write(devices.join("3.json"), serde_json::to_vec(&record(4)).unwrap()).unwrap();
        let future = serde_json::to_string(&record(6)).unwrap().replace("\"version\":1", "\"version\":2");
        fs::write(devices.join("6.json"), future).unwrap();
        assert_eq!(state.records().unwrap(), [record(1)]);
        assert!(devices.join("6.json").exists(), "a record of a newer version is kept");
    }

    #[test]
    fn a_record_that_is_being_written_survives_a_listing_and_not_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let half = dir.path().join("devices/5.new");
        fs::write(&half, b"half").unwrap();
        assert_eq!(state.records().unwrap(), []);
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
