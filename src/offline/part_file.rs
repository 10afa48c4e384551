//! A file that appears under its name only when it is complete and on disk.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    io::Errno,
};

use super::{OfflineError, content::Hold};

/// The file in the making, beside its later place and hidden. Dropping it removes it.
#[derive(Debug)]
pub struct PartFile {
    file: File,
    path: PathBuf,
    hidden: Option<PathBuf>,
    overwrite: bool,
    /// What is to be replaced; held, so that no device is made of it meanwhile, which would go on writing to what has no name.
    _replaced: Option<File>,
}

impl PartFile {
    /// Begins a file that will be called `path`; with `overwrite` a regular file of that name is replaced at the end.
    ///
    /// # Errors
    /// Where something is there that may not be replaced, or the file cannot be made.
    pub fn create(path: &Path, overwrite: bool) -> Result<Self, OfflineError> {
        let replaced = match fs::symlink_metadata(path) {
            Ok(_) if !overwrite => return Err(OfflineError::Exists(path.to_owned())),
            Ok(found) if !found.is_file() => return Err(OfflineError::NotReplaceable(path.to_owned())),
            // One that cannot be read is no device's here.
            Ok(_) => File::open(path).ok(),
            Err(_) => None,
        };
        replaced.iter().try_for_each(|file| Hold::Shared.take(file, path))?;
        let mut name = OsString::from(".");
        name.push(path.file_name().ok_or_else(|| OfflineError::Nameless(path.to_owned()))?);
        name.push(format!(".{}.part", std::process::id()));
        let hidden = path.with_file_name(name);
        let opened = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&hidden);
        let file = opened.map_err(OfflineError::io(path, "make it"))?;
        Ok(Self { file, path: path.to_owned(), hidden: Some(hidden), overwrite, _replaced: replaced })
    }

    /// What to write to.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The name that it will have.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it durable and gives it its name, durably.
    ///
    /// # Errors
    /// Where either cannot be done; then the file is gone, or has its name but may lose it in a crash.
    pub fn finish(mut self) -> Result<(), OfflineError> {
        let failed = |action| OfflineError::io(&self.path, action);
        self.file.sync_all().map_err(failed("make it durable"))?;
        let Some(hidden) = self.hidden.as_ref() else { return Ok(()) };
        let flags = if self.overwrite { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        match renameat_with(CWD, hidden, CWD, &self.path, flags) {
            Err(Errno::EXIST) => return Err(OfflineError::Exists(self.path.clone())),
            // Not every file system has the flag.
            Err(Errno::INVAL | Errno::NOSYS) if !self.path.exists() => {
                fs::rename(hidden, &self.path).map_err(failed("name it"))?;
            }
            Err(errno) => return Err(failed("name it")(errno.into())),
            Ok(()) => {}
        }
        self.hidden = None;
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))
            .and_then(|dir| dir.sync_all())
            .map_err(failed("make its name durable"))
    }
}

impl Drop for PartFile {
    fn drop(&mut self) {
        if let Some(hidden) = &self.hidden {
            // A part that cannot be removed is named as one.
            let _ = fs::remove_file(hidden);
        }
    }
}
