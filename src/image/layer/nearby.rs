//! What has been read of a blob while it is opened, so that nothing is read twice.

use bytes::Bytes;
use futures_util::future::try_join_all;

use super::basis::Basis;
use crate::{
    block::ByteRange,
    reactor::Reactor,
    source::{BlobSource, SourceError, check_bounds},
};

/// First bytes of a blob that are read at once: an envelope of 1536 bytes, a ZFile header of 512, and the largest first
/// block, which holds the LSMT header.
const HEAD_BYTES: u64 = 68 << 10;

/// The tail holds trailers, the table of blocks and the index of segments. The table takes 4 bytes a block, which is
/// 1/512 of data that compresses to a half in blocks of 4 KiB and 1/64 of data that compresses to a sixteenth; the index
/// takes 16 bytes a segment.
const TAIL_SHARE: u64 = 64;
const TAIL_LEAST_BYTES: u64 = 64 << 10;
const TAIL_MOST_BYTES: u64 = 4 << 20;

pub(super) struct Nearby<'a> {
    source: &'a dyn BlobSource,
    reactor: &'a Reactor,
    held: Vec<Fetched>,
    /// What was asked for.
    used: Vec<Fetched>,
}

struct Fetched {
    range: ByteRange,
    bytes: Bytes,
}

impl<'a> Nearby<'a> {
    /// Reads head and tail of the blob, both at once.
    pub(super) async fn new(source: &'a dyn BlobSource, reactor: &'a Reactor) -> Result<Self, SourceError> {
        let size = source.content_bytes();
        let tail = (size / TAIL_SHARE).saturating_add(TAIL_LEAST_BYTES).min(TAIL_MOST_BYTES);
        let tail = ByteRange::between(size.saturating_sub(tail), size);
        let head = ByteRange::between(0, HEAD_BYTES.min(size));
        let ranges: &[ByteRange] =
            if head.end() >= tail.start() { &[ByteRange::between(0, size)] } else { &[head, tail] };
        let mut nearby = Self { source, reactor, held: Vec::new(), used: Vec::new() };
        nearby.fetch(ranges).await?;
        Ok(nearby)
    }

    /// Size of what may be of the layer, in bytes.
    pub(super) fn size_bytes(&self) -> u64 {
        self.source.content_bytes()
    }

    async fn fetch(&mut self, ranges: &[ByteRange]) -> Result<(), SourceError> {
        self.source.fetch(ranges).await?;
        let (source, reactor) = (self.source, self.reactor);
        let reads = ranges.iter().map(|range| async move {
            let mut bytes = vec![0; in_memory(range.len())];
            source.read(reactor, range.start(), &mut bytes).await?;
            Ok(Fetched { range: *range, bytes: bytes.into() })
        });
        self.held.extend(try_join_all(reads).await?);
        Ok(())
    }

    /// The bytes of `range`, of which only those are read that are not held yet. What is made of the blob follows from them.
    pub(super) async fn get(&mut self, range: ByteRange) -> Result<Bytes, SourceError> {
        let bytes = self.bring(range).await?;
        self.used.push(Fetched { range, bytes: bytes.clone() });
        Ok(bytes)
    }

    /// As [`Nearby::get`], for what may be asked for soon.
    pub(super) async fn bring(&mut self, range: ByteRange) -> Result<Bytes, SourceError> {
        let name = self.source.name();
        check_bounds(name, self.source.size_bytes(), range.start(), in_memory(range.len()))?;
        if let Some(bytes) = self.find(range) {
            return Ok(bytes);
        }
        // Head and tail are all there is at first, so a gap is on one side of what is held, or between.
        let start = self.held_from(range.start()).min(range.end());
        let end = self.held_until(range.end()).max(start);
        self.fetch(&[ByteRange::between(start, end)]).await?;
        let mut whole = Vec::with_capacity(in_memory(range.len()));
        for part in [
            ByteRange::between(range.start(), start),
            ByteRange::between(start, end),
            ByteRange::between(end, range.end()),
        ] {
            whole.extend_from_slice(&self.find(part).unwrap_or_default());
        }
        let bytes = Bytes::from(whole);
        self.held.push(Fetched { range, bytes: bytes.clone() });
        Ok(bytes)
    }

    pub(super) fn holds(&self, range: ByteRange) -> bool {
        self.held.iter().any(|held| held.range.contains(range))
    }

    /// All that was asked for.
    pub(super) fn into_basis(self) -> Basis {
        Basis::of(self.used.into_iter().map(|used| (used.range, used.bytes)))
    }

    /// Lets the source forget all that was read. Returns whether reading again can give other bytes.
    pub(super) fn invalidate(&self) -> bool {
        let mut any = false;
        for held in &self.held {
            any |= self.source.invalidate(held.range);
        }
        any
    }

    fn find(&self, range: ByteRange) -> Option<Bytes> {
        if range.is_empty() {
            return Some(Bytes::new());
        }
        let held = self.held.iter().find(|held| held.range.contains(range))?;
        let start = in_memory(range.start() - held.range.start());
        Some(held.bytes.slice(start..start + in_memory(range.len())))
    }

    /// Where the bytes from `start` on cease to be held.
    fn held_from(&self, start: u64) -> u64 {
        let holding = self.held.iter().filter(|held| held.range.start() <= start);
        holding.map(|held| held.range.end()).max().unwrap_or(start).max(start)
    }

    /// From where on the bytes up to `end` are held.
    fn held_until(&self, end: u64) -> u64 {
        let holding = self.held.iter().filter(|held| held.range.end() >= end);
        holding.map(|held| held.range.start()).min().unwrap_or(end).min(end)
    }
}

/// A length of bytes that are, or were checked to fit, in memory.
pub(super) fn in_memory(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}
