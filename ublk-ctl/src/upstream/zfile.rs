//! `overlaybd-zfile`: any file as a ZFile, and back.

use std::{
    io,
    path::{Path, PathBuf},
};

use clap::Parser;
use stratabd::{
    offline::{
        CompressOptions, Compressed, ExtractOptions, OfflineError, Patient, compress_stream, default_threads,
        extract_zfile, verify_zfile,
    },
    server::failure::{Failure, FailureClass},
};

use super::{block_format, integer, make_way, say};
use crate::offline::{self, Follow};

/// Compresses a file to a ZFile, extracts one, or checks one
#[derive(Debug, Parser)]
#[command(name = "overlaybd-zfile")]
pub(super) struct ZfileTool {
    /// Wrap in tar
    #[arg(short)]
    tar: bool,
    /// Extract
    #[arg(short = 'x')]
    extract: bool,
    /// Check all checksums of the source
    #[arg(long)]
    verify: bool,
    /// Replace the target if it exists
    #[arg(short)]
    force: bool,
    /// Compressor of the blocks: lz4 or zstd
    #[arg(long)]
    algorithm: Option<String>,
    /// KiB of the source in a block: 4, 8, 16, 32 or 64
    #[arg(long, default_value_t = 4, value_parser = integer)]
    bs: i64,
    /// Without effect
    #[arg(long)]
    verbose: bool,
    /// File to read; if it is the only one, file to write, and standard input is read
    source_file: PathBuf,
    /// File to write
    target_file: Option<PathBuf>,
}

pub(super) fn run(tool: ZfileTool) -> Result<(), Failure> {
    let threads = default_threads();
    if tool.verify {
        return verify(tool.source_file);
    }
    let (source, target) = match tool.target_file {
        Some(target) => (Some(tool.source_file), target),
        None => (None, tool.source_file),
    };
    make_way(&target, tool.force)?;
    let shown = source.clone().unwrap_or_default();
    if tool.extract {
        let Some(source) = source else {
            return Err(Failure::new(FailureClass::Usage, "decompression can't use STDIN"));
        };
        let _ = say(&format!("decompress file {} as {}", shown.display(), target.display()));
        let options = ExtractOptions { threads, overwrite: tool.force };
        offline::run("extracting", move |watch| extract_zfile(&source, &target, &options, watch))?;
        return say("decompress file done.");
    }
    let format = block_format(tool.algorithm.as_deref(), tool.bs)?;
    let options = CompressOptions { format, tar: tool.tar, threads, overwrite: tool.force };
    // As of upstream's, nothing depends on it.
    let _ = say(&format!("compress file {} as {}", shown.display(), target.display()));
    offline::run("compressing", move |watch| match source {
        Some(path) => stream(Patient::open(&path, &watch.cancelled), &path, &target, &options, watch),
        None => {
            let input = Patient::of(io::stdin(), &watch.cancelled);
            stream(input, "standard input".as_ref(), &target, &options, watch)
        }
    })?;
    say("compress file done.")
}

/// Compresses what `input` gives.
fn stream(
    input: io::Result<Patient<'_>>,
    name: &Path,
    target: &Path,
    options: &CompressOptions,
    watch: &Follow,
) -> Result<Compressed, OfflineError> {
    let failed = |source| OfflineError::Io { path: name.to_owned(), action: "open it", source };
    compress_stream(input.map_err(failed)?, name, target, options, watch)
}

fn verify(source: PathBuf) -> Result<(), Failure> {
    let name = source.display().to_string();
    match offline::run("verifying", move |watch| verify_zfile(&source, default_threads(), watch)) {
        Ok(_) => say(&format!("{name} is a valid zfile blob.")),
        Err(failure) => {
            say(&format!("{name} is not a valid zfile blob or checksum can't be found."))?;
            Err(failure)
        }
    }
}
