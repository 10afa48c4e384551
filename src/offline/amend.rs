//! Changes the device of a stack in its writable layer, all at once or not at all.
//!
//! A log gets the data first, durably. The entries that make it count are in a new version of the index file, which takes the place
//! of the old one by a rename, after the new size of the device where that grows, and before it where that shrinks: a crash leaves
//! the old blocks or the new ones, and at most a device that is larger than what is on it, or some room in the data file that
//! nothing uses. A sparse file has no such moment, so that all of it is made anew and takes the place of the old one, with the new
//! size in it. Whoever opens a layer takes its lock first, and then looks whether that file still has the name.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use rustix::fs::ioctl_ficlone;

use super::{
    Difference, OfflineError, PartFile, Resized, Stack, StackReader, Upper, Watch,
    content::{Bench, Content},
    ext4,
    lock::LockMode,
    log_index::{next_index, put_index},
    resize::write_size,
    source::{Kind, Source, sparse_end},
    stack_reader::place,
};
use crate::{
    block::SECTOR_BYTES,
    format::lsmt::{self, DATA_START_SECTOR, SEGMENT_LENGTH_LIMIT, SLOT_BYTES, Segment, SegmentMap},
};

/// Bytes that are read and written at once; a segment can have as many.
const CHUNK: usize = 1 << 20;
const CHUNK_BYTES: u64 = 1 << 20;
const SLOT_SECTORS: u64 = SLOT_BYTES as u64 / SECTOR_BYTES;
static ZEROES: [u8; CHUNK] = [0; CHUNK];

/// Changes in the making. Nothing of them counts before [`finish`](Self::finish) has ended well, and dropping it takes them back; the
/// layer is held as long as it lives.
#[derive(Debug)]
pub struct Amendment {
    device: StackReader,
    /// Called as the layer's data file.
    path: PathBuf,
    sizes: Resized,
    target: Target,
    /// What has changed, and where it lies in the target.
    changed: SegmentMap,
}

/// What gets the changes.
#[derive(Debug)]
enum Target {
    /// The data file of a log, which grows.
    Log { tail: Tail, index: PathBuf },
    /// What will take the place of a sparse file.
    Sparse(PartFile),
}

/// What is written to the end of a data file, which is cut off again when this is dropped before it counts.
#[derive(Debug)]
struct Tail {
    file: File,
    before_bytes: u64,
    next_sector: u64,
    counts: bool,
}

impl Amendment {
    /// Begins to change the device of `stack`, whose upper layer gets the changes.
    ///
    /// # Errors
    /// [`OfflineError`]: where there is no writable layer, it has lost its last writes or is in use, or cannot be written.
    pub fn begin<P: Fn(u64, u64) + Sync>(stack: &Stack, watch: &Watch<P>) -> Result<Self, OfflineError> {
        let upper = stack.upper.as_ref().ok_or(OfflineError::NoLayers)?;
        let device = Source::open_stack(stack, LockMode::Exclusive)?;
        if device.kind == Kind::Sealed {
            return Err(OfflineError::Sealed(upper.data.clone()));
        }
        device.require_whole(false)?;
        let size_bytes = device.identity.virtual_size_bytes;
        Self::over(device, upper, Resized { before_bytes: size_bytes, after_bytes: size_bytes }, watch)
    }

    /// Begins to change `device`, whose top is the writable layer `upper`, and which has another size in the end.
    pub(super) fn over<P: Fn(u64, u64) + Sync>(
        device: Source,
        upper: &Upper,
        sizes: Resized,
        watch: &Watch<P>,
    ) -> Result<Self, OfflineError> {
        let path = upper.data.clone();
        let layer = device.files.last().ok_or(OfflineError::NoLayers)?;
        let target = match (device.kind, upper.index.as_deref()) {
            (Kind::Sealed, _) => return Err(OfflineError::Sealed(path)),
            (Kind::Log, Some(index)) => {
                let file = OpenOptions::new().read(true).write(true).open(&path).map_err(failed(&path))?;
                let before_bytes = file.metadata().map_err(failed(&path))?.len();
                let next_sector = before_bytes.div_ceil(SECTOR_BYTES).max(DATA_START_SECTOR);
                let tail = Tail { file, before_bytes, next_sector, counts: false };
                Target::Log { tail, index: index.to_owned() }
            }
            _ => Target::Sparse(next_sparse(&device, layer, &path, sizes.after_bytes, watch)?),
        };
        Ok(Self { device: StackReader::of(device), path, sizes, target, changed: SegmentMap::new() })
    }

    /// Size of the device in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.sizes.after_bytes
    }

    /// Fills `dest` with what lies at `offset` of the device with the changes so far, both whole sectors.
    ///
    /// # Errors
    /// Where a layer cannot be read, or a block of it is damaged.
    pub fn read(&mut self, offset: u64, dest: &mut [u8]) -> Result<(), OfflineError> {
        self.device.read(offset, dest)?;
        let start = offset / SECTOR_BYTES;
        let end = start.saturating_add(dest.len() as u64 / SECTOR_BYTES);
        for part in self.changed.within(start, end) {
            match place(&part, start, dest) {
                Some(place) if part.zeroed() => place.fill(0),
                Some(place) => {
                    let at = part.moffset().saturating_mul(SECTOR_BYTES);
                    self.target.file().read_exact_at(place, at).map_err(failed(&self.path))?;
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Puts `bytes` at `offset` of the device, both whole sectors.
    ///
    /// # Errors
    /// Where they cannot be written.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), OfflineError> {
        for (at, chunk) in (offset..).step_by(CHUNK).zip(bytes.chunks(CHUNK)) {
            for (at, run, is_zero) in ext4::runs(at, chunk) {
                match is_zero {
                    true => self.zero(at, run.len() as u64)?,
                    false => self.put(at, run)?,
                }
            }
        }
        Ok(())
    }

    /// Has `len` bytes at `offset` of the device read as zeroes, whatever lies below. Both are whole sectors.
    ///
    /// # Errors
    /// Where that cannot be written.
    pub fn zero(&mut self, mut offset: u64, len: u64) -> Result<(), OfflineError> {
        let end = offset.saturating_add(len);
        // An entry of zeroes has no data, and says where the next would be.
        let place = match &self.target {
            Target::Log { tail, .. } => Some(tail.next_sector),
            Target::Sparse(_) => None,
        };
        let most =
            place.map_or(CHUNK_BYTES, |_| u64::from(SEGMENT_LENGTH_LIMIT).saturating_mul(SECTOR_BYTES));
        while offset < end {
            let len = end.saturating_sub(offset).min(most);
            match place {
                Some(place) => self.map(offset, len, place, true)?,
                // Zeroes are written, for they hide what is below.
                None => {
                    self.put(offset, ZEROES.get(..usize::try_from(len).unwrap_or(CHUNK)).unwrap_or(&ZEROES))?
                }
            }
            offset = offset.saturating_add(len);
        }
        Ok(())
    }

    /// Has all of the device read as zeroes.
    ///
    /// # Errors
    /// As [`zero`](Self::zero).
    pub fn zero_all(&mut self) -> Result<(), OfflineError> {
        let data = self.device.source().segments.iter().filter(|segment| !segment.zeroed());
        let ranges: Vec<_> = data.map(|it| (it.offset(), u64::from(it.length()))).collect();
        let bytes = |sectors: u64| sectors.saturating_mul(SECTOR_BYTES);
        ranges.into_iter().try_for_each(|(start, count)| self.zero(bytes(start), bytes(count)))
    }

    /// Has the changes count, durably; `watch` may keep them from it up to the last moment.
    ///
    /// # Errors
    /// [`OfflineError`]; but for one of giving a file its name, the layer is as it was.
    pub fn finish<P: Fn(u64, u64) + Sync>(self, watch: &Watch<P>) -> Result<(), OfflineError> {
        let Self { device, path, sizes, target, changed } = self;
        match target {
            Target::Log { mut tail, index } => {
                tail.file.sync_all().map_err(failed(&path))?;
                let entries = changed.into_segments();
                let part = next_index(device.source(), &index, sizes.after_bytes, &entries)?;
                watch.go_on()?;
                // From here on there is no way back.
                tail.counts = true;
                put_index(part, &path, &sizes)
            }
            Target::Sparse(part) => {
                watch.go_on()?;
                part.finish()
            }
        }
    }

    /// Writes what is not all zero, at most a chunk.
    fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<(), OfflineError> {
        let (start, sectors) = (offset / SECTOR_BYTES, bytes.len() as u64 / SECTOR_BYTES);
        // What nobody reads yet is written over.
        let there = self.changed.within(start, start.saturating_add(sectors)).next();
        let there =
            there.filter(|it| !it.zeroed() && u64::from(it.length()) == sectors).map(Segment::moffset);
        let place = match (there, &mut self.target) {
            (Some(place), _) => place,
            (None, Target::Sparse(_)) => start.saturating_add(SLOT_SECTORS),
            (None, Target::Log { tail, .. }) => {
                let place = tail.next_sector;
                tail.next_sector = place.saturating_add(sectors);
                place
            }
        };
        let at = place.saturating_mul(SECTOR_BYTES);
        self.target.file().write_all_at(bytes, at).map_err(failed(&self.path))?;
        self.map(offset, bytes.len() as u64, place, false)
    }

    fn map(&mut self, offset: u64, len: u64, place: u64, zeroed: bool) -> Result<(), OfflineError> {
        let length = u32::try_from(len / SECTOR_BYTES).unwrap_or(u32::MAX);
        let segment = Segment::new(offset / SECTOR_BYTES, length, place, zeroed, 0);
        let size_bytes = self.sizes.after_bytes;
        self.changed.insert(segment.ok_or_else(|| OfflineError::DeviceSize(self.path.clone(), size_bytes))?);
        Ok(())
    }
}

impl Target {
    fn file(&self) -> &File {
        match self {
            Self::Log { tail, .. } => &tail.file,
            Self::Sparse(part) => part.file(),
        }
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        if !self.counts {
            // What stays where even this fails is room that nothing uses.
            let _ = self.file.set_len(self.before_bytes);
        }
    }
}

fn failed(path: &Path) -> impl Fn(io::Error) -> OfflineError {
    OfflineError::io(path, "write what has changed to it")
}

/// Gives `each` the bytes of `ranges`, piece by piece.
pub(super) fn each_chunk<P: Fn(u64, u64) + Sync>(
    content: &Content,
    ranges: &[Difference],
    watch: &Watch<P>,
    mut each: impl FnMut(u64, &[u8]) -> Result<(), OfflineError>,
) -> Result<(), OfflineError> {
    let (mut bench, mut chunk) = (Bench::default(), Vec::new());
    for range in ranges {
        let end = range.offset_bytes.saturating_add(range.len_bytes);
        let mut at = range.offset_bytes;
        while at < end {
            watch.go_on()?;
            let len = CHUNK_BYTES.min(end.saturating_sub(at));
            chunk.resize(usize::try_from(len).unwrap_or(0), 0);
            content.read(&mut bench, at, &mut chunk)?;
            each(at, &chunk)?;
            at = at.saturating_add(len);
        }
    }
    Ok(())
}

/// The sparse file at `path`, whose content is `layer`, for a device of `after_bytes`.
fn next_sparse<P: Fn(u64, u64) + Sync>(
    device: &Source,
    layer: &Content,
    path: &Path,
    after_bytes: u64,
    watch: &Watch<P>,
) -> Result<PartFile, OfflineError> {
    let head = layer.head()?;
    let damaged = |source| OfflineError::Writable { path: path.to_owned(), source };
    let header = lsmt::decode_data_header(&head).map_err(damaged)?;
    let part = PartFile::replacing(path, layer.file())?;
    let to = part.file();
    // Where the file system can, both share what stays the same.
    if ioctl_ficlone(to, layer.file()).is_err() {
        to.write_all_at(&head, 0).map_err(failed(path))?;
        let its = device.of_top().filter_map(|segment| segment.within(0, after_bytes / SECTOR_BYTES));
        let bytes = |sectors: u64| sectors.saturating_mul(SECTOR_BYTES);
        let places: Vec<Difference> = its
            .map(|it| Difference { offset_bytes: bytes(it.moffset()), len_bytes: bytes(it.length().into()) })
            .collect();
        each_chunk(layer, &places, watch, |at, chunk| to.write_all_at(chunk, at).map_err(failed(path)))?;
    }
    // What a seal that was cut short has left is not to become data.
    let sized = to
        .set_len(sparse_end(&header))
        .and_then(|()| to.set_len(after_bytes.saturating_add(SLOT_BYTES as u64)));
    sized.and_then(|()| write_size(to, after_bytes)).map_err(failed(path))?;
    Ok(part)
}
