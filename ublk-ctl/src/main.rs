//! `ublk-ctl`: attaches, lists, exports and inspects overlaybd block devices.

mod args;
mod cmd;
mod deferred;
mod engine;
mod offline;
mod output;
mod parallel;
mod progress;
mod push;
mod upstream;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, error::ErrorKind};
use stratabd::server::{
    failure::{Failure, FailureClass},
    runtimes,
};

use args::Cli;
use output::Output;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    if let Some(code) = upstream::run(&arguments) {
        return code;
    }
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    let output = Output::new(cli.global.json);
    match cli.global.start_log(&cli.command).and_then(|_log| cli.command.run(&cli.global, &output)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output.fail(&failure);
            ExitCode::from(failure.class().exit_code())
        }
    }
}

/// Help and version are answers; everything else that stops the parser is a wrong use.
fn refuse(error: &clap::Error) -> ExitCode {
    // When even this cannot be written there is nobody to tell.
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
        _ => ExitCode::from(FailureClass::Usage.exit_code()),
    }
}

/// The whole command line, for completions and manual pages.
fn command_line() -> clap::Command {
    Cli::command()
}

/// Runs `future` on a runtime of this thread alone.
fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    runtimes::of_this_thread("ublk-ctl-work")?.block_on(future)
}
