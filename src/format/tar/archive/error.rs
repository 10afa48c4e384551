//! What can be wrong with an archive, and where.

use std::fmt;

/// What a rule is about, in a header or in the headers that extend it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ArchiveField {
    /// The path of the entry.
    Name,
    /// What a hard or symbolic link leads to.
    Link,
    /// Permissions.
    Mode,
    /// Owner.
    Uid,
    /// Group.
    Gid,
    /// Length of the content.
    Size,
    /// Time of the last change of the content.
    Mtime,
    /// Time of the last access.
    Atime,
    /// Time of the last change of the entry.
    Ctime,
    /// Major number of a device.
    Major,
    /// Minor number of a device.
    Minor,
    /// An extended attribute.
    Xattr,
    /// The map of a sparse file, or what belongs to it.
    Sparse,
}

impl fmt::Display for ArchiveField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Name => "name",
            Self::Link => "link target",
            Self::Mode => "mode",
            Self::Uid => "uid",
            Self::Gid => "gid",
            Self::Size => "size",
            Self::Mtime => "mtime",
            Self::Atime => "atime",
            Self::Ctime => "ctime",
            Self::Major => "major number",
            Self::Minor => "minor number",
            Self::Xattr => "extended attribute",
            Self::Sparse => "sparse map",
        })
    }
}

/// The rule that an archive breaks. Those marked *ours* are no errors to Go: there GNU tar, libarchive and Go take the
/// archive for different files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveRule {
    /// A header, its body and the content of an entry are whole.
    #[error("the stream ends at {at}, inside of what it announces")]
    Truncated {
        /// Length of the stream in bytes.
        at: u64,
    },
    /// A header has the sum of its bytes.
    #[error("its checksum is wrong, so it is no header of a tar")]
    Checksum,
    /// An archive ends with two blocks of zeroes, or one and the end of the stream.
    #[error("it follows one block of zeroes, where an archive ends with two")]
    LoneZeroBlock,
    /// Numbers are octal, or decimal in a pax record, or the two's complement after a high bit.
    #[error("its {0} is not a number")]
    NotNumber(ArchiveField),
    /// *Ours* but for the size: Linux has no uid, gid or device of this number, no time so far away, and nothing has a
    /// negative size.
    #[error("its {0} is out of range")]
    OutOfRange(ArchiveField),
    /// Bodies of headers are no longer than 1 MiB.
    #[error("its body of {len} bytes is longer than the 1048576 allowed")]
    ExtensionLength {
        /// The claimed length in bytes.
        len: u64,
    },
    /// A pax record is its length, a space, a key, `=`, a value and a line feed.
    #[error("the pax record at byte {at} of its body is malformed")]
    PaxRecord {
        /// Where the record starts, in bytes from the start of the body.
        at: u64,
    },
    /// Names have no NUL inside.
    #[error("its {0} has a NUL inside")]
    Nul(ArchiveField),
    /// *Ours:* what says the content or a name says it once, or the same each time.
    #[error("its {0} is given twice, and differently")]
    Contradiction(ArchiveField),
    /// *Ours:* a global pax header changes neither content nor names; Go ignores it, others apply it.
    #[error("a global pax header gives the {0} of all entries, which readers understand differently")]
    Global(ArchiveField),
    /// *Ours:* nothing but its own extensions stands before an entry.
    #[error("a global pax header stands between an entry and what extends it")]
    Detached,
    /// *Ours:* an entry has one pax header; Go forgets the earlier, libarchive unites them.
    #[error("it is the second pax header of one entry")]
    SecondPax,
    /// *Ours:* a size comes last; readers were attacked that take it for the size of the next extension.
    #[error("it stands between a pax header with a size and the entry of that size")]
    SizeBeforeExtension,
    /// *Ours:* an extension of Solaris, an entry to Go and a pax header to others.
    #[error("it is an extended header of Solaris, which readers understand differently")]
    Solaris,
    /// *Ours:* what has the name of a directory is none of regular files; others make a directory of it.
    #[error("it is a regular file whose name ends with a slash")]
    FileNamedDirectory,
    /// Only regular files are sparse.
    #[error("it is sparse and no regular file")]
    SparseKind,
    /// Sparse files of the old form have headers of GNU tar; star's have another layout.
    #[error("it is sparse in the old form, without the magic of GNU tar")]
    SparseMagic,
    /// *Ours:* sparse files of pax have version 0.0, 0.1 or 1.0 and a map; Go takes others for plain files.
    #[error("it is a sparse file of an unknown version or without a map")]
    SparseVersion,
    /// A map is no longer than 1 MiB, and has at most 1048576 extents.
    #[error("its sparse map is longer than 1 MiB")]
    SparseLength,
    /// A map has as many pairs as it says, in order, within the file's size, and is a number of bytes long that is there.
    #[error("its sparse map is malformed")]
    SparseMap,
    /// The archive has the bytes that the map names, and no others.
    #[error("its sparse map names {mapped} bytes, but it has {stored}")]
    SparseContent {
        /// Bytes in all extents.
        mapped: u64,
        /// Bytes in the archive.
        stored: u64,
    },
    /// *Ours:* an attribute has a name, and one of libarchive is encoded as libarchive does it.
    #[error("the name or the encoding of an extended attribute is malformed")]
    Xattr,
}

/// Why an archive cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("tar header at offset {offset}: {rule}")]
pub struct ArchiveError {
    /// Where the header starts that is wrong, or whose body or content is, in bytes from the start of the archive.
    pub offset: u64,
    /// What is wrong with it.
    pub rule: ArchiveRule,
}
