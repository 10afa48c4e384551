//! `layer flatten`: a whole stack, with what was written to it, as one layer.

use std::path::PathBuf;

use clap::Args;
use stratabd::{
    offline::{Stack, Upper},
    server::failure::Failure,
};

use super::{
    layer_form::{FormArgs, NamingArgs},
    layer_stack::{self, StackArgs},
};
use crate::output::Output;

#[derive(Debug, Args)]
pub(crate) struct FlattenArgs {
    #[command(flatten)]
    stack: StackArgs,
    /// Data file of the writable layer above the layers [default: as the configuration says]
    #[arg(long, value_name = "FILE")]
    upper: Option<PathBuf>,
    /// Index file of the writable layer; a sparse one needs none
    #[arg(long, value_name = "FILE", requires = "upper")]
    upper_index: Option<PathBuf>,
    /// File to write
    output: PathBuf,
    #[command(flatten)]
    naming: NamingArgs,
    #[command(flatten)]
    form: FormArgs,
}

impl FlattenArgs {
    pub(crate) fn run(&self, output: &Output) -> Result<(), Failure> {
        let stack = self.stack.stack()?;
        let index = self.upper_index.clone();
        let named = self.upper.clone().map(|data| Upper { data, index });
        let stack = Stack { upper: named.or(stack.upper), ..stack };
        layer_stack::run(stack, &self.output, &self.naming, &self.form, output)
    }
}
