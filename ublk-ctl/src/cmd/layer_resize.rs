//! `layer resize`: another size of the device of a writable layer.

use std::path::PathBuf;

use clap::Args;
use stratabd::{
    offline::{Upper, resize},
    server::failure::Failure,
};

use super::layer_size::parse_size;
use crate::output::{Output, size};

#[derive(Debug, Args)]
pub(crate) struct ResizeArgs {
    /// Data file of the writable layer
    data: PathBuf,
    /// Its index file; a sparse layer needs none
    index: Option<PathBuf>,
    /// New size of the device: bytes, or a number with KiB, MiB, GiB or TiB. The file system on it stays as it is
    #[arg(long, value_parser = parse_size)]
    size: u64,
    /// Allow a smaller size; what lies past the new end is lost
    #[arg(long)]
    shrink: bool,
}

impl ResizeArgs {
    pub(crate) fn run(&self, output: &Output) -> Result<(), Failure> {
        let upper = Upper { data: self.data.clone(), index: self.index.clone() };
        let done = resize(&upper, self.size, self.shrink)?;
        output.print(&done, |done| {
            let [before, after] = [done.before_bytes, done.after_bytes].map(size);
            format!("{}: {after}, before {before}", self.data.display())
        })
    }
}
