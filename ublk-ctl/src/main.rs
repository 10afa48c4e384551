//! `ublk-ctl`: attaches, lists, exports and inspects overlaybd block devices.

mod args;
mod cmd;
mod deferred;
mod engine;
mod offline;
mod ordinary;
mod output;
mod parallel;
mod progress;
mod push;
mod upstream;

use std::{ffi::OsString, process::ExitCode};

use clap::{CommandFactory, Parser, error::ErrorKind};
use clap_complete::CompleteEnv;
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
    // What the shell asks of it, where the script of `completions` says so.
    CompleteEnv::with_factory(command_line).complete();
    let arguments = help_last(arguments);
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return refuse(&error, &arguments),
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

/// `help COMMAND` is `COMMAND --help`: the parser's own command of that name would set up all commands.
fn help_last(mut arguments: Vec<OsString>) -> Vec<OsString> {
    if arguments.get(1).is_some_and(|first| first == "help") {
        arguments.remove(1);
        arguments.push("--help".into());
    }
    arguments
}

/// Help and version are answers; everything else that stops the parser is a wrong use.
fn refuse(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // When even this cannot be written there is nobody to tell.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let wants_json =
        arguments.iter().take_while(|argument| *argument != "--").any(|argument| argument == "--json");
    if wants_json {
        let text = error.to_string();
        let text = text.strip_prefix("error: ").unwrap_or(&text).trim_end();
        Output::new(true).fail(&Failure::new(FailureClass::Usage, text));
    } else {
        let _ = error.print();
    }
    ExitCode::from(FailureClass::Usage.exit_code())
}

/// The whole command line, for completions and manual pages.
fn command_line() -> clap::Command {
    Cli::command()
}

/// Runs `future` on a runtime of this thread alone.
fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    runtimes::of_this_thread("ublk-ctl-work")?.block_on(future)
}
