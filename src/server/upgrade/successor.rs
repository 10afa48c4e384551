//! The new process until it serves the devices of the old one.

use std::{
    io,
    time::{Duration, Instant},
};

use super::{Channel, channel::Message};
use crate::server::failure::{Failure, FailureClass};

/// How long the old process may take to leave its devices: as long as it gives itself, which only it knows, and not for ever.
const LEAVING_PATIENCE: Duration = Duration::from_secs(600);

/// A daemon that another one has started to take its devices over.
#[derive(Debug)]
pub struct Successor(Channel);

impl Successor {
    /// To the process at the other end of `channel`.
    #[must_use]
    pub fn new(channel: Channel) -> Self {
        Self(channel)
    }

    /// Says that this process is prepared, and returns the devices that it is to have, when the old one has left them. Blocks for as
    /// long as that takes.
    ///
    /// # Errors
    /// Where the old process has ended, or thought better of it.
    pub(in crate::server) fn wait_for_devices(&mut self) -> Result<Vec<u32>, Failure> {
        self.0.send(&Message::Prepared).map_err(broken)?;
        match self.0.receive(Instant::now() + LEAVING_PATIENCE).map_err(broken)? {
            Message::Begin { devices } => Ok(devices),
            message => Err(broken(io::Error::other(format!("it says {message:?}")))),
        }
    }

    /// Tells the old process how it went, which ends then, or ends this one.
    pub(in crate::server) fn tell(&self, served: &Result<(), Failure>) {
        let message = match served {
            Ok(()) => Message::Serving,
            Err(failure) => Message::Failed(failure.full_text()),
        };
        if let Err(error) = self.0.send(&message) {
            // It has ended by itself, so that there is nobody but this process.
            tracing::warn!(%error, "the former daemon does not hear that it is not wanted any more");
        }
    }
}

fn broken(source: io::Error) -> Failure {
    Failure::with_source(FailureClass::Conflict, "the daemon that was to be followed does not go on", source)
}
