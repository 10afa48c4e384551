//! An archive of images, whose members are read in place.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use stratabd::{
    format::tar::members::{MemberError, MemberIndex, Members},
    server::failure::{Failure, FailureClass},
};

use crate::layer::Compression;

/// Bytes that are read where a header is wanted: it, and what extends it mostly.
const PIECE_BYTES: usize = 4096;

/// A tar archive in a file.
#[derive(Debug, Clone)]
pub(crate) struct Archive {
    path: PathBuf,
    file: Arc<File>,
    members: Arc<Members>,
}

/// A part of a file, read from its start to its end.
pub(crate) struct MemberReader {
    file: Arc<File>,
    next: u64,
    end: u64,
}

impl Archive {
    /// Finds out what is in the archive at `path`.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let failed = |error| unreadable(path, error);
        if !fs::metadata(path).map_err(failed)?.is_file() {
            let text =
                format!("{}: no file, and only in one can an archive be read in place", path.display());
            return Err(Failure::new(FailureClass::Usage, text));
        }
        let file = File::open(path).map_err(failed)?;
        let size_bytes = file.metadata().map_err(failed)?.len();
        let wrong = |error| wrong(path, error);
        let mut index = MemberIndex::new(size_bytes);
        let mut piece = vec![0; PIECE_BYTES];
        while let Some(offset) = index.wanted() {
            let count = match file.read_at(&mut piece, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                count => count.map_err(failed)?,
            };
            let bytes = piece.get(..count).unwrap_or_default();
            let compression = Compression::of(bytes);
            if offset == 0 && compression != Compression::None {
                let text = format!(
                    "{}: it is compressed with {compression}, and could not be read in place: decompress it first",
                    path.display()
                );
                return Err(Failure::new(FailureClass::Usage, text));
            }
            if bytes.is_empty() {
                return Err(failed(io::ErrorKind::UnexpectedEof.into()));
            }
            index.put(bytes).map_err(wrong)?;
        }
        let members = index.finish().map_err(wrong)?;
        Ok(Self { path: path.to_owned(), file: Arc::new(file), members: Arc::new(members) })
    }

    /// Where it lies.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it has a member of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.members.has(name.as_bytes())
    }

    /// The content of a member.
    pub(crate) fn member(&self, name: &str) -> Result<MemberReader, Failure> {
        let content = self.members.find(name.as_bytes()).map_err(|error| wrong(&self.path, error))?;
        Ok(MemberReader { file: Arc::clone(&self.file), next: content.start(), end: content.end() })
    }
}

impl MemberReader {
    /// Bytes that are left.
    pub(crate) fn left_bytes(&self) -> u64 {
        self.end.saturating_sub(self.next)
    }
}

impl Read for MemberReader {
    fn read(&mut self, dest: &mut [u8]) -> io::Result<usize> {
        let count = usize::try_from(self.left_bytes()).map_or(dest.len(), |left| left.min(dest.len()));
        let count = self.file.read_at(dest.get_mut(..count).unwrap_or_default(), self.next)?;
        if count == 0 && self.left_bytes() > 0 && !dest.is_empty() {
            // It was as long as that when its headers were read.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.next = self.next.saturating_add(count as u64);
        Ok(count)
    }
}

fn unreadable(path: &Path, error: io::Error) -> Failure {
    let class = match error.kind() {
        io::ErrorKind::NotFound => FailureClass::NotFound,
        _ => FailureClass::Internal,
    };
    Failure::with_source(class, format!("{}: cannot read it", path.display()), error)
}

fn wrong(path: &Path, error: MemberError) -> Failure {
    let class = match error {
        MemberError::Missing(_) => FailureClass::NotFound,
        _ => FailureClass::Image,
    };
    Failure::with_source(class, format!("{}: it cannot be used", path.display()), error)
}
