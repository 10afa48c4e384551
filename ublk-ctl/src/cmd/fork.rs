//! `fork`: a second device that begins with what a first one holds.

use std::path::PathBuf;

use clap::Args;
use stratabd::server::{
    api::types::{DeviceInfo, ForkDevice},
    failure::Failure,
};

use super::{completions::devices, info::device_number};
use crate::{
    args::{GlobalArgs, absolute},
    output::Output,
    progress::Progress,
};

#[derive(Debug, Args)]
pub(crate) struct ForkArgs {
    /// Number or path of the device
    #[arg(value_name = "DEVICE", add = devices())]
    device: String,
    /// Name of the folder that is made for the files of the new device
    #[arg(long, value_name = "NAME")]
    name: String,
    /// Where that folder is made [default: beside the configuration of the device, if it was made of one]
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    /// Wanted number of the new device
    #[arg(long, short = 'n', value_name = "N")]
    id: Option<u32>,
}

impl ForkArgs {
    pub(crate) fn run(&self, global: &GlobalArgs, output: &Output) -> Result<(), Failure> {
        let client = global.client()?;
        let path = format!("/v1/devices/{}/fork", device_number(&self.device)?);
        let to = self.to.as_deref().map(absolute).transpose()?;
        let waiting = Progress::waiting("forking");
        let request = ForkDevice { name: self.name.clone(), to, id: self.id };
        let info: DeviceInfo = client.post(&path, &request)?;
        drop(waiting);
        output.print(&info, |info| info.path.display().to_string())
    }
}
