//! Reading the configuration from its files.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use super::{
    config::{Config, DEFAULT_PATH, OverlaybdConfig, Overrides},
    document::MAX_DOCUMENT_BYTES,
    failure::{Failure, FailureClass},
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
