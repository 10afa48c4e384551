//! `layer commit`: a layer file of what was written to a writable layer, or of another layer.

use std::path::{Path, PathBuf};

use clap::Args;
use stratabd::{
    offline::{commit, seal},
    server::failure::{Failure, FailureClass},
};

use super::layer_form::{FormArgs, NamingArgs};
use crate::{
    offline,
    output::{Output, size},
};

#[derive(Debug, Args)]
#[command(override_usage = "ublk-ctl layer commit [OPTIONS] <DATA> [INDEX] <OUTPUT>\n       \
                            ublk-ctl layer commit --seal <DATA> [INDEX]")]
pub(crate) struct CommitArgs {
    /// Data file of a writable layer that no device has, its index file unless it is sparse, and the file to write; or a sealed
    /// layer in any form, such as one that a snapshot has sealed, and the file to write
    #[arg(required = true, num_args = 1..=3, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    naming: NamingArgs,
    #[command(flatten)]
    form: FormArgs,
    /// Write no other file, but make the data file itself a read-only layer
    #[arg(long, conflicts_with_all = [
        "uuid", "parent_uuid", "message", "algorithm", "block_size", "tar", "threads", "as_upstream", "force",
    ])]
    seal: bool,
}

impl CommitArgs {
    pub(crate) fn run(&self, output: &Output) -> Result<(), Failure> {
        match (self.files.as_slice(), self.seal) {
            ([data], true) => self.seal(output, data, None),
            ([data, index], true) => self.seal(output, data, Some(index)),
            ([data, to], false) => self.commit(output, data, None, to),
            ([data, index, to], false) => self.commit(output, data, Some(index), to),
            (_, true) => Err(Failure::new(FailureClass::Usage, "--seal takes DATA [INDEX], and no output")),
            (_, false) => Err(Failure::new(FailureClass::Usage, "wanted are DATA [INDEX] OUTPUT")),
        }
    }

    fn commit(
        &self,
        output: &Output,
        data: &Path,
        index: Option<&PathBuf>,
        to: &Path,
    ) -> Result<(), Failure> {
        let (naming, options) = (self.naming.naming()?, self.form.options()?);
        let (from, index, path) = (data.to_owned(), index.cloned(), to.to_owned());
        let done = offline::run("committing", move |watch| {
            commit(&from, index.as_deref(), &path, &naming, &options, watch)
        })?;
        tell_torn(output, data, done.torn_entries);
        output.print(&done, |done| {
            format!("{}: {} of {} of data", to.display(), size(done.output_bytes), size(done.data_bytes))
        })
    }

    fn seal(&self, output: &Output, data: &Path, index: Option<&PathBuf>) -> Result<(), Failure> {
        let done = seal(data, index.map(PathBuf::as_path), self.form.allow_torn)?;
        tell_torn(output, data, done.torn_entries);
        output.print(&done, |done| format!("{}: sealed, {}", data.display(), size(done.output_bytes)))
    }
}

/// A crash before a flush is no damage, but whoever commits after one wants to know.
pub(super) fn tell_torn(output: &Output, data: &Path, torn_entries: u64) {
    if torn_entries > 0 {
        output.note(&format!(
            "{}: {torn_entries} writes at the end of the index have lost their data and are left out",
            data.display()
        ));
    }
}
