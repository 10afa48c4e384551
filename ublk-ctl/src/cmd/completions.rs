//! `completions`: the script that lets a shell complete the command line.

use clap::Args;
use clap_complete::Shell;
use stratabd::server::failure::Failure;

use crate::{command_line, output::write_out};

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

impl CompletionsArgs {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command_line(), "ublk-ctl", &mut script);
        write_out(&script)
    }
}
