//! The end of a layer: directories to their blocks, and then all that describes the file system.

use super::Filesystem;
use crate::{
    cache::BLOCK_BYTES,
    device::Device,
    directory::Directory,
    dirhash::NameHash,
    error::Error,
    extent::{self, Extent, Mapping},
    field::{index, low_u32},
    htree,
    inode::LINK_LIMIT,
    timestamp::Timestamp,
};

impl<D: Device> Filesystem<D> {
    /// Writes what describes the layer and gives the device back. `time` is when the file system says that it was written.
    ///
    /// # Errors
    /// When the layer is spoilt or the file system full, when the device fails.
    pub fn finish(mut self, time: Timestamp) -> Result<D, Error> {
        self.check_usable()?;
        let mut changed: Vec<u32> = self
            .directories
            .iter()
            .filter(|(_, directory)| directory.is_changed)
            .map(|(number, _)| *number)
            .chain(self.empty_directories.keys().copied())
            .collect();
        changed.sort_unstable();
        for number in changed {
            self.write_directory(number)?;
        }
        self.volume.finish(time.low_seconds(), self.is_new)
    }

    /// Writes a directory, where it was if it still fits there.
    fn write_directory(&mut self, number: u32) -> Result<(), Error> {
        let hash = NameHash {
            seed: self.volume.superblock.hash_seed,
            is_unsigned: self.volume.superblock.hash_unsigned,
        };
        // Nobody asks for it any more, and all together may be many.
        let empty = self.empty_directories.remove(&number).map(|parent| Directory::new(parent, b""));
        let Some(directory) = empty.or_else(|| self.directories.remove(&number)) else { return Ok(()) };
        let single = directory.encode_single(number);
        let has_index = single.is_none();
        let bytes = match single {
            Some(bytes) => bytes,
            None => htree::encode(number, &directory, hash)?,
        };
        let links = directory.subdirectories() + 2;
        drop(directory);
        let (mut inode, _) = self.volume.read_inode(number)?;
        // More than the limit cannot be counted: 1 says so.
        inode.set_links(u16::try_from(links).ok().filter(|links| *links <= LINK_LIMIT).unwrap_or(1));
        inode.mark_index(has_index);
        let mapping = Mapping::read(&mut self.volume, number, &inode)?;
        let blocks = (bytes.len() / BLOCK_BYTES) as u64;
        let extents = self.room(&mapping, blocks)?;
        let mut rest = &bytes[..];
        for extent in &extents {
            let (part, after) = rest.split_at(index(extent.length) * BLOCK_BYTES);
            self.volume.cache.write_data(extent.physical, part)?;
            rest = after;
        }
        mapping.free_nodes(&mut self.volume)?;
        let nodes = extent::build(&mut self.volume, &mut inode, &extents)?;
        inode.set_size_bytes(bytes.len() as u64);
        inode.set_block_count(blocks + nodes + u64::from(inode.xattr_block() != 0));
        self.volume.write_inode(number, &inode)
    }

    /// So many blocks for a directory: those that it has, of which the others become free, or new ones if they are too few.
    fn room(&mut self, mapping: &Mapping, blocks: u64) -> Result<Vec<Extent>, Error> {
        let present: u64 = mapping.extents.iter().map(|extent| extent.length).sum();
        let mut extents = Vec::new();
        let mut left = blocks;
        if present < blocks {
            for extent in &mapping.extents {
                self.volume.free_blocks(extent.physical, extent.length)?;
            }
            while left > 0 {
                let (physical, length) = self.volume.allocate_blocks(left)?;
                extent::append(&mut extents, Extent { logical: low_u32(blocks - left), physical, length });
                left -= length;
            }
            return Ok(extents);
        }
        for extent in &mapping.extents {
            let kept = extent.length.min(left);
            if kept > 0 {
                extents.push(Extent { length: kept, ..*extent });
            }
            if kept < extent.length {
                self.volume.free_blocks(extent.physical + kept, extent.length - kept)?;
            }
            left -= kept;
        }
        Ok(extents)
    }
}
