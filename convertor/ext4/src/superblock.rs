//! The superblock: read with every check that what is computed from it needs, and written back with what a layer changes.
//!
//! Offsets are those of `struct ext4_super_block` in the kernel's `Documentation/filesystems/ext4/super.rst`.

use crate::{
    cache::BLOCK_BYTES,
    error::Error,
    feature::{Features, compatible, incompatible, read_only},
    field::{index, low_u16, low_u32, put, put_u16, put_u32, u16_at, u32_at},
};

/// Where it lies in the first block; in other groups it lies at the beginning of theirs.
pub(crate) const OFFSET: usize = 1024;
pub(crate) const SUPERBLOCK_BYTES: usize = 1024;
/// Blocks of a group: what a bitmap of one block can tell.
pub(crate) const GROUP_BLOCKS: u64 = 32768;
/// More groups would be more than 128 TiB.
pub(crate) const GROUP_LIMIT: u64 = 1 << 20;
pub(crate) const INODE_BYTES: usize = 256;
pub(crate) const INODES_PER_BLOCK: u32 = 16;
/// What a new file system keeps for others below its first inode.
pub(crate) const FIRST_INODE: u32 = 11;
const MAGIC: u16 = 0xef53;
/// Of the states: unmounted, and no errors were found.
const VALID: u16 = 1;
const HAS_ERRORS: u16 = 2;
/// Blocks of 4 KiB, as a shift of 1 KiB.
const BLOCK_SHIFT: u32 = 2;
const SIGNED_HASH: u32 = 1;
const UNSIGNED_HASH: u32 = 2;
const HALF_MD4: u8 = 1;
const DYNAMIC_REVISION: u32 = 1;
/// `resize2fs` never reserves more: the pointers of one block.
const RESERVED_DESCRIPTOR_LIMIT: u32 = 1024;

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Superblock {
    bytes: Box<[u8; SUPERBLOCK_BYTES]>,
    pub(crate) features: Features,
    pub(crate) block_count: u64,
    pub(crate) inode_count: u32,
    pub(crate) inodes_per_group: u32,
    pub(crate) first_inode: u32,
    /// Bytes of a group's descriptor.
    pub(crate) descriptor_bytes: usize,
    /// Blocks behind the descriptors that are kept for more of them.
    pub(crate) reserved_descriptor_blocks: u32,
    pub(crate) hash_seed: [u32; 4],
    pub(crate) hash_unsigned: bool,
}

/// What a new file system is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Draft {
    pub(crate) block_count: u64,
    pub(crate) inodes_per_group: u32,
    pub(crate) uuid: [u8; 16],
    pub(crate) hash_seed: [u8; 16],
    pub(crate) time: u32,
}

impl Superblock {
    /// Reads the one of a device of `device_bytes`.
    pub(crate) fn parse(bytes: &[u8; SUPERBLOCK_BYTES], device_bytes: u64) -> Result<Self, Error> {
        if u16_at(bytes, 0x38) != MAGIC {
            return Err(Error::NotExt4);
        }
        let features = Features {
            compatible: u32_at(bytes, 0x5c),
            incompatible: u32_at(bytes, 0x60),
            read_only: u32_at(bytes, 0x64),
        };
        features.check()?;
        check_geometry(bytes)?;
        check_state(bytes)?;
        let wide = features.incompatible & incompatible::WIDE != 0;
        let high = if wide { u32_at(bytes, 0x150) } else { 0 };
        let seed = |at: usize| u32_at(bytes, 0xec + 4 * at);
        let superblock = Self {
            bytes: Box::new(*bytes),
            features,
            block_count: u64::from(high) << 32 | u64::from(u32_at(bytes, 4)),
            inode_count: u32_at(bytes, 0),
            inodes_per_group: u32_at(bytes, 0x28),
            first_inode: u32_at(bytes, 0x54),
            descriptor_bytes: if wide { 64 } else { 32 },
            reserved_descriptor_blocks: u16_at(bytes, 0xce).into(),
            hash_seed: [seed(0), seed(1), seed(2), seed(3)],
            hash_unsigned: u32_at(bytes, 0x160) & UNSIGNED_HASH != 0,
        };
        superblock.check_counts(device_bytes)?;
        Ok(superblock)
    }

    /// The one of a new file system, whose numbers the caller has chosen.
    pub(crate) fn new(draft: &Draft) -> Self {
        let groups = low_u32(draft.block_count.div_ceil(GROUP_BLOCKS));
        let inode_count = draft.inodes_per_group.saturating_mul(groups);
        let mut bytes = Box::new([0; SUPERBLOCK_BYTES]);
        let out = &mut bytes[..];
        put_u32(out, 0x18, BLOCK_SHIFT);
        put_u32(out, 0x1c, BLOCK_SHIFT);
        put_u32(out, 0x20, low_u32(GROUP_BLOCKS));
        put_u32(out, 0x24, low_u32(GROUP_BLOCKS));
        put_u32(out, 0x28, draft.inodes_per_group);
        put_u32(out, 0, inode_count);
        put_u32(out, 4, low_u32(draft.block_count));
        put_u32(out, 0x150, low_u32(draft.block_count >> 32));
        // Mounts are not counted, errors are gone on from, and nothing is to be checked at times.
        put_u16(out, 0x36, 0xffff);
        put_u16(out, 0x38, MAGIC);
        put_u16(out, 0x3a, VALID);
        put_u16(out, 0x3c, 1);
        put_u32(out, 0x40, draft.time);
        put_u32(out, 0x4c, DYNAMIC_REVISION);
        put_u32(out, 0x54, FIRST_INODE);
        put_u16(out, 0x58, low_u16(low_u32(INODE_BYTES as u64)));
        put(out, 0x68, &draft.uuid);
        put(out, 0xec, &draft.hash_seed);
        put(out, 0xfc, &[HALF_MD4]);
        put_u16(out, 0xfe, 64);
        // user_xattr and acl, as mke2fs has them.
        put_u32(out, 0x100, 0xc);
        put_u32(out, 0x108, draft.time);
        put_u16(out, 0x15c, 32);
        put_u16(out, 0x15e, 32);
        put_u32(out, 0x160, SIGNED_HASH);
        put(out, 0x174, &[4]);
        let features = Features {
            compatible: compatible::EXT_ATTR | compatible::DIR_INDEX,
            incompatible: incompatible::SUPPORTED,
            read_only: read_only::SUPPORTED,
        };
        let seed = |at: usize| u32_at(&draft.hash_seed, 4 * at);
        Self {
            bytes,
            features,
            block_count: draft.block_count,
            inode_count,
            inodes_per_group: draft.inodes_per_group,
            first_inode: FIRST_INODE,
            descriptor_bytes: 64,
            reserved_descriptor_blocks: 0,
            hash_seed: [seed(0), seed(1), seed(2), seed(3)],
            hash_unsigned: false,
        }
    }

    pub(crate) fn group_count(&self) -> u32 {
        low_u32(self.block_count.div_ceil(GROUP_BLOCKS))
    }

    /// The blocks of a group: the last one may be short.
    pub(crate) fn group_blocks(&self, group: u32) -> u64 {
        GROUP_BLOCKS.min(self.block_count.saturating_sub(group_start(group)))
    }

    /// Blocks that the descriptors of all groups take.
    pub(crate) fn descriptor_blocks(&self) -> u64 {
        let bytes = u64::from(self.group_count()) * self.descriptor_bytes as u64;
        bytes.div_ceil(BLOCK_BYTES as u64)
    }

    /// Blocks at the beginning of a group that a copy of the superblock and the descriptors takes.
    pub(crate) fn overhead_blocks(&self, group: u32) -> u64 {
        if self.has_copy(group) {
            1 + self.descriptor_blocks() + u64::from(self.reserved_descriptor_blocks)
        } else {
            0
        }
    }

    /// Blocks of a group's table of inodes.
    pub(crate) fn table_blocks(&self) -> u64 {
        self.inodes_per_group.div_ceil(INODES_PER_BLOCK).into()
    }

    /// Whether descriptors have checksums and may say that a bitmap was never written.
    pub(crate) fn has_descriptor_checksums(&self) -> bool {
        self.features.read_only & read_only::GDT_CSUM != 0
    }

    pub(crate) fn uuid(&self) -> &[u8] {
        self.bytes.get(0x68..0x78).unwrap_or(&[])
    }

    /// Whether a group begins with a superblock and descriptors.
    pub(crate) fn has_copy(&self, group: u32) -> bool {
        if group == 0 {
            return true;
        }
        if self.features.compatible & compatible::SPARSE_SUPER2 != 0 {
            return [0x24c, 0x250].iter().any(|at| u32_at(&self.bytes[..], *at) == group);
        }
        let is_power = |base: u32| {
            let mut power = base;
            while power < group {
                power = power.saturating_mul(base);
            }
            power == group
        };
        group == 1
            || self.features.read_only & read_only::SPARSE_SUPER == 0
            || [3, 5, 7].into_iter().any(is_power)
    }

    /// The bytes of the copy in `group`, with what is free now and the features that a layer makes use of.
    pub(crate) fn encode(&mut self, group: u32, free: (u64, u32), time: u32) -> &[u8; SUPERBLOCK_BYTES] {
        self.features.compatible |= compatible::EXT_ATTR | compatible::DIR_INDEX;
        self.features.read_only |= read_only::USED;
        let out = &mut self.bytes[..];
        put_u32(out, 0x5c, self.features.compatible);
        put_u32(out, 0x60, self.features.incompatible);
        put_u32(out, 0x64, self.features.read_only);
        if u32_at(out, 0x160) & (SIGNED_HASH | UNSIGNED_HASH) == 0 {
            let flags = u32_at(out, 0x160) | SIGNED_HASH;
            put_u32(out, 0x160, flags);
        }
        put_u32(out, 0xc, low_u32(free.0));
        if self.features.incompatible & incompatible::WIDE != 0 {
            put_u32(out, 0x158, low_u32(free.0 >> 32));
        }
        put_u32(out, 0x10, free.1);
        put_u32(out, 0x30, time);
        put_u16(out, 0x5a, low_u16(group));
        &self.bytes
    }

    fn check_counts(&self, device_bytes: u64) -> Result<(), Error> {
        if self.block_count > device_bytes / BLOCK_BYTES as u64 {
            return Err(Error::superblock("it has more blocks than the device"));
        }
        let groups = self.block_count.div_ceil(GROUP_BLOCKS);
        if groups == 0 || groups > GROUP_LIMIT {
            return Err(Error::superblock("it has no block, or more than 128 TiB"));
        }
        if self.inodes_per_group == 0
            || u64::from(self.inodes_per_group) > GROUP_BLOCKS
            || !self.inodes_per_group.is_multiple_of(INODES_PER_BLOCK)
        {
            return Err(Error::superblock(
                "the inodes of a group do not fill the blocks of a table of at most 32768",
            ));
        }
        if groups * u64::from(self.inodes_per_group) != u64::from(self.inode_count) {
            return Err(Error::superblock("it has another number of inodes than its groups"));
        }
        if self.first_inode < FIRST_INODE || self.first_inode > self.inode_count {
            return Err(Error::superblock("the first inode for files is a reserved one or none"));
        }
        if self.reserved_descriptor_blocks > RESERVED_DESCRIPTOR_LIMIT
            || (0..self.group_count()).any(|group| self.overhead_blocks(group) > self.group_blocks(group))
        {
            return Err(Error::superblock("the descriptors do not fit into a group"));
        }
        Ok(())
    }
}

/// Refuses what is an ext4 but another kind of it.
fn check_geometry(bytes: &[u8]) -> Result<(), Error> {
    let kept = [
        (u32_at(bytes, 0x4c) == DYNAMIC_REVISION, "its revision is not 1"),
        (u32_at(bytes, 0x18) == BLOCK_SHIFT, "its blocks are not of 4096 bytes"),
        (u32_at(bytes, 0x1c) == BLOCK_SHIFT, "its clusters are not of 4096 bytes"),
        (u64::from(u32_at(bytes, 0x20)) == GROUP_BLOCKS, "its groups do not have 32768 blocks"),
        (u64::from(u32_at(bytes, 0x24)) == GROUP_BLOCKS, "its groups do not have 32768 clusters"),
        (u32_at(bytes, 0x14) == 0, "its first data block is not 0"),
        (usize::from(u16_at(bytes, 0x58)) == INODE_BYTES, "its inodes are not of 256 bytes"),
        (
            u32_at(bytes, 0x60) & incompatible::WIDE == 0 || u16_at(bytes, 0xfe) == 64,
            "its descriptors are not of 64 bytes",
        ),
    ];
    match kept.into_iter().find(|(holds, _)| !holds) {
        Some((_, rule)) => Err(Error::Unsupported(rule.to_owned())),
        None => Ok(()),
    }
}

/// Refuses one that is to be checked or recovered first.
fn check_state(bytes: &[u8]) -> Result<(), Error> {
    let state = u16_at(bytes, 0x3a);
    if state & VALID == 0 || state & HAS_ERRORS != 0 {
        return Err(Error::superblock("it was not unmounted cleanly, or has errors"));
    }
    if u32_at(bytes, 0xe8) != 0 {
        return Err(Error::superblock("it has orphaned inodes"));
    }
    Ok(())
}

/// The first block of a group.
pub(crate) fn group_start(group: u32) -> u64 {
    u64::from(group) * GROUP_BLOCKS
}

/// The group of a block, and its place there.
pub(crate) fn group_of(block: u64) -> (u32, usize) {
    (low_u32(block / GROUP_BLOCKS), index(block % GROUP_BLOCKS))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(block_count: u64) -> Draft {
        Draft { block_count, inodes_per_group: 8192, uuid: [1; 16], hash_seed: [2; 16], time: 3 }
    }

    fn bytes() -> [u8; SUPERBLOCK_BYTES] {
        *Superblock::new(&draft(100_000)).encode(0, (5, 6), 7)
    }

    #[test]
    fn copies_lie_in_the_first_group_and_those_of_powers() {
        let superblock = Superblock::new(&draft(GROUP_BLOCKS * 130));
        let groups: Vec<u32> = (0..130).filter(|group| superblock.has_copy(*group)).collect();
        assert_eq!(groups, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125]);
    }

    #[test]
    fn what_was_written_is_read() {
        let read = Superblock::parse(&bytes(), 100_000 * 4096).unwrap();
        assert_eq!((read.block_count, read.inode_count, read.group_count()), (100_000, 4 * 8192, 4));
        assert_eq!((read.group_blocks(3), read.descriptor_blocks(), read.overhead_blocks(2)), (1696, 1, 0));
    }

    #[test]
    fn what_would_mislead_is_refused() {
        let cases: [(usize, &[u8], &str); 17] = [
            (0x38, &[0], "no ext4"),
            (0x18, &[0], "blocks are not of 4096"),
            (0x20, &[8], "32768 blocks"),
            (0x58, &[128, 0], "inodes are not"),
            (0xfe, &[32], "descriptors are not"),
            (0x14, &[1], "first data block"),
            (0x4c, &[0], "revision"),
            (0x3a, &[0], "unmounted"),
            (0x3a, &[3], "unmounted"),
            (0xe8, &[1], "orphaned"),
            (0, &[1], "another number of inodes"),
            (0x28, &[0, 0, 0, 0], "do not fill"),
            (0x28, &[0, 0, 1, 0], "do not fill"),
            (0x54, &[2], "reserved one"),
            (4, &[0xff, 0xff, 0xff], "than the device"),
            (0xce, &[0, 16], "do not fit"),
            (0x65, &[4], "metadata_csum"),
        ];
        for (at, field, rule) in cases {
            let mut damaged = bytes();
            put(&mut damaged, at, field);
            let message = Superblock::parse(&damaged, 100_000 * 4096).unwrap_err().to_string();
            assert!(message.contains(rule), "{at:#x}: {message}");
        }
    }
}
