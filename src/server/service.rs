//! Reactors, images and the way to their data: what a daemon and a single command both stand on.

use std::{io, sync::Arc};

use super::{
    api::types::ImageSpec,
    config::Config,
    factory::{Factory, OpenImage},
    failure::Failure,
    reactors::Reactors,
};

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

    /// Opens an image on a thread that serves no device, or returns one with the same layers that is open already.
    ///
    /// # Errors
    /// When its description or a layer cannot be used.
    pub async fn open(&self, spec: &ImageSpec) -> Result<Arc<OpenImage>, Failure> {
        self.open_pinned(spec).await.map(|(image, _)| image)
    }

    /// As [`Service::open`], and with it a specification that means these very bytes when the tag of `spec` has moved on.
    ///
    /// # Errors
    /// As [`Service::open`].
    pub async fn open_pinned(&self, spec: &ImageSpec) -> Result<(Arc<OpenImage>, ImageSpec), Failure> {
        self.factory.open(&self.reactors.opener(), spec).await
    }
}
