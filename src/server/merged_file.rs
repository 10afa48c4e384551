//! The file of layers that were merged, beside the configuration that names it.
//!
//! A mark lies beside it, an empty file, from before it has its name until the configuration names it, durably. So whoever opens
//! the configuration next knows what a crash has left: a file with a mark that the configuration does not name was never named by
//! any, and goes. Without a mark others may have copied the name, so that such a file is never looked at.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use super::{
    failure::{Failure, FailureClass},
    layers::parse_config,
    settings::read_regular_document,
};

/// What the name of a mark has after that of its file.
const MARK_SUFFIX: &str = ".unnamed";

/// What the name of a file ends with that did not come to its name.
const PART_SUFFIX: &str = ".part";

/// A merged layer that no configuration names yet. Dropping it removes it.
#[derive(Debug)]
pub(super) struct MergedFile {
    data: PathBuf,
    keeps: bool,
}

impl MergedFile {
    /// Begins one for the configuration at `config`: its mark is there, durably.
    pub(super) fn begin(config: &Path) -> Result<Self, Failure> {
        let mut name = stem(config);
        name.push(format!("{:08x}.data", fastrand::u32(..)));
        let data = config.with_file_name(name);
        let failed = |source| cannot("mark that it is being made", &data, source);
        File::options().write(true).create_new(true).open(mark_of(&data)).map_err(failed)?;
        let file = Self { data: data.clone(), keeps: false };
        sync_folder(&data).map_err(failed)?;
        Ok(file)
    }

    /// Where it is to be made.
    pub(super) fn data(&self) -> &Path {
        &self.data
    }

    /// Takes its mark away, now that the configuration names it, durably.
    pub(super) fn unmark(mut self) -> Result<(), Failure> {
        self.keeps = true;
        let unmarked = fs::remove_file(mark_of(&self.data)).and_then(|()| sync_folder(&self.data));
        unmarked.map_err(|source| cannot("take its mark away", &self.data, source))
    }

    /// Leaves it with its mark, where nobody knows whether the configuration names it.
    pub(super) fn leave(mut self) {
        self.keeps = true;
    }
}

impl Drop for MergedFile {
    fn drop(&mut self) {
        if !self.keeps
            && let Err(error) = remove(&self.data)
        {
            tracing::warn!(path = %self.data.display(), %error, "a merged layer that nobody names is left behind");
        }
    }
}

/// Whether the file at `data` still has its mark: nobody knows then whether others may come to name it.
pub(super) fn is_marked(data: &Path) -> bool {
    fs::symlink_metadata(mark_of(data)).is_ok()
}

/// Removes what a crash has left of merges for the configuration at `config`, and of others that were to take its place. Only for who has its writable layer.
pub(super) fn sweep(config: &Path) -> Result<(), Failure> {
    let failed = |source| cannot("look for what merges have left beside it", config, source);
    let mut hidden = OsString::from(".");
    hidden.push(stem(config));
    let mut named = None;
    for entry in fs::read_dir(folder_of(config)).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if is_part_of(config, name) {
            fs::remove_file(&path).map_err(failed)?;
            continue;
        }
        if !name.as_bytes().starts_with(hidden.as_encoded_bytes()) {
            continue;
        }
        if name.ends_with(PART_SUFFIX) {
            fs::remove_file(&path).map_err(failed)?;
        } else if let Some(data) = name.strip_prefix('.').and_then(|name| name.strip_suffix(MARK_SUFFIX)) {
            let data = config.with_file_name(data);
            let lowers = match named.take() {
                Some(lowers) => lowers,
                None => parse_config(config, &read_regular_document(config)?)?.lowers,
            };
            match lowers.iter().any(|lower| lower.file.as_ref() == Some(&data)) {
                true => fs::remove_file(&path).and_then(|()| sync_folder(&data)).map_err(failed)?,
                false => {
                    tracing::info!(path = %data.display(), "removing what a merge has left that was cut off");
                    remove(&data).map_err(failed)?;
                }
            }
            named = Some(lowers);
        }
    }
    Ok(())
}

/// Whether `name` is that of a file which was to become the configuration at `config`, and did not come to its name.
fn is_part_of(config: &Path, name: &str) -> bool {
    let own = config.file_name().and_then(|own| own.to_str());
    let tag = own.and_then(|own| {
        name.strip_prefix('.')?.strip_prefix(own)?.strip_prefix('.')?.strip_suffix(PART_SUFFIX)
    });
    tag.is_some_and(|tag| tag.len() == 8 && tag.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Removes a merged layer that was never named, and then its mark.
fn remove(data: &Path) -> io::Result<()> {
    for path in [data, &mark_of(data)] {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            // The mark must not go before the file, also in a crash.
            _ => sync_folder(data)?,
        }
    }
    Ok(())
}

/// What the names of merged layers for `config` begin with.
fn stem(config: &Path) -> OsString {
    let mut name = config.file_name().unwrap_or_default().to_owned();
    name.push(".merged-");
    name
}

fn mark_of(data: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(data.file_name().unwrap_or_default());
    name.push(MARK_SUFFIX);
    data.with_file_name(name)
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

fn cannot(what: &str, path: &Path, source: io::Error) -> Failure {
    Failure::with_source(FailureClass::Internal, format!("{}: cannot {what}", path.display()), source)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    /// A configuration in `dir` that names these files beside it.
    fn config(dir: &Path, lowers: &[&Path]) -> PathBuf {
        let path = dir.join("config.v1.json");
        let lowers: Vec<_> = lowers.iter().map(|file| serde_json::json!({ "file": file })).collect();
        let upper = serde_json::json!({ "data": "/d", "index": "/i" });
        fs::write(&path, serde_json::json!({ "lowers": lowers, "upper": upper }).to_string()).unwrap();
        path
    }

    #[test]
    fn what_a_merge_leaves_in_any_of_its_steps_is_kept_if_it_is_named_and_else_removed() {
        for (steps, is_named) in [(1, false), (2, false), (3, false), (3, true), (4, true)] {
            let dir = tempfile::tempdir().unwrap();
            let path = config(dir.path(), &[]);
            let file = MergedFile::begin(&path).unwrap();
            let data = file.data().to_owned();
            let base = data.file_name().unwrap().to_str().unwrap().to_owned();
            let part = dir.path().join(format!(".{base}.12345678.part"));
            if steps == 2 {
                fs::write(&part, "half").unwrap();
            }
            if steps > 2 {
                fs::write(&data, "layer").unwrap();
            }
            if is_named {
                config(dir.path(), &[&data]);
            }
            if steps == 4 {
                file.unmark().unwrap();
            } else {
                file.leave();
            }
            let other = ".another.json.merged-00000000.data.unnamed";
            fs::write(dir.path().join(other), "").unwrap();
            sweep(&path).unwrap();
            let mut expected = vec![other.to_owned(), "config.v1.json".to_owned()];
            expected.extend(is_named.then_some(base));
            assert_eq!(names(dir.path()), expected, "after step {steps}, named: {is_named}");
        }
    }

    #[test]
    fn a_file_without_a_mark_is_left_alone_since_others_may_name_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = config(dir.path(), &[]);
        let file = MergedFile::begin(&path).unwrap();
        let data = file.data().to_owned();
        fs::write(&data, "layer").unwrap();
        assert!(is_marked(&data));
        file.unmark().unwrap();
        assert!(!is_marked(&data));
        sweep(&path).unwrap();
        assert!(data.exists());
    }

    #[test]
    fn a_merge_that_fails_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = config(dir.path(), &[]);
        let file = MergedFile::begin(&path).unwrap();
        fs::write(file.data(), "layer").unwrap();
        drop(file);
        assert_eq!(names(dir.path()), ["config.v1.json"]);
    }
}
