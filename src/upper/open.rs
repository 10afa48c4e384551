//! Opening and making a log-structured layer.

use std::{io, ops::Range, path::Path, sync::Arc};

use super::{
    LayerFile, LogLimits, UpperError, WriteMetrics,
    dead_space::DeadSpace,
    extents::ExtentMap,
    layer::LogLayer,
    ledger::{Ledger, extent_of},
    medium::Medium,
    rounds::{Rounds, Tail},
};
use crate::{
    block::SECTOR_BYTES,
    format::{
        lsmt::{
            DATA_START_SECTOR, Header, LogReplay, LsmtError, Replayed, SEGMENT_BYTES, SLOT_BYTES,
            data_header, decode_data_header, decode_index_header, index_header, require_pair,
        },
        uuid::Uuid,
    },
    reactor::Reactor,
};

/// Bytes of the index file that are read at a time.
const READ_BYTES: u64 = 1 << 20;

const SLOT: u64 = SLOT_BYTES as u64;

/// What a new layer says of itself.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// Its own UUID.
    pub uuid: Uuid,
    /// The UUID of the layer below, where there is one.
    pub parent_uuid: Option<Uuid>,
    /// Size of the device in bytes; 0 takes that of the layers below.
    pub virtual_size_bytes: u64,
}

/// The two files of a log-structured layer.
#[derive(Debug)]
pub struct LogFiles<M = LayerFile> {
    pub(super) data: M,
    pub(super) index: M,
}

impl LogFiles {
    /// Opens the files at these paths, and keeps others from opening them so. May wait for the disk.
    ///
    /// # Errors
    /// [`UpperError::Io`] and [`UpperError::Busy`].
    pub fn open(data: &Path, index: &Path) -> Result<Self, UpperError> {
        let data = LayerFile::open(data)?;
        // The index file may be replaced by whoever has the lock, so it is not opened before.
        data.lock()?;
        Ok(Self { data, index: LayerFile::open(index)? })
    }

    /// Makes files at these paths, where there must be none, and keeps others from opening them. May wait for the disk.
    ///
    /// # Errors
    /// [`UpperError::Io`] and [`UpperError::Busy`].
    pub fn create(data: &Path, index: &Path) -> Result<Self, UpperError> {
        let data = LayerFile::create(data)?;
        data.lock()?;
        Ok(Self { data, index: LayerFile::create(index)? })
    }
}

impl<M: Medium> LogFiles<M> {
    /// Makes an empty layer of two new files, durably.
    ///
    /// # Errors
    /// [`UpperError::Io`].
    pub async fn format(&self, reactor: &Reactor, identity: &Identity) -> Result<(), UpperError> {
        let Identity { uuid, parent_uuid, virtual_size_bytes } = *identity;
        let header = data_header(false, uuid, parent_uuid, virtual_size_bytes);
        for (file, header) in [(&self.data, header), (&self.index, index_header(&header))] {
            let write = async {
                file.write_at(reactor, 0, &header.encode()).await?;
                file.sync(reactor).await?;
                file.sync_name(reactor).await
            };
            write.await.map_err(|error| failed(file, "write", error))?;
        }
        Ok(())
    }

    /// Reads the index file, and cuts it where a crash has torn it.
    pub(super) async fn load(
        self,
        reactor: &Reactor,
        mut limits: LogLimits,
        metrics: Arc<WriteMetrics>,
    ) -> Result<LogLayer<M>, UpperError> {
        let Self { data, index } = self;
        let header = read_header(reactor, &data, decode_data_header).await?;
        if header.sparse {
            return Err(UpperError::Kind { name: data.to_string(), sparse: true });
        }
        let index_header = read_header(reactor, &index, decode_index_header).await?;
        require_pair(&header, &index_header).map_err(|error| wrong(&index, error))?;
        let data_bytes = size_of(&data)?;
        let replayed = replay(reactor, &index, data_bytes).await?;
        make_true(reactor, &data, &index, &replayed).await?;
        let end_bytes = replayed.end_offset;
        let entries = end_bytes.saturating_sub(SLOT) / SEGMENT_BYTES as u64;
        let mut map = ExtentMap::default();
        for segment in replayed.segments.into_segments() {
            map.insert(extent_of(segment), |_| ());
        }
        let mut dead = DeadSpace::new(data.block_bytes() / SECTOR_BYTES);
        match unused(&map, data_bytes / SECTOR_BYTES) {
            Some(gaps) => gaps.into_iter().for_each(|gap| dead.add(gap)),
            None => {
                tracing::warn!(layer = %data, "extents share data, so that no room of it is given back");
                limits.dead_bytes = u64::MAX;
            }
        }
        let tail = Tail { index, end_bytes, entries, rewrite_at: limits.rewrite_entries };
        let (ledger, rounds) = (Ledger::new(map, dead), Rounds::new(tail));
        Ok(LogLayer::new(data, header, limits, ledger, rounds, data_bytes, metrics))
    }
}

async fn read_header<M: Medium>(
    reactor: &Reactor,
    file: &M,
    decode: impl FnOnce(&[u8]) -> Result<Header, LsmtError>,
) -> Result<Header, UpperError> {
    let mut slot = [0; SLOT_BYTES];
    file.read_at(reactor, 0, &mut slot).await.map_err(|error| failed(file, "read the header of", error))?;
    decode(&slot).map_err(|error| wrong(file, error))
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

/// Makes durable what has been replayed, and nothing else: entries that are only in the page cache have been believed, and
/// those after the torn one must not come back when others have been written before them.
async fn make_true<M: Medium>(
    reactor: &Reactor,
    data: &M,
    index: &M,
    replayed: &Replayed,
) -> Result<(), UpperError> {
    data.sync(reactor).await.map_err(|error| failed(data, "sync", error))?;
    let cut_bytes = size_of(index)?.saturating_sub(replayed.end_offset);
    if cut_bytes > 0 {
        let (end_bytes, entries) = (replayed.end_offset, replayed.torn_entries);
        tracing::warn!(%index, end_bytes, cut_bytes, entries, "cut the torn tail of an index file");
        index.set_size(end_bytes).map_err(|error| failed(index, "cut", error))?;
    }
    let sync = async {
        index.sync(reactor).await?;
        index.sync_name(reactor).await
    };
    sync.await.map_err(|error| failed(index, "sync", error))
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

fn size_of<M: Medium>(file: &M) -> Result<u64, UpperError> {
    file.size_bytes().map_err(|error| failed(file, "ask for the size of", error))
}

pub(super) fn failed<M: Medium>(file: &M, action: &'static str, source: io::Error) -> UpperError {
    UpperError::Io { name: file.to_string(), action, source }
}

fn wrong<M: Medium>(file: &M, source: LsmtError) -> UpperError {
    UpperError::Format { name: file.to_string(), source }
}
