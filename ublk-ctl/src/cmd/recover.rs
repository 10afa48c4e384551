//! `recover`: serves on what a process has left, through the daemon or in this process.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use serde::Serialize;
use stratabd::server::{
    api::types::{DeviceInfo, DeviceList, ErrorBody, RecoverDevice, Unserved, Way},
    failure::{Failure, FailureClass},
    foreground::Foreground,
    interrupt::Interrupt,
    ublk,
};

use super::{add::serve_until_told, completions::devices, info::device_number};
use crate::{
    args::{GlobalArgs, absolute},
    engine::Engine,
    output::Output,
    parallel,
    progress::Progress,
};

#[derive(Debug, Args)]
pub(crate) struct RecoverArgs {
    /// Numbers or paths of the devices
    #[arg(value_name = "DEVICE", add = devices(), required_unless_present = "all")]
    devices: Vec<String>,
    /// Every device that a process has left which served it alone, and that the daemon can serve on
    #[arg(long, conflicts_with_all = ["devices", "foreground", "from"])]
    all: bool,
    /// State directory of the process that has left them [default: as in the settings]
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// Serve the device in this process, without a daemon, until SIGINT, SIGTERM or SIGHUP
    #[arg(long)]
    foreground: bool,
}

/// What became of each device.
#[derive(Debug, Default, Serialize)]
struct Recoveries {
    devices: Vec<DeviceInfo>,
    failed: Vec<Failed>,
}

#[derive(Debug, Serialize)]
struct Failed {
    id: u32,
    error: ErrorBody,
}

impl RecoverArgs {
    /// Whether the device is served in this process.
    pub(crate) fn is_foreground(&self) -> bool {
        self.foreground
    }

    pub(crate) fn run(&self, global: &GlobalArgs, output: &Output) -> Result<(), Failure> {
        let from = self.from.as_deref().map(absolute).transpose()?;
        let mut wanted: Vec<u32> =
            self.devices.iter().map(|device| device_number(device)).collect::<Result<_, _>>()?;
        if self.foreground {
            return match wanted.as_slice() {
                [id] => self.serve(global, output, *id, from),
                _ => Err(Failure::new(FailureClass::Usage, "--foreground serves one device")),
            };
        }
        let client = global.client()?;
        if self.all {
            let list: DeviceList = client.get("/v1/devices")?;
            let is_left =
                |info: &&DeviceInfo| matches!(info.unserved, Some(Unserved { way: Way::Recover, .. }));
            wanted.extend(list.devices.iter().filter(is_left).map(|info| info.id));
        }
        let waiting = Progress::waiting("taking over");
        let request = RecoverDevice { state_dir: from };
        let recovered = parallel::for_each(&wanted, |id| {
            client.post::<_, DeviceInfo>(&format!("/v1/devices/{id}/recover"), &request)
        });
        drop(waiting);
        let mut recoveries = Recoveries::default();
        for (id, recovered) in wanted.into_iter().zip(recovered) {
            match recovered {
                Ok(info) => recoveries.devices.push(info),
                Err(failure) => {
                    let error = ErrorBody::of(&failure);
                    recoveries.failed.push(Failed { id, error });
                }
            }
        }
        output.print(&recoveries, |recoveries| {
            recoveries.devices.iter().map(|info| format!("{}\n", info.path.display())).collect()
        })?;
        recoveries.failure().map_or(Ok(()), Err)
    }

    fn serve(
        &self,
        global: &GlobalArgs,
        output: &Output,
        id: u32,
        from: Option<PathBuf>,
    ) -> Result<(), Failure> {
        let config = global.config()?;
        let drain = Duration::from_millis(config.daemon.drain_timeout_ms);
        let queues = config.device.queues;
        Engine::for_serving(config, queues)?.run(|service| async move {
            let mut interrupt = Interrupt::catch()?;
            let device = Foreground::recover(&service, ublk::port(), id, from).await?;
            serve_until_told(&service, device, &mut interrupt, output, drain).await
        })
    }
}

impl Recoveries {
    /// All failures as one, of the class of the first.
    fn failure(&self) -> Option<Failure> {
        let first = self.failed.first()?;
        let messages: Vec<&str> = self.failed.iter().map(|failed| failed.error.message.as_str()).collect();
        Some(Failure::new(first.error.class, messages.join("; ")))
    }
}
