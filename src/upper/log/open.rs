//! Opening a log-structured layer.

use std::{
    ops::Range,
    path::PathBuf,
    sync::{Arc, RwLock, atomic::AtomicU64},
};

use futures_util::lock::Mutex;

use super::{
    LogLayer, LogLimits,
    dead_space::DeadSpace,
    journal::{JournalPlace, count_in_index},
    ledger::Ledger,
    pins::Pins,
    relief::Relief,
    room::End,
    round::Tail,
};
use crate::{
    block::SECTOR_BYTES,
    format::lsmt::{
        DATA_START_SECTOR, Header, LogReplay, LsmtError, Replayed, SEGMENT_BYTES, SLOT_BYTES, Segment,
        decode_index_header, require_pair,
    },
    reactor::Reactor,
    upper::{
        UpperError, WriteMetrics,
        error::{failed, wrong},
        extents::ExtentMap,
        files::{read_header, size_of},
        layer::LiveHeader,
        medium::Medium,
        rounds::Rounds,
        segments::extent_of,
    },
};

/// Bytes of the index file that are read at a time.
const READ_BYTES: u64 = 1 << 20;

const SLOT: u64 = SLOT_BYTES as u64;

/// What a log is opened from.
#[derive(Debug)]
pub(in crate::upper) struct LogFiles<M> {
    pub(in crate::upper) data: M,
    pub(in crate::upper) index: M,
    /// Of the data file.
    pub(in crate::upper) header: Header,
    /// The folder of the journals, where it is to have one.
    pub(in crate::upper) journals: Option<PathBuf>,
}

impl<M: Medium> LogLayer<M> {
    /// Reads the index file, and cuts it where a crash has torn it.
    pub(in crate::upper) async fn load(
        reactor: &Reactor,
        files: LogFiles<M>,
        limits: LogLimits,
        metrics: Arc<WriteMetrics>,
    ) -> Result<Self, UpperError> {
        let LogFiles { data, index, header, journals } = files;
        let entries = limits.journal_entries;
        let journal =
            journals.map(|folder| JournalPlace::of(&folder, &data, &header, entries)).transpose()?;
        if let Err(error) = make_durable(reactor, &data, &index).await {
            // As in the process that has failed to sync it.
            journal.iter().for_each(JournalPlace::discard);
            return Err(error);
        }
        let index_header = read_header(reactor, &index, decode_index_header).await?;
        require_pair(&header, &index_header).map_err(|error| wrong(&index, error))?;
        let data_bytes = size_of(&data)?;
        let replayed = replay(reactor, &index, data_bytes).await?;
        cut(reactor, &index, &replayed).await?;
        let end_bytes = replayed.end_offset;
        let entries = end_bytes.saturating_sub(SLOT) / SEGMENT_BYTES as u64;
        let mut map = ExtentMap::default();
        for segment in replayed.segments.into_segments() {
            map.insert(extent_of(segment), |_| ());
        }
        let waiting = match &journal {
            Some(journal) => {
                let left = journal.entries(&header, data_bytes)?;
                lacking(reactor, &index, end_bytes, left).await?
            }
            None => Vec::new(),
        };
        let dead = unused(&map, &waiting, data_bytes / SECTOR_BYTES).map(|gaps| {
            let mut dead = DeadSpace::new(data.block_bytes() / SECTOR_BYTES);
            gaps.into_iter().for_each(|gap| dead.add(gap));
            dead
        });
        if dead.is_none() {
            tracing::warn!(layer = %data, "extents share data, so that no room of it is given back");
        }
        let limit_bytes =
            data.size_limit_bytes().map_err(|error| failed(&data, "ask for the limit of", error))?;
        let end = End::new(data_bytes, limit_bytes.min(limits.file_bytes));
        let rewrite_at = limits.rewrite_entries;
        let mut tail = Tail { index, end_bytes, entries, rewrite_at, kept_to_bytes: end_bytes };
        // Before data takes it.
        tail.keep_ahead(reactor, 0).await;
        let ledger = ledger_of(&data, map, dead, waiting, journal)?;
        Ok(Self {
            data,
            header: LiveHeader::new(header),
            limits,
            ledger: RwLock::new(ledger),
            pins: Pins::default(),
            rounds: Rounds::new(tail),
            index_entries: AtomicU64::new(entries),
            zeroing: Mutex::new(()),
            punching: Mutex::new(()),
            relief: Relief::default(),
            metrics,
            end,
        })
    }
}

async fn replay<M: Medium>(reactor: &Reactor, index: &M, data_bytes: u64) -> Result<Replayed, UpperError> {
    let size_bytes = size_of(index)?;
    let mut replay = LogReplay::new(size_bytes, data_bytes).map_err(|error| wrong(index, error))?;
    let mut piece = Vec::new();
    let mut at = SLOT;
    while at < size_bytes {
        let len = (size_bytes - at).min(READ_BYTES);
        piece.resize(usize::try_from(len).unwrap_or_default(), 0);
        index.read_at(reactor, at, &mut piece).await.map_err(|error| failed(index, "read", error))?;
        replay.feed(&piece).map_err(|error| wrong(index, error))?;
        at += len;
    }
    Ok(replay.finish())
}

/// Makes durable what is to be replayed, and nothing else: what is only in memory is not to be believed. After a sync that has failed
/// the kernel takes pages for written that are not, and no other sync tells; so they are dropped, and the disk is read.
async fn make_durable<M: Medium>(reactor: &Reactor, data: &M, index: &M) -> Result<(), UpperError> {
    data.sync(reactor).await.map_err(|error| failed(data, "sync", error))?;
    index.sync(reactor).await.map_err(|error| failed(index, "sync", error))?;
    index.forget_cached().map_err(|error| failed(index, "drop the pages of", error))
}

/// Cuts the index file durably where a crash has torn it: the entries after the torn one must not come back when others have been
/// written before them.
async fn cut<M: Medium>(reactor: &Reactor, index: &M, replayed: &Replayed) -> Result<(), UpperError> {
    let cut_bytes = size_of(index)?.saturating_sub(replayed.end_offset);
    if cut_bytes > 0 {
        let (end_bytes, entries) = (replayed.end_offset, replayed.torn_entries);
        tracing::warn!(%index, end_bytes, cut_bytes, entries, "cut the torn tail of an index file");
        index.set_size(end_bytes).map_err(|error| failed(index, "cut", error))?;
        index.sync(reactor).await.map_err(|error| failed(index, "sync", error))?;
    }
    index.sync_name(reactor).await.map_err(|error| failed(index, "sync", error))
}

/// Those of the entries `left` in a journal that the index file lacks, which ends at `end_bytes`.
async fn lacking<M: Medium>(
    reactor: &Reactor,
    index: &M,
    end_bytes: u64,
    mut left: Vec<Segment>,
) -> Result<Vec<Segment>, UpperError> {
    let len = (left.len() as u64).saturating_mul(SEGMENT_BYTES as u64).min(end_bytes.saturating_sub(SLOT));
    let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
    let read = index.read_at(reactor, end_bytes - len, &mut bytes).await;
    read.map_err(|error| failed(index, "read", error))?;
    let (last, _) = bytes.as_chunks();
    let last: Vec<Segment> = last.iter().map(Segment::decode).collect();
    left.drain(..count_in_index(&left, &last));
    Ok(left)
}

/// What is known of a layer with this `map`, over which the entries `waiting` come, that wait for a flush.
fn ledger_of<M: Medium>(
    data: &M,
    map: ExtentMap,
    dead: Option<DeadSpace>,
    waiting: Vec<Segment>,
    journal: Option<JournalPlace>,
) -> Result<Ledger, UpperError> {
    let mut ledger = Ledger::new(map, dead);
    let count = waiting.len();
    for segment in waiting {
        let (offset, length, place) = (segment.offset(), segment.length(), segment.moffset());
        let unnamed = |_| wrong(data, LsmtError::Unnamed { offset, length, place });
        ledger.record(extent_of(segment)).map_err(unnamed)?;
    }
    if count > 0 {
        tracing::info!(layer = %data, count, "took over the writes that a process had completed and not flushed");
    }
    if let Some(journal) = journal {
        ledger.keep(journal)?;
    }
    Ok(ledger)
}

/// The sectors of the data file that neither an extent has nor one of the `waiting` entries; `None` where two extents have the same, which no writer makes them have.
fn unused(map: &ExtentMap, waiting: &[Segment], end: u64) -> Option<Vec<Range<u64>>> {
    let waiting = waiting.iter().map(|segment| extent_of(*segment));
    let mut used: Vec<Range<u64>> = map.from(0).chain(waiting).filter_map(|extent| extent.data()).collect();
    used.sort_unstable_by_key(|range| range.start);
    let mut unused = Vec::new();
    let mut at = DATA_START_SECTOR;
    for range in used {
        if range.start < at {
            return None;
        }
        unused.push(at..range.start);
        at = range.end;
    }
    unused.push(at..end.max(at));
    Some(unused)
}
