//! `layer merge`: a stack of read-only layers as one layer.

use std::path::PathBuf;

use clap::Args;
use stratabd::{offline::Stack, server::failure::Failure};

use super::{
    layer_form::{FormArgs, NamingArgs},
    layer_stack::{self, StackArgs},
};
use crate::output::Output;

#[derive(Debug, Args)]
pub(crate) struct MergeArgs {
    #[command(flatten)]
    stack: StackArgs,
    /// File to write
    output: PathBuf,
    #[command(flatten)]
    naming: NamingArgs,
    #[command(flatten)]
    form: FormArgs,
}

impl MergeArgs {
    pub(crate) fn run(&self, output: &Output) -> Result<(), Failure> {
        let stack = Stack { upper: None, ..self.stack.stack()? };
        layer_stack::run(stack, &self.output, &self.naming, &self.form, output)
    }
}
