//! The log on standard error.

mod line;

use std::{
    io::{self, IsTerminal},
    sync::OnceLock,
};

use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

use super::{
    config::LogFormat,
    failure::{Failure, FailureClass},
    runtimes::require_threads,
};
use line::Lines;

/// Lines of the log that wait to be written; those for which there is no room are dropped and counted.
const WAITING_LINES: usize = 8192;

/// Counts the lines that were dropped.
static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

/// Lines of the log that were dropped since nobody took them.
#[must_use]
pub(super) fn dropped_lines() -> u64 {
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
pub fn is_wanted() -> bool {
    wanted_filter().is_some()
}

/// Starts the log on standard error. `RUST_LOG` wins over `filter`.
///
/// A thread of its own writes: reactors log too, and a pipe that nobody reads must not stop the devices.
///
/// # Errors
/// When the filter cannot be read.
pub fn start(filter: &str, format: LogFormat) -> Result<Log, Failure> {
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
    let started = builder.event_format(Lines::new(format)).try_init();
    started.map_err(|source| Failure::with_source(FailureClass::Internal, "cannot start the log", source))?;
    Ok(Log { _writer: guard })
}
