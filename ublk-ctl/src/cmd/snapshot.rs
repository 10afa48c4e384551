//! `snapshot`: makes a read-only layer of what was written to a device, which stays in use.

use std::path::PathBuf;

use clap::Args;
use stratabd::server::{
    api::types::{SnapshotDevice, SnapshotTaken},
    failure::Failure,
};

use super::{completions::devices, info::device_number};
use crate::{
    args::{GlobalArgs, absolute},
    output::Output,
    progress::Progress,
};

#[derive(Debug, Args)]
pub(crate) struct SnapshotArgs {
    /// Number or path of the device
    #[arg(value_name = "DEVICE", add = devices())]
    device: String,
    /// Folder in which the files of the next writable layer are made, and which is made if it is not there
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
}

impl SnapshotArgs {
    pub(crate) fn run(&self, global: &GlobalArgs, output: &Output) -> Result<(), Failure> {
        let client = global.client()?;
        let path = format!("/v1/devices/{}/snapshot", device_number(&self.device)?);
        let waiting = Progress::waiting("sealing");
        let request = SnapshotDevice { to: absolute(&self.to)? };
        let taken: SnapshotTaken = client.post(&path, &request)?;
        drop(waiting);
        output.print(&taken, |taken| taken.sealed.display().to_string())
    }
}
