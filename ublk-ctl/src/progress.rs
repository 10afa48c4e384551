//! A bar for what takes long, on standard error and only for people.

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressStyle};

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
        Self { bar: ProgressBar::new(total_bytes).with_style(style).with_message(what) }
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
