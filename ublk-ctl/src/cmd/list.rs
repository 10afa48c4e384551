//! `list`: all devices that the daemon serves or the kernel knows.

use clap::Args;
use stratabd::server::{
    api::{Client, types::DeviceList},
    failure::Failure,
};

use crate::{
    args::GlobalArgs,
    output::{Output, size, table},
};

#[derive(Debug, Args)]
pub(crate) struct ListArgs {}

impl ListArgs {
    pub(crate) fn run(&self, global: &GlobalArgs, output: &Output) -> Result<(), Failure> {
        let client = Client::new(global.config()?.daemon.socket);
        let list: DeviceList = client.get("/v1/devices")?;
        output.print(&list, |list| {
            let head = ["ID", "DEVICE", "STATE", "SIZE", "IMAGE"].map(str::to_owned).to_vec();
            let rows = list.devices.iter().map(|device| {
                vec![
                    device.id.to_string(),
                    device.path.display().to_string(),
                    device.state.to_string(),
                    size(device.size_bytes),
                    device.image.as_ref().map(ToString::to_string).unwrap_or_default(),
                ]
            });
            table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
        })
    }
}
