//! `overlaybd-resize`: another size of the device of a writable image, and of the file system on it.

use std::{path::PathBuf, time::Instant};

use clap::Parser;
use stratabd::{
    offline::{Stack, default_threads, resize, resize_ext4},
    server::{
        failure::{Failure, FailureClass},
        layers::read_stack,
    },
};

use super::{existing_file, say};
use crate::offline;

/// Gives the device of an image another size, and the ext4 on it, which needs resize2fs and e2fsck
#[derive(Debug, Parser)]
#[command(name = "overlaybd-resize")]
pub(super) struct ResizeTool {
    /// Image configuration
    #[arg(long, value_parser = existing_file())]
    config: PathBuf,
    /// Size of the device in GiB
    #[arg(long)]
    size: String,
    /// Leave the file system on the device as it is; the device only grows then
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
        offline::run("resizing the file system", move |watch| {
            resize_ext4(&lowers, &upper, bytes, true, default_threads(), watch)
        })?;
    }
    let what = if tool.device_only { "device" } else { "filesystem" };
    say(&format!("Success: {what} resized to {gib} GB ({:.3} seconds)", began.elapsed().as_secs_f64()))
}
