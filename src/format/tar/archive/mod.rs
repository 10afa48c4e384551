//! Reads an archive as it comes: bytes in pieces of any length go in, entries and slices of their content come out.
//!
//! An archive means what Go's `archive/tar` takes it for, since that is what containerd and Docker unpack. Where Go
//! fails, so does this; where Go goes on, but GNU tar or libarchive would find other names or other content, an
//! [`ArchiveRule`] says so, marked *ours*. In particular:
//!
//! * **Dialects.** v7, ustar with its prefix, star's, GNU's, pax. The magic decides; a version of ustar is not looked at.
//!   Numbers are octal or, after a high bit, binary and negative too. A prefix in a header of GNU that cannot be
//!   two times is taken for one, since old versions of Go wrote them.
//! * **Names.** The name of a sparse file in pax, else GNU's long name, else the path in pax, else the header's. (To GNU
//!   tar pax goes before a long name, to libarchive the later one does.) If two of the extensions disagree, that is an error; so is a
//!   regular file of type `0` whose name ends with a slash, from which others make a directory. Of type NUL it is one here too.
//! * **pax records** go by their length, so that values may hold anything. An empty value leaves the header's, but an empty
//!   attribute is one. Of a key that is there twice the last counts, and must be equal where it gives a name, a size or a sparse map.
//!   The character set that a header names is ignored: names are bytes. An attribute of `SCHILY.xattr.` goes before one of
//!   `LIBARCHIVE.xattr.`.
//! * **Order.** Long names, long links and a pax header come before an entry in any order. A second pax header is an error
//!   (Go forgets the first, libarchive unites them), and so is any extension after a pax header with a size, which readers have taken for
//!   the size of that extension. A second long name replaces the first, as everywhere.
//! * **Global headers** are read and ignored, as Go does and containerd and Docker after it. One that gives a name, a link target, a size or a
//!   sparse map is an error, and one between an extension and its entry too, which Go would forget.
//! * **Types without content** have none, whatever their size says: the next header follows. (GNU tar skips that size after
//!   symbolic links, devices and pipes, libarchive after some hard links.) A type that is not known has content.
//! * **Sparse files** of GNU's old form and of pax in versions 0.0, 0.1 and 1.0. Map and stored bytes have to agree. A version that is not known, which Go
//!   takes for a plain file, is an error, and so is a name or size of a sparse file without a map.
//! * **The end** is two blocks of zeroes, or one and the end of the stream, or the end of the stream after an entry, padded or
//!   not. One block of zeroes before anything else is an error. What follows the end is ignored, but belongs to the stream:
//!   the digest of a layer covers it.
//!
//! Memory: 1 MiB for each of a long name, a long link, a pax header and a sparse map, and what is made of them; never by a size that is only claimed.

mod entry;
mod error;
mod header;
mod number;
mod pax;
mod reader;
mod sparse;

pub use entry::{DeviceNumber, Entry, EntryKind, Timestamp};
pub use error::{ArchiveError, ArchiveField, ArchiveRule};
pub use reader::{ArchiveReader, Event};

#[cfg(test)]
mod tests;
