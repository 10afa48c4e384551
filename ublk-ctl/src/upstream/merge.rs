//! `overlaybd-merge`: the layers of an image as one layer file.

use std::{fs, path::PathBuf};

use clap::Parser;
use stratabd::{
    offline::{Naming, PackOptions, merge},
    server::{
        failure::{Failure, FailureClass},
        layers::read_stack,
    },
};

use super::{block_format, existing_file, pack_options, truth, upload::UploadArgs};
use crate::offline;

/// Merges the layers of an image into one
#[derive(Debug, Parser)]
#[command(name = "overlaybd-merge")]
pub(super) struct MergeTool {
    /// Without effect
    #[arg(long)]
    verbose: bool,
    /// Without effect: only layers that are on this machine are merged
    #[arg(long = "service_config_path", value_parser = existing_file())]
    service_config_path: Option<PathBuf>,
    /// Compress to a ZFile, which is the default
    #[arg(
        long, num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true",
        action = clap::ArgAction::Set, value_parser = truth
    )]
    compress: bool,
    /// Without effect, as upstream
    #[arg(short)]
    tar: bool,
    #[command(flatten)]
    upload: UploadArgs,
    /// Image configuration
    #[arg(value_parser = existing_file())]
    image_config_path: PathBuf,
    /// File to write, which is replaced if it exists
    output: Option<PathBuf>,
}

/// Links that are followed; the kernel follows no more either.
const LINKS_LIMIT: usize = 40;

/// The file that `path` is a link to: upstream writes through links, also to a file that is not there yet.
fn linked(mut path: PathBuf) -> PathBuf {
    for _ in 0..LINKS_LIMIT {
        let Ok(target) = fs::read_link(&path) else { break };
        path = path.with_file_name("").join(target);
    }
    path
}

pub(super) fn run(tool: MergeTool) -> Result<(), Failure> {
    tool.upload.check(tool.compress)?;
    let stack = read_stack(&tool.image_config_path)?;
    let output = tool
        .output
        .map(linked)
        .ok_or_else(|| Failure::new(FailureClass::Usage, "failed to create output file: no name"))?;
    let compression = if tool.compress { Some(block_format(None, 4)?) } else { None };
    let options = PackOptions { overwrite: true, ..pack_options(compression) };
    let path = output.clone();
    offline::run("merging", move |watch| merge(&stack, &path, &Naming::default(), &options, watch))?;
    tool.upload.send(&output)
}
