//! A layer's blob as its registry has it, read as the plain tar archive that it stands for.
//!
//! What it is compressed with is told by its first bytes: media types lie, and containerd does not believe them either. gzip may have
//! several members, as eStargz and parallel compressors write them; zstd several frames, and such to be skipped, as zstd:chunked has behind
//! its data. Nothing else may follow: what other readers would pass over in silence is an error that says where it begins.
//!
//! Memory: 128 KiB, and what the decoder takes, of which the window is most: 32 KiB for gzip, and for zstd what a frame asks for, up to
//! 128 MiB. Beyond that `zstd -d` refuses a frame, too.

mod decoder;
mod error;
mod source;

use std::io::{self, Read};

use sha2::{Digest as _, Sha256};
use stratabd::format::oci::Digest;

pub use decoder::Compression;
use decoder::Decoder;
pub use error::LayerError;
use source::Source;

/// What a blob and the archive in it are called by their content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerSummary {
    /// What the manifest names.
    pub blob_digest: Digest,
    /// Length of the blob.
    pub blob_bytes: u64,
    /// What the configuration names: the digest of the archive, with all that follows its end.
    pub diff_id: Digest,
    /// Length of the archive, with all that follows its end.
    pub archive_bytes: u64,
}

/// Gives the archive in a blob, and hashes both.
#[derive(Debug)]
pub struct LayerReader<R> {
    source: Source<R>,
    decoder: Decoder,
    hash: Sha256,
    archive_bytes: u64,
}

impl<R: Read> LayerReader<R> {
    /// Reads the first bytes of `blob`, which say how it is compressed.
    ///
    /// # Errors
    /// [`LayerError`] where they cannot be read, or name a compression that no layer has.
    pub fn new(blob: R) -> Result<Self, LayerError> {
        let mut source = Source::new(blob);
        let decoder = Decoder::of(source.peek(Compression::MAGIC_BYTES)?)?;
        Ok(Self { source, decoder, hash: Sha256::new(), archive_bytes: 0 })
    }

    /// How the blob is compressed.
    pub fn compression(&self) -> Compression {
        self.decoder.compression()
    }

    /// Puts the next bytes of the archive into `dest` and says how many; 0 at the end, or if `dest` has no room.
    ///
    /// # Errors
    /// [`LayerError`]; what was given before it may be wrong, too.
    pub fn fill(&mut self, dest: &mut [u8]) -> Result<usize, LayerError> {
        let filled = if dest.is_empty() { 0 } else { self.decoder.fill(&mut self.source, dest)? };
        self.hash.update(dest.get(..filled).unwrap_or_default());
        self.archive_bytes = self.archive_bytes.saturating_add(filled as u64);
        Ok(filled)
    }

    /// Reads what is left, and gives the digests of all.
    ///
    /// # Errors
    /// As [`fill`](Self::fill).
    pub fn finish(mut self) -> Result<LayerSummary, LayerError> {
        let mut rest = vec![0; 1 << 16];
        while self.fill(&mut rest)? > 0 {}
        let (blob_digest, blob_bytes) = self.source.finish();
        let diff_id = Digest::from_hash(self.hash.finalize().into());
        Ok(LayerSummary { blob_digest, blob_bytes, diff_id, archive_bytes: self.archive_bytes })
    }
}

/// As [`LayerReader::fill`], with the [`LayerError`] inside of the error.
impl<R: Read> Read for LayerReader<R> {
    fn read(&mut self, dest: &mut [u8]) -> io::Result<usize> {
        self.fill(dest).map_err(|error| match error {
            LayerError::Io { error, .. } => error,
            error => io::Error::new(io::ErrorKind::InvalidData, error),
        })
    }
}

#[cfg(test)]
mod tests;
