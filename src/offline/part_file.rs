//! A file that appears under its name only when it is complete and on disk.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, OpenOptions},
    io,
    num::NonZeroU64,
    ops::Range,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt, OpenOptionsExt, fchown},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{Advice, CWD, RenameFlags, fadvise, renameat_with},
    io::Errno,
};

use super::{
    OfflineError,
    lock::{LockMode, LockedFile},
    patient::open_at_once,
};
use crate::format::lsmt::{self, SLOT_BYTES};

/// Random names that are tried; that even two are taken does not happen.
const NAME_TRIES: u32 = 16;

/// Longest part of the later name in the hidden one, in bytes: names have at most 255.
const NAME_PART_BYTES: usize = 200;

/// Bytes after which the disk is to begin with what was written. It works meanwhile then, and the sync at the end has little to wait for.
const WRITEBACK_BYTES: u64 = 8 << 20;

/// Permissions of what the user gives away, as upstream's tools leave them to the umask.
const SHARED_MODE: u32 = 0o644;

/// Permissions of what holds what somebody wrote.
const PRIVATE_MODE: u32 = 0o600;

/// The file in the making, beside its later place and hidden. Dropping it removes it.
#[derive(Debug)]
pub struct PartFile {
    file: File,
    path: PathBuf,
    hidden: Option<PathBuf>,
    overwrite: bool,
    /// Bytes of the file that were written since the disk was last told to begin.
    unsent: Range<u64>,
    /// What is to be replaced; held, so that no device is made of it meanwhile, which would go on writing to what has no name.
    replaced: Option<LockedFile>,
}

impl PartFile {
    /// Begins a file that will be called `path`; with `overwrite` a regular file that has that name now is replaced at the end, but
    /// none that gets it meanwhile, and no index file: a device locks its data file only, so that one that is in use cannot be told
    /// from one that is not, and without it the data file is lost.
    ///
    /// # Errors
    /// Where something is there that may not be replaced, or the file cannot be made.
    pub fn create(path: &Path, overwrite: bool) -> Result<Self, OfflineError> {
        Self::begin(path, overwrite, SHARED_MODE, |_| false)
    }

    /// As [`PartFile::create`], of a file that its owner alone may read where it replaces none: a writable layer, or what names it.
    ///
    /// # Errors
    /// As [`PartFile::create`].
    pub fn create_private(path: &Path, overwrite: bool) -> Result<Self, OfflineError> {
        Self::begin(path, overwrite, PRIVATE_MODE, |_| false)
    }

    /// Begins an index file that will be called `path`. With `overwrite` it replaces what [`PartFile::create`] may replace, and the
    /// index file of what `data` replaces.
    pub(super) fn create_index(path: &Path, overwrite: bool, data: &Self) -> Result<Self, OfflineError> {
        let data_header = data
            .replaced
            .as_ref()
            .and_then(|held| lsmt::decode_data_header(&slot_of(held.file()).ok()?).ok());
        Self::begin(path, overwrite, PRIVATE_MODE, |index| {
            data_header.is_some_and(|header| lsmt::require_pair(&header, index).is_ok())
        })
    }

    fn begin(
        path: &Path,
        overwrite: bool,
        mode: u32,
        may_replace_index: impl FnOnce(&lsmt::Header) -> bool,
    ) -> Result<Self, OfflineError> {
        let found = match fs::symlink_metadata(path) {
            Ok(_) if !overwrite => return Err(OfflineError::Exists(path.to_owned())),
            Ok(found) if !found.is_file() => return Err(OfflineError::NotReplaceable(path.to_owned())),
            found => found.ok(),
        };
        // One that cannot be read is no device's here.
        let replaced = found.as_ref().and_then(|_| open_at_once(path).ok()).map(Arc::new);
        let replaced = replaced.map(|file| LockMode::Shared.take(&file, path)).transpose()?;
        let index =
            replaced.as_ref().and_then(|held| lsmt::decode_index_header(&slot_of(held.file()).ok()?).ok());
        if index.is_some_and(|header| !may_replace_index(&header)) {
            return Err(OfflineError::IndexFile(path.to_owned()));
        }
        let (file, hidden) = new_beside(path, mode)?;
        let replaces = found.is_some();
        if let Some(found) = found {
            // What only its owner could read stays so.
            file.set_permissions(found.permissions()).map_err(OfflineError::io(path, "make it"))?;
        }
        Ok(Self {
            file,
            path: path.to_owned(),
            hidden: Some(hidden),
            // Where there is nothing to replace, nothing is.
            overwrite: replaces,
            unsent: 0..0,
            replaced,
        })
    }

    /// Begins what will replace the file `replaced` of a writable layer, which is called `path` and which the caller keeps others
    /// from using, and belong to whom that belongs.
    pub(super) fn replacing(path: &Path, replaced: &File) -> Result<Self, OfflineError> {
        let failed = OfflineError::io(path, "make a new version of it");
        // A link stays one, and what it means is replaced.
        let path = fs::canonicalize(path).map_err(&failed)?;
        let (file, hidden) = new_beside(&path, PRIVATE_MODE)?;
        let part = Self { file, path, hidden: Some(hidden), overwrite: true, unsent: 0..0, replaced: None };
        let [old, new] = [replaced, &part.file].map(File::metadata);
        let (old, new) = (old.map_err(&failed)?, new.map_err(&failed)?);
        if (old.uid(), old.gid()) != (new.uid(), new.gid()) {
            fchown(&part.file, Some(old.uid()), Some(old.gid())).map_err(&failed)?;
        }
        part.file.set_permissions(old.permissions()).map_err(&failed)?;
        Ok(part)
    }

    /// Writes `bytes` at `offset`, in bytes: the way to fill a large file. Its parts are best written in order.
    ///
    /// # Errors
    /// The system's answer.
    pub fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)?;
        let end = offset.saturating_add(bytes.len() as u64);
        let Range { start, end: last } = self.unsent;
        self.unsent = if start == last { offset..end } else { start.min(offset)..last.max(end) };
        let len = NonZeroU64::new(self.unsent.end.saturating_sub(self.unsent.start));
        if len.is_some_and(|len| len.get() >= WRITEBACK_BYTES) {
            // Of what is dirty this drops nothing, but begins to write it. Where it cannot be had, the sync does all.
            let _ = fadvise(&self.file, self.unsent.start, len, Advice::DontNeed);
            self.unsent = end..end;
        }
        Ok(())
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
    pub fn finish(self) -> Result<(), OfflineError> {
        self.name()?.make_durable()
    }

    /// Makes it durable and gives it its name, which is not durable yet.
    ///
    /// # Errors
    /// Where either cannot be done; then the file is gone.
    pub fn name(self) -> Result<NamedFile, OfflineError> {
        self.make_ready()?.name()
    }

    /// Makes it durable, and all else that takes its time before it can have its name.
    ///
    /// # Errors
    /// Where that cannot be done; then the file is gone.
    pub fn make_ready(self) -> Result<ReadyFile, OfflineError> {
        let failed = |action| OfflineError::io(&self.path, action);
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let folder = File::open(parent.unwrap_or(Path::new("."))).map_err(failed("open the folder of"))?;
        self.file.sync_all().map_err(failed("make it durable"))?;
        Ok(ReadyFile { part: self, folder })
    }
}

/// A file that is durable, and has its name in a moment. Dropping it removes it.
#[derive(Debug)]
pub struct ReadyFile {
    part: PartFile,
    folder: File,
}

impl ReadyFile {
    /// Gives it its name, which is not durable yet.
    ///
    /// # Errors
    /// Where that cannot be done; then the file is gone.
    pub fn name(self) -> Result<NamedFile, OfflineError> {
        let Self { mut part, folder } = self;
        let named = NamedFile { folder, path: part.path.clone() };
        let Some(hidden) = part.hidden.as_ref() else { return Ok(named) };
        if let Some(replaced) = &part.replaced {
            replaced.require_name(&part.path)?;
        }
        let put = if part.overwrite { fs::rename(hidden, &part.path) } else { name_new(hidden, &part.path) };
        put.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => OfflineError::Exists(part.path.clone()),
            _ => OfflineError::io(&part.path, "name it")(error),
        })?;
        part.hidden = None;
        Ok(named)
    }
}

/// A file that has its name.
#[derive(Debug)]
#[must_use = "a crash may take the name away until it is durable"]
pub struct NamedFile {
    folder: File,
    path: PathBuf,
}

impl NamedFile {
    /// Makes the name durable.
    ///
    /// # Errors
    /// Where it cannot be done: then nobody knows what a crash leaves.
    pub fn make_durable(self) -> Result<(), OfflineError> {
        self.folder.sync_all().map_err(OfflineError::io(&self.path, "make its name durable"))
    }
}

/// Gives the file `hidden` the name `path`, which nothing may have.
fn name_new(hidden: &Path, path: &Path) -> io::Result<()> {
    match renameat_with(CWD, hidden, CWD, path, RenameFlags::NOREPLACE) {
        // Not every file system has the flag.
        Err(Errno::INVAL | Errno::NOSYS) => {}
        renamed => return Ok(renamed?),
    }
    match fs::hard_link(hidden, path) {
        Err(error) if has_no_links(&error) => name_reserved(hidden, path),
        linked => linked.and_then(|()| fs::remove_file(hidden)),
    }
}

/// As [`name_new`], where a file cannot have a second name either: an empty one takes the name, unless something has it, and is replaced.
fn name_reserved(hidden: &Path, path: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).open(path)?;
    fs::rename(hidden, path).inspect_err(|_| {
        // What stays where even this fails is empty.
        let _ = fs::remove_file(path);
    })
}

/// Keeps what `path` means under the name `hidden` too, which nothing may have: as a second name, and as a copy where a file has but
/// one, as on vfat and with some of FUSE.
pub(super) fn keep(path: &Path, hidden: &Path) -> io::Result<()> {
    match fs::hard_link(path, hidden) {
        Err(error) if has_no_links(&error) => copy_new(path, hidden),
        linked => linked,
    }
}

fn copy_new(path: &Path, hidden: &Path) -> io::Result<()> {
    let mut from = File::open(path)?;
    let found = from.metadata()?;
    let mut to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(hidden)?;
    let copied = io::copy(&mut from, &mut to).and_then(|_| to.set_permissions(found.permissions()));
    copied.inspect_err(|_| {
        // The error says enough.
        let _ = fs::remove_file(hidden);
    })
}

/// Whether a second name was refused because there can be none: by the file system, or for one more, or for somebody else's file.
fn has_no_links(error: &io::Error) -> bool {
    let known = [Errno::PERM, Errno::OPNOTSUPP, Errno::NOSYS, Errno::MLINK];
    Errno::from_io_error(error).is_some_and(|errno| known.contains(&errno))
}

/// A new file under a hidden name beside `path`, and that name.
fn new_beside(path: &Path, mode: u32) -> Result<(File, PathBuf), OfflineError> {
    hidden_beside(path, |hidden| {
        OpenOptions::new().read(true).write(true).create_new(true).mode(mode).open(hidden)
    })
}

/// The slot that a file begins with, or all of less.
fn slot_of(file: &File) -> io::Result<Vec<u8>> {
    let mut slot = vec![0; SLOT_BYTES];
    let len = file.read_at(&mut slot, 0)?;
    slot.truncate(len);
    Ok(slot)
}

/// Has something made under a hidden name beside `path`, which nothing has yet: not even what an earlier run has left that was
/// killed, and had the same number of a process as this one.
pub(super) fn hidden_beside<T>(
    path: &Path,
    make: impl Fn(&Path) -> io::Result<T>,
) -> Result<(T, PathBuf), OfflineError> {
    if path == Path::new("-") {
        return Err(OfflineError::StandardOutput);
    }
    let name = path.file_name().ok_or_else(|| OfflineError::Nameless(path.to_owned()))?;
    let name = OsStr::from_bytes(name.as_bytes().get(..NAME_PART_BYTES).unwrap_or(name.as_bytes()));
    let mut tries = 0..NAME_TRIES;
    loop {
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{:08x}.part", fastrand::u32(..)));
        let hidden = path.with_file_name(hidden);
        match make(&hidden) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && tries.next().is_some() => {}
            made => return made.map(|it| (it, hidden)).map_err(OfflineError::io(path, "make it")),
        }
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

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::fs::PermissionsExt};

    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

    use super::*;

    #[test]
    fn what_gets_the_name_meanwhile_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let [path, other] = ["file", "other"].map(|name| dir.path().join(name));
        let part = PartFile::create(&path, true).unwrap();
        fs::write(&path, "new").unwrap();
        assert!(matches!(part.name().map(drop), Err(OfflineError::Exists(_))));
        let part = PartFile::create(&path, true).unwrap();
        fs::write(&other, "newer").unwrap();
        fs::rename(&other, &path).unwrap();
        assert!(matches!(part.name().map(drop), Err(OfflineError::Busy(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "newer");
        let long = dir.path().join("n".repeat(255));
        PartFile::create(&long, false).unwrap().finish().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_file_that_can_have_one_name_only_is_named_and_kept_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let [path, hidden, other] = ["file", "hidden", "other"].map(|name| dir.path().join(name));
        fs::write(&path, "old").unwrap();
        fs::write(&hidden, "new").unwrap();
        let refused = name_reserved(&hidden, &path).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        name_reserved(&hidden, &other).unwrap();
        let content = |path| fs::read_to_string(path).unwrap();
        assert_eq!((content(&path), content(&other), hidden.exists()), ("old".into(), "new".into(), false));
        // Named so that the file goes away before it can have the name.
        assert!(name_reserved(&hidden, &hidden.with_extension("gone")).is_err());
        assert!(!hidden.with_extension("gone").exists());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(copy_new(&path, &other).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        copy_new(&path, &hidden).unwrap();
        assert_eq!(content(&hidden), "old");
        assert_eq!(fs::metadata(&hidden).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(keep(&dir.path().join("none"), &hidden).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(has_no_links(&Errno::PERM.into()) && !has_no_links(&Errno::EXIST.into()));
    }

    #[test]
    fn what_cannot_be_made_durable_under_its_name_does_not_get_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o300)).unwrap();
        let named = std::thread::scope(|scope| {
            let limited = || {
                // Root could open the folder all the same.
                let mut sets = capabilities(None).unwrap();
                sets.effective.remove(CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH);
                set_capabilities(None, sets).unwrap();
                let part = PartFile::create(&path, true).unwrap();
                part.file().write_all(b"new").unwrap();
                part.name().map(drop)
            };
            scope.spawn(limited).join().unwrap()
        });
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        assert!(matches!(named, Err(OfflineError::Io { .. })), "{named:?}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "the part is gone");
    }
}
