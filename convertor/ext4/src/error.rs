//! What can go wrong: the device, a damaged or unsupported file system below, a full one, and entries that ext4 cannot hold.

use std::{fmt, io};

/// Why something was not done.
///
/// Errors that [`Error::spoils_layer`] leave the layer half changed: its device is thrown away. After the others nothing has
/// changed and the layer goes on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device failed.
    #[error("the device fails to {operation} {length} bytes at {offset}")]
    Device {
        /// What was asked of it.
        operation: &'static str,
        /// Where, in bytes.
        offset: u64,
        /// How much, in bytes.
        length: u64,
        /// What it said.
        source: io::Error,
    },
    /// The device does not hold an ext4.
    #[error("no ext4: the superblock has no magic number")]
    NotExt4,
    /// The file system has a feature or a geometry that this writer does not keep up.
    #[error("the file system is not supported: {0}")]
    Unsupported(String),
    /// The file system is damaged.
    #[error("the file system is damaged: {place}: {rule}")]
    Damaged {
        /// Where the damage shows.
        place: Place,
        /// What does not hold there.
        rule: &'static str,
    },
    /// No file system of this size can be made.
    #[error("a file system of {0} bytes cannot be made: from 1 MiB to 128 TiB is possible")]
    Size(u64),
    /// All blocks are in use.
    #[error("the file system is full: it has no free block left")]
    NoSpace,
    /// All inodes are in use.
    #[error("the file system is full: it has no free inode left")]
    NoInodes,
    /// A path leads through something that is no directory.
    #[error("{} leads through what is no directory", show(.0))]
    NotADirectory(Vec<u8>),
    /// A path goes through more symbolic links than Linux follows.
    #[error("{} goes through too many symbolic links", show(.0))]
    TooManySymlinks(Vec<u8>),
    /// A path names nothing that can be made: it is empty or the root where something else is needed.
    #[error("{:?} names nothing that can be made or removed", show(.0))]
    NoName(Vec<u8>),
    /// A name has more than 255 bytes or a zero byte.
    #[error("the name {} has over 255 bytes or a zero byte", show(.0))]
    Name(Vec<u8>),
    /// What a hard link or an attribute is for is not there.
    #[error("{} does not exist", show(.0))]
    NotFound(Vec<u8>),
    /// A hard link to a directory.
    #[error("{} is a directory, and there are no hard links to these", show(.0))]
    LinkToDirectory(Vec<u8>),
    /// A file has 65,000 hard links, the most there may be.
    #[error("{} has 65,000 hard links already", show(.0))]
    TooManyLinks(Vec<u8>),
    /// A symbolic link of no or more than 4,095 bytes, or with a zero byte.
    #[error("a symbolic link's target of {0} bytes is empty, longer than 4,095 or has a zero byte")]
    SymlinkTarget(usize),
    /// A number of a device does not fit.
    #[error("the device number {major}:{minor} does not fit: a major has 12 bits and a minor 20")]
    DeviceNumber {
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
    },
    /// A file is larger than 16 TiB - 4 KiB.
    #[error("a file is larger than ext4 can hold")]
    FileTooLarge,
    /// A directory has more names than its index can address.
    #[error("the directory with inode {0} has too many names")]
    DirectoryTooLarge(u32),
    /// The layer touches more of the directories below than is kept in memory.
    #[error(
        "the directories below are larger than 1 GiB or have over 4,194,304 names, the most that a layer reads"
    )]
    DirectoriesTooLarge,
    /// An extended attribute has a name that ext4 cannot hold.
    #[error("the extended attribute {} has a name that ext4 does not know", show(.0))]
    XattrName(Vec<u8>),
    /// An access control list is not in the form that Linux gives out.
    #[error("the access control list of {} is malformed", show(.0))]
    Acl(Vec<u8>),
    /// Extended attributes do not fit into the inode and a block.
    #[error("the extended attributes need more than one block")]
    XattrsTooLarge,
    /// A layer is finished of which a step failed, or a file was not closed.
    #[error("the layer is spoilt: a step of it failed, or a file was not closed")]
    Spoilt,
}

/// Where damage shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The superblock.
    Superblock,
    /// The descriptor or the bitmaps of a group.
    Group(u32),
    /// A block.
    Block(u64),
    /// An inode.
    Inode(u32),
}

impl Error {
    /// Whether the layer is half changed after this error and cannot be finished.
    #[must_use]
    pub fn spoils_layer(&self) -> bool {
        matches!(
            self,
            Self::Device { .. }
                | Self::Unsupported(_)
                | Self::Damaged { .. }
                | Self::NoSpace
                | Self::NoInodes
                | Self::FileTooLarge
                | Self::DirectoryTooLarge(_)
                | Self::DirectoriesTooLarge
                | Self::Spoilt
        )
    }

    pub(crate) fn damaged(place: Place, rule: &'static str) -> Self {
        Self::Damaged { place, rule }
    }

    pub(crate) fn superblock(rule: &'static str) -> Self {
        Self::damaged(Place::Superblock, rule)
    }

    pub(crate) fn group(group: u32, rule: &'static str) -> Self {
        Self::damaged(Place::Group(group), rule)
    }

    pub(crate) fn block(block: u64, rule: &'static str) -> Self {
        Self::damaged(Place::Block(block), rule)
    }

    pub(crate) fn inode(inode: u32, rule: &'static str) -> Self {
        Self::damaged(Place::Inode(inode), rule)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Superblock => f.write_str("superblock"),
            Self::Group(group) => write!(f, "group {group}"),
            Self::Block(block) => write!(f, "block {block}"),
            Self::Inode(inode) => write!(f, "inode {inode}"),
        }
    }
}

fn show(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}
