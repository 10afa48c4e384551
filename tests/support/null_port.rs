//! The way to a frontend without a driver, for a daemon in the process of a test.

use std::{path::Path, time::Duration};

use stratabd::{
    frontend::{AttachRequest, Attachment, Detached, FrontendError, Mark, NullFrontend},
    reactor::ReactorHandle,
    server::{
        api::types::FeatureList,
        device::Device,
        failure::Failure,
        port::{KnownDevice, Port},
    },
};

/// Has no device but those of its daemon.
pub struct NullPort(pub NullFrontend);

impl Port for NullPort {
    fn features(&self) -> Result<FeatureList, Failure> {
        Ok(FeatureList { bits: 0, names: Vec::new() })
    }

    fn attach(
        &self,
        device: &Device,
        request: &AttachRequest,
        reactors: &[ReactorHandle],
    ) -> Result<Box<dyn Attachment>, FrontendError> {
        device.attach_to(&self.0, request, reactors)
    }

    fn take_over(
        &self,
        device: &Device,
        id: u32,
        mark: Option<Mark>,
        reactors: &[ReactorHandle],
        deadline: Duration,
    ) -> Result<Box<dyn Attachment>, FrontendError> {
        device.take_over_with(&self.0, id, mark, reactors, deadline)
    }

    fn known(&self) -> Result<Vec<KnownDevice>, Failure> {
        Ok(Vec::new())
    }

    fn user(&self, _path: &Path) -> Option<String> {
        None
    }

    fn remove_orphan(&self, _id: u32, _timeout: Duration) -> Result<Detached, Failure> {
        Ok(Detached::Complete)
    }
}
