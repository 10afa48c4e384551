//! How devices were attached, and why others could not be.

use std::{fmt, time::Instant};

use super::text::{Family, Labels};
use crate::{
    server::failure::{Failure, FailureClass},
    telemetry::{Counter, LatencyHistogram},
};

/// Counts the devices that somebody has asked for; those of a former daemon that come back are none.
#[derive(Debug, Default)]
pub(in crate::server) struct Attaches {
    took: LatencyHistogram,
    /// In the order of [`FailureClass::ALL`].
    failures: [Counter; FailureClass::ALL.len()],
}

impl Attaches {
    /// Counts what `attaching` a device of `image` comes to; the log is told of one that fails.
    ///
    /// # Errors
    /// Those of `attaching`.
    pub(in crate::server) async fn count<T>(
        &self,
        image: impl fmt::Display,
        attaching: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let began = Instant::now();
        let attached = attaching.await;
        match &attached {
            Ok(_) => self.took.observe(began.elapsed()),
            // Who asked converts it, and asks again.
            Err(failure) if failure.is_of_ordinary_image() => {
                tracing::info!(%image, "an ordinary image is asked for, which is not converted yet");
            }
            Err(failure) => {
                let counters = FailureClass::ALL.iter().zip(&self.failures);
                counters
                    .filter(|(class, _)| **class == failure.class())
                    .for_each(|(_, counter)| counter.inc());
                let (reason, error) = (failure.class().name(), failure.full_text());
                tracing::warn!(%image, reason, error, "a device could not be attached");
            }
        }
        attached
    }

    pub(super) fn families(&self) -> Vec<Family> {
        let failures = FailureClass::ALL.iter().zip(&self.failures);
        vec![
            Family::durations(
                "attach_duration",
                "How long it took to attach a device, of those that were asked for and have come, in seconds",
                [(Labels::new(), self.took.snapshot())],
            ),
            Family::counters(
                "attach_failures",
                "Devices that were asked for and could not be attached, by the class of the error",
                failures.map(|(class, counter)| (vec![("reason", class.name().to_owned())], counter.get())),
            ),
        ]
    }
}
