//! How the layers of a stack are named, and how they become one file.

use std::path::{Path, PathBuf};

use clap::Args;
use stratabd::{
    offline::{Stack, merge},
    server::{failure::Failure, layers::read_stack},
};

use super::{
    layer_commit::tell_torn,
    layer_form::{FormArgs, NamingArgs},
};
use crate::{
    offline,
    output::{Output, size},
};

/// Names a stack of layers that are on this machine.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct StackArgs {
    /// Image configuration as upstream writes it, config.v1.json
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Layer file, lowest first; may be repeated
    #[arg(long = "layer", value_name = "FILE")]
    layers: Vec<PathBuf>,
}

impl StackArgs {
    /// The files of the stack.
    pub(crate) fn stack(&self) -> Result<Stack, Failure> {
        match &self.config {
            Some(config) => read_stack(config),
            None => Ok(Stack { lowers: self.layers.clone(), upper: None }),
        }
    }
}

/// Merges `stack` and says what came of it.
pub(crate) fn run(
    stack: Stack,
    to: &Path,
    naming: &NamingArgs,
    form: &FormArgs,
    output: &Output,
) -> Result<(), Failure> {
    let (naming, options) = (naming.naming()?, form.options()?);
    let (path, upper) = (to.to_owned(), stack.upper.clone());
    let done = offline::run("merging", move |watch| merge(&stack, &path, &naming, &options, watch))?;
    if let Some(upper) = upper {
        tell_torn(output, &upper.data, done.torn_entries);
    }
    output.print(&done, |done| {
        format!("{}: {} of {} of data", to.display(), size(done.output_bytes), size(done.data_bytes))
    })
}
