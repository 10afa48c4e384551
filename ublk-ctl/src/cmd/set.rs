//! `set`: changes what a device may begin in a second, while it is in use.

use clap::Args;
use stratabd::server::{
    api::types::{DeviceInfo, SetDevice},
    failure::Failure,
};

use super::{completions::devices, info::device_number, layer_size::parse_size};
use crate::{args::GlobalArgs, output::Output};

#[derive(Debug, Args)]
pub(crate) struct SetArgs {
    /// Number or path of the device
    #[arg(value_name = "DEVICE", add = devices())]
    device: String,
    /// Reads, writes, flushes and discards that it begins in a second at most; 0 for as many as come
    #[arg(long, value_name = "N", required_unless_present = "bandwidth")]
    iops: Option<u64>,
    /// Bytes that it reads and writes in a second at most: bytes, or a number with KiB, MiB, GiB or TiB; 0 for as many as come
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    bandwidth: Option<u64>,
}

impl SetArgs {
    pub(crate) fn run(&self, global: &GlobalArgs, output: &Output) -> Result<(), Failure> {
        let client = global.client()?;
        let path = format!("/v1/devices/{}/set", device_number(&self.device)?);
        let wanted = SetDevice { iops: self.iops, bytes_per_second: self.bandwidth };
        let info: DeviceInfo = client.post(&path, &wanted)?;
        output.print(&info, |_| String::new())
    }
}
