//! The bytes of a blob in a buffer, counted and hashed.

use std::io::{self, Read};

use sha2::{Digest as _, Sha256};
use stratabd::format::oci::Digest;

use super::LayerError;

const BUFFER_BYTES: usize = 1 << 16;

/// Hashes what it reads, also what nobody has taken yet.
#[derive(Debug)]
pub(super) struct Source<R> {
    blob: R,
    buffer: Vec<u8>,
    /// Of the buffer, what was read and not yet taken.
    start: usize,
    end: usize,
    hash: Sha256,
    /// All that was read.
    read_bytes: u64,
}

impl<R: Read> Source<R> {
    pub(super) fn new(blob: R) -> Self {
        Self { blob, buffer: vec![0; BUFFER_BYTES], start: 0, end: 0, hash: Sha256::new(), read_bytes: 0 }
    }

    /// Of the next byte to be taken.
    pub(super) fn offset(&self) -> u64 {
        self.read_bytes.saturating_sub(self.buffered().len() as u64)
    }

    fn buffered(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// The next bytes: at least `wanted`, which a buffer has room for, or all up to the end of the blob.
    pub(super) fn peek(&mut self, wanted: usize) -> Result<&[u8], LayerError> {
        while self.buffered().len() < wanted && self.read()? > 0 {}
        Ok(self.buffered())
    }

    pub(super) fn take(&mut self, len: usize) {
        self.start = self.start.saturating_add(len).min(self.end);
    }

    /// 0 at the end.
    fn read(&mut self) -> Result<usize, LayerError> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end = self.end.saturating_sub(self.start);
        self.start = 0;
        let room = self.buffer.get_mut(self.end..).unwrap_or_default();
        let read = loop {
            match self.blob.read(room) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        let read = read.map_err(|error| LayerError::Io { offset: self.read_bytes, error })?;
        self.hash.update(room.get(..read).unwrap_or_default());
        self.end = self.end.saturating_add(read).min(self.buffer.len());
        self.read_bytes = self.read_bytes.saturating_add(read as u64);
        Ok(read)
    }

    /// Digest and length of all that was read.
    pub(super) fn finish(self) -> (Digest, u64) {
        (Digest::from_hash(self.hash.finalize().into()), self.read_bytes)
    }
}
