//! `layer apply`: an archive over a writable image.

use std::{
    io,
    path::{Path, PathBuf},
};

use clap::Args;
use convertor::{AppliedLayer, WritableOptions, apply_to_layer};
use stratabd::{
    format::oci::Digest,
    offline::{OfflineError, Patient},
    server::{failure::Failure, layers::read_stack},
};

use crate::{
    offline::{self, Follow},
    output::{Output, size},
};

#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    /// The layer of an ordinary image: a tar archive, not compressed or by gzip or zstd; - for standard input
    archive: PathBuf,
    /// Image configuration as upstream writes it, config.v1.json, whose writable layer gets what changes: all of it, durably, when
    /// the command has ended well, and nothing when it has not
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Put an empty ext4 on the device first, in the place of all that is there; the same size makes the same one
    #[arg(long)]
    ext4: bool,
    /// What the archive must be after decompression, its diff id: sha256:HEX
    #[arg(long, value_name = "DIGEST")]
    checksum: Option<Digest>,
}

impl ApplyArgs {
    pub(crate) fn run(&self, output: &Output) -> Result<(), Failure> {
        let stack = read_stack(&self.config)?;
        let archive = if self.archive.as_os_str() == "-" { None } else { Some(self.archive.clone()) };
        let options = WritableOptions { format: self.ext4, checksum: self.checksum };
        let applied = offline::run("applying", move |watch| {
            apply_to_layer(&stack, open(archive.as_deref(), watch)?, &options, watch)
        })?;
        output.print(&applied, |applied| describe(&self.config, applied))
    }
}

/// Opens an archive, or standard input where there is none.
pub(crate) fn open<'a>(archive: Option<&Path>, watch: &'a Follow) -> Result<Patient<'a>, OfflineError> {
    let opened = match archive {
        Some(path) => Patient::open(path, &watch.cancelled),
        None => Patient::of(io::stdin(), &watch.cancelled),
    };
    let path = archive.unwrap_or("standard input".as_ref()).to_owned();
    opened.map_err(|source| OfflineError::Io { path, action: "open it", source })
}

fn describe(config: &Path, applied: &AppliedLayer) -> String {
    let AppliedLayer { entries, archive_bytes, diff_id, dropped_xattrs } = applied;
    let (config, bytes) = (config.display(), size(*archive_bytes));
    let dropped = match dropped_xattrs {
        0 => String::new(),
        count => format!("; {count} extended attributes that ext4 does not have are left out"),
    };
    format!("{config}: {entries} entries, {bytes}, {diff_id}{dropped}")
}
