//! `resize`: makes a device larger that is in use.

use clap::Args;
use stratabd::server::{
    api::types::{DeviceInfo, ResizeDevice},
    failure::Failure,
};

use super::{completions::devices, info::device_number, layer_size::parse_size};
use crate::{
    args::GlobalArgs,
    output::{Output, size},
};

#[derive(Debug, Args)]
pub(crate) struct ResizeArgs {
    /// Number or path of the device
    #[arg(value_name = "DEVICE", add = devices())]
    device: String,
    /// New size, not less than now: bytes, or a number with KiB, MiB, GiB or TiB. The file system on it stays as it is
    #[arg(long, value_parser = parse_size)]
    size: u64,
}

impl ResizeArgs {
    pub(crate) fn run(&self, global: &GlobalArgs, output: &Output) -> Result<(), Failure> {
        let client = global.client()?;
        let path = format!("/v1/devices/{}/resize", device_number(&self.device)?);
        let info: DeviceInfo = client.post(&path, &ResizeDevice { size_bytes: self.size })?;
        output.print(&info, |info| format!("{}: {}", info.path.display(), size(info.size_bytes)))
    }
}
