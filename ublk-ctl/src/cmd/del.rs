//! `del`: removes devices.

use clap::Args;
use serde::Serialize;
use stratabd::server::{
    api::{
        Client,
        types::{DeviceInfo, DeviceList, DeviceState, ErrorBody, Unserved, Way},
    },
    failure::Failure,
};

use super::{completions::devices, info::device_number};
use crate::{args::GlobalArgs, output::Output, parallel, progress::Progress};

#[derive(Debug, Args)]
pub(crate) struct DelArgs {
    /// Numbers or paths of the devices
    #[arg(value_name = "DEVICE", add = devices(), required_unless_present_any = ["all", "orphans"])]
    devices: Vec<String>,
    /// Every device that the daemon serves
    #[arg(long, conflicts_with = "devices")]
    all: bool,
    /// Every device and record that a process has left behind
    #[arg(long, conflicts_with = "devices")]
    orphans: bool,
    /// Remove devices that are mounted, too: their users' reads fail from then on
    #[arg(long, short)]
    force: bool,
    /// Return as soon as the removal has begun
    #[arg(long)]
    no_wait: bool,
}

/// What became of each device.
#[derive(Debug, Default, Serialize)]
struct Removals {
    removed: Vec<u32>,
    /// Those of the removed that a program still has open; the kernel keeps their numbers until it closes them.
    held_open: Vec<u32>,
    failed: Vec<Failed>,
}

#[derive(Debug, Serialize)]
struct Failed {
    id: u32,
    error: ErrorBody,
}

impl DelArgs {
    pub(crate) fn run(&self, global: &GlobalArgs, output: &Output) -> Result<(), Failure> {
        let client = global.client()?;
        let wanted: Vec<u32> =
            self.devices.iter().map(|device| device_number(device)).collect::<Result<_, _>>()?;
        let removals = self.remove(&client, wanted)?;
        if !removals.removed.is_empty() || removals.failed.len() != 1 {
            output.print(&removals, describe)?;
        }
        removals.failure().map_or(Ok(()), Err)
    }

    fn remove(&self, client: &Client, mut wanted: Vec<u32>) -> Result<Removals, Failure> {
        if self.all || self.orphans {
            let list: DeviceList = client.get("/v1/devices")?;
            wanted.extend(list.devices.iter().filter(|device| self.selects(device)).map(|device| device.id));
        }
        let (wait, force) = (!self.no_wait, self.force);
        let _waiting = Progress::waiting("removing");
        let mut removals = Removals::default();
        let removed = parallel::for_each(&wanted, |id| {
            client.delete::<DeviceInfo>(&format!("/v1/devices/{id}?wait={wait}&force={force}"))
        });
        for (id, removed) in wanted.into_iter().zip(removed) {
            // One that cannot be removed does not save the others.
            match removed {
                Ok(info) => {
                    removals.removed.push(id);
                    removals.held_open.extend(info.held_open.then_some(id));
                }
                Err(failure) => {
                    let error = ErrorBody::of(&failure);
                    removals.failed.push(Failed { id, error });
                }
            }
        }
        Ok(removals)
    }

    fn selects(&self, device: &DeviceInfo) -> bool {
        match device.state {
            DeviceState::Orphan => self.orphans,
            DeviceState::Foreign => false,
            // That of another version is not this daemon's to remove.
            _ => self.all && !matches!(device.unserved, Some(Unserved { way: Way::Other, .. })),
        }
    }
}

impl Removals {
    /// All failures as one, of the class of the first.
    fn failure(&self) -> Option<Failure> {
        let first = self.failed.first()?;
        let messages: Vec<&str> = self.failed.iter().map(|failed| failed.error.message.as_str()).collect();
        Some(Failure::new(first.error.class, messages.join("; ")))
    }
}

/// Nothing where all went well; where some did not, which ones did.
fn describe(removals: &Removals) -> String {
    let numbers = |ids: &[u32]| ids.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    let mut text = String::new();
    if !removals.failed.is_empty() && !removals.removed.is_empty() {
        text.push_str(&format!("removed: {}\n", numbers(&removals.removed)));
    }
    if !removals.held_open.is_empty() {
        let held = numbers(&removals.held_open);
        text.push_str(&format!("still open in a program, which keeps the number taken: {held}\n"));
    }
    text
}
