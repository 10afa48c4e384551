//! `layer create`: the files of a new writable layer.

use std::path::PathBuf;

use clap::Args;
use stratabd::{
    format::uuid::Uuid,
    offline::{CreateOptions, Upper, create_watched},
    server::failure::Failure,
};

use super::layer_size::parse_size;
use crate::{offline, output::Output};

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Data file to make
    data: PathBuf,
    /// Index file to make; a sparse layer needs none
    index: Option<PathBuf>,
    /// Size of the device: bytes, or a number with KiB, MiB, GiB or TiB; 0 is the size of the layer below
    #[arg(long, value_parser = parse_size)]
    size: u64,
    /// Make one sparse file instead of a log: overwriting costs no room, but a crash keeps no order among writes that were not
    /// flushed, and upstream's daemon forgets its own discards when it opens the file again
    #[arg(long)]
    sparse: bool,
    /// Put an empty ext4 on it, which needs mke2fs
    #[arg(long)]
    ext4: bool,
    /// UUID of the layer [default: a random one]
    #[arg(long)]
    uuid: Option<Uuid>,
    /// UUID of the layer below
    #[arg(long, value_name = "UUID")]
    parent_uuid: Option<Uuid>,
    /// Replace the files if they exist
    #[arg(long)]
    force: bool,
}

impl CreateArgs {
    pub(crate) fn run(&self, output: &Output) -> Result<(), Failure> {
        let upper = Upper { data: self.data.clone(), index: self.index.clone() };
        let options = CreateOptions {
            sparse: self.sparse,
            virtual_size_bytes: self.size,
            uuid: self.uuid,
            parent_uuid: self.parent_uuid,
            ext4: self.ext4,
            overwrite: self.force,
        };
        let made = offline::run("creating", move |watch| create_watched(&upper, &options, watch))?;
        output.print(&made, |made| {
            format!("{}: a writable layer with the UUID {}", self.data.display(), made.uuid)
        })
    }
}
