//! The device that the file system of one layer is written to: the layers below, and what this one puts over them.

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use stratabd::offline::{OfflineError, StackReader, StreamedLayer};
use stratabd_ext4::Device;

const PAGE_BYTES: u64 = 4096;
const PAGE: usize = 4096;

/// See the module. What is written goes straight into the layer, and is not read again; what describes it and has no room in memory
/// lies in a scratch file until the end.
#[derive(Debug)]
pub(crate) struct LayerDevice {
    size_bytes: u64,
    below: Option<StackReader>,
    layer: StreamedLayer,
    scratch: Scratch,
}

/// Pages that are set aside.
#[derive(Debug)]
struct Scratch {
    folder: PathBuf,
    file: Option<File>,
    /// Numbers of the pages that count.
    pages: BTreeSet<u64>,
}

impl LayerDevice {
    /// A device of `size_bytes` whose layer is `layer`; where there are layers below, `below` reads them. A scratch file without a
    /// name is made in `folder` when one is needed.
    pub(crate) fn new(
        size_bytes: u64,
        below: Option<StackReader>,
        layer: StreamedLayer,
        folder: &Path,
    ) -> Self {
        let scratch = Scratch { folder: folder.to_owned(), file: None, pages: BTreeSet::new() };
        Self { size_bytes, below, layer, scratch }
    }

    /// Ends the layer; returns the size of its file in bytes.
    pub(crate) fn finish(mut self) -> Result<u64, OfflineError> {
        let mut page = [0; PAGE];
        for number in std::mem::take(&mut self.scratch.pages) {
            let offset = number * PAGE_BYTES;
            self.scratch.read(offset, &mut page).map_err(|source| self.scratch.failed(source))?;
            self.layer.write(offset, &page)?;
        }
        self.layer.finish()
    }
}

impl Device for LayerDevice {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if self.layer.has(offset, buffer.len() as u64) {
            return Err(io::Error::other("what was put into a layer is not read again"));
        }
        match &mut self.below {
            Some(below) => below.read(offset, buffer).map_err(io::Error::other)?,
            None => buffer.fill(0),
        }
        for (number, part) in (offset / PAGE_BYTES..).zip(buffer.chunks_mut(PAGE)) {
            if self.scratch.pages.contains(&number) {
                self.scratch.read(number * PAGE_BYTES, part)?;
            }
        }
        Ok(())
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.scratch.forget(offset, bytes.len() as u64);
        self.layer.write(offset, bytes).map_err(io::Error::other)
    }

    fn zero_at(&mut self, offset: u64, length: u64) -> io::Result<()> {
        self.scratch.forget(offset, length);
        self.layer.zero(offset, length).map_err(io::Error::other)
    }

    fn set_aside(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.scratch.write(offset, bytes)
    }
}

impl Scratch {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let file = match &self.file {
            Some(file) => file,
            None => self.file.insert(tempfile::tempfile_in(&self.folder)?),
        };
        file.write_all_at(bytes, offset)?;
        self.pages.extend(pages(offset, bytes.len() as u64));
        Ok(())
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        match &self.file {
            Some(file) => file.read_exact_at(bytes, offset),
            None => Ok(()),
        }
    }

    fn forget(&mut self, offset: u64, length: u64) {
        if !self.pages.is_empty() {
            for number in pages(offset, length) {
                self.pages.remove(&number);
            }
        }
    }

    fn failed(&self, source: io::Error) -> OfflineError {
        OfflineError::Io { path: self.folder.clone(), action: "read the scratch file in it", source }
    }
}

/// The numbers of the pages that a range of whole ones has.
fn pages(offset: u64, length: u64) -> std::ops::Range<u64> {
    offset / PAGE_BYTES..offset.saturating_add(length) / PAGE_BYTES
}
