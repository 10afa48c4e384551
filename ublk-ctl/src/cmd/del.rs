//! `del`: removes devices.

use clap::Args;
use serde::Serialize;
use stratabd::server::{
    api::types::{DeviceInfo, DeviceList, DeviceState},
    failure::Failure,
};

use super::info::device_number;
use crate::{args::GlobalArgs, block_on, client::Client, output::Output};

#[derive(Debug, Args)]
pub(crate) struct DelArgs {
    /// Numbers or paths of the devices
    #[arg(value_name = "DEVICE", required_unless_present_any = ["all", "orphans"])]
    devices: Vec<String>,
    /// Every device that the daemon serves
    #[arg(long, conflicts_with = "devices")]
    all: bool,
    /// Every device and record that a process has left behind
    #[arg(long, conflicts_with = "devices")]
    orphans: bool,
    /// Do not wait until the last user has closed the device
    #[arg(long)]
    no_wait: bool,
}

#[derive(Debug, Serialize)]
struct Removed {
    removed: Vec<u32>,
}

impl DelArgs {
    pub(crate) fn run(&self, global: &GlobalArgs, output: &Output) -> Result<(), Failure> {
        let client = Client::new(global.config()?.daemon.socket);
        let wanted: Vec<u32> =
            self.devices.iter().map(|device| device_number(device)).collect::<Result<_, _>>()?;
        let removed = block_on(self.remove(&client, wanted))?;
        output.print(&removed, |_| String::new())
    }

    async fn remove(&self, client: &Client, mut wanted: Vec<u32>) -> Result<Removed, Failure> {
        if self.all || self.orphans {
            let list: DeviceList = client.get("/v1/devices").await?;
            wanted.extend(list.devices.iter().filter(|device| self.selects(device)).map(|device| device.id));
        }
        let mut removed = Vec::new();
        let mut failed = None;
        for id in wanted {
            let query = if self.no_wait { "?wait=false" } else { "" };
            // One that cannot be removed does not save the others.
            match client.delete::<DeviceInfo>(&format!("/v1/devices/{id}{query}")).await {
                Ok(_) => removed.push(id),
                Err(failure) => failed = failed.or(Some(failure)),
            }
        }
        failed.map_or(Ok(Removed { removed }), Err)
    }

    fn selects(&self, device: &DeviceInfo) -> bool {
        match device.state {
            DeviceState::Orphan => self.orphans,
            DeviceState::Foreign => false,
            _ => self.all,
        }
    }
}
