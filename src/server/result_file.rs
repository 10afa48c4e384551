//! Upstream's `resultFile`, in which its snapshotter reads how opening an image went.

use std::{fs::OpenOptions, io::Write, os::unix::fs::OpenOptionsExt, path::Path};

use super::failure::{Failure, full_text};
use crate::{registry::RegistryError, source::SourceError};

/// Writes `success`, or `failed:` and the reason. A file that cannot be written is only logged: the image is what counts.
pub(super) fn write(file: &Path, failure: Option<&Failure>) {
    let text = failure.map_or("success".to_owned(), |failure| format!("failed:{}", reason(failure)));
    let written = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o644)
        .open(file)
        .and_then(|mut file| file.write_all(text.as_bytes()));
    if let Err(error) = written {
        tracing::warn!(file = %file.display(), %error, "cannot write the result file");
    }
}

/// The reason in upstream's words where it has some, since programs compare them.
fn reason(failure: &Failure) -> String {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(failure);
    while let Some(error) = cause {
        let said = error.to_string();
        if said == "empty repoBlobUrl" || said.starts_with("failed to open local file ") {
            return said;
        }
        let registry = error.downcast_ref::<RegistryError>().or_else(|| match error.downcast_ref() {
            Some(SourceError::Remote { source, .. }) => source.downcast_ref(),
            _ => None,
        });
        if let Some(registry) = registry {
            return format!("failed to open remote file /{}: {}", registry.target(), remote_reason(registry));
        }
        cause = error.source();
    }
    full_text(failure)
}

fn remote_reason(error: &RegistryError) -> &'static str {
    use crate::registry::{Fault, Reason};
    match error.reason() {
        Reason::NotFound => "No such file or directory",
        Reason::Status { status: 429, .. } => "Too many requests",
        _ if error.is_timeout() => "Get meta timedout",
        _ => match error.fault() {
            Fault::Credentials => "Authentication failed",
            Fault::Network => "Connection failed",
            _ => "Unexpected response",
        },
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::server::failure::FailureClass;

    #[test]
    fn the_outcome_is_written_in_upstreams_words() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("result");
        let read = || fs::read_to_string(&file).unwrap();
        write(&file, Some(&Failure::new(FailureClass::Image, "a long failure of some other kind")));
        assert_eq!(read(), "failed:a long failure of some other kind");
        let inner = Failure::new(FailureClass::Image, "empty repoBlobUrl");
        write(&file, Some(&Failure::with_source(FailureClass::Image, "c.json: /lowers/0", inner)));
        assert_eq!(read(), "failed:empty repoBlobUrl");
        write(&file, None);
        assert_eq!(read(), "success");
        write(&dir.path().join("no/such/dir"), None);
    }
}
