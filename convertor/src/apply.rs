//! Puts the entries of an archive into an ext4, as containerd unpacks a layer over the ones below it.
//!
//! What a path means, and what gives way to what, is the file system's to know. Of names this adds what layers mean by them:
//!
//! * A name is cleaned before its links are followed: `a/../b` is `b`, whatever `a` is, and nothing lies above the root. What
//!   is the root itself gives it its attributes.
//! * `.wh.NAME`, of any type, removes what the layers below have of `NAME`, and `.wh..wh..opq` all that they have in its directory. What this layer
//!   makes stays, whichever comes first. `.wh.` alone is an error. What else begins with `.wh..wh.` in the root is aufs's own and is passed over.
//! * A path has at most 4,095 bytes, as where containerd unpacks it: so no entry makes more directories than that.
//! * A hard link gives its target another name and changes nothing about it.
//! * Attributes that ext4 has no namespace for are left out, and those of `user.` where Linux refuses them: on all but files and directories.
//!   They are counted.
//! * A type that containerd does not unpack is an error.

use std::{
    io::{self, Read},
    ops::Range,
};

use stratabd::{
    format::tar::archive::{ArchiveError, ArchiveReader, Entry, EntryKind, Event},
    server::failure::FailureClass,
};
use stratabd_ext4::{Attributes, Device, Filesystem, Node, Timestamp, xattr_is_supported};

use crate::layer::LayerError;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const AUFS: &[u8] = b".wh..wh.";
/// Linux opens no path of more: `PATH_MAX` without its NUL.
const PATH_LIMIT_BYTES: usize = 4095;
const BUFFER_BYTES: usize = 1 << 20;

/// What was done with an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Applied {
    /// Entries, whiteouts too.
    pub entries: u64,
    /// Extended attributes that were left out.
    pub dropped_xattrs: u64,
}

/// Why an archive was not put into a file system, which is to be thrown away then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// The archive cannot be had. Inside is the [`LayerError`], if one is the cause.
    #[error("the layer cannot be read")]
    Read(#[from] io::Error),
    /// It is no archive.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// An entry cannot be made.
    #[error("tar header at offset {offset}: {} cannot be made", name.escape_ascii())]
    Entry {
        /// Where its header starts, in bytes from the start of the archive.
        offset: u64,
        /// As it is in the archive.
        name: Vec<u8>,
        /// Why.
        #[source]
        error: stratabd_ext4::Error,
    },
    /// An entry has a type that layers do not have.
    #[error("tar header at offset {offset}: {} has type {flag:#04x}, which layers do not have", name.escape_ascii())]
    Kind {
        /// Where its header starts, in bytes from the start of the archive.
        offset: u64,
        /// As it is in the archive.
        name: Vec<u8>,
        /// The type.
        flag: u8,
    },
    /// The path of an entry, or of the target of a hard link, is longer than Linux has it.
    #[error(
        "tar header at offset {offset}: a path of {len} bytes is longer than the {PATH_LIMIT_BYTES} that Linux allows"
    )]
    PathLength {
        /// Where its header starts, in bytes from the start of the archive.
        offset: u64,
        /// Length of the path in bytes.
        len: usize,
    },
    /// A whiteout of nothing.
    #[error("tar header at offset {offset}: {} is a whiteout without a name", name.escape_ascii())]
    Whiteout {
        /// Where its header starts, in bytes from the start of the archive.
        offset: u64,
        /// As it is in the archive.
        name: Vec<u8>,
    },
}

impl ApplyError {
    /// Whose fault it is: the archive's, or that of what it is read from and written to.
    #[must_use]
    pub fn class(&self) -> FailureClass {
        match self {
            Self::Read(error) if error.get_ref().is_none_or(|inner| !inner.is::<LayerError>()) => {
                FailureClass::Internal
            }
            Self::Entry { error: stratabd_ext4::Error::Device { .. }, .. } => FailureClass::Internal,
            _ => FailureClass::Image,
        }
    }
}

/// Reads `archive` to the end of its stream and puts all of its entries into `filesystem`.
///
/// # Errors
/// [`ApplyError`], at the first entry that cannot be made.
pub fn apply<D: Device>(archive: impl Read, filesystem: &mut Filesystem<D>) -> Result<Applied, ApplyError> {
    let mut entries = Entries::new(archive);
    let mut applied = Applied::default();
    while let Some(event) = entries.next()? {
        if let Next::Entry(entry) = event {
            applied.entries = applied.entries.saturating_add(1);
            put(&entry, filesystem, &mut entries, &mut applied)?;
        }
    }
    Ok(applied)
}

fn put<D: Device, R: Read>(
    entry: &Entry,
    filesystem: &mut Filesystem<D>,
    entries: &mut Entries<R>,
    applied: &mut Applied,
) -> Result<(), ApplyError> {
    let path = cleaned(&entry.name);
    let target_bytes = if let EntryKind::HardLink(target) = &entry.kind { target.len() } else { 0 };
    let len = path.len().max(target_bytes);
    if len > PATH_LIMIT_BYTES {
        return Err(ApplyError::PathLength { offset: entry.offset, len });
    }
    let start = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash.saturating_add(1));
    let (parent, base) = path.split_at_checked(start).unwrap_or_default();
    let fail = |error| ApplyError::Entry { offset: entry.offset, name: entry.name.clone(), error };
    if base == OPAQUE {
        return filesystem.opaque(parent).map_err(fail);
    }
    if path.starts_with(AUFS) {
        return Ok(());
    }
    if let Some(gone) = base.strip_prefix(WHITEOUT) {
        if gone.is_empty() {
            return Err(ApplyError::Whiteout { offset: entry.offset, name: entry.name.clone() });
        }
        return filesystem.whiteout(&[parent, gone].concat()).map_err(fail);
    }
    let kept = entry.xattrs.iter().filter(|(name, _)| is_kept(&entry.kind, name));
    let xattrs: Vec<_> = kept.map(|(name, value)| (name.clone(), value.clone())).collect();
    let dropped = entry.xattrs.len().saturating_sub(xattrs.len());
    applied.dropped_xattrs = applied.dropped_xattrs.saturating_add(dropped as u64);
    let attributes = Attributes {
        mode: entry.mode.into(),
        uid: entry.uid,
        gid: entry.gid,
        mtime: Timestamp { seconds: entry.mtime.seconds, nanoseconds: entry.mtime.nanoseconds },
        xattrs: &xattrs,
    };
    match &entry.kind {
        EntryKind::File => return put_file(entry, &path, &attributes, filesystem, entries),
        EntryKind::Directory => filesystem.directory(&path, &attributes),
        EntryKind::HardLink(target) => filesystem.hard_link(&path, target, &attributes),
        EntryKind::Symlink(target) => filesystem.symlink(&path, target, &attributes),
        EntryKind::CharDevice(device) => {
            let node = Node::Character { major: device.major, minor: device.minor };
            filesystem.node(&path, node, &attributes)
        }
        EntryKind::BlockDevice(device) => {
            let node = Node::Block { major: device.major, minor: device.minor };
            filesystem.node(&path, node, &attributes)
        }
        EntryKind::Fifo => filesystem.node(&path, Node::Fifo, &attributes),
        EntryKind::Other(flag) => {
            let (offset, name) = (entry.offset, entry.name.clone());
            return Err(ApplyError::Kind { offset, name, flag: *flag });
        }
    }
    .map_err(fail)
}

fn put_file<D: Device, R: Read>(
    entry: &Entry,
    path: &[u8],
    attributes: &Attributes<'_>,
    filesystem: &mut Filesystem<D>,
    entries: &mut Entries<R>,
) -> Result<(), ApplyError> {
    let fail = |error| ApplyError::Entry { offset: entry.offset, name: entry.name.clone(), error };
    let mut file = filesystem.file(path, attributes).map_err(fail)?;
    let mut end = 0_u64;
    while let Some(Next::Data { offset, place }) = entries.next()? {
        if offset > end {
            file.skip(offset.saturating_sub(end)).map_err(fail)?;
        }
        let bytes = entries.buffered(place);
        file.write(bytes).map_err(fail)?;
        end = offset.saturating_add(bytes.len() as u64);
    }
    if entry.size > end {
        file.skip(entry.size.saturating_sub(end)).map_err(fail)?;
    }
    file.close().map_err(fail)
}

/// A path without `.`, `..` and slashes that change nothing; empty for the root.
fn cleaned(name: &[u8]) -> Vec<u8> {
    let mut names: Vec<&[u8]> = Vec::new();
    for name in name.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    names.join(&b'/')
}

fn is_kept(kind: &EntryKind, xattr: &[u8]) -> bool {
    match kind {
        // It has its target's.
        EntryKind::HardLink(_) => true,
        EntryKind::File | EntryKind::Directory => xattr_is_supported(xattr),
        _ => xattr_is_supported(xattr) && !xattr.starts_with(b"user."),
    }
}

/// The events of an archive that is read.
struct Entries<R> {
    archive: R,
    reader: ArchiveReader,
    buffer: Vec<u8>,
    /// Of the buffer, what the reader has not taken yet.
    pending: Range<usize>,
}

/// An event whose data lies in the buffer.
enum Next {
    Entry(Box<Entry>),
    Data { offset: u64, place: Range<usize> },
    End,
}

impl<R: Read> Entries<R> {
    fn new(archive: R) -> Self {
        Self { archive, reader: ArchiveReader::new(), buffer: vec![0; BUFFER_BYTES], pending: 0..0 }
    }

    /// `None` at the end of the stream.
    fn next(&mut self) -> Result<Option<Next>, ApplyError> {
        loop {
            let mut input = self.buffer.get(self.pending.clone()).unwrap_or_default();
            let event = self.reader.next(&mut input)?;
            self.pending.start = self.pending.end.saturating_sub(input.len());
            match event {
                Some(Event::Entry(entry)) => return Ok(Some(Next::Entry(entry))),
                Some(Event::Data { offset, bytes }) => {
                    // The last that was taken.
                    let place = self.pending.start.saturating_sub(bytes.len())..self.pending.start;
                    return Ok(Some(Next::Data { offset, place }));
                }
                Some(Event::EntryEnd | Event::ArchiveEnd) => return Ok(Some(Next::End)),
                None => {}
            }
            let read = loop {
                match self.archive.read(&mut self.buffer) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    other => break other?,
                }
            };
            self.pending = 0..read;
            if read == 0 {
                self.reader.finish()?;
                return Ok(None);
            }
        }
    }

    fn buffered(&self, place: Range<usize>) -> &[u8] {
        self.buffer.get(place).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cleaned_before_links_are_followed() {
        for (name, path) in [
            ("", ""),
            ("./", ""),
            ("/", ""),
            ("..", ""),
            ("a/", "a"),
            ("./a//b/./c", "a/b/c"),
            ("a/../b", "b"),
            ("../../a", "a"),
            ("/a/b/..", "a"),
        ] {
            assert_eq!(cleaned(name.as_bytes()), path.as_bytes(), "{name}");
        }
    }
}
