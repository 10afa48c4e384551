//! A bar for what takes long, on standard error and only for people.

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use stratabd::server::runtimes::require_threads;

/// How often a spinner turns.
const SPIN_INTERVAL: Duration = Duration::from_millis(100);

/// Shows how many of `total_bytes` are done; shows nothing where standard error is no terminal.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    pub(crate) fn new(what: &'static str, total_bytes: u64) -> Self {
        if !io::stderr().is_terminal() {
            return Self { bar: ProgressBar::hidden() };
        }
        let style =
            ProgressStyle::with_template("{msg} {bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(total_bytes).with_style(style).with_message(what);
        // It is drawn when something is done, which may take its time.
        bar.tick();
        Self { bar }
    }

    /// Shows that something goes on whose length nobody knows, and for how long it has.
    pub(crate) fn waiting(what: &'static str) -> Self {
        if !io::stderr().is_terminal() {
            return Self { bar: ProgressBar::hidden() };
        }
        let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}")
            .unwrap_or_else(|_| ProgressStyle::default_spinner());
        let bar = ProgressBar::new_spinner().with_style(style).with_message(what);
        // It has a thread of its own, without which it panics.
        if require_threads(1).is_ok() {
            bar.enable_steady_tick(SPIN_INTERVAL);
        }
        Self { bar }
    }

    /// Says what goes on now.
    pub(crate) fn say(&self, what: String) {
        self.bar.set_message(what);
    }

    pub(crate) fn set_total(&self, total_bytes: u64) {
        self.bar.set_length(total_bytes);
    }

    pub(crate) fn set(&self, done_bytes: u64) {
        self.bar.set_position(done_bytes);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
