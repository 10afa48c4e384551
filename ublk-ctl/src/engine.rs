//! The engine inside this program, for commands that need no daemon.

use std::{io, sync::Arc, time::Duration};

use stratabd::server::{
    config::Config, descriptors, failure::Failure, reactors::Reactors, runtimes, service::Service, ublk,
};
use tokio::runtime::Runtime;

/// How long what is left may take to end when the command is done.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// Threads for the network.
const NETWORK_THREADS: usize = 2;

/// Reactors, images, and a runtime for the network.
#[derive(Debug)]
pub(crate) struct Engine {
    service: Arc<Service>,
    runtime: Runtime,
}

impl Engine {
    /// For commands that only read images.
    pub(crate) fn for_reading(config: Config) -> Result<Self, Failure> {
        Self::start(config, 1, || Ok(()))
    }

    /// For a device of the kernel with so many queues.
    pub(crate) fn for_serving(config: Config, queues: u16) -> Result<Self, Failure> {
        ublk::log_mark(ublk::mark_io_flusher());
        Self::start(config, queues, ublk::prepare_thread)
    }

    /// With `threads` that serve, unless the configuration has a number of its own.
    fn start(mut config: Config, threads: u16, prepare: fn() -> io::Result<()>) -> Result<Self, Failure> {
        let threads = usize::from(threads).min(Reactors::default_threads());
        if config.reactors.threads == 0 {
            config.reactors.threads = u16::try_from(threads).unwrap_or(1);
        }
        descriptors::raise_limit();
        let runtime = runtimes::of_threads("ublk-ctl-net", NETWORK_THREADS)?;
        let service = Service::start(config, runtime.handle().clone(), prepare)?;
        Ok(Self { service, runtime })
    }

    /// Runs what `make` returns to its end, then ends everything.
    pub(crate) fn run<T, F: Future<Output = Result<T, Failure>>>(
        self,
        make: impl FnOnce(Arc<Service>) -> F,
    ) -> Result<T, Failure> {
        let result = self.runtime.block_on(async {
            let result = make(Arc::clone(&self.service)).await;
            self.service.factory().sync_cache().await;
            result
        });
        drop(self.service);
        self.runtime.shutdown_timeout(END_TIMEOUT);
        result
    }
}
