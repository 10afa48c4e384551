//! Memory that outlives a process and not the machine: the folder of the journals, and what was in it at each event of a disk.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{ErrorKind, Read},
    path::Path,
};

use tempfile::TempDir;

/// More than any file of the folder has.
const MOST_BYTES: u64 = 1 << 20;

/// The files of the folder.
pub(super) type Files = BTreeMap<String, Vec<u8>>;

#[derive(Debug)]
pub(super) struct Memory {
    folder: TempDir,
    /// What was there before each event; `None` where nobody wants to know.
    history: Option<Vec<Files>>,
}

impl Memory {
    pub(super) fn of(files: &Files) -> Self {
        let folder = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, bytes)| fs::write(folder.path().join(name), bytes).unwrap());
        Self { folder, history: None }
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// What is there now.
    pub(super) fn now(&self) -> Files {
        let entries = fs::read_dir(self.path()).unwrap().map(|entry| entry.unwrap());
        let file = |entry: fs::DirEntry| {
            let name = entry.file_name().into_string().unwrap();
            let mut bytes = Vec::new();
            match File::open(entry.path()).and_then(|file| file.take(MOST_BYTES).read_to_end(&mut bytes)) {
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                read => read.map(|_| Some((name, bytes))).unwrap(),
            }
        };
        entries.filter_map(file).collect()
    }

    /// Remembers from now on what is there before each event.
    pub(super) fn watch(&mut self) {
        self.history = Some(Vec::new());
    }

    /// Something is about to happen to the disk.
    pub(super) fn before_event(&mut self) {
        if self.history.is_some() {
            let now = self.now();
            self.history.iter_mut().for_each(|history| history.push(now.clone()));
        }
    }

    /// What was there before each event since it was watched, and what is there now.
    pub(super) fn take_history(&mut self) -> Vec<Files> {
        let mut history = self.history.take().unwrap();
        history.push(self.now());
        history
    }
}
