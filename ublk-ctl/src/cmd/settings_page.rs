//! The manual page of the settings, made of the sample that has every key with its default and what it is for.

use clap_mangen::roff::{Roff, bold, roman};
use stratabd::server::config::SAMPLE;

/// Text of the sample, and the keys that it stands over.
#[derive(Default)]
struct Entry<'a> {
    text: Vec<&'a str>,
    keys: Vec<&'a str>,
}

impl Entry<'_> {
    /// Writes what there is, and begins anew.
    fn write(&mut self, roff: &mut Roff) {
        let Self { text, keys } = std::mem::take(self);
        for (index, key) in keys.iter().enumerate() {
            roff.control(if index == 0 { "TP" } else { "TQ" }, []).text([bold(*key)]);
        }
        if !text.is_empty() {
            roff.text([roman(text.join(" "))]);
        }
    }
}

/// The page, under a title with `ends`: date, source and manual.
pub(super) fn page(ends: &[&str]) -> String {
    let mut roff = Roff::new();
    roff.control("TH", ["stratabd.toml", "5"].iter().chain(ends).copied());
    roff.control("SH", ["NAME"]).text([roman("stratabd.toml - settings of stratabd and ublk-ctl")]);
    roff.control("SH", ["DESCRIPTION"]);
    let mut entry = Entry::default();
    for line in SAMPLE.lines() {
        if let Some(text) = line.strip_prefix("# ") {
            if !entry.keys.is_empty() {
                entry.write(&mut roff);
            }
            entry.text.push(text);
        } else if let Some(section) = section_of(line) {
            // What stands over it, with nothing between, is about it.
            let about = if entry.keys.is_empty() { std::mem::take(&mut entry.text) } else { Vec::new() };
            entry.write(&mut roff);
            roff.control("SH", [section]);
            entry.text = about;
            entry.write(&mut roff);
        } else if let Some(key) = line.strip_prefix('#') {
            entry.keys.push(key);
        } else {
            entry.write(&mut roff);
        }
    }
    entry.write(&mut roff);
    roff.control("SH", ["FILES"]).control("TP", []);
    roff.text([bold("/etc/stratabd/stratabd.toml")]).text([roman("The settings; it may be missing.")]);
    roff.control("SH", ["SEE ALSO"]).text([roman("stratabd(8), ublk-ctl(1)")]);
    roff.render()
}

/// The section that `line` begins, commented out or not.
fn section_of(line: &str) -> Option<&str> {
    let line = line.strip_prefix('#').unwrap_or(line);
    line.starts_with('[').then_some(line)
}
