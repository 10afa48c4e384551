//! Upstream's `resultFile`, in which its snapshotter reads how opening an image went.

use std::{fs::OpenOptions, io::Write, os::unix::fs::OpenOptionsExt, path::PathBuf};

use rustix::fs::OFlags;

use super::{
    api::types::ImageSpec,
    failure::{Failure, FailureClass, full_text},
    image_config::ImageConfig,
    mounts::file_system_work,
    settings::read_regular_document,
};
use crate::{registry::RegistryError, source::SourceError};

/// Does `work` with `image`, and writes how it went into the file that its configuration names, if it names one. That is
/// also done for a configuration that is refused, so that the outcome of an earlier attempt is never taken for this one's.
///
/// # Errors
/// Those of `work`.
pub async fn record<T>(
    image: &ImageSpec,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let file = named_by(image).await;
    let done = work.await;
    if let Some(file) = file {
        write(file, done.as_ref().err()).await;
    }
    done
}

async fn named_by(image: &ImageSpec) -> Option<PathBuf> {
    let ImageSpec::Config(path) = image else { return None };
    let (place, path) = (path, path.clone());
    let read = file_system_work(place, move || Ok(ImageConfig::result_file(&read_regular_document(&path)?)));
    read.await.ok().flatten()
}

/// Writes `success`, or `failed:` and the reason. A file that cannot be written is only logged: the image is what counts.
async fn write(file: PathBuf, failure: Option<&Failure>) {
    let text = failure.map_or("success".to_owned(), |failure| format!("failed:{}", reason(failure)));
    let place = file.clone();
    let written = file_system_work(&place, move || {
        // A FIFO that nobody reads is refused instead of waited for.
        let flags = i32::from_ne_bytes(OFlags::NONBLOCK.bits().to_ne_bytes());
        let mut options = OpenOptions::new();
        options.create(true).truncate(true).write(true).mode(0o644).custom_flags(flags);
        options.open(&file).and_then(|mut file| file.write_all(text.as_bytes())).map_err(|source| {
            let text = format!("cannot write the result file {}", file.display());
            Failure::with_source(FailureClass::Internal, text, source)
        })
    });
    if let Err(failure) = written.await {
        tracing::warn!("{}", failure.full_text());
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

    #[tokio::test]
    async fn the_outcome_is_written_in_upstreams_words() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("result");
        let read = || fs::read_to_string(&file).unwrap();
        let write = async |failure: Option<Failure>| write(file.clone(), failure.as_ref()).await;
        write(Some(Failure::new(FailureClass::Image, "a long failure of some other kind"))).await;
        assert_eq!(read(), "failed:a long failure of some other kind");
        let inner = Failure::new(FailureClass::Image, "empty repoBlobUrl");
        write(Some(Failure::with_source(FailureClass::Image, "c.json: /lowers/0", inner))).await;
        assert_eq!(read(), "failed:empty repoBlobUrl");
        write(None).await;
        assert_eq!(read(), "success");
        super::write(dir.path().join("no/such/dir"), None).await;
    }

    #[tokio::test]
    async fn a_configuration_that_is_refused_leaves_no_former_success() {
        let dir = tempfile::tempdir().unwrap();
        let (result, config) = (dir.path().join("result"), dir.path().join("c.json"));
        fs::write(&result, "success").unwrap();
        fs::write(&config, format!(r#"{{"lowers":7,"resultFile":"{}"}}"#, result.display())).unwrap();
        let spec = ImageSpec::Config(config);
        let refused = async { Err::<(), _>(Failure::new(FailureClass::Image, "no")) };
        record(&spec, refused).await.unwrap_err();
        assert_eq!(fs::read_to_string(&result).unwrap(), "failed:no");
        record(&spec, async { Ok(()) }).await.unwrap();
        assert_eq!(fs::read_to_string(&result).unwrap(), "success");
    }

    #[tokio::test]
    async fn a_fifo_that_nobody_reads_holds_up_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        write(fifo, None).await;
    }
}
