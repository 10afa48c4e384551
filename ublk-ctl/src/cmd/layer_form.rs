//! Options of the commands that write a layer: its form, its name, and how the work is done.

use std::num::NonZeroUsize;

use clap::{Args, ValueEnum};
use stratabd::{
    format::{
        lsmt::{Packing, UserTag},
        uuid::Uuid,
        zfile::{Algorithm, BlockFormat},
    },
    offline::{Naming, PackOptions, default_threads},
    server::failure::{Failure, FailureClass},
};

/// How the layer file is made.
#[derive(Debug, Args)]
pub(crate) struct FormArgs {
    /// Compressor of the blocks
    #[arg(long, value_enum, default_value = "lz4")]
    algorithm: FormAlgorithm,
    /// Bytes of the layer in a block: 4096, 8192, 16384, 32768 or 65536. Small blocks read faster, large ones take less room
    #[arg(long, value_name = "BYTES", default_value_t = 4096)]
    block_size: u32,
    /// Wrap the result in the tar envelope that registries take for a layer
    #[arg(long)]
    tar: bool,
    /// Threads that read and compress; as many as there are processors by default
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Lay the data out as overlaybd's tools do, byte for byte but for what zstd of another version makes: without it, an aligned
    /// 4 KiB of the device is always within one block, and one that is all zero takes no room while the index has some
    #[arg(long)]
    as_upstream: bool,
    /// Replace the output if it exists
    #[arg(long)]
    pub(crate) force: bool,
    /// Leave out the last writes of a writable layer where their data is missing, as a crash without a flush leaves it; a copy that is
    /// not whole looks the same
    #[arg(long)]
    pub(crate) allow_torn: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FormAlgorithm {
    Lz4,
    Zstd,
    None,
}

/// What the layer says of itself.
#[derive(Debug, Args)]
pub(crate) struct NamingArgs {
    /// UUID of the layer [default: that of the input; with --as-upstream none]
    #[arg(long)]
    uuid: Option<Uuid>,
    /// UUID of the layer below [default: as the input says]
    #[arg(long, value_name = "UUID")]
    parent_uuid: Option<Uuid>,
    /// Text of at most 256 bytes that is kept in the layer
    #[arg(long, short, value_name = "TEXT")]
    message: Option<String>,
}

impl FormArgs {
    pub(crate) fn options(&self) -> Result<PackOptions, Failure> {
        let algorithm = match self.algorithm {
            FormAlgorithm::Lz4 => Some(Algorithm::Lz4),
            FormAlgorithm::Zstd => Some(Algorithm::Zstd),
            FormAlgorithm::None => None,
        };
        let format = algorithm.map(|algorithm| BlockFormat::new(algorithm, self.block_size)).transpose();
        let compression =
            format.map_err(|source| Failure::with_source(FailureClass::Usage, "--block-size", source))?;
        Ok(PackOptions {
            packing: if self.as_upstream { Packing::AsUpstream } else { Packing::Aligned },
            compression,
            tar: self.tar,
            final_header: true,
            threads: self.threads.unwrap_or_else(default_threads),
            overwrite: self.force,
            allow_torn: self.allow_torn,
        })
    }
}

impl NamingArgs {
    pub(crate) fn naming(&self) -> Result<Naming, Failure> {
        let message = self.message.as_ref().map(|text| {
            let too_long = || Failure::new(FailureClass::Usage, "--message: more than 256 bytes");
            UserTag::new(text.as_bytes()).ok_or_else(too_long)
        });
        Ok(Naming { uuid: self.uuid, parent_uuid: self.parent_uuid, message: message.transpose()? })
    }
}
