//! `image push`: makes a new version of an image in a registry, of a base and one layer file.

use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use clap::{Args, builder::NonEmptyStringValueParser};
use stratabd::server::{
    failure::{Failure, FailureClass},
    push::{PushOptions, PushProgress, Pushed, push},
};

use crate::{
    args::{GlobalArgs, RegistryArgs},
    engine::Engine,
    interrupt::Interrupt,
    output::{Output, size},
    progress::Progress,
};

/// How often the bar moves.
const TICK: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    /// What is made: registry/repository:tag
    #[arg(value_name = "TARGET", value_parser = NonEmptyStringValueParser::new())]
    target: String,
    /// The new layer, compressed and in a tar envelope, as `layer commit --tar` makes it
    #[arg(long, value_name = "FILE")]
    layer: PathBuf,
    /// Image that the layer lies over, in the same registry [default: the layer lies over nothing]
    #[arg(long, value_name = "IMAGE", value_parser = NonEmptyStringValueParser::new())]
    base: Option<String>,
    #[command(flatten)]
    registry: RegistryArgs,
}

impl PushArgs {
    pub(crate) fn run(&self, global: &GlobalArgs, output: &Output) -> Result<(), Failure> {
        let mut config = global.config()?;
        self.registry.apply(&mut config);
        let options =
            PushOptions { layer: self.layer.clone(), base: self.base.clone(), target: self.target.clone() };
        let pushed = Engine::for_reading(config)?.run(|service| async move {
            let mut interrupt = Interrupt::catch()?;
            let progress = Arc::new(PushProgress::default());
            let mut pushing = Box::pin(push(&service, &options, &progress));
            let bar = Progress::new("pushing", 0);
            loop {
                tokio::select! {
                    pushed = &mut pushing => return pushed,
                    // What is under way ends with the runtime, and the tag stays where it was.
                    () = interrupt.wait() => return Err(Failure::new(FailureClass::Internal, "interrupted")),
                    () = tokio::time::sleep(TICK) => {
                        bar.set_total(progress.total_bytes.load(Ordering::Relaxed));
                        bar.set(progress.sent_bytes.load(Ordering::Relaxed));
                    }
                }
            }
        })?;
        output.print(&pushed, describe)
    }
}

fn describe(pushed: &Pushed) -> String {
    let Pushed { reference, uploaded, mounted, present, .. } = pushed;
    let sent = size(pushed.uploaded_bytes);
    format!("{reference}\n{uploaded} blobs sent ({sent}), {mounted} taken over, {present} there already")
}
