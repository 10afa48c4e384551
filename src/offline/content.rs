//! The LSMT file inside a layer file, whether it lies there as it is, compressed, enveloped, or both.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    OfflineError,
    lock::{LockMode, LockedFile},
    patient::open_at_once,
};
use crate::{
    block::ByteRange,
    format::{
        lsmt::{self, LayerLayout, Segment},
        tar::{self, Envelope},
        zfile::{self, Decoder, JumpTable, Layout, Start, TABLE_LIMIT_BYTES, is_zfile},
    },
};

/// A file whose content can be read. Clones share it; each thread has its own.
#[derive(Debug, Clone)]
pub(super) struct Content {
    path: Arc<PathBuf>,
    file: Arc<File>,
    /// What keeps others from it.
    held: Option<Arc<LockedFile>>,
    /// The LSMT file, or the ZFile around it.
    payload: ByteRange,
    table: Option<Arc<JumpTable>>,
}

/// What one thread reads one content with.
#[derive(Debug, Default)]
pub(super) struct Bench {
    decoder: Decoder,
    encoded: Vec<u8>,
    block: Vec<u8>,
    /// Number of the block that is decoded in `block`.
    held: Option<u32>,
}

impl Content {
    /// Opens the layer file at `path` and checks all that stands around its blocks.
    pub(super) fn open(path: &Path) -> Result<Self, OfflineError> {
        let file = open_at_once(path).map_err(OfflineError::io(path, "open it"))?;
        let found = file.metadata().map_err(OfflineError::io(path, "open it"))?;
        if !found.is_file() {
            return Err(OfflineError::NotRegular(path.to_owned()));
        }
        let size = found.size();
        let whole = Self {
            path: Arc::new(path.to_owned()),
            file: Arc::new(file),
            held: None,
            payload: ByteRange::between(0, size),
            table: None,
        };
        let head = whole.bytes(ByteRange::between(0, size.min(tar::HEAD_BYTES as u64)))?;
        let detected = Envelope::detect(&head, size);
        let envelope = detected.map_err(|source| OfflineError::Tar { path: path.to_owned(), source })?;
        let payload = envelope.and_then(|found| ByteRange::new(found.payload_offset, found.payload_len).ok());
        let inner = Self { payload: payload.unwrap_or(whole.payload), ..whole };
        let slot = inner.bytes(inner.part(0, zfile::SLOT_BYTES as u64))?;
        if !is_zfile(&slot) {
            return Ok(inner);
        }
        let table = inner.open_table(&slot)?;
        Ok(Self { table: Some(Arc::new(table)), ..inner })
    }

    /// All bytes of `file` as they are. `path` is what it is called in errors.
    pub(super) fn of_file(file: File, path: &Path) -> Result<Self, OfflineError> {
        let size = file.metadata().map_err(OfflineError::io(path, "open it"))?.size();
        let payload = ByteRange::between(0, size);
        Ok(Self { path: Arc::new(path.to_owned()), file: Arc::new(file), held: None, payload, table: None })
    }

    /// Opens the layer file at `path` and makes sure that it has a sealed layer.
    pub(super) fn open_layer(path: &Path) -> Result<Self, OfflineError> {
        let content = Self::open(path)?.unwritten()?;
        content.layout()?;
        Ok(content)
    }

    /// The layout and the segments of the sealed layer that it is.
    pub(super) fn layer(&self) -> Result<(LayerLayout, Vec<Segment>), OfflineError> {
        let layout = self.layout()?;
        let range = layout.index_range();
        let mut index = vec![0; usize::try_from(range.len()).unwrap_or(0)];
        self.read(&mut Bench::default(), range.start(), &mut index)?;
        let wrong = |source| OfflineError::Layer { path: self.path.to_path_buf(), source };
        Ok((layout, layout.decode_index(&index).map_err(wrong)?.into_segments()))
    }

    /// Where the parts of the sealed layer lie that it is.
    pub(super) fn layout(&self) -> Result<LayerLayout, OfflineError> {
        let size = self.size_bytes();
        let wrong = |source| OfflineError::Layer { path: self.path.to_path_buf(), source };
        let head = self.head()?;
        let trailer = LayerLayout::trailer_range_of(&head, size).map_err(wrong)?;
        let mut last = vec![0; lsmt::SLOT_BYTES];
        self.read(&mut Bench::default(), trailer.start(), &mut last)?;
        LayerLayout::decode(&head, &last, size).map_err(wrong)
    }

    /// The slot that it begins with, or all of less.
    pub(super) fn head(&self) -> Result<Vec<u8>, OfflineError> {
        let len = self.size_bytes().min(lsmt::SLOT_BYTES as u64);
        let mut head = vec![0; usize::try_from(len).unwrap_or(0)];
        self.read(&mut Bench::default(), 0, &mut head)?;
        Ok(head)
    }

    /// Whether it lies in the file as it is: the only form that can be written.
    pub(super) fn is_bare(&self) -> bool {
        self.table.is_none() && self.payload.start() == 0
    }

    /// Keeps others from using it as `mode` says for as long as a clone of this lives, and has the size that it has from now on.
    /// Only for one that is bare.
    pub(super) fn locked(self, mode: LockMode) -> Result<Self, OfflineError> {
        let held = Some(Arc::new(mode.take(&self.file, &self.path)?));
        let size = self.file.metadata().map_err(OfflineError::io(&self.path, "open it"))?.size();
        Ok(Self { held, payload: ByteRange::between(0, size), ..self })
    }

    /// Keeps devices from writing to it for as long as a clone of this lives, where its header lets them, as that of a layer that was
    /// sealed does. Others may read it.
    pub(super) fn unwritten(self) -> Result<Self, OfflineError> {
        let may_be_written =
            self.held.is_none() && self.is_bare() && lsmt::decode_data_header(&self.head()?).is_ok();
        if may_be_written { self.locked(LockMode::Shared) } else { Ok(self) }
    }

    /// The first `size_bytes` of it, or all of less. Only for one that is bare.
    pub(super) fn up_to(self, size_bytes: u64) -> Self {
        Self { payload: ByteRange::between(0, self.payload.len().min(size_bytes)), ..self }
    }

    /// How its blocks are made, where it is compressed.
    pub(super) fn layout_of_blocks(&self) -> Option<&Layout> {
        self.table.as_ref().map(|table| table.layout())
    }

    /// The file that it lies in.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What tells its file from others: device and inode.
    pub(super) fn inode(&self) -> Result<(u64, u64), OfflineError> {
        let found = self.file.metadata().map_err(OfflineError::io(&self.path, "open it"))?;
        Ok((found.dev(), found.ino()))
    }

    /// Bytes of the content.
    pub(super) fn size_bytes(&self) -> u64 {
        self.table.as_ref().map_or(self.payload.len(), |table| table.layout().content_bytes())
    }

    /// Fills `dest` from `offset` of the content; all of it must lie inside.
    pub(super) fn read(&self, bench: &mut Bench, offset: u64, dest: &mut [u8]) -> Result<(), OfflineError> {
        let Some(table) = &self.table else {
            let at = self.payload.start().saturating_add(offset);
            return self.file.read_exact_at(dest, at).map_err(OfflineError::io(&self.path, "read it"));
        };
        let size = u64::from(table.layout().block_size());
        let (mut at, mut rest) = (offset, dest);
        while !rest.is_empty() {
            let number = u32::try_from(at / size).unwrap_or(u32::MAX);
            self.decode(bench, table, number)?;
            let from = usize::try_from(at % size).unwrap_or(usize::MAX);
            let bytes = bench.block.get(from..).unwrap_or_default();
            let count = bytes.len().min(rest.len());
            let (Some((part, left)), Some(bytes)) = (rest.split_at_mut_checked(count), bytes.get(..count))
            else {
                return Err(self.ended());
            };
            part.copy_from_slice(bytes);
            rest = left;
            at = at.saturating_add(count as u64);
        }
        Ok(())
    }

    /// Decodes a block into the bench.
    fn decode(&self, bench: &mut Bench, table: &JumpTable, number: u32) -> Result<(), OfflineError> {
        if bench.held == Some(number) {
            return Ok(());
        }
        bench.held = None;
        let wrong = |source| OfflineError::Zfile { path: self.path.to_path_buf(), source };
        let layout = table.layout();
        let block = table.block(number).ok_or_else(|| self.ended())?;
        bench.encoded.resize(usize::try_from(block.encoded.len()).unwrap_or(0), 0);
        bench.block.resize(usize::try_from(block.content.len()).unwrap_or(0), 0);
        let at = self.payload.start().saturating_add(block.encoded.start());
        self.file.read_exact_at(&mut bench.encoded, at).map_err(OfflineError::io(&self.path, "read it"))?;
        bench.decoder.decode(layout, &block, &bench.encoded, &mut bench.block).map_err(wrong)?;
        bench.held = Some(number);
        Ok(())
    }

    /// What a read past the end of the content comes to.
    fn ended(&self) -> OfflineError {
        OfflineError::io(&self.path, "read it")(io::ErrorKind::UnexpectedEof.into())
    }

    fn open_table(&self, slot: &[u8]) -> Result<JumpTable, OfflineError> {
        let wrong = |source| OfflineError::Zfile { path: self.path.to_path_buf(), source };
        let size = self.payload.len();
        let layout = match Start::decode(slot, size).map_err(wrong)? {
            Start::Complete(layout) => layout,
            Start::TrailerAt(range) => {
                let trailer = self.bytes(self.part(range.start(), range.len()))?;
                Layout::from_trailer(&trailer, size).map_err(wrong)?
            }
        };
        let index = layout.index_range();
        if index.len() > TABLE_LIMIT_BYTES {
            return Err(OfflineError::TableTooLarge(self.path.to_path_buf(), index.len()));
        }
        // Checked against the size of the file when the layout was decoded.
        let index = self.bytes(self.part(index.start(), index.len()))?;
        JumpTable::decode(layout, &index).map_err(wrong)
    }

    /// `len` bytes at `offset` of the payload, as far as it goes.
    fn part(&self, offset: u64, len: u64) -> ByteRange {
        let start = self.payload.start().saturating_add(offset).min(self.payload.end());
        ByteRange::between(start, start.saturating_add(len).min(self.payload.end()))
    }

    /// Bytes of the file, which the caller knows to be few.
    fn bytes(&self, range: ByteRange) -> Result<Vec<u8>, OfflineError> {
        let mut bytes = vec![0; usize::try_from(range.len()).unwrap_or(0)];
        self.file
            .read_exact_at(&mut bytes, range.start())
            .map_err(OfflineError::io(&self.path, "read it"))?;
        Ok(bytes)
    }
}
