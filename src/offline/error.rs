//! Why a tool made nothing.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::format::{
    lsmt::LsmtError,
    tar::TarError,
    verity::VerityError,
    zfile::{EncodeError, ZfileError},
};

/// What kept a tool from its output. The text names the file, and the message of the source the offset and the rule.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OfflineError {
    /// A file cannot be opened, read, written or named.
    #[error("{path}: cannot {action}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// Something of that name is there, and was not to be replaced.
    #[error("{0}: exists already (--force replaces it)")]
    Exists(PathBuf),
    /// A device writes to the file, or another tool would see it change.
    #[error("{0}: in use by a device that is attached, or by another tool")]
    Busy(PathBuf),
    /// A process had completed more writes of the layer than its files have.
    #[error(
        "{path}: the process that served it has died, and the last writes that it completed are only in {journal}: attach the \
         layer once and remove the device, or wait until its daemon has taken it over"
    )]
    Journaled {
        /// The data file.
        path: PathBuf,
        /// Where these writes are.
        journal: PathBuf,
    },
    /// The index file of a writable layer is no output.
    #[error("{0}: the index file of a writable layer, without which its data is lost; it is not replaced")]
    IndexFile(PathBuf),
    /// A log-structured layer is two files.
    #[error("{0}: cannot be the data file and the index file at once")]
    SameFile(PathBuf),
    /// Only a regular file may be replaced.
    #[error("{0}: not a regular file, which alone can be replaced")]
    NotReplaceable(PathBuf),
    /// What is read in any order must be a regular file.
    #[error("{0}: not a regular file")]
    NotRegular(PathBuf),
    /// A file cannot be put in the place of standard output.
    #[error(
        "\"-\": standard output is no output of this command, which makes a file and then gives it its name; \"./-\" names a file"
    )]
    StandardOutput,
    /// The output's path ends in no name.
    #[error("{0}: not the name of a file")]
    Nameless(PathBuf),
    /// The envelope of the input is wrong.
    #[error("{path}: damaged tar envelope")]
    Tar {
        /// The file.
        path: PathBuf,
        /// The rule.
        source: TarError,
    },
    /// A layer in a registry has an envelope, behind whose payload there is room.
    #[error("{0}: it has no tar envelope, behind whose payload a Merkle tree could be")]
    NoEnvelope(PathBuf),
    /// No tree can be over it.
    #[error("{path}: it cannot have a Merkle tree")]
    Unproven {
        /// The file.
        path: PathBuf,
        /// The rule.
        source: VerityError,
    },
    /// The input is compressed and damaged.
    #[error("{path}: damaged ZFile")]
    Zfile {
        /// The file.
        path: PathBuf,
        /// The rule.
        source: ZfileError,
    },
    /// The input is not compressed.
    #[error("{0}: not a ZFile")]
    NotZfile(PathBuf),
    /// The input has no checksums to check.
    #[error("{0}: a ZFile without checksums")]
    NoChecksums(PathBuf),
    /// The input is no sealed layer, or is damaged.
    #[error("{path}: not a sealed overlaybd layer")]
    Layer {
        /// The file.
        path: PathBuf,
        /// The rule.
        source: LsmtError,
    },
    /// The input is a data file that is still written, and most of what it says is in its index file.
    #[error("{0}: a writable layer, whose index file is needed too")]
    IndexMissing(PathBuf),
    /// No device can have this size.
    #[error("{0}: a size of {1} bytes is not a multiple of 512 of at least one and less than 2^59")]
    DeviceSize(PathBuf, u64),
    /// What lies past the new end would be lost, which was not asked for.
    #[error(
        "{path}: {after} bytes are less than the {before} that it has (--shrink cuts it, and the file system on it)"
    )]
    Shrinks {
        /// The data file.
        path: PathBuf,
        /// Size of the device in bytes.
        before: u64,
        /// The wanted size in bytes.
        after: u64,
    },
    /// No file system could be made.
    #[error("cannot make an ext4 with mke2fs: {0}")]
    Mkfs(String),
    /// There is nothing that could have another size with its device.
    #[error("{0}: the device has no ext4 on it")]
    NotExt4(PathBuf),
    /// An ext4 becomes smaller only where that was asked for.
    #[error("{path}: the ext4 on the device has {has} bytes, more than {wanted} (--shrink makes it smaller)")]
    Ext4Shrinks {
        /// The data file of the writable layer.
        path: PathBuf,
        /// Size of the file system in bytes.
        has: u64,
        /// The wanted size of the device in bytes.
        wanted: u64,
    },
    /// A program did not do its work on a copy of the device; the layer has not changed.
    #[error("{path}: {program} cannot work on the ext4 of the device, and the layer is as it was: {said}")]
    Ext4Tool {
        /// The data file of the writable layer.
        path: PathBuf,
        /// The program.
        program: &'static str,
        /// What it has said, or why it did not run.
        said: String,
    },
    /// A stack has no layer.
    #[error("there is no layer")]
    NoLayers,
    /// A stack has more layers than the format allows.
    #[error("{0} layers are more than the format's 255")]
    TooManyLayers(usize),
    /// The input is not written any more.
    #[error("{0}: a sealed layer already")]
    Sealed(PathBuf),
    /// The input is still written.
    #[error("{0}: a layer that is not sealed")]
    Unsealed(PathBuf),
    /// A file of a writable layer is not one, or is damaged.
    #[error("{path}: not a file of a writable overlaybd layer, or a damaged one")]
    Writable {
        /// The file.
        path: PathBuf,
        /// The rule.
        source: LsmtError,
    },
    /// A sparse layer was cut where no write ends.
    #[error("{0}: it ends {1} bytes into a sector, so that it is not whole")]
    PartOfSector(PathBuf, u64),
    /// A writable layer has lost the data of its last writes.
    #[error(
        "{0}: the data of {1} writes at the end of the index is missing, as after a crash without a flush or in a copy that is not whole \
         (layer commit --allow-torn leaves them out)"
    )]
    Torn(PathBuf, u64),
    /// The table of a ZFile's blocks would not fit in memory.
    #[error("{0}: the table of its blocks has {1} bytes, more than are held in memory")]
    TableTooLarge(PathBuf, u64),
    /// Segments name the same data over and over, which no tool writes, so that a copy would be larger without bound.
    #[error("{path}: its segments map {mapped_bytes} bytes, but it has only {data_bytes} bytes of data")]
    Amplified {
        /// The file.
        path: PathBuf,
        /// What the segments cover.
        mapped_bytes: u64,
        /// What there is.
        data_bytes: u64,
    },
    /// The index of a sparse file would not fit in memory.
    #[error("{0}: its data is in more than {1} runs, which are not held in memory")]
    Fragmented(PathBuf, u64),
    /// The index of a stack would not fit in memory; upstream has the same limit.
    #[error("the layers have more than 128,000,000 segments together")]
    TooManySegments,
    /// The output would not be a layer that can be read.
    #[error("{path}: cannot be one layer")]
    Unplaced {
        /// The file.
        path: PathBuf,
        /// Why.
        source: LsmtError,
    },
    /// The output cannot be written in this form.
    #[error("{path}: cannot be compressed so")]
    Encode {
        /// The file.
        path: PathBuf,
        /// Why.
        source: EncodeError,
    },
    /// Whoever started it has ended it.
    #[error("interrupted")]
    Cancelled,
    /// The system has no room for another thread.
    #[error("cannot start a thread")]
    NoThread(#[source] io::Error),
    /// A thread of the tool has panicked.
    #[error("a thread of the tool has failed")]
    Thread,
}

impl OfflineError {
    /// A system's answer about `path`, for `map_err`.
    pub(super) fn io(path: &Path, action: &'static str) -> impl Fn(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path: path.clone(), action, source }
    }
}
