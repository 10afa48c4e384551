//! An inode: its 256 bytes and what the fields in them mean.

use crate::{
    error::Error,
    field::{low_u16, low_u32, put, put_u16, put_u32, u16_at, u32_at},
    superblock::INODE_BYTES,
    timestamp::Timestamp,
};

/// The root directory.
pub(crate) const ROOT: u32 = 2;
/// The most hard links that a file may have.
pub(crate) const LINK_LIMIT: u16 = 65_000;
/// Where extended attributes begin, behind fixed fields and 32 bytes of extra ones.
pub(crate) const XATTR_AT: usize = 160;
/// Bytes of the part with the root of the extents, a short symbolic link, or a device number.
pub(crate) const CONTENT_BYTES: usize = 60;
const CONTENT_AT: usize = 0x28;
const EXTRA_BYTES: u16 = 32;
/// What there is behind the fields that every inode has.
const EXTRA_LIMIT: u16 = 128;
const SECTORS_PER_BLOCK: u64 = 8;
/// The set of permission bits.
const PERMISSIONS: u16 = 0o7777;

const INDEX_FLAG: u32 = 0x1000;
const HUGE_FILE_FLAG: u32 = 0x4_0000;
const EXTENTS_FLAG: u32 = 0x8_0000;
/// Encrypted, verity, extended attribute, inline data, casefold.
const UNSUPPORTED_FLAGS: u32 = 0x800 | 0x10_0000 | 0x20_0000 | 0x1000_0000 | 0x4000_0000;

/// What kind of thing an inode is. The numbers are those of directory entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    Regular = 1,
    Directory = 2,
    Character = 3,
    Block = 4,
    Fifo = 5,
    Socket = 6,
    Symlink = 7,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inode {
    pub(crate) bytes: [u8; INODE_BYTES],
}

impl FileKind {
    const ALL: [(Self, u16); 7] = [
        (Self::Regular, 0o10_0000),
        (Self::Directory, 0o4_0000),
        (Self::Character, 0o2_0000),
        (Self::Block, 0o6_0000),
        (Self::Fifo, 0o1_0000),
        (Self::Socket, 0o14_0000),
        (Self::Symlink, 0o12_0000),
    ];

    /// That of a directory entry.
    pub(crate) fn of_entry(number: u8) -> Option<Self> {
        Self::ALL.into_iter().map(|(kind, _)| kind).find(|kind| *kind as u8 == number)
    }

    fn of_mode(mode: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|(_, bits)| *bits == mode & !PERMISSIONS).map(|(kind, _)| kind)
    }

    fn mode_bits(self) -> u16 {
        Self::ALL.into_iter().find(|(kind, _)| *kind == self).map_or(0, |(_, bits)| bits)
    }
}

impl Inode {
    /// A new one, of which there is no name yet.
    pub(crate) fn new(kind: FileKind) -> Self {
        let mut inode = Self { bytes: [0; INODE_BYTES] };
        put_u16(&mut inode.bytes, 0, kind.mode_bits());
        put_u16(&mut inode.bytes, 0x80, EXTRA_BYTES);
        inode
    }

    /// Refuses one that is not in use, or of a kind that is not supported.
    pub(crate) fn check(&self, number: u32) -> Result<FileKind, Error> {
        if self.links() == 0 {
            return Err(Error::inode(number, "a name leads to an inode without links"));
        }
        if self.flags() & UNSUPPORTED_FLAGS != 0 {
            let flags = self.flags() & UNSUPPORTED_FLAGS;
            return Err(Error::Unsupported(format!(
                "inode {number} is encrypted, verified, inline, casefolded or a value: flags {flags:#x}"
            )));
        }
        if u16_at(&self.bytes, 0x80) > EXTRA_LIMIT {
            return Err(Error::inode(number, "its extra fields are longer than it"));
        }
        FileKind::of_mode(u16_at(&self.bytes, 0))
            .ok_or(Error::inode(number, "its mode is of no kind of file"))
    }

    pub(crate) fn set_permissions(&mut self, mode: u16) {
        let kind = u16_at(&self.bytes, 0) & !PERMISSIONS;
        put_u16(&mut self.bytes, 0, kind | mode & PERMISSIONS);
    }

    pub(crate) fn set_owner(&mut self, uid: u32, gid: u32) {
        put_u16(&mut self.bytes, 2, low_u16(uid));
        put_u16(&mut self.bytes, 0x78, low_u16(uid >> 16));
        put_u16(&mut self.bytes, 0x18, low_u16(gid));
        put_u16(&mut self.bytes, 0x7a, low_u16(gid >> 16));
    }

    /// All four times.
    pub(crate) fn set_times(&mut self, time: Timestamp) {
        let (seconds, extra) = time.encode();
        for at in [0x8, 0xc, 0x10, 0x90] {
            put_u32(&mut self.bytes, at, seconds);
        }
        for at in [0x84, 0x88, 0x8c, 0x94] {
            put_u32(&mut self.bytes, at, extra);
        }
        put_u16(&mut self.bytes, 0x80, EXTRA_BYTES);
    }

    pub(crate) fn links(&self) -> u16 {
        u16_at(&self.bytes, 0x1a)
    }

    pub(crate) fn set_links(&mut self, links: u16) {
        put_u16(&mut self.bytes, 0x1a, links);
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        u64::from(u32_at(&self.bytes, 0x6c)) << 32 | u64::from(u32_at(&self.bytes, 4))
    }

    pub(crate) fn set_size_bytes(&mut self, size_bytes: u64) {
        put_u32(&mut self.bytes, 4, low_u32(size_bytes));
        put_u32(&mut self.bytes, 0x6c, low_u32(size_bytes >> 32));
    }

    /// All blocks that it takes: data, extents, attributes.
    pub(crate) fn set_block_count(&mut self, blocks: u64) {
        let flags = self.flags() & !HUGE_FILE_FLAG;
        self.set_flags(flags);
        let sectors = blocks * SECTORS_PER_BLOCK;
        put_u32(&mut self.bytes, 0x1c, low_u32(sectors));
        put_u16(&mut self.bytes, 0x74, low_u16(low_u32(sectors >> 32)));
    }

    pub(crate) fn block_count(&self) -> u64 {
        let stored = u64::from(u16_at(&self.bytes, 0x74)) << 32 | u64::from(u32_at(&self.bytes, 0x1c));
        if self.flags() & HUGE_FILE_FLAG != 0 { stored } else { stored / SECTORS_PER_BLOCK }
    }

    /// The block of extended attributes, or 0.
    pub(crate) fn xattr_block(&self) -> u64 {
        u64::from(u16_at(&self.bytes, 0x76)) << 32 | u64::from(u32_at(&self.bytes, 0x68))
    }

    pub(crate) fn set_xattr_block(&mut self, block: u64) {
        put_u32(&mut self.bytes, 0x68, low_u32(block));
        put_u16(&mut self.bytes, 0x76, low_u16(low_u32(block >> 32)));
    }

    pub(crate) fn content(&self) -> &[u8] {
        self.bytes.get(CONTENT_AT..CONTENT_AT + CONTENT_BYTES).unwrap_or(&[])
    }

    pub(crate) fn set_content(&mut self, content: &[u8]) {
        let mut padded = [0; CONTENT_BYTES];
        put(&mut padded, 0, content);
        put(&mut self.bytes, CONTENT_AT, &padded);
    }

    pub(crate) fn has_extents(&self) -> bool {
        self.flags() & EXTENTS_FLAG != 0
    }

    /// Says that the content is the root of its extents.
    pub(crate) fn mark_extents(&mut self) {
        self.set_flags(self.flags() | EXTENTS_FLAG);
    }

    /// Says whether a directory has an index.
    pub(crate) fn mark_index(&mut self, has_index: bool) {
        let flags = self.flags() & !INDEX_FLAG;
        self.set_flags(if has_index { flags | INDEX_FLAG } else { flags });
    }

    fn flags(&self) -> u32 {
        u32_at(&self.bytes, 0x20)
    }

    fn set_flags(&mut self, flags: u32) {
        put_u32(&mut self.bytes, 0x20, flags);
    }
}
