//! A blob read straight from its origin, for when there is no cache or it cannot be used.

use std::sync::Arc;

use futures_util::{StreamExt, stream};

use super::{
    BlobSource, LocalFuture, Origin, Place, Readiness, SourceError, Urgency, file::check_bounds,
    origin::check_length,
};
use crate::{
    block::ByteRange,
    reactor::{Reactor, waiting_for},
};

/// Largest range asked for at once; bounds the memory of one answer.
const PART_BYTES: usize = 1 << 20;

/// Parts of one read that are under way at once: a read of the block layer's 1 MiB costs one round trip.
const PARTS_AT_ONCE: usize = 4;

/// Asks the origin for each read and remembers nothing.
#[derive(Debug, Clone)]
pub struct Uncached {
    origin: Arc<dyn Origin>,
}

impl Uncached {
    /// Reads from `origin`.
    #[must_use]
    pub fn new(origin: Arc<dyn Origin>) -> Self {
        Self { origin }
    }

    async fn read_all(&self, offset: u64, dest: &mut [u8]) -> Result<(), SourceError> {
        let range = check_bounds(self.origin.name(), self.origin.size_bytes(), offset, dest.len())?;
        let parts = (range.start()..range.end())
            .step_by(PART_BYTES)
            .map(|start| ByteRange::between(start, start.saturating_add(PART_BYTES as u64).min(range.end())));
        let mut answers = stream::iter(parts)
            .map(|part| {
                let answer = self.origin.read_range(part, Urgency::Demand);
                async move { answer.await.and_then(|bytes| check_length(self.origin.name(), part, bytes)) }
            })
            .buffered(PARTS_AT_ONCE);
        let mut rest = dest;
        while let Some(bytes) = answers.next().await {
            let bytes = bytes?;
            let Some((filled, left)) = rest.split_at_mut_checked(bytes.len()) else { break };
            filled.copy_from_slice(&bytes);
            rest = left;
        }
        Ok(())
    }
}

impl BlobSource for Uncached {
    fn size_bytes(&self) -> u64 {
        self.origin.size_bytes()
    }

    fn content_bytes(&self) -> u64 {
        self.origin.proof().map_or(self.size_bytes(), |proof| proof.content_bytes())
    }

    fn name(&self) -> &str {
        self.origin.name()
    }

    fn place(&self) -> Place {
        Place::Origin
    }

    fn try_read(&self, offset: u64, dest: &mut [u8]) -> Result<Readiness, SourceError> {
        check_bounds(self.name(), self.size_bytes(), offset, dest.len())?;
        Ok(if dest.is_empty() { Readiness::Done } else { Readiness::WouldWait })
    }

    fn read<'a>(
        &'a self,
        _reactor: &'a Reactor,
        offset: u64,
        dest: &'a mut [u8],
    ) -> LocalFuture<'a, Result<(), SourceError>> {
        let len = dest.len();
        let what = move || format!("the registry: {len} bytes at {offset} of {}", self.name());
        Box::pin(waiting_for(what, self.read_all(offset, dest)))
    }

    fn fetch<'a>(&'a self, _ranges: &'a [ByteRange]) -> LocalFuture<'a, Result<(), SourceError>> {
        // What would be fetched here could not be kept for the read that follows.
        Box::pin(std::future::ready(Ok(())))
    }

    fn invalidate(&self, range: ByteRange) -> bool {
        // Every read asks the origin: asking again can help where the way was at fault.
        !range.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{reactor::ReactorConfig, source::BoxFuture};

    #[derive(Debug)]
    struct Memory {
        content: Bytes,
        cut: usize,
    }

    impl Origin for Memory {
        fn size_bytes(&self) -> u64 {
            self.content.len() as u64
        }

        fn name(&self) -> &str {
            "memory"
        }

        fn read_range(&self, range: ByteRange, _: Urgency) -> BoxFuture<'static, Result<Bytes, SourceError>> {
            let start = usize::try_from(range.start()).unwrap();
            let end = usize::try_from(range.end()).unwrap() - self.cut;
            let bytes = self.content.slice(start..end);
            Box::pin(async move { Ok(bytes) })
        }
    }

    fn uncached(cut: usize) -> (Vec<u8>, Uncached) {
        let content: Vec<u8> =
            (0..3_000_000_u32).map(|index| index.to_le_bytes()[index as usize % 3]).collect();
        (content.clone(), Uncached::new(Arc::new(Memory { content: content.into(), cut })))
    }

    #[test]
    fn a_read_of_several_parts_comes_back_in_order() {
        let (content, source) = uncached(0);
        let reactor = Reactor::new(&ReactorConfig::default()).unwrap();
        let mut dest = vec![0; 2_700_000];
        reactor.block_on(source.read(&reactor, 123_456, &mut dest)).unwrap().unwrap();
        assert_eq!(dest, content[123_456..][..2_700_000]);
    }

    #[test]
    fn a_short_answer_and_a_range_past_the_end_fail() {
        let (_, source) = uncached(1);
        let reactor = Reactor::new(&ReactorConfig::default()).unwrap();
        let mut dest = vec![0; 5000];
        let short = reactor.block_on(source.read(&reactor, 0, &mut dest)).unwrap();
        assert!(matches!(short, Err(SourceError::Remote { .. })));
        let past = reactor.block_on(source.read(&reactor, 2_999_999, &mut dest)).unwrap();
        assert!(matches!(past, Err(SourceError::OutOfBounds { .. })));
        assert_eq!(source.try_read(0, &mut dest).unwrap(), Readiness::WouldWait);
        assert_eq!(source.place(), Place::Origin);
    }
}
