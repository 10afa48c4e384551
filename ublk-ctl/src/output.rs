//! What goes to standard output and standard error. A reader that has gone is no failure.

use std::{
    fmt::Write as _,
    io::{self, Write},
};

use serde::Serialize;
use stratabd::server::{
    api::types::{ErrorAnswer, ErrorBody},
    failure::{Failure, FailureClass},
};

/// The way this run talks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Prints `value` as JSON, or what `text` makes of it.
    pub(crate) fn print<T: Serialize>(
        &self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        write_out(self.line(value, text)?.as_bytes())
    }

    /// As [`Output::print`], on standard error: for a result beside what goes to standard output itself.
    pub(crate) fn tell<T: Serialize>(
        &self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        // Nobody is left to tell when this fails.
        let _ = io::stderr().write_all(self.line(value, text)?.as_bytes());
        Ok(())
    }

    fn line<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) -> Result<String, Failure> {
        let mut line = if self.json {
            serde_json::to_string(value).map_err(|source| {
                Failure::with_source(FailureClass::Internal, "cannot write the result as JSON", source)
            })?
        } else {
            harmless(&text(value))
        };
        if !line.is_empty() && !line.ends_with('\n') {
            line.push('\n');
        }
        Ok(line)
    }

    /// Says something on standard error that is neither result nor failure; programs do not wait for it.
    pub(crate) fn note(&self, text: &str) {
        if !self.json {
            let _ = writeln!(io::stderr(), "ublk-ctl: {}", harmless(text));
        }
    }

    /// Says on standard error what failed.
    pub(crate) fn fail(&self, failure: &Failure) {
        let error = ErrorBody::of(failure);
        let mut line = String::new();
        if self.json {
            line = serde_json::to_string(&ErrorAnswer { error }).unwrap_or_default();
        } else {
            let _ = write!(line, "ublk-ctl: {}", harmless(&error.message));
        }
        line.push('\n');
        // Nobody is left to tell when this fails.
        let _ = io::stderr().write_all(line.as_bytes());
    }
}

/// `text` with an escape in place of every character that a terminal would obey instead of showing it: names, tags and
/// messages come from layers and registries, which may be anybody's.
fn harmless(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '\n' => shown.push(letter),
            // Letters that turn the direction of those after them.
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                shown.extend(letter.escape_unicode());
            }
            _ if letter.is_control() => shown.extend(letter.escape_default()),
            _ => shown.push(letter),
        }
    }
    shown
}

/// Writes `bytes` to standard output; this is the only place that does.
pub(crate) fn write_out(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::with_source(FailureClass::Internal, "cannot write to standard output", error))
        }
        _ => Ok(()),
    }
}

/// Lines of a table whose columns are as wide as their widest cell.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A size as people say it, with its unit.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut unit = 0;
    let mut scaled = bytes;
    let mut rest = 0;
    while scaled >= 1024 && unit + 1 < UNITS.len() {
        rest = scaled % 1024;
        scaled /= 1024;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or_default();
    match rest * 10 / 1024 {
        0 => format!("{scaled} {name}"),
        tenths => format!("{scaled}.{tenths} {name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short_and_never_too_large() {
        for (bytes, text) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 30, "1 GiB")] {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(size(u64::MAX), "16383.9 PiB");
    }

    #[test]
    fn what_a_terminal_would_obey_is_shown_instead() {
        let said = "a\u{1b}]0;evil\u{7}\r\n\u{9b}2Jb \u{202e}gnp.exe";
        assert_eq!(harmless(said), "a\\u{1b}]0;evil\\u{7}\\r\n\\u{9b}2Jb \\u{202e}gnp.exe");
        assert_eq!(harmless("größer: 5 µs\n"), "größer: 5 µs\n");
    }

    #[test]
    fn columns_line_up_and_no_line_ends_in_blanks() {
        let rows = [vec!["ID".into(), "PATH".into()], vec!["12".into(), "/dev/x".into()], vec!["1".into()]];
        assert_eq!(table(&rows), "ID  PATH\n12  /dev/x\n1\n");
    }
}
