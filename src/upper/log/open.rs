//! Opening a log-structured layer.

use std::{
    ops::Range,
    sync::{Arc, RwLock, atomic::AtomicU64},
};

use futures_util::lock::Mutex;

use super::{
    LogLayer, LogLimits, dead_space::DeadSpace, ledger::Ledger, pins::Pins, relief::Relief, room::End,
    round::Tail,
};
use crate::{
    block::SECTOR_BYTES,
    format::lsmt::{
        DATA_START_SECTOR, Header, LogReplay, Replayed, SEGMENT_BYTES, SLOT_BYTES, decode_index_header,
        require_pair,
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

impl<M: Medium> LogLayer<M> {
    /// Reads the index file, and cuts it where a crash has torn it.
    pub(in crate::upper) async fn load(
        reactor: &Reactor,
        data: M,
        index: M,
        header: Header,
        limits: LogLimits,
        metrics: Arc<WriteMetrics>,
    ) -> Result<Self, UpperError> {
        make_durable(reactor, &data, &index).await?;
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
        let dead = unused(&map, data_bytes / SECTOR_BYTES).map(|gaps| {
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
        Ok(Self {
            data,
            header: LiveHeader::new(header),
            limits,
            ledger: RwLock::new(Ledger::new(map, dead)),
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

/// The sectors of the data file that no extent has; `None` where two extents have the same, which no writer makes them have.
fn unused(map: &ExtentMap, end: u64) -> Option<Vec<Range<u64>>> {
    let mut used: Vec<Range<u64>> = map.from(0).filter_map(|extent| extent.data()).collect();
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
