//! Writes ext4 in user space: makes file systems, and puts layers of files over existing ones.
//!
//! A layer is what an image's tar says of one step: files, links, whiteouts. [`Filesystem::format`] begins with an empty file
//! system, [`Filesystem::open`] with one that another layer, `mke2fs` or the kernel has left. Then come the entries in the
//! order of the tar, each by one call, and [`Filesystem::finish`] writes what describes them and gives the device back:
//!
//! ```
//! use stratabd_ext4::{Attributes, Filesystem, FormatOptions, MemoryDevice, Timestamp};
//!
//! # fn main() -> Result<(), stratabd_ext4::Error> {
//! let options = FormatOptions { uuid: [1; 16], hash_seed: [2; 16], time: Timestamp::default() };
//! let mut filesystem = Filesystem::format(MemoryDevice::new(64 << 20), &options)?;
//! let attributes = Attributes { mode: 0o644, ..Attributes::default() };
//! let mut file = filesystem.file(b"etc/hostname", &attributes)?;
//! file.write(b"box\n")?;
//! file.close()?;
//! filesystem.symlink(b"etc/name", b"hostname", &attributes)?;
//! let device = filesystem.finish(Timestamp::default())?;
//!
//! let mut filesystem = Filesystem::open(device)?;
//! filesystem.whiteout(b"etc/name")?;
//! filesystem.finish(Timestamp::default())?;
//! # Ok(())
//! # }
//! ```
//!
//! What it means is what containerd makes of a layer. A path's parents may be symbolic links, which are followed within the
//! root, and are made where they lack; its last name is never followed. What is there gives way, only a directory stays under a
//! directory. Whiteouts spare what the same layer has made, whichever comes first.
//!
//! How it lies: data of files one after another in the order in which it comes, directories behind it, written at the end,
//! with bitmaps, inodes and descriptors, each block once. Blocks that become free are used again when the device has no others.
//! Nothing comes from a clock or a random number: the same calls make the same bytes.
//!
//! The file system below may be hostile: everything that is read of it is checked where it is read, and damage is
//! [`Error::Damaged`] with its place and the rule that it breaks. Nothing outside the file system is ever touched. Features that
//! would have to be kept up and are not, as metadata checksums, are refused by name.

#![forbid(unsafe_code)]

mod acl;
mod bits;
mod cache;
mod checksum;
mod device;
mod directory;
mod dirhash;
mod error;
mod extent;
mod feature;
mod field;
mod filesystem;
mod group;
mod htree;
mod inode;
mod superblock;
mod timestamp;
mod volume;
mod xattr;

pub use device::{Device, FileDevice, MemoryDevice};
pub use error::{Error, Place};
pub use filesystem::{Attributes, FileWriter, Filesystem, FormatOptions, Node};
pub use timestamp::Timestamp;
pub use xattr::xattr_is_supported;
