//! `upgrade`: has another program take all devices of the daemon over, while they are in use.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::Args;
use stratabd::server::{
    api::types::{DaemonInfo, UpgradeDaemon, UpgradeStarted},
    failure::{Failure, FailureClass},
};

use crate::{args::GlobalArgs, output::Output};

/// How often the new daemon is asked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// What is left of the time when both phases have had theirs: leaving the devices, and serving again after a failure.
const REST: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub(crate) struct UpgradeArgs {
    /// The program that takes over [default: the file that has the name of the daemon's own by now]
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// Seconds that it may take to be prepared, and again to serve all devices; the old program goes on where it takes longer
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
    /// Also where there are devices that do not outlive the daemon; they go
    #[arg(long)]
    force: bool,
}

impl UpgradeArgs {
    pub(crate) fn run(&self, global: &GlobalArgs, output: &Output) -> Result<(), Failure> {
        let client = global.client()?;
        let timeout = Duration::from_secs(self.timeout);
        let timeout_ms = u64::try_from(timeout.as_millis()).ok();
        let binary = self.binary.as_ref().map(std::path::absolute).transpose().map_err(|source| {
            Failure::with_source(FailureClass::Usage, "cannot use the path of the program", source)
        })?;
        let wanted = UpgradeDaemon { binary, timeout_ms, force: self.force };
        let UpgradeStarted { pid } = client.post("/v1/upgrade", &wanted)?;
        let deadline = Instant::now() + 2 * timeout + REST;
        loop {
            // Nobody answers while neither has the socket.
            match client.get::<DaemonInfo>("/v1/daemon") {
                Ok(info) if info.pid == pid => return output.print(&info, describe),
                Ok(DaemonInfo { failed_upgrade: Some(reason), .. }) => {
                    let text = format!("{reason}; the daemon that was there serves again");
                    return Err(Failure::new(FailureClass::Internal, text));
                }
                _ if Instant::now() >= deadline => {
                    let text = "neither the new daemon nor the old one answers: see their log";
                    return Err(Failure::new(FailureClass::TimedOut, text));
                }
                _ => {}
            }
            #[expect(clippy::disallowed_methods, reason = "a command line tool that only waits")]
            std::thread::sleep(LOOK_INTERVAL);
        }
    }
}

fn describe(info: &DaemonInfo) -> String {
    format!("stratabd {} (process {}) serves\n", info.version, info.pid)
}
