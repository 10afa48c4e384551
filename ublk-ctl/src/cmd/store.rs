//! `store`: the images that were converted on this machine.

use clap::{Args, builder::NonEmptyStringValueParser};
use serde::Serialize;
use stratabd::{
    format::oci::Platform,
    server::{
        api::types::ImageSpec,
        failure::{Failure, FailureClass},
        image_store::ListedImage,
    },
};

use crate::{
    args::GlobalArgs,
    ordinary::{self, ConvertedImage},
    output::{Output, size, table},
};

#[derive(Debug, Args)]
pub(crate) struct StoreAddArgs {
    /// The ordinary image: registry/repository:tag, or @digest
    #[arg(value_name = "IMAGE", value_parser = NonEmptyStringValueParser::new())]
    image: String,
    /// Which image of one that has several. The only one of another reference must be for it
    /// [default: this machine's of several, and any other]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<Platform>,
}

#[derive(Debug, Args)]
pub(crate) struct StoreListArgs {}

#[derive(Debug, Args)]
pub(crate) struct StorePruneArgs {}

/// All images of the store.
#[derive(Debug, Serialize)]
struct Listed {
    images: Vec<ListedImage>,
}

impl StoreAddArgs {
    pub(crate) fn run(&self, global: &GlobalArgs, output: &Output) -> Result<(), Failure> {
        let config = global.config()?;
        ordinary::tidy(&config, output);
        let platform = self.platform.as_ref().map(Platform::to_string);
        let image = ImageSpec::Reference(self.image.clone());
        let converted = ordinary::convert_alone(config.clone(), &image, platform.as_deref());
        let printed = converted.and_then(|converted: ConvertedImage| {
            let layers = converted.layers().len();
            output.print(&converted.spec(), |spec| format!("{spec}\n{layers} layers"))
        });
        ordinary::tidy(&config, output);
        printed
    }
}

impl StoreListArgs {
    pub(crate) fn run(&self, global: &GlobalArgs, output: &Output) -> Result<(), Failure> {
        let images = ordinary::store(&global.config()?).list()?;
        output.print(&Listed { images }, |listed| {
            let head = ["IMAGE", "LAYERS", "SIZE", "USED"].map(str::to_owned).to_vec();
            let rows = listed.images.iter().map(|image| {
                let used = if image.used { "yes" } else { "no" };
                vec![image.reference.clone(), image.layers.to_string(), size(image.bytes), used.to_owned()]
            });
            table(&[head].into_iter().chain(rows).collect::<Vec<_>>())
        })
    }
}

impl StorePruneArgs {
    pub(crate) fn run(&self, global: &GlobalArgs, output: &Output) -> Result<(), Failure> {
        let tidied = ordinary::store(&global.config()?).tidy(0)?;
        if tidied.busy {
            return Err(Failure::new(FailureClass::Conflict, "an image is being converted into the store"));
        }
        output.print(&tidied, |tidied| {
            let [removed, left] = [tidied.removed_bytes, tidied.left_bytes].map(size);
            format!("{} images of {removed} removed, {left} used", tidied.removed_images)
        })
    }
}
