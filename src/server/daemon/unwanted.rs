//! Devices that somebody removes while it is tried to bring them back: a try that still opens the image, which may wait for a registry,
//! is given up.

use std::collections::BTreeSet;

use tokio::sync::watch;

use crate::server::failure::{Failure, FailureClass};

/// Their numbers.
#[derive(Debug, Default)]
pub(super) struct Unwanted(watch::Sender<BTreeSet<u32>>);

/// Has tries of a device give up for as long as it lives.
pub(super) struct GivingUp<'a> {
    unwanted: &'a Unwanted,
    id: u32,
}

impl Unwanted {
    /// Nobody wants device `id` to come back.
    pub(super) fn give_up(&self, id: u32) -> GivingUp<'_> {
        self.0.send_if_modified(|ids| ids.insert(id));
        GivingUp { unwanted: self, id }
    }

    /// What comes of `opening`, which is dropped when nobody wants device `id` any more.
    ///
    /// # Errors
    /// Its own, and [`FailureClass::Interrupted`].
    pub(super) async fn unless<T>(
        &self,
        id: u32,
        opening: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let mut unwanted = self.0.subscribe();
        let given_up = async { drop(unwanted.wait_for(|ids| ids.contains(&id)).await) };
        tokio::select! {
            opened = opening => opened,
            () = given_up => {
                Err(Failure::new(FailureClass::Interrupted, format!("device {id} is to be removed")))
            }
        }
    }
}

impl Drop for GivingUp<'_> {
    fn drop(&mut self) {
        self.unwanted.0.send_if_modified(|ids| ids.remove(&self.id));
    }
}
