//! `man`: the manual pages, one a command.

use std::path::PathBuf;

use clap::Args;
use stratabd::server::failure::{Failure, FailureClass};

use crate::command_line;

#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Directory that the pages are written to
    dir: PathBuf,
}

impl ManArgs {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        clap_mangen::generate_to(command_line(), &self.dir).map_err(|source| {
            let text = format!("{}: cannot write the manual pages", self.dir.display());
            Failure::with_source(FailureClass::Internal, text, source)
        })
    }
}
