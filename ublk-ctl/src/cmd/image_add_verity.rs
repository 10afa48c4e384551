//! `image add-verity`: gives the layers of an overlaybd image their Merkle trees.

use std::{path::PathBuf, sync::Arc};

use clap::{Args, builder::NonEmptyStringValueParser};
use convertor::{AddVerityOptions, ConvertProgress, Platforms, VerityAdded, add_verity};
use stratabd::{format::oci::Platform, server::failure::Failure};

use super::convert::{follow, named_source};
use crate::{
    args::{GlobalArgs, RegistryArgs},
    engine::Engine,
    output::{Output, size},
};

#[derive(Debug, Args)]
pub(crate) struct AddVerityArgs {
    #[arg(help = "The overlaybd image: a reference, or oci:FOLDER[:NAME] for one in an OCI layout")]
    #[arg(value_name = "SOURCE", value_parser = NonEmptyStringValueParser::new())]
    source: String,
    #[arg(help = "What is made: registry/repository:tag, or oci:FOLDER[:NAME]. Its name is moved last")]
    #[arg(value_name = "TARGET", value_parser = NonEmptyStringValueParser::new())]
    target: String,
    /// Which images of one that has several; may be given more than once [default: this machine's]
    #[arg(long = "platform", value_name = "OS/ARCH[/VARIANT]")]
    platforms: Vec<Platform>,
    /// All images for Linux
    #[arg(long, conflicts_with = "platforms")]
    all_platforms: bool,
    /// Folder for a layer until it is sent; nothing of it has a name [default: that of temporary files]
    #[arg(long, value_name = "DIR")]
    spool: Option<PathBuf>,
    #[command(flatten)]
    registry: RegistryArgs,
}

impl AddVerityArgs {
    pub(crate) fn run(&self, global: &GlobalArgs, output: &Output) -> Result<(), Failure> {
        let mut config = global.config()?;
        self.registry.apply(&mut config)?;
        let options = AddVerityOptions {
            source: self.source.parse()?,
            target: self.target.parse()?,
            platforms: match self.all_platforms {
                true => Platforms::All,
                false => Platforms::These(self.platforms.clone()),
            },
            spool: self.spool.clone().unwrap_or_else(std::env::temp_dir),
        };
        let added = Engine::for_reading(config)?.run(|service| async move {
            let client = service.factory().client().clone();
            let progress = Arc::new(ConvertProgress::default());
            let adding = add_verity(&client, &options, &progress);
            follow("adding trees", &progress, adding, named_source(&options.source)).await
        })?;
        output.print(&added, describe)
    }
}

fn describe(added: &VerityAdded) -> String {
    let VerityAdded { reference, layers, proven, present, .. } = added;
    let [source, made] = [added.source_bytes, added.output_bytes].map(size);
    format!(
        "{reference}\n{layers} layers ({proven} with trees before, {present} there already): {source} became {made}"
    )
}
