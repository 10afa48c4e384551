//! What an archive has an entry for, once a header and what extends it are put together.

use std::{collections::BTreeMap, sync::Arc};

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

use super::{
    ArchiveField, ArchiveRule,
    header::{Dialect, Header},
    number,
    pax::{LIBARCHIVE_XATTR, Records, SCHILY_XATTR},
    sparse::Form,
};
use crate::block::ByteRange;

/// Libarchive leaves the padding out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
/// Permissions, and the bits for set-user-ID, set-group-ID and sticky.
const MODE_BITS: i64 = 0o7777;
/// Linux takes this number for "leave it as it is".
const NOBODY: u32 = u32::MAX;

/// A point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp {
    /// Seconds since 1970, or before it.
    pub seconds: i64,
    /// Nanoseconds after that second, below 1,000,000,000.
    pub nanoseconds: u32,
}

/// The numbers of a device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceNumber {
    /// Which driver.
    pub major: u32,
    /// Which of its devices.
    pub minor: u32,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file, sparse or not.
    File,
    /// Another name of what the path leads to.
    HardLink(Vec<u8>),
    /// A symbolic link with this target.
    Symlink(Vec<u8>),
    /// A character device.
    CharDevice(DeviceNumber),
    /// A block device.
    BlockDevice(DeviceNumber),
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
    /// A type flag that has no meaning in a layer. It has data like a file.
    Other(u8),
}

/// One entry of an archive. Paths are bytes as they are in the archive: absolute, empty, with `..` or not UTF-8.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where its header starts, in bytes from the start of the archive.
    pub offset: u64,
    /// Its path.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permissions with set-user-ID, set-group-ID and sticky: at most 0o7777.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length of the content in bytes, holes included; 0 for what has none.
    pub size: u64,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last access, where the archive says it.
    pub atime: Option<Timestamp>,
    /// Last change of the entry, where the archive says it.
    pub ctime: Option<Timestamp>,
    /// Extended attributes by name; all of them are no longer than 1 MiB.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Of a sparse file, where its data lies: in order, not empty, not touching one another, and within its size.
    pub extents: Option<Arc<[ByteRange]>>,
}

/// What stands before an entry and extends its header.
#[derive(Debug, Default)]
pub(super) struct Extensions {
    pub(super) records: Option<Records>,
    pub(super) long_name: Option<Vec<u8>>,
    pub(super) long_link: Option<Vec<u8>>,
}

impl Extensions {
    pub(super) fn is_empty(&self) -> bool {
        self.records.is_none() && self.long_name.is_none() && self.long_link.is_none()
    }

    pub(super) fn have_size(&self) -> bool {
        self.records.as_ref().is_some_and(|records| records.get(b"size").is_some())
    }
}

/// An entry without a map, and how many bytes the archive has of its content, and of the map if that lies there.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) entry: Entry,
    pub(super) stored: u64,
}

impl Draft {
    /// And how it says that it is sparse, if it is. `real_size` is what a header of GNU tar has for the size of a sparse file.
    pub(super) fn new(
        offset: u64,
        header: Header,
        extensions: Extensions,
        real_size: Option<i64>,
    ) -> Result<(Self, Option<Form>), ArchiveRule> {
        let is_bare = (b'1'..=b'6').contains(&header.kind);
        if !is_bare {
            size_bytes(header.size)?;
        }
        let Extensions { records, long_name, long_link } = extensions;
        let records = records.unwrap_or_default();
        let form = match header.kind {
            b'S' if header.dialect != Dialect::Gnu => return Err(ArchiveRule::SparseMagic),
            b'S' if records.is_sparse() => return Err(ArchiveRule::Contradiction(ArchiveField::Sparse)),
            b'S' => Some(Form::OldGnu),
            _ => Form::of(&records)?,
        };
        let path = |key, long: Option<Vec<u8>>, plain, field| match (records.get(key), long) {
            (Some(path), Some(long)) if path != long => Err(ArchiveRule::Contradiction(field)),
            (Some(path), _) => Ok(path.to_vec()),
            (None, long) => Ok(long.unwrap_or(plain)),
        };
        let plain_name = path(b"path", long_name.clone(), header.name, ArchiveField::Name)?;
        let name = match records.get(b"GNU.sparse.name") {
            Some(name) if name.contains(&0) => return Err(ArchiveRule::Nul(ArchiveField::Name)),
            Some(name) if long_name.is_some_and(|long| long != name) => {
                return Err(ArchiveRule::Contradiction(ArchiveField::Name));
            }
            Some(name) => name.to_vec(),
            None => plain_name.clone(),
        };
        let link = path(b"linkpath", long_link, header.link, ArchiveField::Link)?;
        let size = records.number(b"size", ArchiveField::Size)?.unwrap_or(header.size);
        let kind = kind(header.kind, &plain_name, link, [header.major, header.minor])?;
        let stored = if has_content(&kind) { size_bytes(size)? } else { 0 };
        let size = match form {
            Some(_) if !has_content(&kind) => return Err(ArchiveRule::SparseKind),
            Some(Form::OldGnu) => size_bytes(real_size.ok_or(ArchiveRule::NotNumber(ArchiveField::Size))?)?,
            Some(_) => sparse_size(&records)?.unwrap_or(stored),
            None => stored,
        };
        let owner = |key, plain: i64, field| {
            let number = records.number(key, field)?.unwrap_or(plain);
            let number = u32::try_from(number).ok().filter(|number| *number != NOBODY);
            number.ok_or(ArchiveRule::OutOfRange(field))
        };
        let time = |key, field| {
            let value: Option<&[u8]> = records.get(key);
            value.map(|value| number::time(value).ok_or(ArchiveRule::NotNumber(field))).transpose()
        };
        let plain_time = |seconds| Timestamp { seconds, nanoseconds: 0 };
        let entry = Entry {
            offset,
            mode: u16::try_from(header.mode & MODE_BITS).unwrap_or_default(),
            uid: owner(b"uid", header.uid, ArchiveField::Uid)?,
            gid: owner(b"gid", header.gid, ArchiveField::Gid)?,
            size,
            mtime: time(b"mtime", ArchiveField::Mtime)?.unwrap_or(plain_time(header.mtime)),
            atime: time(b"atime", ArchiveField::Atime)?.or(header.atime.map(plain_time)),
            ctime: time(b"ctime", ArchiveField::Ctime)?.or(header.ctime.map(plain_time)),
            xattrs: xattrs(&records)?,
            extents: None,
            name,
            kind,
        };
        Ok((Self { entry, stored }, form))
    }
}

fn has_content(kind: &EntryKind) -> bool {
    matches!(kind, EntryKind::File | EntryKind::Other(_))
}

/// `name` is that before a sparse file's own takes its place.
fn kind(flag: u8, name: &[u8], link: Vec<u8>, device: [i64; 2]) -> Result<EntryKind, ArchiveRule> {
    let device = || {
        let [major, minor] = device.map(u32::try_from);
        let out_of_range = |field| move |_| ArchiveRule::OutOfRange(field);
        Ok(DeviceNumber {
            major: major.map_err(out_of_range(ArchiveField::Major))?,
            minor: minor.map_err(out_of_range(ArchiveField::Minor))?,
        })
    };
    let is_directory_name = name.ends_with(b"/");
    Ok(match flag {
        b'0' | b'S' if is_directory_name => return Err(ArchiveRule::FileNamedDirectory),
        0 if is_directory_name => EntryKind::Directory,
        0 | b'0' | b'S' => EntryKind::File,
        b'1' => EntryKind::HardLink(link),
        b'2' => EntryKind::Symlink(link),
        b'3' => EntryKind::CharDevice(device()?),
        b'4' => EntryKind::BlockDevice(device()?),
        b'5' => EntryKind::Directory,
        b'6' => EntryKind::Fifo,
        flag => EntryKind::Other(flag),
    })
}

pub(super) fn size_bytes(size: i64) -> Result<u64, ArchiveRule> {
    u64::try_from(size).map_err(|_| ArchiveRule::OutOfRange(ArchiveField::Size))
}

/// The size of a sparse file with its holes, under either of its keys.
fn sparse_size(records: &Records) -> Result<Option<u64>, ArchiveRule> {
    let size = |key: &[u8]| records.number(key, ArchiveField::Size)?.map(size_bytes).transpose();
    match (size(b"GNU.sparse.size")?, size(b"GNU.sparse.realsize")?) {
        (Some(size), Some(other)) if size != other => Err(ArchiveRule::Contradiction(ArchiveField::Size)),
        (size, other) => Ok(size.or(other)),
    }
}

fn xattrs(records: &Records) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, ArchiveRule> {
    let mut xattrs = BTreeMap::new();
    for (name, value) in records.with_prefix(LIBARCHIVE_XATTR) {
        let value = BASE64.decode(value).map_err(|_| ArchiveRule::Xattr)?;
        xattrs.insert(percent_decoded(name).ok_or(ArchiveRule::Xattr)?, value);
    }
    for (name, value) in records.with_prefix(SCHILY_XATTR) {
        xattrs.insert(name.to_vec(), value.to_vec());
    }
    let is_name = |name: &[u8]| !name.is_empty() && !name.contains(&0);
    if xattrs.keys().all(|name| is_name(name)) { Ok(xattrs) } else { Err(ArchiveRule::Xattr) }
}

/// `%` and two hexadecimal digits stand for a byte.
fn percent_decoded(name: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte == b'%' {
            let (digits, after) = rest.split_first_chunk::<2>()?;
            rest = after;
            let digits = digits.map(|digit| char::from(digit).to_digit(16));
            let [Some(high), Some(low)] = digits else { return None };
            decoded.push(u8::try_from(high << 4 | low).ok()?);
        } else {
            decoded.push(*byte);
        }
    }
    Some(decoded)
}
