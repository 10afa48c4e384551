//! Ordinary images, of which devices are made once they are converted: into the store, where the daemon finds them from then on.

use std::{path::PathBuf, sync::Arc, time::Duration};

use convertor::{ConvertOptions, ConvertProgress, Place, Platforms, convert};
use stratabd::{
    offline::default_threads,
    server::{
        api::types::{AddDevice, ImageSpec},
        config::Config,
        failure::{Failure, FailureClass},
        image_store::{Conversion, FoundImage, ImageStore, Preparation, Tidied, Turn},
        interrupt::Interrupt,
        service::Service,
    },
};

use crate::{cmd::follow_conversion, engine::Engine, output::Output, progress::Progress};

/// How often whoever makes the image already is looked after.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// An image that was converted. It stays in the store as long as this lives.
#[derive(Debug)]
pub(crate) struct ConvertedImage {
    reference: String,
    found: FoundImage,
}

impl ConvertedImage {
    /// The request for a device of it, where `request` was for one of the ordinary image.
    pub(crate) fn request(&self, request: &AddDevice) -> AddDevice {
        AddDevice { image: self.spec(), platform: None, ..request.clone() }
    }

    /// What devices are made of.
    pub(crate) fn spec(&self) -> ImageSpec {
        ImageSpec::Converted { reference: self.reference.clone(), layers: self.layers().to_vec() }
    }

    /// The files of its layers.
    pub(crate) fn layers(&self) -> &[PathBuf] {
        &self.found.layers
    }
}

/// As [`converted`], for whoever has no service yet.
pub(crate) fn convert_alone(
    config: Config,
    image: &ImageSpec,
    platform: Option<&str>,
) -> Result<ConvertedImage, Failure> {
    Engine::for_reading(config)?.run(|service| async move { converted(&service, image, platform).await })
}

/// What the store has of the ordinary image, of several that for `platform`, else this machine's. Where it has nothing, the image is
/// converted, or waited for where another process does that already.
pub(crate) async fn converted(
    service: &Service,
    image: &ImageSpec,
    platform: Option<&str>,
) -> Result<ConvertedImage, Failure> {
    let ImageSpec::Reference(text) = image else {
        let text = format!("{image} is no image of a registry, which could be converted");
        return Err(Failure::new(FailureClass::Usage, text));
    };
    let (source, reference) = service.factory().digest_of(text, platform).await?;
    let preparation = store(service.config()).prepare(source)?;
    if own_turn(&preparation, &reference).await? {
        let Conversion { virtual_size_bytes, format, oci } = Conversion::default();
        let options = ConvertOptions {
            source: Place::Registry(reference.parse().map_err(|source| {
                Failure::with_source(FailureClass::Internal, "a reference does not come back", source)
            })?),
            target: Place::Layout { folder: preparation.folder().to_owned(), name: Some(reference.clone()) },
            platforms: Platforms::These(Vec::new()),
            oci,
            virtual_size_bytes,
            format,
            // Nothing of it comes from a registry again.
            verity: false,
            threads: default_threads(),
            spool: preparation.spool(),
        };
        let progress = Arc::new(ConvertProgress::default());
        let client = service.factory().client();
        let converting = convert(client, &options, &progress);
        follow_conversion("converting", &progress, converting, format!("reading {reference}")).await?;
    }
    Ok(ConvertedImage { reference, found: preparation.finish()? })
}

/// Whether the image is to be made by this process; waits for another one that does.
async fn own_turn(preparation: &Preparation, reference: &str) -> Result<bool, Failure> {
    let mut interrupt = Interrupt::catch()?;
    let waiting = Progress::waiting("looking for what was converted");
    loop {
        match preparation.try_begin()? {
            Turn::Own => return Ok(true),
            Turn::Over => return Ok(false),
            Turn::Others => waiting.say(format!("another process converts {reference}")),
        }
        tokio::select! {
            () = interrupt.wait() => return Err(Failure::new(FailureClass::Interrupted, "interrupted")),
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
    }
}

/// The store of the settings.
pub(crate) fn store(config: &Config) -> ImageStore {
    ImageStore::new(&config.store.dir)
}

/// Removes from the store what is too much, when something was made or was to be. Nobody waits for that.
pub(crate) fn tidy(config: &Config, output: &Output) {
    let tidied = store(config).tidy(config.store.limit_bytes());
    match tidied {
        Ok(Tidied { left_bytes, .. }) if left_bytes > config.store.limit_bytes() => output.note(&format!(
            "{}: what devices use takes {left_bytes} bytes, more than store.size_mib",
            config.store.dir.display()
        )),
        Ok(_) => {}
        Err(failure) => output.note(&failure.full_text()),
    }
}
