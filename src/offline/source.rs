//! The layers that a tool reads, in whatever form they are: sealed, a writable pair, or a sparse file.

use std::{
    cmp::Ordering,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};

use super::{
    OfflineError,
    content::{Bench, Content},
    journal::require_no_journal,
    lock::LockMode,
};
use crate::{
    block::SECTOR_BYTES,
    format::{
        lsmt::{
            self, DATA_START_SECTOR, Header, JOURNAL_FOLDER, LAYER_COUNT_LIMIT, LOG_ENTRY_LIMIT,
            LayerIdentity, LogReplay, LsmtError, SEGMENT_LENGTH_LIMIT, SLOT_BYTES, Segment, SegmentMap,
            UserTag, device_bytes,
        },
        uuid::Uuid,
    },
};

/// Bytes of an index file that are read at once.
const INDEX_CHUNK_BYTES: u64 = 1 << 20;

/// Runs of data that a sparse file may have, each at most as long as a segment, as in the engine. They take 16 bytes each here.
const RUN_LIMIT: u64 = 32_000_000;

/// Segments in the order of the device, and the files that their data is in.
#[derive(Debug)]
pub(super) struct Source {
    /// The tag of a segment is the number of its file.
    pub(super) files: Vec<Content>,
    /// Sorted, and not overlapping.
    pub(super) segments: Vec<Segment>,
    /// What the layer says of itself.
    pub(super) identity: LayerIdentity,
    /// The parent that the file with the last number names, which upstream takes for that of the whole.
    pub(super) last_parent_uuid: Option<Uuid>,
    /// Entries of a writable layer's index that do not count, because their data is not there.
    pub(super) torn_entries: u64,
    /// What it, or the top of it, is.
    pub(super) kind: Kind,
}

/// What a layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Read-only.
    Sealed,
    /// One sparse file, which may be written.
    Sparse,
    /// A log-structured pair, which may be written.
    Log,
}

/// Layers that make a device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stack {
    /// Sealed layers in any form, the lowest first; at most [`LAYER_COUNT_LIMIT`].
    pub lowers: Vec<PathBuf>,
    /// The layer above them that may be written.
    pub upper: Option<Upper>,
}

/// A layer that may be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upper {
    /// Its data file.
    pub data: PathBuf,
    /// Its index file, which a sparse one does not need.
    pub index: Option<PathBuf>,
}

impl Source {
    /// Opens the layer whose data, or all of it, is in the file `data`. The data file of a log-structured writable layer needs
    /// its `index`; of a sparse one that is not looked at, and with another it is refused. One that may be written is held, as long as this lives, and is refused
    /// where a device has it.
    pub(super) fn open(data: &Path, index: Option<&Path>, mode: LockMode) -> Result<Self, OfflineError> {
        let mut content = Content::open(data)?;
        if writable(&content, index)?.is_some() {
            content = content.locked(mode)?;
        }
        // Looked at once more: until it was held it could change.
        match writable(&content, index)? {
            Some((header, None)) => return Self::sparse(content, &header),
            Some((_, Some(index))) => return Self::pair(content, index),
            None => {}
        }
        let header = if content.is_bare() { header_of(&content).ok() } else { None };
        if let Some(header) = &header
            && !has_its_trailer(&content, header)?
        {
            return Err(not_sealed(&content));
        }
        // Upstream would replay it over the data. That of a sparse layer says nothing.
        if index.is_some() && !header.is_some_and(|header| header.sparse) {
            // What is no layer at all is not said to be a sealed one.
            content.layout()?;
            return Err(OfflineError::Sealed(data.to_owned()));
        }
        Self::sealed(content.unwritten()?)
    }

    /// Opens a stack: sealed layers, the lowest first, under one that may be written. What is seen of it from above is its segments.
    /// The files are numbered from the top, and the one that may be written has the last number, as upstream has it.
    /// It is held as long as this lives.
    pub(super) fn open_stack(stack: &Stack, mode: LockMode) -> Result<Self, OfflineError> {
        let upper = match &stack.upper {
            Some(Upper { data, index }) => Some(Self::open(data, index.as_deref(), mode)?),
            None => None,
        };
        Self::over(&stack.lowers, upper)
    }

    /// Puts a layer, which is alone, over sealed ones, the lowest first.
    pub(super) fn over(lowers: &[PathBuf], upper: Option<Self>) -> Result<Self, OfflineError> {
        let count = lowers.len();
        if count > LAYER_COUNT_LIMIT {
            return Err(OfflineError::TooManyLayers(count));
        }
        let (mut files, mut identities, mut merged) = (Vec::new(), Vec::new(), SegmentMap::new());
        let mut cover = |number: usize, segments: Vec<Segment>| {
            // There are at most 256 files, so that each has a number of its own.
            let tag = u8::try_from(number).unwrap_or(u8::MAX);
            segments.into_iter().for_each(|segment| merged.insert(segment.with_tag(tag)));
            let fits = merged.len() as u64 <= LOG_ENTRY_LIMIT;
            if fits { Ok(()) } else { Err(OfflineError::TooManySegments) }
        };
        for (below, path) in lowers.iter().enumerate() {
            let layer = Self::sealed(Content::open(path)?.unwritten()?)?;
            cover(count.saturating_sub(below).saturating_sub(1), layer.segments)?;
            files.extend(layer.files);
            identities.push(layer.identity);
        }
        files.reverse();
        let torn_entries = upper.as_ref().map_or(0, |upper| upper.torn_entries);
        let last = upper.as_ref().map(|upper| &upper.identity).or(identities.first());
        let last_parent_uuid = last.and_then(|identity| identity.parent_uuid);
        let kind = upper.as_ref().map_or(Kind::Sealed, |upper| upper.kind);
        if let Some(upper) = upper {
            cover(count, upper.segments)?;
            files.extend(upper.files);
            identities.push(upper.identity);
        }
        let (Some(lowest), Some(top)) = (identities.first(), identities.last()) else {
            return Err(OfflineError::NoLayers);
        };
        let identity = LayerIdentity {
            parent_uuid: lowest.parent_uuid,
            virtual_size_bytes: device_bytes(identities.iter().map(|it| it.virtual_size_bytes)),
            ..*top
        };
        Ok(Self { files, segments: merged.into_segments(), identity, last_parent_uuid, torn_entries, kind })
    }

    /// The number of the file that is above all others.
    pub(super) fn top(&self) -> usize {
        // As numbered by `open_stack`, and the only one of a layer alone.
        self.files.len().saturating_sub(1)
    }

    /// The segments of that file, by offset.
    pub(super) fn of_top(&self) -> impl Iterator<Item = Segment> + '_ {
        let top = self.top();
        self.segments.iter().filter(move |segment| usize::from(segment.tag()) == top).copied()
    }

    /// Bytes of data that there are to copy.
    pub(super) fn data_bytes(&self) -> u64 {
        data_bytes(&self.segments)
    }

    /// Refuses a layer that has lost data of its last writes, unless that is allowed.
    pub(super) fn require_whole(&self, allow_torn: bool) -> Result<(), OfflineError> {
        match (self.torn_entries, self.files.last()) {
            (1.., Some(file)) if !allow_torn => {
                Err(OfflineError::Torn(file.path().to_owned(), self.torn_entries))
            }
            _ => Ok(()),
        }
    }

    fn sealed(content: Content) -> Result<Self, OfflineError> {
        let (layout, segments) = content.layer()?;
        require_data(content.path(), &segments, layout.index_range().start())?;
        Ok(Self::alone(content, segments, identity(layout.trailer()), Kind::Sealed))
    }

    fn pair(content: Content, index: &Path) -> Result<Self, OfflineError> {
        let wrong_data = wrong(content.path());
        let header = lsmt::decode_data_header(&content.head()?).map_err(wrong_data)?;
        require_no_journal(Path::new(JOURNAL_FOLDER), &content, &header)?;
        let log = Content::open(index)?;
        let wrong_index = wrong(index);
        let index_header = lsmt::decode_index_header(&log.head()?).map_err(&wrong_index)?;
        lsmt::require_pair(&header, &index_header).map_err(&wrong_index)?;
        let mut replay = LogReplay::new(log.size_bytes(), content.size_bytes()).map_err(&wrong_index)?;
        let (mut at, mut chunk, mut bench) = (SLOT_BYTES as u64, Vec::new(), Bench::default());
        while at < log.size_bytes() {
            let len = INDEX_CHUNK_BYTES.min(log.size_bytes().saturating_sub(at));
            chunk.resize(usize::try_from(len).unwrap_or(0), 0);
            log.read(&mut bench, at, &mut chunk)?;
            replay.feed(&chunk).map_err(&wrong_index)?;
            at = at.saturating_add(len);
        }
        let replayed = replay.finish();
        let segments = replayed.segments.into_segments();
        require_data(content.path(), &segments, content.size_bytes())?;
        let torn_entries = replayed.torn_entries;
        Ok(Self { torn_entries, ..Self::alone(content, segments, identity(&header), Kind::Log) })
    }

    /// What the file system keeps of a sparse file is data; its holes are not mapped.
    fn sparse(content: Content, header: &Header) -> Result<Self, OfflineError> {
        // Past the end of the device is what a seal has left that was cut short.
        let content = content.up_to(sparse_end(header));
        match content.size_bytes() % SECTOR_BYTES {
            0 => {}
            rest => return Err(OfflineError::PartOfSector(content.path().to_owned(), rest)),
        }
        let segments = mapped(&content, DATA_START_SECTOR, RUN_LIMIT)?;
        Ok(Self::alone(content, segments, identity(header), Kind::Sparse))
    }

    /// The bytes of a device, in a file that has nothing else. What the file system keeps of it is data.
    pub(super) fn of_device(content: Content) -> Result<Self, OfflineError> {
        let segments = mapped(&content, 0, RUN_LIMIT)?;
        let virtual_size_bytes = content.size_bytes();
        let user_tag = UserTag::default();
        let identity = LayerIdentity { uuid: None, parent_uuid: None, virtual_size_bytes, user_tag };
        Ok(Self::alone(content, segments, identity, Kind::Sparse))
    }

    /// One layer.
    fn alone(content: Content, segments: Vec<Segment>, identity: LayerIdentity, kind: Kind) -> Self {
        let last_parent_uuid = identity.parent_uuid;
        Self { files: vec![content], segments, identity, last_parent_uuid, torn_entries: 0, kind }
    }
}

/// The header of a layer that may be written, and its index file where it is a log.
pub(super) fn writable<'a>(
    content: &Content,
    index: Option<&'a Path>,
) -> Result<Option<(Header, Option<&'a Path>)>, OfflineError> {
    let header = if content.is_bare() { header_of(content).ok() } else { None };
    let Some(header) = header else { return Ok(None) };
    if header.sparse {
        return Ok((!is_sealed_sparse(content, &header)?).then_some((header, None)));
    }
    Ok(index.map(|index| (header, Some(index))))
}

/// Whether a sparse file with this header, which sealing leaves as it is, is sealed. All that is in it up to the end of the device is
/// the device's, whose bytes may be those of a trailer.
fn is_sealed_sparse(content: &Content, header: &Header) -> Result<bool, OfflineError> {
    let is_told_from_data = match content.size_bytes().cmp(&sparse_end(header)) {
        Ordering::Greater => true,
        Ordering::Equal => false,
        // Upstream may leave a file shorter than its device, and seals it at its end.
        Ordering::Less => header.uuid.is_some(),
    };
    Ok(is_told_from_data && has_its_trailer(content, header)?)
}

/// Whether the file ends with a trailer that sealing it has written: one that knows the UUID in its `header`. What a device has
/// written that ends where the file does, in a log or past a later end, may be a trailer too, but does not know that.
pub(super) fn has_its_trailer(content: &Content, header: &Header) -> Result<bool, OfflineError> {
    match content.layout() {
        Ok(layout) => Ok((layout.trailer().sparse, layout.trailer().uuid) == (header.sparse, header.uuid)),
        Err(OfflineError::Layer { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// What keeps a file with the header of a writable layer from being a sealed one.
fn not_sealed(content: &Content) -> OfflineError {
    let without_trailer = |error: &LsmtError| match error {
        LsmtError::TooSmall { .. } => true,
        LsmtError::Slot { offset, .. } => *offset > 0,
        _ => false,
    };
    match content.layout() {
        Err(OfflineError::Layer { path, source }) if !without_trailer(&source) => {
            OfflineError::Layer { path, source }
        }
        _ => OfflineError::IndexMissing(content.path().to_owned()),
    }
}

/// Where the device ends in a sparse file with this header, in bytes.
pub(super) fn sparse_end(header: &Header) -> u64 {
    let device_bytes = header.virtual_size_bytes.div_ceil(SECTOR_BYTES).saturating_mul(SECTOR_BYTES);
    device_bytes.saturating_add(SLOT_BYTES as u64)
}

/// Bytes that the segments have, but for the zeroed ones.
fn data_bytes(segments: &[Segment]) -> u64 {
    let data = segments.iter().filter(|segment| !segment.zeroed());
    data.fold(0_u64, |sum, it| sum.saturating_add(u64::from(it.length()))).saturating_mul(SECTOR_BYTES)
}

/// Makes sure that the segments of a file whose data ends at `data_end` map no more than it has.
fn require_data(path: &Path, segments: &[Segment], data_end: u64) -> Result<(), OfflineError> {
    let (mapped_bytes, data_bytes) = (data_bytes(segments), data_end.saturating_sub(SLOT_BYTES as u64));
    match mapped_bytes > data_bytes {
        true => Err(OfflineError::Amplified { path: path.to_owned(), mapped_bytes, data_bytes }),
        false => Ok(()),
    }
}

/// What the file system keeps of a file in which the device begins at sector `start`, in no more than about `limit` runs.
fn mapped(content: &Content, start: u64, limit: u64) -> Result<Vec<Segment>, OfflineError> {
    let failed = |errno: Errno| OfflineError::io(content.path(), "find its holes")(errno.into());
    let mut segments = Vec::new();
    let mut at = start.saturating_mul(SECTOR_BYTES);
    let size = content.size_bytes();
    while at < size {
        let from = match seek(content.file(), SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break,
            found => found.map_err(failed)?,
        };
        let end = seek(content.file(), SeekFrom::Hole(from)).map_err(failed)?;
        let [from, to] = [from, end.min(size)].map(|bytes| bytes / SECTOR_BYTES);
        let added = to.saturating_sub(from).div_ceil(SEGMENT_LENGTH_LIMIT.into());
        // One run may be as long as a file system says that its file is.
        if (segments.len() as u64).saturating_add(added) > limit {
            return Err(OfflineError::Fragmented(content.path().to_owned(), limit));
        }
        append(&mut segments, start, from, to);
        at = end.max(at.saturating_add(SECTOR_BYTES));
    }
    Ok(segments)
}

/// Data in the sectors `from..to` of a file in which the device begins at sector `start`.
fn append(segments: &mut Vec<Segment>, start: u64, mut from: u64, to: u64) {
    while from < to {
        let length = to.saturating_sub(from).min(u64::from(SEGMENT_LENGTH_LIMIT));
        let offset = from.saturating_sub(start);
        // No file is so large that this is none.
        segments.extend(Segment::new(offset, u32::try_from(length).unwrap_or(0), from, false, 0));
        from = from.saturating_add(length);
    }
}

fn identity(header: &Header) -> LayerIdentity {
    LayerIdentity {
        uuid: header.uuid,
        parent_uuid: header.parent_uuid,
        virtual_size_bytes: header.virtual_size_bytes,
        user_tag: header.user_tag,
    }
}

fn header_of(content: &Content) -> Result<Header, OfflineError> {
    lsmt::decode_data_header(&content.head()?).map_err(wrong(content.path()))
}

fn wrong(path: &Path) -> impl Fn(LsmtError) -> OfflineError {
    let path = path.to_owned();
    move |source| OfflineError::Writable { path: path.clone(), source }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::FileExt};

    use super::*;

    #[test]
    fn a_file_of_more_runs_than_are_held_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = File::create(&path).unwrap();
        file.set_len(1 << 20).unwrap();
        (0..4).for_each(|run| file.write_all_at(&[7; 4096], run << 17).unwrap());
        let content = Content::of_file(File::open(&path).unwrap(), &path).unwrap();
        assert_eq!(mapped(&content, 0, 4).unwrap().len(), 4);
        let refused = mapped(&content, 0, 3).unwrap_err();
        assert!(matches!(&refused, OfflineError::Fragmented(at, 3) if *at == path), "{refused}");
    }
}
