//! A regular file whose content comes piece by piece: data to the next free blocks, zeroes to holes.

use super::{Attributes, Filesystem, path::Location};
use crate::{
    cache::{self, BLOCK_BYTES},
    device::Device,
    error::Error,
    extent::{self, Extent},
    field::{index, low_u32, put},
    inode::{FileKind, Inode},
    xattr::Placed,
};

/// Blocks of zeroes in a row from which on they are a hole. Shorter ones would cost an extent that is worth more.
const HOLE_BLOCKS: u64 = 16;
/// Blocks of the largest file: their numbers have 32 bits.
const FILE_BLOCK_LIMIT: u64 = (1 << 32) - 1;

/// A file that is being written. It has its name when it is closed; if it is dropped before, the layer is spoilt.
#[derive(Debug)]
pub struct FileWriter<'a, D: Device> {
    filesystem: &'a mut Filesystem<D>,
    place: Location,
    number: u32,
    inode: Inode,
    /// Blocks of attributes, then those of the tree too.
    other_blocks: u64,
    extents: Vec<Extent>,
    /// Blocks that are behind us, zeroes that wait among them.
    blocks: u64,
    /// Blocks of zeroes at the end that may become a hole.
    zeroes: u64,
    /// The beginning of the next block.
    partial: [u8; BLOCK_BYTES],
    partial_bytes: usize,
}

impl<D: Device> Filesystem<D> {
    /// Begins a regular file.
    ///
    /// # Errors
    /// As [`Filesystem::directory`].
    pub fn file(&mut self, path: &[u8], attributes: &Attributes<'_>) -> Result<FileWriter<'_, D>, Error> {
        self.check_usable()?;
        let result = self.try_file(path, attributes);
        let (place, number, inode, other_blocks) = self.guard(result)?;
        // Until it is closed.
        self.is_spoilt = true;
        Ok(FileWriter {
            filesystem: self,
            place,
            number,
            inode,
            other_blocks,
            extents: Vec::new(),
            blocks: 0,
            zeroes: 0,
            partial: [0; BLOCK_BYTES],
            partial_bytes: 0,
        })
    }

    fn try_file(
        &mut self,
        path: &[u8],
        attributes: &Attributes<'_>,
    ) -> Result<(Location, u32, Inode, u64), Error> {
        Placed::new(attributes.xattrs)?;
        let place = self.place(path, attributes)?;
        self.remove(&place)?;
        let (number, inode, blocks) = self.new_inode(FileKind::Regular, attributes)?;
        Ok((place, number, inode, blocks))
    }
}

impl<D: Device> FileWriter<'_, D> {
    /// Adds content.
    ///
    /// # Errors
    /// When the file system is full, the file too large, or the device fails.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        if self.partial_bytes > 0 {
            let taken = bytes.len().min(BLOCK_BYTES - self.partial_bytes);
            let (head, rest) = bytes.split_at(taken);
            put(&mut self.partial, self.partial_bytes, head);
            self.partial_bytes += taken;
            bytes = rest;
            self.flush_partial()?;
        }
        let (whole, rest) = bytes.split_at(bytes.len() - bytes.len() % BLOCK_BYTES);
        self.write_blocks(whole)?;
        if !rest.is_empty() {
            put(&mut self.partial, 0, rest);
            self.partial_bytes = rest.len();
        }
        Ok(())
    }

    /// Adds zeroes: a hole of a sparse file. It costs no time.
    ///
    /// # Errors
    /// As [`FileWriter::write`].
    pub fn skip(&mut self, mut bytes: u64) -> Result<(), Error> {
        if self.partial_bytes > 0 {
            let taken = index(bytes).min(BLOCK_BYTES - self.partial_bytes);
            self.partial.get_mut(self.partial_bytes..self.partial_bytes + taken).unwrap_or(&mut []).fill(0);
            self.partial_bytes += taken;
            bytes -= taken as u64;
            self.flush_partial()?;
        }
        let whole = bytes / BLOCK_BYTES as u64;
        self.check_size(whole)?;
        self.blocks += whole;
        self.zeroes += whole;
        let rest = index(bytes % BLOCK_BYTES as u64);
        if rest > 0 {
            self.partial.get_mut(..rest).unwrap_or(&mut []).fill(0);
            self.partial_bytes = rest;
        }
        Ok(())
    }

    /// Ends the file and gives it its name.
    ///
    /// # Errors
    /// As [`FileWriter::write`].
    pub fn close(mut self) -> Result<(), Error> {
        let unused = (BLOCK_BYTES - self.partial_bytes) % BLOCK_BYTES;
        if self.partial_bytes > 0 {
            self.partial.get_mut(self.partial_bytes..).unwrap_or(&mut []).fill(0);
            self.partial_bytes = BLOCK_BYTES;
            self.flush_partial()?;
        }
        let size_bytes = self.blocks * BLOCK_BYTES as u64 - if self.blocks > 0 { unused as u64 } else { 0 };
        self.settle_zeroes()?;
        self.inode.set_size_bytes(size_bytes);
        let data: u64 = self.extents.iter().map(|extent| extent.length).sum();
        let volume = &mut self.filesystem.volume;
        let nodes = extent::build(volume, &mut self.inode, &self.extents)?;
        self.inode.set_block_count(data + nodes + self.other_blocks);
        volume.write_inode(self.number, &self.inode)?;
        self.filesystem.insert(&self.place, self.number, FileKind::Regular);
        self.filesystem.is_spoilt = false;
        Ok(())
    }

    fn flush_partial(&mut self) -> Result<(), Error> {
        if self.partial_bytes == BLOCK_BYTES {
            let block = self.partial;
            self.write_blocks(&block)?;
            self.partial_bytes = 0;
        }
        Ok(())
    }

    /// Adds whole blocks: runs of those with data are written, zeroes wait for what comes.
    fn write_blocks(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        self.check_size((bytes.len() / BLOCK_BYTES) as u64)?;
        while !bytes.is_empty() {
            let zeroes = bytes.chunks(BLOCK_BYTES).take_while(|block| cache::is_zero(block)).count();
            self.blocks += zeroes as u64;
            self.zeroes += zeroes as u64;
            bytes = bytes.get(zeroes * BLOCK_BYTES..).unwrap_or(&[]);
            let data = bytes.chunks(BLOCK_BYTES).take_while(|block| !cache::is_zero(block)).count();
            if data > 0 {
                self.settle_zeroes()?;
                let (run, rest) = bytes.split_at(data * BLOCK_BYTES);
                self.write_run(run)?;
                bytes = rest;
            }
        }
        Ok(())
    }

    fn write_run(&mut self, mut run: &[u8]) -> Result<(), Error> {
        while !run.is_empty() {
            let (physical, length) = self.allocate((run.len() / BLOCK_BYTES) as u64)?;
            let (part, rest) = run.split_at(index(length) * BLOCK_BYTES);
            self.filesystem.volume.cache.write_data(physical, part)?;
            run = rest;
        }
        Ok(())
    }

    /// Decides what the zeroes at the end are: a hole, or blocks of zeroes between others.
    fn settle_zeroes(&mut self) -> Result<(), Error> {
        let mut left = std::mem::take(&mut self.zeroes);
        if left >= HOLE_BLOCKS {
            return Ok(());
        }
        self.blocks -= left;
        while left > 0 {
            let (physical, length) = self.allocate(left)?;
            let zeroes = vec![0; index(length) * BLOCK_BYTES];
            self.filesystem.volume.cache.write_data(physical, &zeroes)?;
            left -= length;
        }
        Ok(())
    }

    fn allocate(&mut self, wanted: u64) -> Result<(u64, u64), Error> {
        let (physical, length) = self.filesystem.volume.allocate_blocks(wanted)?;
        extent::append(&mut self.extents, Extent { logical: low_u32(self.blocks), physical, length });
        self.blocks += length;
        Ok((physical, length))
    }

    fn check_size(&self, more_blocks: u64) -> Result<(), Error> {
        if self.blocks.saturating_add(more_blocks) > FILE_BLOCK_LIMIT {
            return Err(Error::FileTooLarge);
        }
        Ok(())
    }
}
