//! A file that has holes where the data is zero, and appears under its name only when it is complete.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::server::failure::{Failure, FailureClass};

/// Grain of holes: the block of common file systems.
const HOLE_BYTES: usize = 4096;

static ZEROES: [u8; HOLE_BYTES] = [0; HOLE_BYTES];

/// The file in the making. Dropping it removes it.
#[derive(Debug)]
pub(super) struct SparseFile {
    file: File,
    path: PathBuf,
    hidden: Option<PathBuf>,
    overwrite: bool,
    data_bytes: u64,
}

impl SparseFile {
    /// Begins a file of `size_bytes` that will be called `path`.
    pub(super) fn create(path: &Path, overwrite: bool, size_bytes: u64) -> Result<Self, Failure> {
        match fs::symlink_metadata(path) {
            Ok(_) if !overwrite => return Err(exists(path)),
            Ok(found) if !found.is_file() => {
                let text = format!("{}: not a regular file, which alone can be replaced", path.display());
                return Err(Failure::new(FailureClass::Conflict, text));
            }
            _ => {}
        }
        let mut name = OsString::from(".");
        name.push(path.file_name().ok_or_else(|| {
            Failure::new(FailureClass::Usage, format!("{}: not the name of a file", path.display()))
        })?);
        name.push(format!(".{}.part", std::process::id()));
        let hidden = path.with_file_name(name);
        let opened = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&hidden);
        let file = opened.map_err(|source| failed(path, "cannot make it", source))?;
        let made = Self { file, path: path.to_owned(), hidden: Some(hidden), overwrite, data_bytes: 0 };
        made.file.set_len(size_bytes).map_err(|source| failed(path, "cannot set its size", source))?;
        Ok(made)
    }

    /// Writes what is not zero of `data`, which belongs at `offset`.
    pub(super) fn write_at(&mut self, offset: u64, data: &[u8]) -> Result<(), Failure> {
        let mut at = offset;
        let is_data = |block: &[u8]| Some(block) != ZEROES.get(..block.len());
        for run in data.chunks(HOLE_BYTES).collect::<Vec<_>>().chunk_by(|a, b| is_data(a) == is_data(b)) {
            let bytes: usize = run.iter().map(|block| block.len()).sum();
            let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
            if run.first().is_some_and(|block| is_data(block)) {
                let start = usize::try_from(at - offset).unwrap_or(usize::MAX);
                let end = usize::try_from(at - offset + bytes).unwrap_or(usize::MAX);
                self.file
                    .write_all_at(data.get(start..end).unwrap_or_default(), at)
                    .map_err(|source| failed(&self.path, "cannot write it", source))?;
                self.data_bytes += bytes;
            }
            at += bytes;
        }
        Ok(())
    }

    /// Makes it durable and gives it its name; returns how many bytes hold data.
    pub(super) fn finish(mut self) -> Result<u64, Failure> {
        self.file.sync_all().map_err(|source| failed(&self.path, "cannot make it durable", source))?;
        let Some(hidden) = self.hidden.as_ref() else { return Ok(self.data_bytes) };
        let flags = if self.overwrite { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        match renameat_with(CWD, hidden, CWD, &self.path, flags) {
            Err(rustix::io::Errno::EXIST) => return Err(exists(&self.path)),
            // Not every file system has the flag.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) if !self.path.exists() => {
                fs::rename(hidden, &self.path)
                    .map_err(|source| failed(&self.path, "cannot name it", source))?;
            }
            Err(errno) => return Err(failed(&self.path, "cannot name it", errno.into())),
            Ok(()) => {}
        }
        self.hidden = None;
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))
            .and_then(|dir| dir.sync_all())
            .map_err(|source| failed(&self.path, "cannot make its name durable", source))?;
        Ok(self.data_bytes)
    }
}

impl Drop for SparseFile {
    fn drop(&mut self) {
        if let Some(hidden) = &self.hidden {
            // A part that cannot be removed is named as one.
            let _ = fs::remove_file(hidden);
        }
    }
}

fn exists(path: &Path) -> Failure {
    Failure::new(FailureClass::Conflict, format!("{}: exists already (--force replaces it)", path.display()))
}

fn failed(path: &Path, action: &str, source: io::Error) -> Failure {
    Failure::with_source(FailureClass::Internal, format!("{}: {action}", path.display()), source)
}
