//! What the control API says of what it has not done.

use serde::{Deserialize, Serialize};

use crate::{
    format::oci::OciError,
    server::failure::{Failure, FailureClass},
};

/// The body of every answer that is not 2xx, but that of `/readyz`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorAnswer {
    /// What went wrong.
    pub error: ErrorBody,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// For programs.
    pub class: FailureClass,
    /// For people.
    pub message: String,
    /// Whether it is that the image is an ordinary one, of which `ublk-ctl store add` makes one that can be had.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ordinary: bool,
}

impl ErrorBody {
    /// What `failure` says.
    #[must_use]
    pub fn of(failure: &Failure) -> Self {
        Self {
            class: failure.class(),
            message: failure.full_text(),
            ordinary: failure.is_of_ordinary_image(),
        }
    }

    /// The failure that says this.
    #[must_use]
    pub fn into_failure(self) -> Failure {
        match self.ordinary {
            true => Failure::with_source(self.class, self.message, OciError::Ordinary),
            false => Failure::new(self.class, self.message),
        }
    }
}
