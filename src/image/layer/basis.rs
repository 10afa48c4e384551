//! The bytes of a blob that its layer was made of, which may turn out to have been wrong: headers, tables, indexes and trailers.

use sha2::{Digest, Sha256, digest::Output};

use super::{ATTEMPTS, nearby::in_memory};
use crate::{
    block::ByteRange,
    reactor::Reactor,
    source::{BlobSource, SourceError},
};

/// Bytes that are read at once to be looked at again.
const PART_BYTES: u64 = 128 << 10;

/// Where they lie, and what they were.
#[derive(Debug)]
pub(super) struct Basis {
    ranges: Vec<ByteRange>,
    digest: Output<Sha256>,
}

impl Basis {
    /// That of these bytes, in this order.
    pub(super) fn of(parts: impl IntoIterator<Item = (ByteRange, impl AsRef<[u8]>)>) -> Self {
        let mut hasher = Sha256::new();
        let ranges = parts.into_iter().map(|(range, bytes)| {
            hasher.update(bytes);
            range
        });
        Self { ranges: ranges.collect(), digest: hasher.finalize() }
    }

    /// Whether `source` has the same bytes now. Other ones are asked for again, three times in all.
    ///
    /// # Errors
    /// When they cannot be had.
    pub(super) async fn is_still_in(
        &self,
        source: &dyn BlobSource,
        reactor: &Reactor,
    ) -> Result<bool, SourceError> {
        for _ in 1..ATTEMPTS {
            if self.digest_in(source, reactor).await? == self.digest {
                return Ok(true);
            }
            let forgotten = self.ranges.iter().filter(|range| source.invalidate(**range)).count();
            if forgotten == 0 {
                return Ok(false);
            }
        }
        Ok(self.digest_in(source, reactor).await? == self.digest)
    }

    async fn digest_in(
        &self,
        source: &dyn BlobSource,
        reactor: &Reactor,
    ) -> Result<Output<Sha256>, SourceError> {
        source.fetch(&self.ranges).await?;
        let mut hasher = Sha256::new();
        let mut part = Vec::new();
        for range in &self.ranges {
            let mut at = range.start();
            while at < range.end() {
                let len = PART_BYTES.min(range.end() - at);
                part.resize(in_memory(len), 0);
                reactor.stretch().await;
                source.read(reactor, at, &mut part).await?;
                hasher.update(&part);
                // About as much work as decoding them.
                reactor.decoded(part.len());
                at += len;
            }
        }
        Ok(hasher.finalize())
    }
}
