//! Options of the commands that compress: the blocks of a ZFile.

use clap::{Args, ValueEnum};
use stratabd::{
    format::zfile::{Algorithm, BlockFormat},
    server::failure::{Failure, FailureClass},
};

/// The blocks.
#[derive(Debug, Args)]
pub(crate) struct BlockFormatArgs {
    /// Compressor of the blocks
    #[arg(long, value_enum, default_value = "lz4")]
    algorithm: AlgorithmArg,
    /// Bytes of the layer in a block: 4096, 8192, 16384, 32768 or 65536. Small blocks read faster, large ones take less room
    #[arg(long, value_name = "BYTES", default_value_t = 4096)]
    block_size: u32,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum AlgorithmArg {
    Lz4,
    Zstd,
}

impl BlockFormatArgs {
    pub(crate) fn format(&self) -> Result<BlockFormat, Failure> {
        let algorithm = match self.algorithm {
            AlgorithmArg::Lz4 => Algorithm::Lz4,
            AlgorithmArg::Zstd => Algorithm::Zstd,
        };
        BlockFormat::new(algorithm, self.block_size)
            .map_err(|source| Failure::with_source(FailureClass::Usage, "--block-size", source))
    }
}
