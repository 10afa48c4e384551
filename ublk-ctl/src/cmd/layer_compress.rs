//! `layer compress`: a layer as a ZFile, in an envelope where that is wanted.

use std::{num::NonZeroUsize, path::PathBuf};

use clap::Args;
use stratabd::{
    offline::{CompressOptions, Compressed, compress, default_threads},
    server::failure::Failure,
};

use super::block_format::BlockFormatArgs;
use crate::{
    offline,
    output::{Output, size},
};

#[derive(Debug, Args)]
pub(crate) struct CompressArgs {
    /// The layer file: sealed, and in any form
    input: PathBuf,
    /// File to write
    output: PathBuf,
    #[command(flatten)]
    blocks: BlockFormatArgs,
    /// Wrap the result in the tar envelope that registries take for a layer
    #[arg(long)]
    tar: bool,
    /// Threads that compress; as many as there are processors by default
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Replace the output if it exists
    #[arg(long)]
    force: bool,
}

impl CompressArgs {
    pub(crate) fn run(&self, output: &Output) -> Result<(), Failure> {
        let options = CompressOptions {
            format: self.blocks.format()?,
            tar: self.tar,
            threads: self.threads.unwrap_or_else(default_threads),
            overwrite: self.force,
        };
        let (from, to) = (self.input.clone(), self.output.clone());
        let done = offline::run("compressing", move |watch| compress(&from, &to, &options, watch))?;
        output.print(&done, |Compressed { content_bytes, output_bytes }| {
            format!("{}: {} of {}", self.output.display(), size(*output_bytes), size(*content_bytes))
        })
    }
}
