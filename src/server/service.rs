//! Reactors, images and the way to their data: what a daemon and a single command both stand on.

use std::{io, sync::Arc, time::Duration};

use super::{
    api::types::ImageSpec,
    blocking::BUSY_PATIENCE,
    config::Config,
    device::{Device, open_files},
    factory::{Factory, Opened},
    failure::{Failure, FailureClass},
    merged_file,
    mounts::file_system_work,
    reactors::Reactors,
};

/// How often an image is opened whose writable layer was sealed, and another one put over it, while it was waited for.
const OPENINGS_LIMIT: usize = 16;

/// Everything below the devices.
#[derive(Debug)]
pub struct Service {
    config: Config,
    reactors: Reactors,
    factory: Factory,
}

impl Service {
    /// Starts the reactors; `prepare` runs on each of their threads first. The network is used on `runtime`, which must outlive
    /// this.
    ///
    /// # Errors
    /// When a thread or a ring cannot be had, or the configuration of registries or cache cannot be used.
    pub fn start(
        config: Config,
        runtime: tokio::runtime::Handle,
        prepare: fn() -> io::Result<()>,
    ) -> Result<Arc<Self>, Failure> {
        let reactors = Reactors::start(&config.reactors, prepare)?;
        let factory = Factory::new(&config, runtime)?;
        Ok(Arc::new(Self { config, reactors, factory }))
    }

    /// The configuration it was started with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The threads that serve devices.
    #[must_use]
    pub fn reactors(&self) -> &Reactors {
        &self.reactors
    }

    /// What opens images.
    #[must_use]
    pub fn factory(&self) -> &Factory {
        &self.factory
    }

    /// Opens what `spec` names on a thread that serves no device, as one device: over an image with the same layers where one
    /// is open already. With it comes a specification that means these very bytes when the tag of `spec` has moved on.
    ///
    /// # Errors
    /// When its description or a layer cannot be used.
    pub async fn open(&self, spec: &ImageSpec) -> Result<(Device, ImageSpec), Failure> {
        self.open_within(spec, BUSY_PATIENCE).await
    }

    /// As [`Service::open`], for whoever takes a device over from a process that has died: what that has begun to write is waited
    /// for as long as `patience`.
    ///
    /// # Errors
    /// As of [`Service::open`].
    pub async fn open_within(
        &self,
        spec: &ImageSpec,
        patience: Duration,
    ) -> Result<(Device, ImageSpec), Failure> {
        let opener = self.reactors.opener();
        let overdue_after = Duration::from_millis(self.config.device.overdue_after_ms);
        for _ in 0..OPENINGS_LIMIT {
            let Opened { image, upper, pinned } = self.factory.open(&opener, spec).await?;
            let device = match (image, upper) {
                (image, Some(upper)) => {
                    let files = open_files(&upper, patience).await?;
                    // Whoever had the layer before may have put another over it meanwhile, in another configuration.
                    if !self.factory.is_upper_of(spec, upper).await? {
                        continue;
                    }
                    sweep(spec).await;
                    Device::writable(&opener, image, files, self.config.image.check_parents, overdue_after)
                        .await?
                }
                (Some(image), None) => Device::read_only(image, overdue_after),
                (None, None) => return Err(Failure::new(FailureClass::Image, "the image has no layer")),
            };
            return Ok((device, pinned));
        }
        let text = "its configuration names another writable layer each time that it is read: try again";
        Err(Failure::new(FailureClass::Conflict, text))
    }
}

/// Removes what a crash has left of merges, for who has the writable layer of `spec`. What cannot be removed only takes room.
async fn sweep(spec: &ImageSpec) {
    let ImageSpec::Config(path) = spec else { return };
    let (place, path) = (path, path.clone());
    if let Err(failure) = file_system_work(place, move || merged_file::sweep(&path)).await {
        tracing::warn!(error = failure.full_text(), "what a merge has left may still be there");
    }
}
