//! How far to fetch past what is read: little for scattered reads, growing along each sequential stream.
//!
//! A few streams are told apart by where they will go on. A new one fetches [`FIRST_BYTES`] in all; each time it goes
//! on, it may be ahead of its reader by a share of what it has read, so that its waste is bounded by its length. Over
//! all streams, what is fetched ahead is paid from a credit that reading earns, and paid back when it is read: what is
//! wasted stays below what is read, and a reader whose guesses fail falls back to fetching what it asks for.

use crate::block::ByteRange;

/// Streams told apart. The kernel's readahead and a few processes make a handful at once.
pub(super) const STREAMS: usize = 16;

/// What a first read fetches at least: the kernel's first two readahead windows of 16 and 32 KiB, so that four of five
/// small files cost one trip.
const FIRST_BYTES: u64 = 48 << 10;

/// How far ahead of its reader a stream may be: at 20 ms a trip this sustains 100 MB/s.
const MOST_AHEAD_BYTES: u64 = 2 << 20;

/// A read this far from where a stream stands goes on with it: holes of other files, already cached ranges.
const NEAR_BYTES: u64 = 32 << 10;

/// Credit of a blob when it is opened.
const FIRST_CREDIT_BYTES: u64 = 1 << 20;

/// Eighths of what is read that are earned: together with the first credit, at most as much is wasted as is read.
const EARNED_EIGHTHS: u64 = 7;

/// Credit that may be saved up; more would let repeated reads of a few bytes pay for a useless flood.
const MOST_CREDIT_BYTES: u64 = 8 << 20;

/// Not an offset of any blob.
pub(super) const NO_TRIGGER: u64 = u64::MAX;

#[derive(Debug)]
pub(super) struct Streams {
    slots: [Stream; STREAMS],
    clock: u64,
    credit: u64,
    size_bytes: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Stream {
    /// Where its first read began.
    start: u64,
    /// End of its furthest read.
    next: u64,
    /// How far it has been fetched.
    reach: u64,
    /// The clock at its last read; 0 if the slot is free.
    used: u64,
}

/// What to do about one read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Advice {
    /// Fetch up to here; at least the end of the read.
    pub(super) until: u64,
    /// The stream's slot.
    pub(super) slot: usize,
    /// A read of this offset, though it hits, is to be told to the streams.
    pub(super) trigger: u64,
}

impl Streams {
    pub(super) fn new(size_bytes: u64) -> Self {
        Self { slots: [Stream::default(); STREAMS], clock: 0, credit: FIRST_CREDIT_BYTES, size_bytes }
    }

    /// Tells of a read of `range`; `earned_bytes` have been read since the last call.
    pub(super) fn advance(&mut self, range: ByteRange, earned_bytes: u64) -> Advice {
        self.clock += 1;
        let earned = earned_bytes / 8 * EARNED_EIGHTHS;
        self.credit = self.credit.saturating_add(earned).min(MOST_CREDIT_BYTES);
        let clock = self.clock;
        let slot = self.slot_of(range);
        let Some(stream) = self.slots.get_mut(slot) else {
            return Advice { until: range.end(), slot, trigger: NO_TRIGGER };
        };
        let goes_on = stream.used != 0 && stream.accepts(range);
        stream.used = clock;
        if !goes_on {
            *stream = Stream { start: range.start(), next: range.end(), reach: range.end(), used: clock };
        }
        let wanted = if !goes_on {
            range.end().max(range.start().saturating_add(FIRST_BYTES))
        } else if range.end() > stream.next {
            // What was fetched ahead and is read now was no waste.
            self.credit =
                self.credit.saturating_add(stream.reach.min(range.end()).saturating_sub(stream.next));
            stream.next = range.end();
            let read = range.end() - stream.start;
            // More than the kernel's next window, which is 4/3 of all before it: it is there before it is asked for.
            range.end().saturating_add((read / 2 * 3).clamp(FIRST_BYTES, MOST_AHEAD_BYTES))
        } else {
            stream.reach
        };
        let wanted = wanted.checked_next_multiple_of(4096).unwrap_or(wanted).min(self.size_bytes);
        let paid_from = stream.reach.max(range.end());
        let until = wanted.min(paid_from.saturating_add(self.credit)).max(range.end());
        self.credit -= until.saturating_sub(paid_from).min(self.credit);
        stream.reach = stream.reach.max(until);
        let ahead = stream.reach.saturating_sub(stream.next);
        let trigger = if ahead > FIRST_BYTES { stream.reach - ahead / 2 } else { NO_TRIGGER };
        Advice { until, slot, trigger }
    }

    /// The slot of the stream that `range` goes on with, else the one that was not used for longest.
    fn slot_of(&self, range: ByteRange) -> usize {
        let found = self.slots.iter().position(|stream| stream.used != 0 && stream.accepts(range));
        let oldest =
            || self.slots.iter().enumerate().min_by_key(|(_, stream)| stream.used).map(|(slot, _)| slot);
        found.or_else(oldest).unwrap_or(0)
    }
}

impl Stream {
    fn accepts(&self, range: ByteRange) -> bool {
        let near = self.next.saturating_sub(NEAR_BYTES).max(self.start);
        (near..=self.reach.max(self.next).saturating_add(NEAR_BYTES)).contains(&range.start())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1024;

    fn read(streams: &mut Streams, start: u64, len: u64) -> u64 {
        streams.advance(ByteRange::new(start, len).unwrap(), len).until
    }

    #[test]
    fn a_sequential_stream_gets_ever_further_ahead_of_its_reader() {
        let mut streams = Streams::new(1 << 40);
        let mut ahead = 0;
        for window in 0..100 {
            let start = (1 << 30) + window * 128 * KIB;
            let now = read(&mut streams, start, 128 * KIB) - start - 128 * KIB;
            assert!(now >= ahead.min(MOST_AHEAD_BYTES));
            ahead = now;
        }
        assert_eq!(ahead, MOST_AHEAD_BYTES);
    }

    #[test]
    fn the_kernels_next_window_is_fetched_with_the_one_before() {
        let mut streams = Streams::new(1 << 40);
        let (mut at, mut reach) = (0, 0);
        let mut late = 0;
        for window in [16, 32, 64, 128, 128, 128] {
            let end = at + window * KIB;
            late += u32::from(end > reach);
            reach = read(&mut streams, at, window * KIB);
            at = end;
        }
        assert_eq!(late, 1, "only the first is waited for");
    }

    #[test]
    fn what_scattered_reads_fetch_is_bounded_by_what_they_read() {
        let mut streams = Streams::new(1 << 40);
        let mut fetched = 0;
        for index in 0..10_000_u64 {
            let start = index * 7919 % 10_000 * (1 << 20);
            fetched += read(&mut streams, start, 4 * KIB) - start;
        }
        assert!(fetched <= 2 * 10_000 * 4 * KIB + FIRST_CREDIT_BYTES, "{fetched}");
    }

    #[test]
    fn interleaved_streams_do_not_disturb_one_another() {
        let mut streams = Streams::new(1 << 40);
        let mut last = [0; 8];
        for step in 0..20 {
            for (index, last) in last.iter_mut().enumerate() {
                let start = (index as u64) * (1 << 30) + step * 64 * KIB;
                *last = read(&mut streams, start, 64 * KIB) - start;
            }
        }
        assert!(last.iter().all(|reach| *reach > 256 * KIB), "{last:?}");
    }

    #[test]
    fn a_repeated_read_fetches_nothing_new_and_the_end_of_the_blob_ends_all() {
        let mut streams = Streams::new(100 * KIB);
        assert_eq!(read(&mut streams, 0, 4 * KIB), 48 * KIB);
        assert_eq!(read(&mut streams, 0, 4 * KIB), 48 * KIB);
        assert_eq!(read(&mut streams, 96 * KIB, 4 * KIB), 100 * KIB);
        assert_eq!(read(&mut streams, 0, 100 * KIB), 100 * KIB);
    }
}
