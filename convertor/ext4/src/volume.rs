//! What a file system has to give away: its blocks and inodes, found and marked in the bitmaps, and the inodes themselves.

use crate::{
    bits,
    cache::{self, BLOCK_BYTES, BlockCache},
    device::Device,
    error::Error,
    field::{index, low_u32, put},
    group::{
        BLOCK_BITMAP, BLOCKS_UNINITIALISED, FREE_BLOCKS, FREE_INODES, Groups, INODE_BITMAP, INODE_TABLE,
        INODES_UNINITIALISED, Regions, TABLE_UNUSED, TABLE_ZEROED, USED_DIRECTORIES,
    },
    inode::{FileKind, Inode},
    superblock::{GROUP_BLOCKS, INODE_BYTES, INODES_PER_BLOCK, OFFSET, Superblock, group_of, group_start},
};

/// Bits of a bitmap's block.
const BITMAP_BITS: usize = BLOCK_BYTES * 8;

/// See the module.
#[derive(Debug)]
pub(crate) struct Volume<D> {
    pub(crate) cache: BlockCache<D>,
    pub(crate) superblock: Superblock,
    pub(crate) groups: Groups,
    pub(crate) regions: Regions,
    free_blocks: u64,
    free_inodes: u32,
    /// Where blocks are looked for next: they are given away in ascending order, and those that become free only when the
    /// end was reached.
    block_cursor: u64,
    /// The same for inodes, counted from 0.
    inode_cursor: u32,
    checked: Vec<Checked>,
}

/// Which bitmaps of a group have been held against its descriptor.
#[derive(Debug, Clone, Copy, Default)]
struct Checked {
    blocks: bool,
    inodes: bool,
}

impl<D: Device> Volume<D> {
    pub(crate) fn new(
        cache: BlockCache<D>,
        superblock: Superblock,
        groups: Groups,
        regions: Regions,
    ) -> Self {
        let (free_blocks, free_inodes) = groups.free();
        let checked = vec![Checked::default(); superblock.group_count() as usize];
        let inode_cursor = superblock.first_inode - 1;
        Self {
            cache,
            superblock,
            groups,
            regions,
            free_blocks,
            free_inodes,
            block_cursor: 0,
            inode_cursor,
            checked,
        }
    }

    /// Has blocks be given away from behind the last one that a file has.
    pub(crate) fn seek_end(&mut self) -> Result<(), Error> {
        for group in (0..self.superblock.group_count()).rev() {
            let blocks = self.superblock.group_blocks(group);
            let in_use = blocks - u64::from(self.groups.count(group, FREE_BLOCKS));
            if self.groups.flags(group) & BLOCKS_UNINITIALISED == 0 && in_use > self.regions.blocks_of(group)
            {
                let bitmap = self.block_bitmap(group)?;
                let last = bits::last_set(self.cache.read(bitmap)?, index(blocks)).unwrap_or(0);
                self.block_cursor = group_start(group) + last as u64 + 1;
                break;
            }
        }
        Ok(())
    }

    /// As many free blocks that follow one another as there are at the next place, up to `wanted`: first and count.
    pub(crate) fn allocate_blocks(&mut self, wanted: u64) -> Result<(u64, u64), Error> {
        if self.free_blocks == 0 {
            return Err(Error::NoSpace);
        }
        // Once around: the group at the cursor is looked at from both of its ends.
        for _ in 0..=self.superblock.group_count() {
            if self.block_cursor >= self.superblock.block_count {
                self.block_cursor = 0;
            }
            let (group, from) = group_of(self.block_cursor);
            let end = index(self.superblock.group_blocks(group));
            if self.groups.count(group, FREE_BLOCKS) > 0 {
                let bitmap = self.block_bitmap(group)?;
                if let Some(first) = bits::first_clear(self.cache.read(bitmap)?, from, end) {
                    let limit = end.min(first.saturating_add(index(wanted)));
                    let count = bits::clear_run(self.cache.read(bitmap)?, first, limit);
                    bits::set(self.cache.change(bitmap)?, first, count);
                    return Ok(self.take_blocks(group, first, count));
                }
            }
            self.block_cursor = group_start(group) + GROUP_BLOCKS;
        }
        Err(Error::NoSpace)
    }

    /// Gives blocks of a file back.
    pub(crate) fn free_blocks(&mut self, start: u64, count: u64) -> Result<(), Error> {
        self.check_range(start, count)?;
        self.cache.forget(start, count);
        let (mut at, end) = (start, start + count);
        while at < end {
            let (group, first) = group_of(at);
            let part = (end - at).min(GROUP_BLOCKS - first as u64);
            let bitmap = self.block_bitmap(group)?;
            if !bits::all_set(self.cache.read(bitmap)?, first, index(part)) {
                return Err(Error::block(at, "a block of a file is free, or belongs to two"));
            }
            bits::clear(self.cache.change(bitmap)?, first, index(part));
            let free = self.groups.count(group, FREE_BLOCKS).saturating_add(low_u32(part));
            self.groups.set_count(group, FREE_BLOCKS, free);
            self.free_blocks += part;
            at += part;
        }
        Ok(())
    }

    /// Refuses a range that cannot be a file's.
    pub(crate) fn check_range(&self, start: u64, count: u64) -> Result<(), Error> {
        if start.checked_add(count).is_none_or(|end| end > self.superblock.block_count) {
            return Err(Error::block(start, "a block of a file lies beyond the file system"));
        }
        if self.regions.touch(start, count) {
            return Err(Error::block(start, "a block of a file is a bitmap, inodes or a descriptor"));
        }
        Ok(())
    }

    /// A free inode, marked as in use.
    pub(crate) fn allocate_inode(&mut self, kind: FileKind) -> Result<u32, Error> {
        let per_group = self.superblock.inodes_per_group;
        for _ in 0..=self.superblock.group_count() {
            if self.inode_cursor >= self.superblock.inode_count {
                self.inode_cursor = self.superblock.first_inode - 1;
            }
            let (group, from) = (self.inode_cursor / per_group, self.inode_cursor % per_group);
            if self.groups.count(group, FREE_INODES) > 0 {
                let bitmap = self.inode_bitmap(group)?;
                let bits = self.cache.read(bitmap)?;
                if let Some(found) = bits::first_clear(bits, from as usize, per_group as usize) {
                    bits::set(self.cache.change(bitmap)?, found, 1);
                    let place = low_u32(found as u64);
                    self.take_inode(group, place, kind)?;
                    self.inode_cursor = group * per_group + place + 1;
                    return Ok(self.inode_cursor);
                }
            }
            self.inode_cursor = (group + 1).saturating_mul(per_group);
        }
        Err(Error::NoInodes)
    }

    /// Gives an inode back, zeroed.
    pub(crate) fn free_inode(&mut self, number: u32, kind: FileKind) -> Result<(), Error> {
        let (group, place) = self.inode_place(number)?;
        if number < self.superblock.first_inode {
            return Err(Error::inode(number, "a name leads to an inode of the file system's own"));
        }
        let bitmap = self.inode_bitmap(group)?;
        bits::clear(self.cache.change(bitmap)?, place as usize, 1);
        self.groups.set_count(group, FREE_INODES, self.groups.count(group, FREE_INODES) + 1);
        self.free_inodes += 1;
        if kind == FileKind::Directory {
            let left = self.groups.count(group, USED_DIRECTORIES).checked_sub(1);
            let left = left.ok_or(Error::group(group, "it has more directories than its descriptor says"))?;
            self.groups.set_count(group, USED_DIRECTORIES, left);
        }
        self.zero_inode(group, place)
    }

    /// An inode in use.
    pub(crate) fn read_inode(&mut self, number: u32) -> Result<(Inode, FileKind), Error> {
        let (group, place) = self.inode_place(number)?;
        let bitmap = self.inode_bitmap(group)?;
        if !bits::is_set(self.cache.read(bitmap)?, place as usize) {
            return Err(Error::inode(number, "a name leads to a free inode"));
        }
        let (block, at) = self.table_place(group, place);
        let bytes = self.cache.read(block)?.get(at..at + INODE_BYTES).and_then(|bytes| bytes.first_chunk());
        let inode = Inode { bytes: *bytes.unwrap_or(&[0; INODE_BYTES]) };
        let kind = inode.check(number)?;
        Ok((inode, kind))
    }

    pub(crate) fn write_inode(&mut self, number: u32, inode: &Inode) -> Result<(), Error> {
        let (group, place) = self.inode_place(number)?;
        let (block, at) = self.table_place(group, place);
        put(self.cache.change(block)?, at, &inode.bytes);
        Ok(())
    }

    /// Writes descriptors and superblock, and all copies of them if the file system is new; then all that is kept.
    pub(crate) fn finish(mut self, time: u32, with_copies: bool) -> Result<D, Error> {
        let free = (self.free_blocks, self.free_inodes);
        let uuid = self.superblock.uuid().to_vec();
        for (number, bytes) in self.groups.take_changed(&uuid) {
            let copies = if with_copies { self.superblock.group_count() } else { 1 };
            for group in (0..copies).filter(|group| self.superblock.has_copy(*group)) {
                put(self.cache.fresh(group_start(group) + 1 + number)?, 0, &bytes);
            }
        }
        let copies = if with_copies { self.superblock.group_count() } else { 1 };
        for group in 0..copies {
            if self.superblock.has_copy(group) {
                let at = if group == 0 { OFFSET } else { 0 };
                let bytes = self.superblock.encode(group, free, time);
                put(self.cache.change(group_start(group))?, at, bytes);
            }
        }
        self.cache.into_device()
    }

    /// The bitmap of a group's blocks, made if it was never written, and held against the descriptor.
    fn block_bitmap(&mut self, group: u32) -> Result<u64, Error> {
        let bitmap = self.groups.block(group, BLOCK_BITMAP);
        let Some(checked) = self.checked.get_mut(group as usize).filter(|checked| !checked.blocks) else {
            return Ok(bitmap);
        };
        checked.blocks = true;
        let blocks = index(self.superblock.group_blocks(group));
        let start = group_start(group);
        let flags = self.groups.flags(group);
        let own = self.regions.inside(start, blocks as u64);
        if flags & BLOCKS_UNINITIALISED != 0 {
            let bytes = self.cache.fresh(bitmap)?;
            own.for_each(|(first, count)| bits::set(bytes, index(first - start), index(count)));
            bits::set(bytes, blocks, BITMAP_BITS - blocks);
            self.groups.set_flags(group, flags & !BLOCKS_UNINITIALISED);
        }
        let bytes = self.cache.read(bitmap)?;
        let mut own = self.regions.inside(start, blocks as u64);
        if !own.all(|(first, count)| bits::all_set(bytes, index(first - start), index(count))) {
            return Err(Error::group(group, "its own metadata is free in the bitmap of blocks"));
        }
        if bits::count_clear(bytes, blocks) != self.groups.count(group, FREE_BLOCKS) as usize {
            return Err(Error::group(
                group,
                "its bitmap and its descriptor have another number of free blocks",
            ));
        }
        Ok(bitmap)
    }

    /// The same for its inodes.
    fn inode_bitmap(&mut self, group: u32) -> Result<u64, Error> {
        let bitmap = self.groups.block(group, INODE_BITMAP);
        let Some(checked) = self.checked.get_mut(group as usize).filter(|checked| !checked.inodes) else {
            return Ok(bitmap);
        };
        checked.inodes = true;
        let inodes = self.superblock.inodes_per_group as usize;
        let flags = self.groups.flags(group);
        if flags & INODES_UNINITIALISED != 0 {
            bits::set(self.cache.fresh(bitmap)?, inodes, BITMAP_BITS - inodes);
            self.groups.set_flags(group, flags & !INODES_UNINITIALISED);
            self.groups.set_count(group, TABLE_UNUSED, self.superblock.inodes_per_group);
        }
        let bytes = self.cache.read(bitmap)?;
        if bits::count_clear(bytes, inodes) != self.groups.count(group, FREE_INODES) as usize {
            return Err(Error::group(
                group,
                "its bitmap and its descriptor have another number of free inodes",
            ));
        }
        if group == 0 && !bits::all_set(bytes, 0, self.superblock.first_inode as usize - 1) {
            return Err(Error::group(group, "an inode of the file system's own is free"));
        }
        Ok(bitmap)
    }

    fn take_blocks(&mut self, group: u32, first: usize, count: usize) -> (u64, u64) {
        let (start, count) = (group_start(group) + first as u64, count as u64);
        let left = u64::from(self.groups.count(group, FREE_BLOCKS)).saturating_sub(count);
        self.groups.set_count(group, FREE_BLOCKS, low_u32(left));
        self.free_blocks = self.free_blocks.saturating_sub(count);
        self.block_cursor = start + count;
        (start, count)
    }

    /// Counts an inode as in use, and has what lies before it in the table read as never used.
    fn take_inode(&mut self, group: u32, place: u32, kind: FileKind) -> Result<(), Error> {
        let left = self.groups.count(group, FREE_INODES).saturating_sub(1);
        self.groups.set_count(group, FREE_INODES, left);
        self.free_inodes = self.free_inodes.saturating_sub(1);
        if kind == FileKind::Directory {
            let directories = self.groups.count(group, USED_DIRECTORIES) + 1;
            self.groups.set_count(group, USED_DIRECTORIES, directories);
        }
        if !self.superblock.has_descriptor_checksums() {
            return Ok(());
        }
        let used = self.superblock.inodes_per_group.saturating_sub(self.groups.count(group, TABLE_UNUSED));
        if place >= used {
            if self.groups.flags(group) & TABLE_ZEROED == 0 {
                for never_used in used..place {
                    self.zero_inode(group, never_used)?;
                }
            }
            self.groups.set_count(group, TABLE_UNUSED, self.superblock.inodes_per_group - place - 1);
        }
        Ok(())
    }

    fn zero_inode(&mut self, group: u32, place: u32) -> Result<(), Error> {
        let (block, at) = self.table_place(group, place);
        put(self.cache.change(block)?, at, &[0; INODE_BYTES]);
        Ok(())
    }

    fn inode_place(&self, number: u32) -> Result<(u32, u32), Error> {
        if number == 0 || number > self.superblock.inode_count {
            return Err(Error::inode(number, "there is no inode of this number"));
        }
        Ok(((number - 1) / self.superblock.inodes_per_group, (number - 1) % self.superblock.inodes_per_group))
    }

    fn table_place(&self, group: u32, place: u32) -> (u64, usize) {
        debug_assert!(u64::from(place / INODES_PER_BLOCK) < self.superblock.table_blocks());
        let (block, at) = cache::place(u64::from(place) * INODE_BYTES as u64);
        (self.groups.block(group, INODE_TABLE) + block, at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Filesystem, FormatOptions, MemoryDevice, Timestamp, field::put_u32};

    fn volume(size_bytes: u64) -> Volume<MemoryDevice> {
        let options = FormatOptions { uuid: [1; 16], hash_seed: [2; 16], time: Timestamp::default() };
        Filesystem::format(MemoryDevice::new(size_bytes), &options).unwrap().into_volume()
    }

    #[test]
    fn all_blocks_are_given_away_once_and_freed_ones_again() {
        let mut volume = volume(300 << 20);
        let free = volume.free_blocks;
        let mut given: Vec<(u64, u64)> = Vec::new();
        while let Ok((start, count)) = volume.allocate_blocks(5000) {
            volume.check_range(start, count).unwrap();
            assert!(given.last().is_none_or(|(last, length)| last + length <= start));
            given.push((start, count));
        }
        assert_eq!(given.iter().map(|(_, count)| count).sum::<u64>(), free);
        let (start, count) = given[3];
        volume.free_blocks(start, count).unwrap();
        assert_eq!(volume.allocate_blocks(u64::MAX).unwrap(), (start, count));
        volume.free_blocks(start, count).unwrap();
        let twice = volume.free_blocks(start + 1, 1).unwrap_err().to_string();
        assert!(twice.contains("belongs to two"), "{twice}");
    }

    #[test]
    fn what_is_no_ones_to_free_is_refused() {
        let mut volume = volume(300 << 20);
        let bitmap = volume.groups.block(0, BLOCK_BITMAP);
        for (start, count) in [(0, 1), (bitmap, 1), (bitmap - 1, 2), (76_799, 2), (u64::MAX, 5)] {
            assert!(matches!(volume.free_blocks(start, count), Err(Error::Damaged { .. })), "{start}");
        }
        assert!(volume.free_inode(2, FileKind::Directory).is_err() && volume.read_inode(0).is_err());
        assert!(volume.read_inode(11).is_err() && volume.read_inode(u32::MAX).is_err());
    }

    #[test]
    fn a_bitmap_that_disagrees_with_its_descriptor_is_damage() {
        let mut low = volume(300 << 20);
        let bitmap = low.groups.block(0, BLOCK_BITMAP);
        put_u32(low.cache.change(bitmap).unwrap(), 4092, 1);
        assert!(low.allocate_blocks(1).unwrap_err().to_string().contains("another number of free blocks"));
        let mut own = volume(300 << 20);
        put_u32(own.cache.change(bitmap).unwrap(), 0, 0);
        assert!(own.allocate_blocks(1).unwrap_err().to_string().contains("own metadata is free"));
    }
}
