//! The configuration that takes the place of a device's when a layer is put over its writable one.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{
    failure::{Failure, FailureClass},
    image_config::{Lower, SNAPSHOT_KEY, UpperFiles},
    layers::parse_config,
    settings::read_regular_document,
    upper_folder::Made,
};
use crate::offline::{PartFile, ReadyFile};

/// The new configuration, durable and not yet in its place. Dropping it leaves the old one, and removes what was made for the new one.
#[derive(Debug)]
pub(super) struct NextConfig {
    path: PathBuf,
    sealed: PathBuf,
    text: Vec<u8>,
    file: ReadyFile,
    /// The files of the layer that takes the writes.
    pub(super) upper: UpperFiles,
    after: After,
}

/// What is left to be done when a configuration has come to its place or has not. Dropping it removes what was made for it.
#[derive(Debug, Default)]
pub(super) struct After {
    /// Removed if it does not come to its place.
    made: Made,
    /// Removed when it has.
    given: Option<PathBuf>,
}

/// What has become of a configuration that was to take another's place.
#[derive(Debug)]
pub(super) enum Replaced {
    /// It is there, durably.
    Yes,
    /// It is not there, for this reason.
    No(Failure),
    /// A crash may leave either of the two, or nobody can say which one is there.
    InDoubt(Failure),
}

impl NextConfig {
    /// The configuration at `path` with its writable layer, whose data file is `sealed`, as the last of the lowers, and `upper` over it.
    pub(super) fn over(path: &Path, sealed: &Path, upper: UpperFiles) -> Result<Self, Failure> {
        check_top(path, upper_of(path)?.as_ref(), Some(sealed))?;
        let text = text_over(path, &read_regular_document(path)?, sealed, &upper)?;
        let file = write(path, &text)?;
        let (path, sealed) = (path.to_owned(), sealed.to_owned());
        Ok(Self { path, sealed, text, file, upper, after: After::default() })
    }

    /// The configuration at `given`, which must be that at `path` with its writable layer as the last of the lowers and others
    /// files over it.
    pub(super) fn given(path: &Path, given: &Path, sealed: &Path) -> Result<Self, Failure> {
        let text = read_regular_document(given)?;
        let (old, new) = (parse_config(path, &read_regular_document(path)?)?, parse_config(given, &text)?);
        check_top(path, old.upper.as_ref(), Some(sealed))?;
        let Some(upper) = new.upper else { return Err(wrong(given, "it has no upper")) };
        // Who makes configurations need not know what a daemon notes in its own.
        let plain = |lower: &Lower| Lower { snapshot: false, ..lower.clone() };
        let is_over = new.lowers.split_last().is_some_and(|(last, below)| {
            below.iter().map(plain).eq(old.lowers.iter().map(plain)) && last.file.as_deref() == Some(sealed)
        });
        if !is_over {
            let rule = format!("its lowers must be those of {}, and {}", path.display(), sealed.display());
            return Err(wrong(given, &rule));
        }
        if old.upper.is_some_and(|old| old.data == upper.data || old.index == upper.index) {
            return Err(wrong(given, "both files of its upper must be others than before"));
        }
        Ok(Self {
            path: path.to_owned(),
            sealed: sealed.to_owned(),
            file: write(path, &text)?,
            text,
            upper,
            after: After { given: Some(given.to_owned()), ..After::default() },
        })
    }

    /// The same, for an upper for which all this was made.
    pub(super) fn removing(self, made: Made) -> Self {
        Self { after: After { made, ..self.after }, ..self }
    }

    /// Where it goes.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The data file that becomes a lower.
    pub(super) fn sealed(&self) -> &Path {
        &self.sealed
    }

    /// Puts it in its place, durably.
    pub(super) fn replace(self) -> (Replaced, After) {
        (name(self.file, &self.path, &self.text), self.after)
    }
}

impl After {
    /// It is in its place, and what it names is used.
    pub(super) fn settle(self) {
        if let Some(given) = &self.given {
            // Upstream renames it, so that it is not there any more.
            let _ = fs::remove_file(given);
        }
        self.made.keep();
    }

    /// A crash may bring it to its place, or leave the old one.
    pub(super) fn settle_in_doubt(self) {
        self.made.keep();
    }
}

/// Puts `text` in the place of the configuration at `path`, durably.
pub(super) fn replace(path: &Path, text: &[u8]) -> Replaced {
    match write(path, text) {
        Ok(file) => name(file, path, text),
        Err(failure) => Replaced::No(failure),
    }
}

fn write(path: &Path, text: &[u8]) -> Result<ReadyFile, Failure> {
    let part = PartFile::create_private(path, true)?;
    let failed = |source| {
        let text = format!("{}: cannot write it", path.display());
        Failure::with_source(FailureClass::Internal, text, source)
    };
    part.file().write_all(text).map_err(failed)?;
    Ok(part.make_ready()?)
}

fn name(file: ReadyFile, path: &Path, text: &[u8]) -> Replaced {
    match file.name() {
        Ok(named) => match named.make_durable() {
            Ok(()) => Replaced::Yes,
            Err(error) => Replaced::InDoubt(error.into()),
        },
        // A file system of another machine may fail after it has renamed, and what cannot be read tells nothing.
        Err(error) => match read_regular_document(path) {
            Ok(found) if found != text => Replaced::No(error.into()),
            _ => Replaced::InDoubt(error.into()),
        },
    }
}

/// The text of the configuration `document`, which is at `path`, with its writable layer, whose data file is `sealed`, as the last
/// of the lowers, and `upper` over it. What this version does not know is kept.
///
/// # Errors
/// [`FailureClass::Image`], where it was no configuration that can be served, or would be none.
pub fn text_over(
    path: &Path,
    document: &[u8],
    sealed: &Path,
    upper: &UpperFiles,
) -> Result<Vec<u8>, Failure> {
    let mut document: Value =
        serde_json::from_slice(document).map_err(|error| wrong(path, &error.to_string()))?;
    let odd = || wrong(path, "it is not the object that it was when the device was made");
    let members = document.as_object_mut().ok_or_else(odd)?;
    let lowers = members.entry("lowers").or_insert_with(|| json!([]));
    lowers.as_array_mut().ok_or_else(odd)?.push(json!({ "file": sealed, SNAPSHOT_KEY: true }));
    members.insert("upper".to_owned(), json!({ "data": upper.data, "index": upper.index }));
    let text = serde_json::to_vec(&document).map_err(|error| wrong(path, &error.to_string()))?;
    parse_config(path, &text).map(|_| text)
}

/// The configuration at `path`, which must still be that of a device that writes to `top`, if it takes writes, over so many
/// layers.
pub(super) fn document_of(path: &Path, top: Option<&Path>, layers_below: usize) -> Result<Value, Failure> {
    let text = read_regular_document(path)?;
    let config = parse_config(path, &text)?;
    check_top(path, config.upper.as_ref(), top)?;
    let count = config.lowers.len();
    if count != layers_below {
        return Err(wrong(path, &format!("it has {count} lowers, and the device {layers_below}")));
    }
    serde_json::from_slice(&text).map_err(|error| wrong(path, &error.to_string()))
}

/// The writable layer of the configuration at `path`, if it has one.
pub(super) fn upper_of(path: &Path) -> Result<Option<UpperFiles>, Failure> {
    Ok(parse_config(path, &read_regular_document(path)?)?.upper)
}

/// Makes sure that the writable layer is the one that the device writes to, if it takes writes: what was written there would be
/// lost.
fn check_top(path: &Path, upper: Option<&UpperFiles>, top: Option<&Path>) -> Result<(), Failure> {
    if upper.map(|upper| upper.data.as_path()) == top {
        return Ok(());
    }
    Err(match top {
        Some(top) => wrong(path, &format!("its upper is not {}, which the device writes to", top.display())),
        None => wrong(path, "it has an upper, and the device takes no writes"),
    })
}

pub(super) fn wrong(path: &Path, rule: &str) -> Failure {
    Failure::new(FailureClass::Image, format!("{}: {rule}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A configuration in `dir` with a writable layer, and the one that is to take its place.
    fn next(dir: &Path) -> NextConfig {
        let [path, data, next_data] = ["config.v1.json", "data", "next.data"].map(|name| dir.join(name));
        fs::write(&path, json!({ "upper": { "data": data, "index": dir.join("index") } }).to_string())
            .unwrap();
        let upper = UpperFiles { data: next_data, index: dir.join("next.index") };
        fs::write(&upper.data, "").unwrap();
        let mut made = Made::default();
        made.add(upper.data.clone());
        NextConfig::over(&path, &data, upper).unwrap().removing(made)
    }

    #[test]
    fn a_configuration_that_cannot_be_read_back_may_be_the_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let next = next(dir.path());
        let path = next.path().to_owned();
        let part = write(&path, &next.text).unwrap();
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let replaced = name(part, &path, &next.text);
        assert!(matches!(replaced, Replaced::InDoubt(_)), "{replaced:?}");
    }

    #[test]
    fn a_configuration_that_was_not_replaced_leaves_nothing_of_the_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let next = next(dir.path());
        let (path, made) = (next.path().to_owned(), next.upper.data.clone());
        let old = fs::read_to_string(&path).unwrap();
        let (part, other) = (write(&path, &next.text).unwrap(), dir.path().join("other"));
        fs::write(&other, &old).unwrap();
        fs::rename(&other, &path).unwrap();
        let replaced = name(part, &path, &next.text);
        assert!(matches!(replaced, Replaced::No(_)), "{replaced:?}");
        assert_eq!(fs::read_to_string(&path).unwrap(), old);
        drop(next);
        assert!(!made.exists());
    }
}
