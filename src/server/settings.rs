//! Reading the configuration from its files, and starting the log as it says.

use std::{
    fs::File,
    io::{self, IsTerminal, Read},
    path::Path,
    sync::OnceLock,
};

use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

use super::{
    config::{Config, DEFAULT_PATH, LogFormat, OverlaybdConfig, Overrides},
    document::MAX_DOCUMENT_BYTES,
    failure::{Failure, FailureClass},
    runtimes::require_threads,
};
use crate::source::open_regular;

/// The configuration of `file`, or of the default place where that exists; then of upstream's file where one is given;
/// then of `sets`, each `key=value`.
///
/// # Errors
/// When a file that was named is missing, or anything is refused.
pub fn load(file: Option<&Path>, overlaybd: Option<&Path>, sets: &[String]) -> Result<Config, Failure> {
    let refused = |error: super::config::ConfigError| {
        Failure::new(FailureClass::Usage, format!("cannot use the configuration: {error}"))
    };
    let mut overrides = Overrides::default();
    for set in sets {
        overrides.set(set).map_err(refused)?;
    }
    let path = file.unwrap_or(Path::new(DEFAULT_PATH));
    let text = match read_document(path) {
        Err(failure) if file.is_none() && failure.class() == FailureClass::NotFound => String::new(),
        read => String::from_utf8(read?).map_err(|_| {
            Failure::new(FailureClass::Usage, format!("{}: the configuration is not UTF-8", path.display()))
        })?,
    };
    let name = path.display().to_string();
    let Some(overlaybd) = overlaybd else {
        return Config::parse(&name, &text, &overrides).map_err(refused);
    };
    Config::parse_with(&name, &text, &read_overlaybd(overlaybd)?, &overrides).map_err(refused)
}

/// Logs which keys of upstream's configuration in `file` have no effect here. Apart from [`load`], since the log is started
/// as the configuration says.
///
/// # Errors
/// When the file cannot be read or is refused.
pub fn log_unmapped(file: &Path) -> Result<(), Failure> {
    let unmapped = read_overlaybd(file)?.unmapped;
    if !unmapped.is_empty() {
        let keys: Vec<String> =
            unmapped.iter().map(|key| format!("{} ({})", key.pointer, key.reason)).collect();
        tracing::warn!(file = %file.display(), keys = keys.join(", "), "keys without effect here");
    }
    Ok(())
}

fn read_overlaybd(file: &Path) -> Result<OverlaybdConfig, Failure> {
    OverlaybdConfig::parse(&file.display().to_string(), &read_document(file)?)
        .map_err(|error| Failure::new(FailureClass::Usage, error.to_string()))
}

/// All bytes of a configuration file, which is never large.
///
/// # Errors
/// [`FailureClass::NotFound`] where it is missing; [`FailureClass::Usage`] where it is too large.
pub fn read_document(path: &Path) -> Result<Vec<u8>, Failure> {
    read_whole(path, File::open(path))
}

/// As [`read_document`], and only of a regular file: one that somebody else has named may be anything, and must not hold up
/// the reader.
///
/// # Errors
/// As [`read_document`].
pub fn read_regular_document(path: &Path) -> Result<Vec<u8>, Failure> {
    read_whole(path, open_regular(path).map(File::from))
}

fn read_whole(path: &Path, opened: io::Result<File>) -> Result<Vec<u8>, Failure> {
    let failed = |source: io::Error| {
        let class = match source.kind() {
            io::ErrorKind::NotFound => FailureClass::NotFound,
            _ => FailureClass::Usage,
        };
        Failure::with_source(class, format!("{}: cannot read it", path.display()), source)
    };
    let mut bytes = Vec::new();
    let limit = u64::try_from(MAX_DOCUMENT_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    opened.map_err(failed)?.take(limit).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// Lines of the log that wait to be written; those for which there is no room are dropped and counted.
const WAITING_LINES: usize = 8192;

/// Counts the lines that were dropped.
static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

/// Lines of the log that were dropped since nobody took them.
#[must_use]
pub fn dropped_log_lines() -> u64 {
    DROPPED.get().map_or(0, |dropped| u64::try_from(dropped.dropped_lines()).unwrap_or(u64::MAX))
}

/// The running log; dropping it writes what waits.
#[derive(Debug)]
pub struct Log {
    _writer: WorkerGuard,
}

/// What the environment asks the log for.
fn wanted_filter() -> Option<String> {
    std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty())
}

/// Whether the environment asks for a log, in `RUST_LOG`.
#[must_use]
pub fn is_log_wanted() -> bool {
    wanted_filter().is_some()
}

/// Starts the log on standard error. `RUST_LOG` wins over `filter`.
///
/// A thread of its own writes: reactors log too, and a pipe that nobody reads must not stop the devices.
///
/// # Errors
/// When the filter cannot be read.
pub fn start_log(filter: &str, format: LogFormat) -> Result<Log, Failure> {
    let filter = wanted_filter().unwrap_or_else(|| filter.to_owned());
    let parsed = EnvFilter::try_new(&filter).map_err(|source| {
        Failure::with_source(FailureClass::Usage, format!("{filter:?} is not a log filter"), source)
    })?;
    let colours = io::stderr().is_terminal();
    // Whoever starts the log's thread would panic.
    require_threads(1)?;
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(WAITING_LINES)
        .thread_name("log")
        .finish(io::stderr());
    let _ = DROPPED.set(writer.error_counter());
    let builder = tracing_subscriber::fmt().with_env_filter(parsed).with_writer(writer).with_ansi(colours);
    let started = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    started.map_err(|source| Failure::with_source(FailureClass::Internal, "cannot start the log", source))?;
    Ok(Log { _writer: guard })
}
