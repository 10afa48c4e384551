//! `overlaybd-apply`: an archive over a writable image, or over a file system in a file.

use std::path::PathBuf;

use clap::Parser;
use convertor::{WritableOptions, apply_to_file, apply_to_layer};
use stratabd::{
    format::oci::Digest,
    server::{
        failure::{Failure, FailureClass},
        layers::read_stack,
    },
};

use super::{existing_file, refuse, say};
use crate::{cmd::layer_apply::open, offline, output::Output};

/// Puts a layer of an ordinary image, a tar archive, into the ext4 of a writable image
#[derive(Debug, Parser)]
#[command(name = "overlaybd-apply")]
pub(super) struct ApplyTool {
    /// The second file is the device itself
    #[arg(long)]
    raw: bool,
    /// Put an empty ext4 on the device first
    #[arg(long)]
    mkfs: bool,
    /// Not supported
    #[arg(long = "from_qcow2")]
    from_qcow2: bool,
    /// Without effect
    #[arg(long = "extract-rootfs")]
    extract_rootfs: bool,
    /// Without effect
    #[arg(long = "no-extract-rootfs")]
    no_extract_rootfs: bool,
    /// Without effect
    #[arg(long)]
    verbose: bool,
    /// Without effect
    #[arg(long = "service_config_path", value_parser = existing_file())]
    service_config_path: Option<PathBuf>,
    /// Not supported
    #[arg(long = "gz_index_path")]
    gz_index_path: Option<PathBuf>,
    /// Digest of the archive after decompression: sha256:HEX
    #[arg(long)]
    checksum: Option<String>,
    /// The archive: not compressed, or by gzip or zstd
    #[arg(value_parser = existing_file())]
    input_path: PathBuf,
    /// Image configuration
    #[arg(value_parser = existing_file())]
    image_config_path: PathBuf,
}

pub(super) fn run(tool: ApplyTool) -> Result<(), Failure> {
    refuse(tool.from_qcow2, "--from_qcow2")?;
    refuse(tool.gz_index_path.as_ref().is_some_and(|path| !path.as_os_str().is_empty()), "--gz_index_path")?;
    let options = WritableOptions { format: tool.mkfs, checksum: checksum(tool.checksum.as_deref())? };
    let (archive, path) = (tool.input_path, tool.image_config_path);
    let stack = if tool.raw { None } else { Some(read_stack(&path)?) };
    offline::run("applying", move |watch| {
        let archive = open(Some(&archive), watch)?;
        match stack {
            Some(stack) => apply_to_layer(&stack, archive, &options, watch),
            None => apply_to_file(&path, archive, &options, watch),
        }
    })?;
    say("overlaybd-apply done")?;
    // As upstream, which says what it has been told.
    let checksum = tool.checksum.unwrap_or_default();
    Output::new(false).tell(&checksum, |checksum| format!("{checksum}\n"))
}

/// Upstream takes an empty one for none.
fn checksum(text: Option<&str>) -> Result<Option<Digest>, Failure> {
    let parse = |text: &str| {
        text.parse().map_err(|source| Failure::with_source(FailureClass::Usage, text.to_owned(), source))
    };
    text.filter(|text| !text.is_empty()).map(parse).transpose()
}
