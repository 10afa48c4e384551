//! `completions`: the script that lets a shell complete the command line, by asking this program.

use std::time::Duration;

use clap::{Args, ValueEnum};
use clap_complete::{ArgValueCandidates, CompletionCandidate, Shell, env::Shells};
use stratabd::server::{
    api::{
        Client,
        types::{DeviceInfo, DeviceList},
    },
    failure::{Failure, FailureClass},
    settings,
};

use crate::output::write_out;

/// How long a person who completes waits for a daemon that says nothing.
const PATIENCE: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

impl CompletionsArgs {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let name =
            self.shell.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        let shells = Shells::builtins();
        let none = || Failure::new(FailureClass::Usage, format!("there are no completions for {name}"));
        let mut script = Vec::new();
        let shell = shells.completer(&name).ok_or_else(none)?;
        shell.write_registration("COMPLETE", "ublk-ctl", "ublk-ctl", "ublk-ctl", &mut script).map_err(
            |source| Failure::with_source(FailureClass::Internal, "cannot write the completions", source),
        )?;
        write_out(&script)
    }
}

/// The devices of the daemon that the settings name, for an argument that takes one.
pub(crate) fn devices() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        let list = settings::load(None, None, &[]).and_then(|config| {
            Client::new(config.daemon.socket).with_patience(PATIENCE).get::<DeviceList>("/v1/devices")
        });
        // Nobody is there to be told.
        let devices = list.map(|list| list.devices).unwrap_or_default();
        let candidate = |device: DeviceInfo| {
            let shown = device.image.map_or_else(|| device.state.to_string(), |image| image.to_string());
            CompletionCandidate::new(device.id.to_string()).help(Some(shown.into()))
        };
        devices.into_iter().map(candidate).collect()
    })
}
