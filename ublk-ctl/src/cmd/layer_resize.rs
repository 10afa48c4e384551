//! `layer resize`: another size of the device of a writable layer, and of the file system on it.

use std::path::PathBuf;

use clap::Args;
use stratabd::{
    offline::{ResizedExt4, Stack, Upper, default_threads, resize, resize_ext4},
    server::{
        failure::{Failure, FailureClass},
        layers::read_stack,
    },
};

use super::layer_size::parse_size;
use crate::{
    offline,
    output::{Output, size},
};

#[derive(Debug, Args)]
pub(crate) struct ResizeArgs {
    /// Data file of the writable layer
    #[arg(required_unless_present = "config", conflicts_with_all = ["config", "ext4"])]
    data: Option<PathBuf>,
    /// Its index file; a sparse layer needs none
    index: Option<PathBuf>,
    /// Image configuration as upstream writes it, config.v1.json, whose writable layer it is
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// New size of the device: bytes, or a number with KiB, MiB, GiB or TiB
    #[arg(long, value_parser = parse_size)]
    size: u64,
    /// Resize the ext4 on the device of the configuration too, which needs resize2fs and e2fsck;
    /// without it the file system stays as it is
    #[arg(long, requires = "config")]
    ext4: bool,
    /// Allow a smaller size: what the layer has past the new end is lost. When the device grows
    /// again, what the layers below have shows there
    #[arg(long)]
    shrink: bool,
}

impl ResizeArgs {
    pub(crate) fn run(&self, output: &Output) -> Result<(), Failure> {
        let (lowers, upper) = self.layers()?;
        let path = upper.data.clone();
        if self.ext4 {
            let (size_bytes, shrink) = (self.size, self.shrink);
            let done = offline::run("resizing the file system", move |watch| {
                resize_ext4(&lowers, &upper, size_bytes, shrink, default_threads(), watch)
            })?;
            return output.print(&done, |done| format!("{}: {}", path.display(), describe(done)));
        }
        let done = resize(&lowers, &upper, self.size, self.shrink)?;
        output.print(&done, |done| {
            let [before, after] = [done.before_bytes, done.after_bytes].map(size);
            format!("{}: {after}, before {before}", path.display())
        })
    }

    fn layers(&self) -> Result<(Vec<PathBuf>, Upper), Failure> {
        let stack = match (&self.config, &self.data) {
            (Some(config), _) => read_stack(config)?,
            (None, Some(data)) => {
                let upper = Upper { data: data.clone(), index: self.index.clone() };
                Stack { lowers: Vec::new(), upper: Some(upper) }
            }
            (None, None) => Stack::default(),
        };
        let read_only = || Failure::new(FailureClass::Usage, "the image has no writable layer");
        Ok((stack.lowers, stack.upper.ok_or_else(read_only)?))
    }
}

fn describe(done: &ResizedExt4) -> String {
    let sizes = [done.before_bytes, done.after_bytes, done.ext4_before_bytes, done.ext4_after_bytes];
    let [before, after, ext4_before, ext4_after] = sizes.map(size);
    let written = size(done.written_bytes);
    format!("{after}, before {before}; its ext4 {ext4_after}, before {ext4_before}; {written} written")
}
