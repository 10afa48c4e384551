//! Why something that a user asked for did not happen: a class that scripts can act on, and a message for people.

use std::{error::Error, fmt, io};

use serde::{Deserialize, Serialize};

use crate::{format::oci::OciError, offline::OfflineError, source::SourceError};

/// What kind of failure it is. The exit codes of `ublk-ctl` and the status codes of the control API follow from it;
/// both are part of the interface and do not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FailureClass {
    /// Anything else.
    Internal,
    /// The request itself, or a configuration, makes no sense.
    Usage,
    /// No such device, file or image.
    NotFound,
    /// The kernel has no ublk driver, one that is too old for this, or forbids its use.
    Driver,
    /// The image or its data breaks a rule of the format.
    Image,
    /// A registry or the network did not give what was needed.
    Registry,
    /// Something of that name is there already, or is in use.
    Conflict,
    /// The daemon cannot be reached.
    Daemon,
    /// It did not end in the time it was given.
    TimedOut,
    /// Who had asked for it has ended it by a signal.
    Interrupted,
}

impl FailureClass {
    /// Every class.
    pub const ALL: [Self; 10] = [
        Self::Internal,
        Self::Usage,
        Self::NotFound,
        Self::Driver,
        Self::Image,
        Self::Registry,
        Self::Conflict,
        Self::Daemon,
        Self::TimedOut,
        Self::Interrupted,
    ];

    /// Its name in metrics, which is that of the control API.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Internal => "internal",
            Self::Usage => "usage",
            Self::NotFound => "not_found",
            Self::Driver => "driver",
            Self::Image => "image",
            Self::Registry => "registry",
            Self::Conflict => "conflict",
            Self::Daemon => "daemon",
            Self::TimedOut => "timed_out",
            Self::Interrupted => "interrupted",
        }
    }

    /// The exit code of `ublk-ctl`.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Internal => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Driver => 4,
            Self::Image => 5,
            Self::Registry => 6,
            Self::Conflict => 7,
            Self::Daemon => 8,
            Self::TimedOut => 9,
            // What a shell makes of a program that SIGINT has ended.
            Self::Interrupted => 130,
        }
    }

    /// The status code of the control API.
    #[must_use]
    pub fn http_status(self) -> u16 {
        match self {
            Self::Internal | Self::Daemon | Self::Interrupted => 500,
            Self::Usage => 400,
            Self::NotFound => 404,
            Self::Driver => 503,
            Self::Image => 422,
            Self::Registry => 502,
            Self::Conflict => 409,
            Self::TimedOut => 504,
        }
    }
}

/// A failure with its cause; the text of [`fmt::Display`] does not repeat the cause.
#[derive(Debug)]
pub struct Failure {
    class: FailureClass,
    context: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl Failure {
    /// A failure that has no deeper cause.
    #[must_use]
    pub fn new(class: FailureClass, context: impl Into<String>) -> Self {
        Self { class, context: context.into(), source: None }
    }

    /// A failure and its cause.
    #[must_use]
    pub fn with_source(
        class: FailureClass,
        context: impl Into<String>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self { class, context: context.into(), source: Some(source.into()) }
    }

    /// What kind it is.
    #[must_use]
    pub fn class(&self) -> FailureClass {
        self.class
    }

    /// Whether it is that an image is an ordinary one, which can be converted.
    #[must_use]
    pub fn is_of_ordinary_image(&self) -> bool {
        let mut cause = self.source();
        while let Some(error) = cause {
            if matches!(error.downcast_ref(), Some(OciError::Ordinary)) {
                return true;
            }
            cause = error.source();
        }
        false
    }

    /// The context and all causes in one line.
    #[must_use]
    pub fn full_text(&self) -> String {
        full_text(self)
    }
}

/// `error` and all its causes in one line, parted by colons; a cause that its parent has quoted is not said twice.
#[must_use]
pub fn full_text(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}

/// Whose fault it is that data could not be read: the nearest cause that knows it decides, and where none does, the data
/// has broken a rule.
#[must_use]
pub fn class_of_data_error(error: &(dyn Error + 'static)) -> FailureClass {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<SourceError>() {
            return match error {
                SourceError::Remote { .. } | SourceError::Refuted { .. } => FailureClass::Registry,
                SourceError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                    FailureClass::NotFound
                }
                SourceError::Io { .. } => FailureClass::Internal,
                _ => FailureClass::Image,
            };
        }
        if let Some(failure) = error.downcast_ref::<Failure>() {
            return failure.class();
        }
        cause = error.source();
    }
    FailureClass::Image
}

impl From<OfflineError> for Failure {
    fn from(error: OfflineError) -> Self {
        let class = match &error {
            OfflineError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                FailureClass::NotFound
            }
            OfflineError::Exists(_)
            | OfflineError::Busy(_)
            | OfflineError::NotReplaceable(_)
            | OfflineError::IndexFile(_)
            | OfflineError::Sealed(_) => FailureClass::Conflict,
            OfflineError::Nameless(_)
            | OfflineError::StandardOutput
            | OfflineError::NotRegular(_)
            | OfflineError::IndexMissing(_)
            | OfflineError::DeviceSize(..)
            | OfflineError::Shrinks { .. }
            | OfflineError::Ext4Shrinks { .. }
            | OfflineError::NoLayers
            | OfflineError::TooManyLayers(_)
            | OfflineError::Encode { .. } => FailureClass::Usage,
            OfflineError::NotZfile(_)
            | OfflineError::NoChecksums(_)
            | OfflineError::Tar { .. }
            | OfflineError::Zfile { .. }
            | OfflineError::Layer { .. }
            | OfflineError::Writable { .. }
            | OfflineError::Torn(..)
            | OfflineError::NotExt4(_)
            | OfflineError::TableTooLarge(..)
            | OfflineError::Amplified { .. }
            | OfflineError::TooManySegments
            | OfflineError::NoEnvelope(_)
            | OfflineError::Unproven { .. }
            | OfflineError::Unplaced { .. } => FailureClass::Image,
            OfflineError::Cancelled => FailureClass::Interrupted,
            _ => FailureClass::Internal,
        };
        Self::with_source(class, error.to_string(), error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_has_an_exit_code_of_its_own() {
        let all = FailureClass::ALL;
        let codes: std::collections::BTreeSet<u8> = all.iter().map(|class| class.exit_code()).collect();
        assert_eq!(codes.len(), all.len());
        assert!(!codes.contains(&0));
        for class in all {
            assert_eq!(serde_json::to_value(class).unwrap(), class.name());
        }
    }

    #[test]
    fn the_full_text_names_every_cause_once() {
        let inner = Failure::new(FailureClass::Internal, "no room");
        let middle = Failure::with_source(FailureClass::Internal, "cannot write: no room", inner);
        let outer = Failure::with_source(FailureClass::Image, "x.lsmt", middle);
        assert_eq!(outer.full_text(), "x.lsmt: cannot write: no room");
    }
}
