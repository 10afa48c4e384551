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
            let has_notes = list.devices.iter().any(|device| device.unserved.is_some());
            let head =
                ["ID", "DEVICE", "STATE", "SIZE", "IMAGE"].into_iter().chain(has_notes.then_some("NOTE"));
            let head = head.map(str::to_owned).collect();
            let rows = list.devices.iter().map(|device| {
                vec![
                    device.id.to_string(),
                    device.path.display().to_string(),
                    device.state.to_string(),
                    size(device.size_bytes),
                    device.image.as_ref().map(ToString::to_string).unwrap_or_default(),
                    device.unserved.as_ref().map(ToString::to_string).unwrap_or_default(),
                ]
            });
            table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
        })
    }
}
