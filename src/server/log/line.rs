//! From an event to one line. What comes from elsewhere, as names of images, paths and words of registries do, makes no line and no
//! field of its own, and nothing that a terminal would obey; and it is cut where it is long.

use std::{
    borrow::Cow,
    fmt::{self, Write},
};

use serde::{Serialize, Serializer};
use serde_json::Value;
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    registry::LookupSpan,
};

use crate::server::config::LogFormat;

/// Characters of a value that are shown: an error with all its causes fits.
const MAX_VALUE_CHARS: usize = 2048;

/// What fields of events of the `log` crate are called, which say where they come from.
const OF_LOG_CRATE: &str = "log.";

/// Writes events as lines.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lines(LogFormat);

impl Lines {
    pub(super) fn new(format: LogFormat) -> Self {
        Self(format)
    }
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let mut fields = Fields::default();
        event.record(&mut fields);
        let level = *event.metadata().level();
        let target = fields.target.take().unwrap_or_else(|| event.metadata().target().to_owned());
        match self.0 {
            LogFormat::Text => {
                let colour = if writer.has_ansi_escapes() { colour_of(level) } else { ("", "") };
                let (begin, end) = colour;
                write!(writer, "{time} {begin}{level:>5}{end} {}: {fields}", printable(&target))?;
            }
            LogFormat::Json => {
                let line = Line { timestamp: time, level: level.as_str(), fields, target };
                writer.write_str(&serde_json::to_string(&line).map_err(|_| fmt::Error)?)?;
            }
        }
        writer.write_char('\n')
    }
}

/// What turns a colour on and off.
fn colour_of(level: Level) -> (&'static str, &'static str) {
    let begin = match level {
        Level::ERROR => "\u{1b}[31m",
        Level::WARN => "\u{1b}[33m",
        Level::INFO => "\u{1b}[32m",
        Level::DEBUG => "\u{1b}[34m",
        Level::TRACE => "\u{1b}[35m",
    };
    (begin, "\u{1b}[0m")
}

#[derive(Serialize)]
struct Line {
    timestamp: String,
    level: &'static str,
    fields: Fields,
    target: String,
}

/// The fields of one event, the message first.
#[derive(Debug, Default)]
struct Fields {
    values: Vec<(Cow<'static, str>, Value)>,
    target: Option<String>,
}

const MESSAGE: &str = "message";

impl Fields {
    fn add(&mut self, field: &Field, value: Value) {
        let name = field.name();
        match (name, value) {
            ("log.target", Value::String(target)) => self.target = Some(target),
            (name, _) if name.starts_with(OF_LOG_CRATE) => {}
            // The message comes first. Who reads a line must not find another one.
            (MESSAGE, value) if self.values.iter().any(|(name, _)| name == MESSAGE) => {
                self.values.push((format!("{MESSAGE}_field").into(), value));
            }
            (name, value) => self.values.push((name.into(), value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut cut = Cut::default();
        // It takes all that it is given.
        let _ = write!(cut, "{value:?}");
        self.add(field, Value::String(cut.end()));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let mut cut = Cut::default();
        let _ = cut.write_str(value);
        self.add(field, Value::String(cut.end()));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value.into());
    }
}

impl fmt::Display for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before = "";
        for (name, value) in &self.values {
            f.write_str(before)?;
            before = " ";
            match value {
                Value::String(text) if name == MESSAGE => f.write_str(&printable(text))?,
                Value::String(text) if is_word(text) => write!(f, "{name}={text}")?,
                Value::String(text) => write!(f, "{name}={text:?}")?,
                value => write!(f, "{name}={value}")?,
            }
        }
        Ok(())
    }
}

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.values.iter().map(|(name, value)| match value {
            Value::String(text) => (name, Value::String(printable(text).into_owned())),
            value => (name, value.clone()),
        }))
    }
}

/// Whether `text` needs no quotes to be told from what stands around it.
fn is_word(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|char| is_printable(char) && !" \"=\\".contains(char))
}

/// `text` with everything escaped that a terminal or an editor would obey or hide.
fn printable(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_printable) {
        return text.into();
    }
    let mut shown = String::new();
    for char in text.chars() {
        if is_printable(char) { shown.push(char) } else { shown.extend(char.escape_debug()) }
    }
    shown.into()
}

fn is_printable(char: char) -> bool {
    matches!(char, '"' | '\'' | '\\') || char.escape_debug().len() == 1
}

/// Takes what is written to it up to a limit, and counts the rest.
#[derive(Debug, Default)]
struct Cut {
    text: String,
    chars: usize,
}

impl Cut {
    fn end(mut self) -> String {
        if let Some(more) = self.chars.checked_sub(MAX_VALUE_CHARS).filter(|more| *more > 0) {
            // Writing to memory does not fail.
            let _ = write!(self.text, "… ({more} characters more)");
        }
        self.text
    }
}

impl Write for Cut {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        let room = MAX_VALUE_CHARS.saturating_sub(self.chars);
        self.text.extend(more.chars().take(room));
        self.chars = self.chars.saturating_add(more.chars().count());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        path::Path,
        sync::{Arc, Mutex},
    };

    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    #[derive(Debug, Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Written {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    /// What `log` writes, as lines of `format`.
    fn written(format: LogFormat, log: impl FnOnce()) -> String {
        let written = Written::default();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(written.clone())
            .with_ansi(false)
            .with_max_level(Level::INFO)
            .event_format(Lines::new(format))
            .finish();
        tracing::subscriber::with_default(subscriber, log);
        String::from_utf8(written.0.lock().unwrap().clone()).unwrap()
    }

    const HOSTILE: [&str; 7] = [
        "a\n2026-01-01T00:00:00Z  INFO stratabd: forged",
        "a\r\nb",
        "\u{1b}[2J\u{1b}]0;title\u{7}",
        "\u{9b}2J\u{85}\u{2028}\u{202e}txt",
        "x\" forged=\"1",
        "x\\\" id=7",
        "x id=7",
    ];

    fn log(name: &str) {
        let path = Path::new(name);
        tracing::error!("{name}");
        tracing::warn!(%name, id = 3_u32, path = %path.display(), debug = ?path, text = name, "a device");
    }

    /// The names of the fields of a line of text, as somebody finds them who knows quotes.
    fn keys(mut fields: &str) -> Vec<&str> {
        let mut keys = Vec::new();
        while let Some((key, rest)) = fields.split_once('=') {
            keys.push(key.trim());
            let mut is_escaped = false;
            let end = match rest.strip_prefix('"') {
                None => rest.find(' '),
                Some(quoted) => quoted
                    .find(|char| {
                        let ends = char == '"' && !is_escaped;
                        is_escaped = char == '\\' && !is_escaped;
                        ends
                    })
                    .map(|end| end + 2),
            };
            fields = &rest[end.unwrap_or(rest.len())..];
        }
        keys
    }

    #[test]
    fn a_name_makes_no_line_no_field_and_no_sign_that_a_terminal_obeys() {
        for name in HOSTILE {
            for format in [LogFormat::Text, LogFormat::Json] {
                let lines = written(format, || log(name));
                let lines: Vec<&str> = lines.strip_suffix('\n').unwrap().split('\n').collect();
                assert_eq!(lines.len(), 2, "{lines:?}");
                assert!(lines.iter().all(|line| line.chars().all(is_printable)), "{lines:?}");
            }
            let line = written(LogFormat::Text, || log(name));
            assert_eq!(
                keys(line.rsplit_once("a device ").unwrap().1),
                ["name", "id", "path", "debug", "text"]
            );
            let lines = written(LogFormat::Json, || log(name));
            let json: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
            assert_eq!((&json["fields"]["id"], &json["level"]), (&3.into(), &"WARN".into()));
            assert_eq!(json["fields"].as_object().unwrap().len(), 6, "{json}");
        }
    }

    #[test]
    fn a_line_has_one_message_whatever_a_field_is_called() {
        let line = written(LogFormat::Json, || {
            let message = "another";
            tracing::info!(message, "the one");
        });
        assert_eq!(line.matches("\"message\":").count(), 1, "{line}");
        let json: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(json["fields"]["message"], "the one");
        assert_eq!(json["fields"]["message_field"], "another");
        assert!(json["timestamp"].as_str().unwrap().ends_with('Z') && json["target"] == module_path!());
    }

    #[test]
    fn long_values_are_cut() {
        let name = "x".repeat(1 << 20);
        for format in [LogFormat::Text, LogFormat::Json] {
            let line = written(format, || log(&name));
            assert!(line.contains("characters more)"), "{line:.100}");
            assert!(line.len() < 8 * MAX_VALUE_CHARS, "{} bytes", line.len());
        }
    }

    #[test]
    fn a_line_of_text_is_as_a_person_reads_it() {
        let line =
            written(LogFormat::Text, || tracing::info!(id = 3, path = "/dev/ublkb3", "device attached"));
        let (time, rest) = line.split_once(' ').unwrap();
        assert!(time.ends_with('Z'), "{line}");
        assert_eq!(rest, format!(" INFO {}: device attached id=3 path=/dev/ublkb3\n", module_path!()));
    }
}
