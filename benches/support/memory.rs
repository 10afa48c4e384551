//! A blob in memory.

use stratabd::{
    block::ByteRange,
    reactor::Reactor,
    source::{BlobSource, LocalFuture, Readiness, SourceError, check_bounds},
};

#[derive(Debug)]
pub(crate) struct MemoryBlob(pub(crate) Vec<u8>);

impl BlobSource for MemoryBlob {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn name(&self) -> &'static str {
        "memory"
    }

    fn try_read(&self, offset: u64, dest: &mut [u8]) -> Result<Readiness, SourceError> {
        let range = check_bounds(self.name(), self.size_bytes(), offset, dest.len())?;
        dest.copy_from_slice(self.0.get(range.start() as usize..range.end() as usize).unwrap_or_default());
        Ok(Readiness::Done)
    }

    fn read<'a>(
        &'a self,
        _reactor: &'a Reactor,
        offset: u64,
        dest: &'a mut [u8],
    ) -> LocalFuture<'a, Result<(), SourceError>> {
        Box::pin(async move { self.try_read(offset, dest).map(drop) })
    }

    fn fetch<'a>(&'a self, _ranges: &'a [ByteRange]) -> LocalFuture<'a, Result<(), SourceError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn invalidate(&self, _range: ByteRange) -> bool {
        false
    }
}
