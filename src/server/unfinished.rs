//! Files and folders that were being made for a device when its process ended, and their removal.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use super::failure::{Failure, FailureClass};

/// What the name of a file ends with that did not come to its name.
const PART_SUFFIX: &str = ".part";

/// Removes `paths`, which come in the order in which they were made, but for those that are `named` by then. What somebody else has
/// put into a folder stays, and the folder with it.
///
/// # Errors
/// [`FailureClass::Conflict`] where a process has one of the files, and then all stay: it is its process's that lives.
pub(super) fn remove(paths: &[PathBuf], named: impl Fn(&Path) -> bool) -> Result<(), Failure> {
    let unnamed = || paths.iter().rev().filter(|path| !named(path));
    if let Some(path) = unnamed().find(|path| is_locked(path)) {
        let text = format!("{}: another process has it", path.display());
        return Err(Failure::new(FailureClass::Conflict, text));
    }
    for path in unnamed() {
        remove_parts(path);
        let removed = fs::remove_file(path).or_else(|_| fs::remove_dir(path));
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "what was made for a device is left behind");
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether a process has the layer in the file at `path`.
fn is_locked(path: &Path) -> bool {
    // A folder is nobody's, and what cannot be opened is in nobody's way here.
    let file =
        fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file).and_then(|_| File::open(path).ok());
    file.is_some_and(|file| flock(&file, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK))
}

/// Removes the hidden files beside `path` that were to have its name.
fn remove_parts(path: &Path) {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return;
    };
    let hidden = format!(".{name}.");
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries {
        let found = entry.file_name();
        let is_part =
            found.to_str().is_some_and(|found| found.starts_with(&hidden) && found.ends_with(PART_SUFFIX));
        if is_part {
            // It only takes room.
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(dir: &Path) -> Vec<PathBuf> {
        let [folder, data, index] = ["a/b", "a/b/upper.data", "a/b/upper.index"].map(|name| dir.join(name));
        fs::create_dir_all(&folder).unwrap();
        fs::write(&data, "d").unwrap();
        fs::write(&index, "i").unwrap();
        vec![dir.join("a"), folder, data, index]
    }

    #[test]
    fn what_was_made_goes_with_its_parts_and_what_is_named_stays() {
        let dir = tempfile::tempdir().unwrap();
        let paths = made(dir.path());
        fs::write(dir.path().join("a/b/.upper.index.0123abcd.part"), "").unwrap();
        remove(&paths, |_| false).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        remove(&paths, |_| false).unwrap();
        let paths = made(dir.path());
        remove(&paths, |path| path == paths[2]).unwrap();
        assert!(paths[2].exists() && !paths[3].exists());
    }

    #[test]
    fn what_a_process_has_or_somebody_has_added_stays() {
        let dir = tempfile::tempdir().unwrap();
        let paths = made(dir.path());
        let file = File::open(&paths[2]).unwrap();
        flock(&file, FlockOperation::LockExclusive).unwrap();
        assert_eq!(remove(&paths, |_| false).unwrap_err().class(), FailureClass::Conflict);
        assert!(paths.iter().all(|path| path.exists()));
        drop(file);
        fs::write(dir.path().join("a/b/notes"), "").unwrap();
        remove(&paths, |_| false).unwrap();
        assert!(dir.path().join("a/b/notes").exists() && !paths[2].exists());
    }
}
