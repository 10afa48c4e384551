//! `layer verify`: reads all of a layer file and checks everything that can be checked.

use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use clap::Args;
use stratabd::server::{
    failure::Failure,
    layer_report::{VerifyProgress, verify},
};

use crate::{args::GlobalArgs, engine::Engine, output::Output, progress::Progress};

/// How often the bar moves.
const TICK: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The layer file
    file: PathBuf,
}

impl VerifyArgs {
    pub(crate) fn run(&self, global: &GlobalArgs, output: &Output) -> Result<(), Failure> {
        let engine = Engine::for_reading(global.config()?)?;
        let verified = engine.run(|service| async move {
            let progress = Arc::new(VerifyProgress::default());
            let mut verifying = Box::pin(verify(&service, &self.file, Arc::clone(&progress)));
            let bar = Progress::new("verifying", 0);
            loop {
                match tokio::time::timeout(TICK, &mut verifying).await {
                    Ok(verified) => return verified,
                    Err(_) => {
                        bar.set_total(progress.total_bytes.load(Ordering::Relaxed));
                        bar.set(progress.done_bytes.load(Ordering::Relaxed));
                    }
                }
            }
        })?;
        output.print(&verified, |verified| {
            let checked = if verified.checksums { "every checksum is right" } else { "it has no checksums" };
            format!("{}: {} bytes read, {checked}", verified.layer.name, verified.read_bytes)
        })
    }
}
