//! A file system that a layer is put over: the operations of a layer, by path.

mod entry;
mod file;
mod finish;
mod format;
mod path;
mod remove;

use std::collections::HashMap;

use crate::{
    cache::{BLOCK_BYTES, BlockCache},
    device::Device,
    directory::Directory,
    error::Error,
    extent::Mapping,
    field::index,
    group::{Groups, Regions},
    inode::{FileKind, ROOT},
    superblock::{OFFSET, SUPERBLOCK_BYTES, Superblock},
    timestamp::Timestamp,
    volume::Volume,
};

pub use file::FileWriter;
pub use format::FormatOptions;

/// Blocks of directories below that a layer reads: 1 GiB. A full Debian has 12,000.
const DIRECTORY_BLOCK_LIMIT: u64 = 1 << 18;
/// Names in them: some 400 MiB of memory. A full Debian has 500,000.
const DIRECTORY_NAME_LIMIT: usize = 1 << 22;
/// Blocks of a directory that are read at once.
const READ_BLOCKS: u64 = 64;

/// An ext4 with a layer in the making. See the [crate] for what it means and how it lies.
///
/// After an error that [`Error::spoils_layer`] everything is refused. Dropping it leaves a device with data and no change to
/// what can be found.
#[derive(Debug)]
pub struct Filesystem<D> {
    volume: Volume<D>,
    /// All that the layer has come by, by inode.
    directories: HashMap<u32, Directory>,
    /// The parents of those that it has made, and that have nothing in them so far: there may be a million.
    empty_directories: HashMap<u32, u32>,
    /// Of the directories that were read: their blocks and names.
    read_blocks: u64,
    read_names: usize,
    /// Whether copies of the superblock and the descriptors are to be written.
    is_new: bool,
    is_spoilt: bool,
}

/// What an entry has besides its content.
#[derive(Debug, Clone, Copy, Default)]
pub struct Attributes<'a> {
    /// The permission bits; the others are ignored. Symbolic links always have 0777.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The time of modification, and all other times too.
    pub mtime: Timestamp,
    /// Extended attributes: full names, and values as Linux gives them out.
    pub xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

/// What has no content but a number at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    /// A character device.
    Character {
        /// Its driver.
        major: u32,
        /// Which of the driver's.
        minor: u32,
    },
    /// A block device.
    Block {
        /// Its driver.
        major: u32,
        /// Which of the driver's.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

impl<D: Device> Filesystem<D> {
    /// Begins a layer over the file system of `device`.
    ///
    /// # Errors
    /// When there is none, when it is damaged, when it was not unmounted cleanly, and when it has a feature that is not kept up.
    pub fn open(mut device: D) -> Result<Self, Error> {
        let device_bytes = device.size_bytes();
        if device_bytes < BLOCK_BYTES as u64 {
            return Err(Error::NotExt4);
        }
        let mut first = [0; BLOCK_BYTES];
        device.read_at(0, &mut first).map_err(|source| Error::Device {
            operation: "read",
            offset: 0,
            length: BLOCK_BYTES as u64,
            source,
        })?;
        let bytes: Option<&[u8; SUPERBLOCK_BYTES]> = first.get(OFFSET..).and_then(|rest| rest.first_chunk());
        let superblock = Superblock::parse(bytes.ok_or(Error::NotExt4)?, device_bytes)?;
        let mut cache = BlockCache::new(device, superblock.block_count);
        let mut table = vec![0; index(superblock.descriptor_blocks()) * BLOCK_BYTES];
        cache.read_data(1, &mut table)?;
        let groups = Groups::new(table, &superblock);
        groups.check(&superblock)?;
        let regions = Regions::new(&superblock, &groups)?;
        let mut volume = Volume::new(cache, superblock, groups, regions);
        volume.seek_end()?;
        let mut filesystem = Self::over(volume, false);
        filesystem.load(ROOT, ROOT, b"")?;
        Ok(filesystem)
    }

    fn over(volume: Volume<D>, is_new: bool) -> Self {
        Self {
            volume,
            directories: HashMap::new(),
            empty_directories: HashMap::new(),
            read_blocks: 0,
            read_names: 0,
            is_new,
            is_spoilt: false,
        }
    }

    /// What is below it, for tests of that.
    #[cfg(test)]
    pub(crate) fn into_volume(self) -> Volume<D> {
        self.volume
    }

    /// Refuses to go on with a spoilt layer.
    fn check_usable(&self) -> Result<(), Error> {
        if self.is_spoilt { Err(Error::Spoilt) } else { Ok(()) }
    }

    /// Remembers that a step was left half done.
    fn guard<T>(&mut self, result: Result<T, Error>) -> Result<T, Error> {
        self.is_spoilt |= result.as_ref().is_err_and(Error::spoils_layer);
        result
    }

    /// A directory that a path has led to.
    fn loaded(&mut self, number: u32) -> &mut Directory {
        self.directories.get_mut(&number).expect("what a path has led through is in memory")
    }

    /// Has a directory in memory that was found as `name` in `parent`.
    fn load(&mut self, number: u32, parent: u32, name: &[u8]) -> Result<(), Error> {
        if let Some(loaded) = self.directories.get(&number) {
            if loaded.parent != parent || *loaded.name != *name {
                return Err(Error::inode(number, "a directory has two names"));
            }
            return Ok(());
        }
        if self.empty_directories.remove(&number).is_some() {
            self.directories.insert(number, Directory::new(parent, name));
            return Ok(());
        }
        let (inode, kind) = self.volume.read_inode(number)?;
        if kind != FileKind::Directory {
            return Err(Error::inode(number, "an entry says that it is a directory, and it is not"));
        }
        let size = inode.size_bytes();
        let blocks = size / BLOCK_BYTES as u64;
        if blocks == 0 || !size.is_multiple_of(BLOCK_BYTES as u64) {
            return Err(Error::inode(number, "the size of a directory is not that of its blocks"));
        }
        self.read_blocks = self.read_blocks.saturating_add(blocks);
        if self.read_blocks > DIRECTORY_BLOCK_LIMIT {
            return Err(Error::DirectoriesTooLarge);
        }
        let mapping = Mapping::read(&mut self.volume, number, &inode)?;
        let mut directory = Directory::below(parent, name);
        let mut buffer = vec![0; index(READ_BLOCKS.min(blocks)) * BLOCK_BYTES];
        let mut next = 0;
        for extent in &mapping.extents {
            if u64::from(extent.logical) != next {
                return Err(Error::inode(number, "a directory has a hole"));
            }
            let taken = extent.length.min(blocks - next);
            let mut done = 0;
            while done < taken {
                let count = READ_BLOCKS.min(taken - done);
                let part = buffer.get_mut(..index(count) * BLOCK_BYTES).unwrap_or(&mut []);
                self.volume.cache.read_data(extent.physical + done, part)?;
                for (block, bytes) in (next + done..).zip(part.chunks_exact(BLOCK_BYTES)) {
                    directory.add_block(number, bytes, block == 0)?;
                }
                if self.read_names + directory.entries.len() > DIRECTORY_NAME_LIMIT {
                    return Err(Error::DirectoriesTooLarge);
                }
                done += count;
            }
            next += taken;
        }
        if next < blocks {
            return Err(Error::inode(number, "a directory has a hole"));
        }
        self.read_names += directory.entries.len();
        self.directories.insert(number, directory);
        Ok(())
    }
}
