//! The file that a tool makes around its payload: under its name only when it is whole, and in an envelope where that is wanted.

use std::{
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::{OfflineError, PartFile};
use crate::format::tar::Envelope;

/// The file in the making. Dropping it leaves nothing.
#[derive(Debug)]
pub(super) struct Output {
    part: PartFile,
    path: PathBuf,
    tar: bool,
    payload_bytes: u64,
}

impl Output {
    /// Begins the file `path`. The head of an envelope is a hole until the end, so that nobody takes the file for whole.
    pub(super) fn create(path: &Path, tar: bool, overwrite: bool) -> Result<Self, OfflineError> {
        let part = PartFile::create(path, overwrite)?;
        Ok(Self { part, path: path.to_owned(), tar, payload_bytes: 0 })
    }

    /// Begins the file `path`, which its owner alone may read, without an envelope.
    pub(super) fn create_private(path: &Path) -> Result<Self, OfflineError> {
        let part = PartFile::create_private(path, false)?;
        Ok(Self { part, path: path.to_owned(), tar: false, payload_bytes: 0 })
    }

    /// The name that it will have.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends to the payload.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), OfflineError> {
        let end = self.start().saturating_add(self.payload_bytes);
        self.part.write_at(bytes, end).map_err(OfflineError::io(&self.path, "write it"))?;
        self.payload_bytes = self.payload_bytes.saturating_add(bytes.len() as u64);
        Ok(())
    }

    /// Writes `header` over the start of the payload, closes the envelope, and makes the file what it is called; returns its
    /// size in bytes.
    pub(super) fn finish(mut self, header: &[u8]) -> Result<u64, OfflineError> {
        let payload_bytes = self.payload_bytes;
        let start = self.start();
        let head = if self.tar { Envelope::head(payload_bytes) } else { Vec::new() };
        if self.tar {
            self.write(&Envelope::tail(payload_bytes))?;
        }
        let written = OfflineError::io(&self.path, "write it");
        self.part.file().write_all_at(&[&head, header].concat(), 0).map_err(written)?;
        self.part.finish()?;
        Ok(start.saturating_add(self.payload_bytes))
    }

    /// Where the payload begins in the file, in bytes.
    fn start(&self) -> u64 {
        if self.tar { Envelope::HEAD_BYTES } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn a_private_file_is_so_while_it_is_being_made() {
        let dir = tempfile::tempdir().unwrap();
        let mut output = Output::create_private(&dir.path().join("layer")).unwrap();
        output.write(b"secret").unwrap();
        let made: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap()).collect();
        assert_eq!(made.len(), 1);
        assert_eq!(made[0].metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(output.finish(&[]).unwrap(), 6);
    }
}
