//! The files of a layout, in a folder or in an archive.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use stratabd::server::failure::{Failure, FailureClass};

use crate::archive::Archive;

/// See the module. Names are paths below it.
#[derive(Debug, Clone)]
pub(crate) enum Files {
    Folder(PathBuf),
    Archive(Archive),
}

impl Files {
    /// Whether there is a file of this name; that nobody can look is told when it is read.
    pub(crate) fn has(&self, name: &str) -> Result<bool, Failure> {
        match self {
            Self::Archive(archive) => Ok(archive.has(name)),
            Self::Folder(folder) => match fs::symlink_metadata(folder.join(name)) {
                Ok(_) => Ok(true),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
                Err(error) => Err(unreadable(&folder.join(name), error)),
            },
        }
    }

    /// A file, as a stream.
    pub(crate) fn open(&self, name: &str) -> Result<Box<dyn Read + Send>, Failure> {
        match self {
            Self::Archive(archive) => Ok(Box::new(archive.member(name)?)),
            Self::Folder(folder) => {
                let path = folder.join(name);
                Ok(Box::new(File::open(&path).map_err(|error| unreadable(&path, error))?))
            }
        }
    }

    /// A file of no more than `limit_bytes`.
    pub(crate) fn read(&self, name: &str, limit_bytes: u64) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        let read = self.open(name)?.take(limit_bytes.saturating_add(1)).read_to_end(&mut bytes);
        read.map_err(|error| {
            Failure::with_source(
                FailureClass::Internal,
                format!("{}: cannot read it", self.shown(name)),
                error,
            )
        })?;
        match bytes.len() as u64 > limit_bytes {
            true => {
                let text = format!("{}: longer than {limit_bytes} bytes", self.shown(name));
                Err(Failure::new(FailureClass::Image, text))
            }
            false => Ok(bytes),
        }
    }

    /// The folder or the archive.
    pub(crate) fn place(&self) -> &Path {
        match self {
            Self::Folder(folder) => folder,
            Self::Archive(archive) => archive.path(),
        }
    }

    /// A file's name for messages.
    pub(crate) fn shown(&self, name: &str) -> String {
        match self {
            Self::Folder(folder) => folder.join(name).display().to_string(),
            Self::Archive(archive) => format!("{}: {name}", archive.path().display()),
        }
    }
}

fn unreadable(path: &Path, error: io::Error) -> Failure {
    let class = match error.kind() {
        io::ErrorKind::NotFound => FailureClass::NotFound,
        _ => FailureClass::Internal,
    };
    Failure::with_source(class, format!("{}: cannot read it", path.display()), error)
}
