//! `layer compress`: a layer as a ZFile, in an envelope where that is wanted.

use std::{num::NonZeroUsize, path::PathBuf};

use clap::{Args, ValueEnum};
use stratabd::{
    format::zfile::{Algorithm, BlockFormat},
    offline::{CompressOptions, Compressed, compress, default_threads},
    server::failure::{Failure, FailureClass},
};

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
    /// Compressor of the blocks
    #[arg(long, value_enum, default_value = "lz4")]
    algorithm: AlgorithmArg,
    /// Bytes of the layer in a block: 4096, 8192, 16384, 32768 or 65536. Small blocks read faster, large ones take less room
    #[arg(long, value_name = "BYTES", default_value_t = 4096)]
    block_size: u32,
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

#[derive(Debug, Clone, Copy, ValueEnum)]
enum AlgorithmArg {
    Lz4,
    Zstd,
}

impl CompressArgs {
    pub(crate) fn run(&self, output: &Output) -> Result<(), Failure> {
        let algorithm = match self.algorithm {
            AlgorithmArg::Lz4 => Algorithm::Lz4,
            AlgorithmArg::Zstd => Algorithm::Zstd,
        };
        let format = BlockFormat::new(algorithm, self.block_size)
            .map_err(|source| Failure::with_source(FailureClass::Usage, "--block-size", source))?;
        let options = CompressOptions {
            format,
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
