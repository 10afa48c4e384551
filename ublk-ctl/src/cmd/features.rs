//! `features`: what the kernel's driver can do. Asks the driver itself and needs no daemon.

use clap::Args;
use stratabd::server::{failure::Failure, ublk};

use crate::{args::GlobalArgs, output::Output};

#[derive(Debug, Args)]
pub(crate) struct FeaturesArgs {}

impl FeaturesArgs {
    pub(crate) fn run(&self, _global: &GlobalArgs, output: &Output) -> Result<(), Failure> {
        let features = ublk::features()?;
        output.print(&features, |features| format!("{:#x}\n{}", features.bits, features.names.join("\n")))
    }
}
