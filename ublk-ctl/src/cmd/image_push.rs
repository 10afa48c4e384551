//! `image push`: makes a new version of an image in a registry, of a base and one layer file.

use std::{path::PathBuf, sync::Arc};

use clap::{Args, builder::NonEmptyStringValueParser};
use stratabd::{
    format::oci::Platform,
    server::{
        failure::Failure,
        push::{PushOptions, PushProgress, Pushed, push},
    },
};

use crate::{
    args::{GlobalArgs, RegistryArgs},
    engine::Engine,
    output::{Output, size},
    push::follow,
};

#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    /// What is made: registry/repository:tag
    #[arg(value_name = "TARGET", value_parser = NonEmptyStringValueParser::new())]
    target: String,
    /// The new layer, compressed and in a tar envelope, as `layer commit --tar` makes it
    #[arg(long, value_name = "FILE")]
    layer: PathBuf,
    /// Image that the layer lies over, in any registry: its layers are copied where the target's lacks them
    /// [default: the layer lies over nothing]
    #[arg(long, value_name = "IMAGE", value_parser = NonEmptyStringValueParser::new())]
    base: Option<String>,
    /// Which image of a base that has one for each of several platforms; only that one, with the layer, is pushed. A base that is
    /// for another platform is refused [default: this machine's of several, and any other]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<Platform>,
    #[command(flatten)]
    registry: RegistryArgs,
}

impl PushArgs {
    pub(crate) fn run(&self, global: &GlobalArgs, output: &Output) -> Result<(), Failure> {
        let mut config = global.config()?;
        self.registry.apply(&mut config)?;
        let options = PushOptions {
            layer: self.layer.clone(),
            base: self.base.clone(),
            target: self.target.clone(),
            platform: self.platform.clone(),
        };
        let pushed = Engine::for_reading(config)?.run(|service| async move {
            let progress = Arc::new(PushProgress::default());
            follow(Arc::clone(&progress), push(&service, &options, &progress)).await
        })?;
        output.print(&pushed, describe)
    }
}

fn describe(pushed: &Pushed) -> String {
    let Pushed { reference, uploaded, copied, mounted, present, .. } = pushed;
    let [sent, brought] = [pushed.uploaded_bytes, pushed.copied_bytes].map(size);
    let only = pushed
        .platform
        .as_ref()
        .map(|platform| format!("\nof the base's platforms only {platform} is in it"));
    format!(
        "{reference}\n{uploaded} blobs sent ({sent}), {copied} copied ({brought}), {mounted} taken over, \
         {present} there already{}",
        only.unwrap_or_default()
    )
}
