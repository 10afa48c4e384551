//! `overlaybd-create`: the files of a new writable layer.

use std::{
    error::Error,
    path::{Path, PathBuf},
};

use clap::Parser;
use stratabd::{
    offline::{CreateOptions, OfflineError, PartFile, Upper, create_watched},
    server::failure::{Failure, FailureClass},
};

use super::{integer, refuse, say, uuid};
use crate::offline;

/// Makes the files of a writable layer
#[derive(Debug, Parser)]
#[command(name = "overlaybd-create")]
pub(super) struct CreateTool {
    /// UUID of the layer below
    #[arg(short = 'u')]
    parent_uuid: Option<String>,
    /// Make a sparse layer
    #[arg(short)]
    sparse: bool,
    /// Not supported
    #[arg(long = "turboOCI", alias = "fastoci")]
    turbo_oci: bool,
    /// Make a file of zeroes instead of a layer
    #[arg(long)]
    raw: bool,
    /// Put an empty ext4 on the layer; not with --raw
    #[arg(long)]
    mkfs: bool,
    /// Without effect
    #[arg(long)]
    verbose: bool,
    /// Data file to make
    data_file: PathBuf,
    /// Index file to make
    index_file: PathBuf,
    /// Size of the device in GiB
    #[arg(value_parser = gibibytes, allow_negative_numbers = true)]
    vsize: u64,
}

pub(super) fn run(tool: CreateTool) -> Result<(), Failure> {
    refuse(tool.turbo_oci, "--turboOCI")?;
    refuse(tool.mkfs && tool.raw, "--mkfs with --raw")?;
    let too_large = || Failure::new(FailureClass::Usage, format!("{} GB are too many", tool.vsize));
    let virtual_size_bytes = tool.vsize.checked_mul(1 << 30).ok_or_else(too_large)?;
    if tool.raw {
        let parts = [zeroes(&tool.index_file, 0)?, zeroes(&tool.data_file, virtual_size_bytes)?];
        parts.into_iter().try_for_each(PartFile::finish)?;
    } else {
        let options = CreateOptions {
            sparse: tool.sparse,
            virtual_size_bytes,
            uuid: None,
            parent_uuid: uuid(tool.parent_uuid.as_deref())?,
            ext4: tool.mkfs,
            overwrite: false,
        };
        let upper = Upper { data: tool.data_file, index: Some(tool.index_file) };
        offline::run("creating", move |watch| create_watched(&upper, &options, watch))?;
    }
    say("overlaybd-create has created files SUCCESSFULLY")
}

/// Upstream tells apart what is no number of at least 0, and what is one but not whole.
fn gibibytes(text: &str) -> Result<u64, Box<dyn Error + Send + Sync>> {
    let number = integer(text);
    let is_size =
        text.parse::<f64>().is_ok_and(|number| number >= 0.0) || number.as_ref().is_ok_and(|it| *it >= 0);
    if is_size { Ok(u64::try_from(number?)?) } else { Err("not a number of at least 0".into()) }
}

/// A new file of zeroes, which is not there yet.
fn zeroes(path: &Path, size_bytes: u64) -> Result<PartFile, OfflineError> {
    let part = PartFile::create(path, false)?;
    let failed = |source| OfflineError::Io { path: path.to_owned(), action: "make it", source };
    part.file().set_len(size_bytes).map_err(failed)?;
    Ok(part)
}
