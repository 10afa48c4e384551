//! The descriptors of all groups: where each one's bitmaps and inodes lie, and what is free in it.

use std::collections::BTreeSet;

use crate::{
    cache::BLOCK_BYTES,
    checksum,
    error::Error,
    field::{index, low_u16, low_u32, put_u16, put_u32, u16_at, u32_at},
    superblock::{GROUP_BLOCKS, Superblock, group_start},
};

/// The bitmap of inodes was never written: none is in use.
pub(crate) const INODES_UNINITIALISED: u16 = 1;
/// The bitmap of blocks was never written: only the group's own metadata is in use.
pub(crate) const BLOCKS_UNINITIALISED: u16 = 2;
/// The table of inodes has been zeroed.
pub(crate) const TABLE_ZEROED: u16 = 4;
const CHECKSUM_AT: usize = 0x1e;
const NARROW_BYTES: usize = 32;

/// A number of a descriptor: its low half and, in a wide one, its high half.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Field {
    low: usize,
    high: usize,
}

pub(crate) const BLOCK_BITMAP: Field = Field { low: 0, high: 0x20 };
pub(crate) const INODE_BITMAP: Field = Field { low: 4, high: 0x24 };
pub(crate) const INODE_TABLE: Field = Field { low: 8, high: 0x28 };
pub(crate) const FREE_BLOCKS: Field = Field { low: 0xc, high: 0x2c };
pub(crate) const FREE_INODES: Field = Field { low: 0xe, high: 0x2e };
pub(crate) const USED_DIRECTORIES: Field = Field { low: 0x10, high: 0x30 };
pub(crate) const TABLE_UNUSED: Field = Field { low: 0x1c, high: 0x32 };
const FLAGS_AT: usize = 0x12;

/// See the module.
#[derive(Debug)]
pub(crate) struct Groups {
    bytes: Vec<u8>,
    descriptor_bytes: usize,
    group_count: u32,
    /// Blocks of the table that have changed.
    changed: BTreeSet<u64>,
    has_checksums: bool,
}

impl Groups {
    /// The table whose blocks are `bytes`.
    pub(crate) fn new(bytes: Vec<u8>, superblock: &Superblock) -> Self {
        Self {
            bytes,
            descriptor_bytes: superblock.descriptor_bytes,
            group_count: superblock.group_count(),
            changed: BTreeSet::new(),
            has_checksums: superblock.has_descriptor_checksums(),
        }
    }

    /// A number of 32 or 64 bits.
    pub(crate) fn block(&self, group: u32, field: Field) -> u64 {
        let bytes = self.descriptor(group);
        let high = if self.is_wide() { u32_at(bytes, field.high) } else { 0 };
        u64::from(high) << 32 | u64::from(u32_at(bytes, field.low))
    }

    pub(crate) fn set_block(&mut self, group: u32, field: Field, block: u64) {
        let wide = self.is_wide();
        let bytes = self.descriptor_mut(group);
        put_u32(bytes, field.low, low_u32(block));
        if wide {
            put_u32(bytes, field.high, low_u32(block >> 32));
        }
    }

    /// A number of 16 or 32 bits.
    pub(crate) fn count(&self, group: u32, field: Field) -> u32 {
        let bytes = self.descriptor(group);
        let high = if self.is_wide() { u16_at(bytes, field.high) } else { 0 };
        u32::from(high) << 16 | u32::from(u16_at(bytes, field.low))
    }

    pub(crate) fn set_count(&mut self, group: u32, field: Field, count: u32) {
        let wide = self.is_wide();
        let bytes = self.descriptor_mut(group);
        put_u16(bytes, field.low, low_u16(count));
        if wide {
            put_u16(bytes, field.high, low_u16(count >> 16));
        }
    }

    /// Without checksums a descriptor has no flags.
    pub(crate) fn flags(&self, group: u32) -> u16 {
        if self.has_checksums { u16_at(self.descriptor(group), FLAGS_AT) } else { 0 }
    }

    pub(crate) fn set_flags(&mut self, group: u32, flags: u16) {
        if self.has_checksums {
            put_u16(self.descriptor_mut(group), FLAGS_AT, flags);
        }
    }

    /// Holds each descriptor against its checksum and against the geometry.
    pub(crate) fn check(&self, superblock: &Superblock) -> Result<(), Error> {
        for group in 0..self.group_count {
            if self.has_checksums
                && u16_at(self.descriptor(group), CHECKSUM_AT) != self.checksum(group, superblock.uuid())
            {
                return Err(Error::group(group, "the checksum of its descriptor is wrong"));
            }
            if u64::from(self.count(group, FREE_BLOCKS)) > superblock.group_blocks(group)
                || [FREE_INODES, USED_DIRECTORIES]
                    .iter()
                    .any(|field| self.count(group, *field) > superblock.inodes_per_group)
            {
                return Err(Error::group(group, "more is free or a directory than there is"));
            }
            if self.has_checksums && self.count(group, TABLE_UNUSED) > superblock.inodes_per_group {
                return Err(Error::group(group, "more inodes were never used than there are"));
            }
            let spans = self.metadata(group, superblock.table_blocks());
            if spans
                .iter()
                .any(|(start, count)| *start == 0 || start.saturating_add(*count) > superblock.block_count)
            {
                return Err(Error::group(group, "its bitmaps or inodes lie beyond the file system"));
            }
        }
        Ok(())
    }

    /// Where the bitmaps and the table of a group lie.
    pub(crate) fn metadata(&self, group: u32, table_blocks: u64) -> [(u64, u64); 3] {
        [
            (self.block(group, BLOCK_BITMAP), 1),
            (self.block(group, INODE_BITMAP), 1),
            (self.block(group, INODE_TABLE), table_blocks),
        ]
    }

    /// Free blocks and inodes of all groups.
    pub(crate) fn free(&self) -> (u64, u32) {
        (0..self.group_count).fold((0, 0), |(blocks, inodes), group| {
            let free_inodes = self.count(group, FREE_INODES);
            (blocks + u64::from(self.count(group, FREE_BLOCKS)), inodes + free_inodes)
        })
    }

    /// The blocks of the table that have changed, with their checksums put right: number in the table, and bytes.
    pub(crate) fn take_changed(&mut self, uuid: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let changed = std::mem::take(&mut self.changed);
        let per_block = low_u32((BLOCK_BYTES / self.descriptor_bytes) as u64);
        let mut blocks = Vec::new();
        for block in changed {
            let first = low_u32(block).saturating_mul(per_block);
            for group in first..first.saturating_add(per_block).min(self.group_count) {
                if self.has_checksums {
                    let checksum = self.checksum(group, uuid);
                    put_u16(self.descriptor_mut(group), CHECKSUM_AT, checksum);
                }
            }
            let start = index(block) * BLOCK_BYTES;
            blocks.push((block, self.bytes.get(start..start + BLOCK_BYTES).unwrap_or(&[]).to_vec()));
        }
        self.changed.clear();
        blocks
    }

    fn checksum(&self, group: u32, uuid: &[u8]) -> u16 {
        let bytes = self.descriptor(group);
        let (before, after) = bytes.split_at(CHECKSUM_AT.min(bytes.len()));
        let crc = checksum::crc16(checksum::crc16(!0, uuid), &group.to_le_bytes());
        checksum::crc16(checksum::crc16(crc, before), after.get(2..).unwrap_or(&[]))
    }

    fn is_wide(&self) -> bool {
        self.descriptor_bytes > NARROW_BYTES
    }

    fn descriptor(&self, group: u32) -> &[u8] {
        let start = group as usize * self.descriptor_bytes;
        self.bytes.get(start..start + self.descriptor_bytes).unwrap_or(&[])
    }

    fn descriptor_mut(&mut self, group: u32) -> &mut [u8] {
        let start = group as usize * self.descriptor_bytes;
        self.changed.insert((start / BLOCK_BYTES) as u64);
        self.bytes.get_mut(start..start + self.descriptor_bytes).unwrap_or(&mut [])
    }
}

/// Everything that belongs to no file, in order: copies of the superblock and of descriptors, bitmaps, tables of inodes.
#[derive(Debug)]
pub(crate) struct Regions {
    /// First and behind the last, disjoint and ascending.
    spans: Vec<(u64, u64)>,
}

impl Regions {
    /// Refuses what overlaps.
    pub(crate) fn new(superblock: &Superblock, groups: &Groups) -> Result<Self, Error> {
        let mut spans = Vec::new();
        for group in 0..superblock.group_count() {
            let overhead = superblock.overhead_blocks(group);
            if overhead > 0 {
                spans.push((group_start(group), group_start(group) + overhead));
            }
            let metadata = groups.metadata(group, superblock.table_blocks());
            spans.extend(metadata.iter().map(|(start, count)| (*start, start + count)));
        }
        spans.sort_unstable();
        let mut joined: Vec<(u64, u64)> = Vec::new();
        for (start, end) in spans {
            match joined.last_mut() {
                Some(last) if start < last.1 => {
                    return Err(Error::block(start, "bitmaps, inodes or descriptors overlap"));
                }
                Some(last) if start == last.1 => last.1 = end,
                _ => joined.push((start, end)),
            }
        }
        Ok(Self { spans: joined })
    }

    /// Whether a range has a block of a region.
    pub(crate) fn touch(&self, start: u64, count: u64) -> bool {
        self.inside(start, count).next().is_some()
    }

    /// The parts of regions in a range: first and count.
    pub(crate) fn inside(&self, start: u64, count: u64) -> impl Iterator<Item = (u64, u64)> {
        let end = start.saturating_add(count);
        let first = self.spans.partition_point(|(_, span_end)| *span_end <= start);
        let rest = self.spans.get(first..).unwrap_or(&[]).iter();
        rest.take_while(move |span| span.0 < end)
            .map(move |(from, to)| ((*from).max(start), (*to).min(end) - (*from).max(start)))
    }

    /// How many blocks of a group belong to regions.
    pub(crate) fn blocks_of(&self, group: u32) -> u64 {
        self.inside(group_start(group), GROUP_BLOCKS).map(|(_, count)| count).sum()
    }
}
