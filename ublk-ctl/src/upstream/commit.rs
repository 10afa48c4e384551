//! `overlaybd-commit`: a writable or sealed layer as a layer file, in the bytes of upstream.

use std::{error::Error, ffi::OsString, num::NonZeroUsize, os::unix::ffi::OsStrExt, path::PathBuf};

use clap::Parser;
use stratabd::{
    format::lsmt::UserTag,
    offline::{Naming, PackOptions, commit, default_threads, require_sealed, seal},
    server::failure::{Failure, FailureClass},
};

use super::{
    block_format, existing_file, integer, make_way, pack_options, refuse, say, upload::UploadArgs, uuid,
};
use crate::offline;

/// Commits a writable layer, byte for byte as overlaybd does, but for what zstd of another version makes
#[derive(Debug, Parser)]
#[command(name = "overlaybd-commit")]
pub(super) struct CommitTool {
    /// Text of at most 256 bytes that is kept in the layer
    #[arg(short)]
    message: Option<OsString>,
    /// UUID of the layer
    #[arg(long)]
    uuid: Option<String>,
    /// UUID of the layer below
    #[arg(short, long)]
    parent_uuid: Option<String>,
    /// Compress to a ZFile
    #[arg(short = 'z')]
    compress: bool,
    /// Wrap in tar; only with -z
    #[arg(short)]
    tar: bool,
    /// Replace the output if it exists
    #[arg(short)]
    force: bool,
    /// Compressor of the blocks: lz4 or zstd
    #[arg(long)]
    algorithm: Option<String>,
    /// KiB of the layer in a block: 4, 8, 16, 32 or 64
    #[arg(long, value_parser = integer)]
    bs: Option<i64>,
    /// Not supported
    #[arg(long = "turboOCI", alias = "fastoci")]
    turbo_oci: bool,
    /// Data file
    #[arg(value_parser = existing_file())]
    data_file: PathBuf,
    /// Index file; with --commit_sealed the output
    index_file: Option<PathBuf>,
    /// Output
    commit_file: Option<PathBuf>,
    /// Seal the data file itself
    #[arg(long)]
    seal: bool,
    /// The data file is a sealed layer
    #[arg(long = "commit_sealed")]
    commit_sealed: bool,
    /// Threads that compress; without effect without -z
    #[arg(long = "compress_threads", value_parser = count)]
    compress_threads: Option<usize>,
    /// Without effect
    #[arg(long)]
    verbose: bool,
    #[command(flatten)]
    upload: UploadArgs,
}

pub(super) fn run(tool: CommitTool) -> Result<(), Failure> {
    refuse(tool.turbo_oci, "--turboOCI")?;
    check_upload(&tool)?;
    let missing =
        |what| Failure::new(FailureClass::Usage, format!("failed to open file '': no {what} given"));
    if tool.seal {
        let index = tool.index_file.as_deref().filter(|_| !tool.commit_sealed);
        return Ok(seal(&tool.data_file, index, false).map(drop)?);
    }
    let options = options(&tool)?;
    let naming = naming(&tool)?;
    let (index, output) = match tool.commit_sealed {
        true => {
            require_sealed(&tool.data_file)?;
            (None, tool.index_file)
        }
        false => (Some(tool.index_file.ok_or_else(|| missing("index file"))?), tool.commit_file),
    };
    let output = output.ok_or_else(|| missing("output file"))?;
    make_way(&output, tool.force)?;
    let (data, path) = (tool.data_file, output.clone());
    offline::run("committing", move |watch| {
        commit(&data, index.as_deref(), &path, &naming, &options, watch)
    })?;
    tool.upload.send(&output)?;
    say("overlaybd-commit has committed files SUCCESSFULLY")
}

/// As upstream, which could not send the size in the envelope before the rest.
fn check_upload(tool: &CommitTool) -> Result<(), Failure> {
    if tool.tar && tool.upload.is_wanted() {
        let text = "unsupport option with '-t' and '--upload' at the same time.";
        return Err(Failure::new(FailureClass::Usage, text));
    }
    tool.upload.check(tool.compress && !tool.seal)
}

fn options(tool: &CommitTool) -> Result<PackOptions, Failure> {
    let format = block_format(tool.algorithm.as_deref(), tool.bs.unwrap_or(4));
    let compression = if tool.compress { Some(format?) } else { None };
    Ok(PackOptions {
        // As upstream, which ignores it where nothing is compressed.
        tar: tool.tar && tool.compress,
        // Upstream has sent it when it would write it.
        final_header: !tool.upload.is_wanted(),
        threads: threads(tool)?,
        overwrite: tool.force,
        ..pack_options(compression)
    })
}

/// As many as asked for; where nothing is asked for, upstream's one would only be slower.
fn threads(tool: &CommitTool) -> Result<NonZeroUsize, Failure> {
    match tool.compress_threads.filter(|_| tool.compress).map(NonZeroUsize::new) {
        None => Ok(default_threads()),
        Some(Some(asked)) => Ok(asked),
        Some(None) => Err(Failure::new(FailureClass::Usage, "invalid '--compress_threads' parameters.")),
    }
}

/// A number of at least 0.
fn count(text: &str) -> Result<usize, Box<dyn Error + Send + Sync>> {
    // What the number is said to be lacking is what a number without a sign lacks.
    Ok(usize::try_from(integer(text)?).or_else(|_| text.parse())?)
}

fn naming(tool: &CommitTool) -> Result<Naming, Failure> {
    let too_long =
        || Failure::new(FailureClass::Usage, "failed to perform commit(): more than 256 bytes of message");
    let tag = |text: &OsString| UserTag::new(text.as_bytes()).ok_or_else(too_long);
    Ok(Naming {
        uuid: uuid(tool.uuid.as_deref())?,
        parent_uuid: uuid(tool.parent_uuid.as_deref())?,
        message: tool.message.as_ref().map(tag).transpose()?,
    })
}
