//! Where the bytes of a device go: a file that has holes where the data is zero, and appears under its name only when it is complete, or
//! a stream.

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
};

use super::{Chunk, ExportOutput};
use crate::{
    offline::PartFile,
    server::failure::{Failure, FailureClass},
};

/// Grain of holes: the block of common file systems.
const HOLE_BYTES: usize = 4096;

static ZEROES: [u8; HOLE_BYTES] = [0; HOLE_BYTES];

/// What takes the bytes.
#[derive(Debug)]
pub(super) enum Sink {
    /// A file with holes.
    Sparse(SparseFile),
    /// All bytes one after another.
    Stream(File),
}

impl Sink {
    /// Begins `output` for a device of `size_bytes`.
    pub(super) fn open(output: ExportOutput, size_bytes: u64) -> Result<Self, Failure> {
        match output {
            ExportOutput::File { path, overwrite } => {
                SparseFile::create(&path, overwrite, size_bytes).map(Self::Sparse)
            }
            ExportOutput::Stream(file) => Ok(Self::Stream(file)),
        }
    }

    /// Takes `chunk`, which belongs at `offset`, where the one before it has ended.
    pub(super) fn put(&mut self, offset: u64, chunk: &Chunk) -> Result<(), Failure> {
        match (self, chunk) {
            (Self::Sparse(_), Chunk::Zeroes(_)) => Ok(()),
            (Self::Sparse(file), Chunk::Data(bytes)) => file.write_at(offset, bytes),
            (Self::Stream(file), chunk) => chunk.each(|bytes| {
                file.write_all(bytes).map_err(|source| {
                    Failure::with_source(FailureClass::Internal, "cannot write the device", source)
                })
            }),
        }
    }

    /// Has it all; returns how many bytes of a file hold data.
    pub(super) fn finish(self) -> Result<Option<u64>, Failure> {
        match self {
            Self::Sparse(file) => file.finish().map(Some),
            Self::Stream(_) => Ok(None),
        }
    }
}

/// The file in the making. Dropping it removes it.
#[derive(Debug)]
pub(super) struct SparseFile {
    part: PartFile,
    data_bytes: u64,
}

impl SparseFile {
    /// Begins a file of `size_bytes` that will be called `path`.
    fn create(path: &Path, overwrite: bool, size_bytes: u64) -> Result<Self, Failure> {
        let part = PartFile::create(path, overwrite)?;
        part.file().set_len(size_bytes).map_err(|source| failed(path, "cannot set its size", source))?;
        Ok(Self { part, data_bytes: 0 })
    }

    /// Writes what is not zero of `data`, which belongs at `offset`.
    fn write_at(&mut self, offset: u64, data: &[u8]) -> Result<(), Failure> {
        let mut at = offset;
        let is_data = |block: &[u8]| Some(block) != ZEROES.get(..block.len());
        for run in data.chunks(HOLE_BYTES).collect::<Vec<_>>().chunk_by(|a, b| is_data(a) == is_data(b)) {
            let bytes: usize = run.iter().map(|block| block.len()).sum();
            let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
            if run.first().is_some_and(|block| is_data(block)) {
                let start = usize::try_from(at - offset).unwrap_or(usize::MAX);
                let end = usize::try_from(at - offset + bytes).unwrap_or(usize::MAX);
                self.part
                    .write_at(data.get(start..end).unwrap_or_default(), at)
                    .map_err(|source| failed(self.part.path(), "cannot write it", source))?;
                self.data_bytes += bytes;
            }
            at += bytes;
        }
        Ok(())
    }

    /// Makes it durable and gives it its name; returns how many bytes hold data.
    fn finish(self) -> Result<u64, Failure> {
        self.part.finish()?;
        Ok(self.data_bytes)
    }
}

fn failed(path: &Path, action: &str, source: io::Error) -> Failure {
    Failure::with_source(FailureClass::Internal, format!("{}: {action}", path.display()), source)
}
