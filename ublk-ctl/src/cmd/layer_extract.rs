//! `layer extract`: the LSMT file of a layer as it is.

use std::{num::NonZeroUsize, path::PathBuf};

use clap::Args;
use stratabd::{
    offline::{ExtractOptions, default_threads, extract},
    server::failure::Failure,
};

use crate::{
    offline,
    output::{Output, size},
};

#[derive(Debug, Args)]
pub(crate) struct ExtractArgs {
    /// The layer file: sealed, and in any form
    input: PathBuf,
    /// File to write
    output: PathBuf,
    /// Threads that decode; as many as there are processors by default
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Replace the output if it exists
    #[arg(long)]
    force: bool,
}

impl ExtractArgs {
    pub(crate) fn run(&self, output: &Output) -> Result<(), Failure> {
        let threads = self.threads.unwrap_or_else(default_threads);
        let options = ExtractOptions { threads, overwrite: self.force };
        let (from, to) = (self.input.clone(), self.output.clone());
        let done = offline::run("extracting", move |watch| extract(&from, &to, &options, watch))?;
        output.print(&done, |done| format!("{}: {}", self.output.display(), size(done.output_bytes)))
    }
}
