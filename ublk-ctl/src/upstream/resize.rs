//! `overlaybd-resize`: a larger device for a writable image, and a larger file system on it.

use std::{path::PathBuf, time::Instant};

use clap::Parser;
use stratabd::{
    offline::{Stack, default_threads, grow_ext4, resize},
    server::{
        failure::{Failure, FailureClass},
        layers::read_stack,
    },
};

use super::{existing_file, say};
use crate::offline;

/// Makes the device of an image larger, and the ext4 on it, which needs resize2fs and e2fsck
#[derive(Debug, Parser)]
#[command(name = "overlaybd-resize")]
pub(super) struct ResizeTool {
    /// Image configuration
    #[arg(long, value_parser = existing_file())]
    config: PathBuf,
    /// Size of the device in GiB
    #[arg(long)]
    size: String,
    /// Leave the file system on the device as it is
    #[arg(long = "device_only")]
    device_only: bool,
    /// Without effect
    #[arg(long = "service_config_path")]
    service_config_path: Option<PathBuf>,
    /// Without effect
    #[arg(long)]
    verbose: bool,
}

pub(super) fn run(tool: ResizeTool) -> Result<(), Failure> {
    let began = Instant::now();
    let invalid = || Failure::new(FailureClass::Usage, format!("invalid size: {}", tool.size));
    let gib: u64 = tool.size.parse().ok().filter(|gib| *gib > 0).ok_or_else(invalid)?;
    let bytes = gib.checked_mul(1 << 30).ok_or_else(invalid)?;
    let read_only = || Failure::new(FailureClass::Usage, "resize failed: the image has no writable layer");
    let Stack { lowers, upper } = read_stack(&tool.config)?;
    let upper = upper.ok_or_else(read_only)?;
    if tool.device_only {
        resize(&lowers, &upper, bytes, false)?;
    } else {
        offline::run("growing the file system", move |watch| {
            grow_ext4(&lowers, &upper, bytes, default_threads(), watch)
        })?;
    }
    let what = if tool.device_only { "device" } else { "filesystem" };
    say(&format!("Success: {what} resized to {gib} GB ({:.3} seconds)", began.elapsed().as_secs_f64()))
}
