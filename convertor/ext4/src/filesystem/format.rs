//! Makes an empty file system on a device of zeroes.
//!
//! Sixteen groups have their bitmaps and inodes together in the first of them (flex_bg). What describes groups that nothing uses yet
//! is not written (uninit_bg). There is no journal, since the device is a layer that is made once, no checksums of
//! metadata, since the layer has its own, and no reserved room for more descriptors (resize_inode), which would be a thousand blocks
//! in each copy: what has to grow while it is mounted is made as large as it may become, for that costs nothing. There is no lost+found
//! either: an image's tree is what its layers say. e2fsck makes one when it needs it.

use super::{Attributes, Filesystem};
use crate::{
    bits,
    cache::{BLOCK_BYTES, BlockCache},
    device::Device,
    directory::Directory,
    error::Error,
    extent,
    field::{index, low_u32},
    group::{
        BLOCK_BITMAP, BLOCKS_UNINITIALISED, FREE_BLOCKS, FREE_INODES, Groups, INODE_BITMAP, INODE_TABLE,
        INODES_UNINITIALISED, Regions, TABLE_UNUSED, TABLE_ZEROED, USED_DIRECTORIES,
    },
    inode::{FileKind, Inode, ROOT},
    superblock::{Draft, FIRST_INODE, GROUP_BLOCKS, GROUP_LIMIT, INODES_PER_BLOCK, Superblock, group_start},
    timestamp::Timestamp,
    volume::Volume,
};

/// Bytes of the device for each inode, as mke2fs and upstream's convertor have it.
const BYTES_PER_INODE: u64 = 16384;
/// Groups whose metadata lies together. The superblock has its logarithm.
const FLEX_GROUPS: u32 = 16;
/// The smallest file system: 1 MiB.
const BLOCKS_MIN: u64 = 256;
/// What a last group has besides its metadata; with less it is left out, as mke2fs does.
const LAST_GROUP_BLOCKS_MIN: u64 = 50;
const ROOT_MODE: u32 = 0o755;

/// What tells file systems apart that are otherwise made alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FormatOptions {
    /// The UUID.
    pub uuid: [u8; 16],
    /// The seed of the hashes in directories.
    pub hash_seed: [u8; 16],
    /// When it was made, and the times of the root directory.
    pub time: Timestamp,
}

impl<D: Device> Filesystem<D> {
    /// Makes an empty file system of the size of `device`, which must read as zeroes.
    ///
    /// # Errors
    /// When the device is too small or too large, when it fails.
    pub fn format(device: D, options: &FormatOptions) -> Result<Self, Error> {
        let superblock = Superblock::new(&draft(device.size_bytes(), options)?);
        let mut groups =
            Groups::new(vec![0; index(superblock.descriptor_blocks()) * BLOCK_BYTES], &superblock);
        place_metadata(&superblock, &mut groups);
        let regions = Regions::new(&superblock, &groups)?;
        describe(&superblock, &mut groups, &regions);
        let mut cache = BlockCache::new(device, superblock.block_count);
        write_bitmaps(&mut cache, &superblock, &groups, &regions)?;
        let mut filesystem = Self::over(Volume::new(cache, superblock, groups, regions), true);
        filesystem.make_root(options.time)?;
        Ok(filesystem)
    }

    fn make_root(&mut self, time: Timestamp) -> Result<(), Error> {
        let mut inode = Inode::new(FileKind::Directory);
        extent::build(&mut self.volume, &mut inode, &[])?;
        inode.set_links(2);
        self.volume.write_inode(ROOT, &inode)?;
        self.directories.insert(ROOT, Directory::new(ROOT, b""));
        let attributes = Attributes { mode: ROOT_MODE, mtime: time, ..Attributes::default() };
        self.directory(b"/", &attributes)
    }
}

/// Chooses the numbers.
fn draft(device_bytes: u64, options: &FormatOptions) -> Result<Draft, Error> {
    let mut block_count = device_bytes / BLOCK_BYTES as u64;
    if !(BLOCKS_MIN..=GROUP_LIMIT * GROUP_BLOCKS).contains(&block_count) {
        return Err(Error::Size(device_bytes));
    }
    loop {
        let groups = block_count.div_ceil(GROUP_BLOCKS);
        let wanted = (block_count * BLOCK_BYTES as u64 / BYTES_PER_INODE).min(u32::MAX.into());
        // The last group is short: each has as many as all have in the mean, but never more than the numbers allow.
        let limit = u64::from(u32::MAX) / groups;
        let per_block = u64::from(INODES_PER_BLOCK);
        let inodes = wanted.div_ceil(groups).next_multiple_of(per_block).min(limit / per_block * per_block);
        let draft = Draft {
            block_count,
            inodes_per_group: low_u32(inodes),
            uuid: options.uuid,
            hash_seed: options.hash_seed,
            time: options.time.low_seconds(),
        };
        let superblock = Superblock::new(&draft);
        let last = superblock.group_count() - 1;
        let own = if last.is_multiple_of(FLEX_GROUPS) { 2 + superblock.table_blocks() } else { 0 };
        if superblock.overhead_blocks(last) + own + LAST_GROUP_BLOCKS_MIN <= superblock.group_blocks(last) {
            return Ok(draft);
        }
        block_count = group_start(last);
        if block_count == 0 {
            return Err(Error::Size(device_bytes));
        }
    }
}

/// Puts bitmaps and inodes of the groups behind what the first of their sixteen begins with.
fn place_metadata(superblock: &Superblock, groups: &mut Groups) {
    let group_count = superblock.group_count();
    for first in (0..group_count).step_by(FLEX_GROUPS as usize) {
        let end = group_count.min(first + FLEX_GROUPS);
        let mut next = group_start(first) + superblock.overhead_blocks(first);
        for (field, blocks) in
            [(BLOCK_BITMAP, 1), (INODE_BITMAP, 1), (INODE_TABLE, superblock.table_blocks())]
        {
            for group in first..end {
                groups.set_block(group, field, next);
                next += blocks;
            }
        }
    }
}

/// Says what is free in each group, and what of it is not written.
fn describe(superblock: &Superblock, groups: &mut Groups, regions: &Regions) {
    let last = superblock.group_count() - 1;
    for group in 0..=last {
        let free = superblock.group_blocks(group) - regions.blocks_of(group);
        groups.set_count(group, FREE_BLOCKS, low_u32(free));
        let reserved = if group == 0 { FIRST_INODE - 1 } else { 0 };
        groups.set_count(group, FREE_INODES, superblock.inodes_per_group - reserved);
        groups.set_count(group, TABLE_UNUSED, superblock.inodes_per_group - reserved);
        groups.set_count(group, USED_DIRECTORIES, u32::from(group == 0));
        let mut flags = TABLE_ZEROED;
        if group > 0 {
            flags |= INODES_UNINITIALISED;
        }
        // Readers can only make up a bitmap of the group's own metadata, and none of a group that is short.
        if !group.is_multiple_of(FLEX_GROUPS) && group != last {
            flags |= BLOCKS_UNINITIALISED;
        }
        groups.set_flags(group, flags);
    }
}

/// Writes the bitmaps that no flag stands for.
fn write_bitmaps<D: Device>(
    cache: &mut BlockCache<D>,
    superblock: &Superblock,
    groups: &Groups,
    regions: &Regions,
) -> Result<(), Error> {
    for group in 0..superblock.group_count() {
        if groups.flags(group) & BLOCKS_UNINITIALISED != 0 {
            continue;
        }
        let (start, blocks) = (group_start(group), index(superblock.group_blocks(group)));
        let bytes = cache.fresh(groups.block(group, BLOCK_BITMAP))?;
        for (first, count) in regions.inside(start, blocks as u64) {
            bits::set(bytes, index(first - start), index(count));
        }
        bits::set(bytes, blocks, index(GROUP_BLOCKS) - blocks);
    }
    let inodes = superblock.inodes_per_group as usize;
    let bytes = cache.fresh(groups.block(0, INODE_BITMAP))?;
    bits::set(bytes, 0, FIRST_INODE as usize - 1);
    bits::set(bytes, inodes, index(GROUP_BLOCKS) - inodes);
    Ok(())
}
