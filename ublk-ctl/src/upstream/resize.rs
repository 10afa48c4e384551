//! `overlaybd-resize`: a larger device for a writable image.

use std::{path::PathBuf, time::Instant};

use clap::Parser;
use stratabd::{
    offline::resize,
    server::{
        failure::{Failure, FailureClass},
        layers::read_stack,
    },
};

use super::{existing_file, say};

/// Makes the device of an image larger. The file system on it is not grown, which takes resize2fs once the image is attached:
/// without --device_only nothing is done
#[derive(Debug, Parser)]
#[command(name = "overlaybd-resize")]
pub(super) struct ResizeTool {
    /// Image configuration
    #[arg(long, value_parser = existing_file)]
    config: PathBuf,
    /// Size of the device in GiB
    #[arg(long, allow_negative_numbers = true)]
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
    let upper = read_stack(&tool.config)?.upper.ok_or_else(read_only)?;
    if !tool.device_only {
        let text = "resize failed: the file system cannot be grown here: give --device_only, attach the image and run resize2fs on it";
        return Err(Failure::new(FailureClass::Usage, text));
    }
    resize(&upper, bytes, false)?;
    say(&format!("Success: device resized to {gib} GB ({:.3} seconds)", began.elapsed().as_secs_f64()))
}
