//! Folders that hold what a private registry sent: their owner's alone, and opened name by name, so that no link that
//! somebody has put there is followed.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::DirBuilderExt},
    },
    path::Path,
    sync::Arc,
};

use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fchmod, fstat, mkdirat, openat, renameat, statat,
        unlinkat,
    },
    io::Errno,
    process::geteuid,
};

/// What a folder and a file may be used by.
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// Bits of a mode by which others can write.
const WRITTEN_BY_OTHERS: u32 = 0o022;

/// Something that was not made as it is by the one who runs this, so that its bytes may be anybody's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Untrusted {
    /// Its owner can change what is in it.
    #[error(
        "{name} belongs to user {owner} and not to user {user} who runs this: give it to that user, or remove it"
    )]
    Owner {
        /// Its name, or its path.
        name: String,
        /// Whose it is.
        owner: u32,
        /// Who asks.
        user: u32,
    },
    /// Its mode lets others write.
    #[error(
        "{name} can be written by others, with mode {mode:o}: chmod go-w it once nobody can have changed it, or remove it"
    )]
    Mode {
        /// Its name, or its path.
        name: String,
        /// Its permissions.
        mode: u32,
    },
    /// It is a link, a pipe, or something else that nothing here makes.
    #[error(
        "{name} is no plain file or folder, or has another name too, as nothing here makes it: remove it"
    )]
    Kind {
        /// Its name, or its path.
        name: String,
    },
}

impl From<Untrusted> for io::Error {
    fn from(error: Untrusted) -> Self {
        Self::new(io::ErrorKind::PermissionDenied, error)
    }
}

/// An open folder. Cloning gives another handle to it.
#[derive(Debug, Clone)]
pub struct PrivateFolder(Arc<OwnedFd>);

impl PrivateFolder {
    /// Opens the folder at `path`, or makes it with those above it that are not there. Links on the way to it are followed:
    /// who has named it means what they say.
    ///
    /// # Errors
    /// The system's answer, or [`Untrusted`].
    pub fn open_root(path: &Path) -> io::Result<Self> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(FOLDER_MODE).create(path)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = openat(CWD, path, flags, Mode::empty())?;
        check(&fstat(&folder)?, path.as_os_str(), FileType::Directory)?;
        Ok(Self(Arc::new(folder)))
    }

    /// Opens a folder in this one.
    ///
    /// # Errors
    /// The system's answer, or [`Untrusted`].
    pub fn open(&self, name: impl AsRef<OsStr>) -> io::Result<Self> {
        let name = name.as_ref();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let folder = openat(&*self.0, name, flags, Mode::empty()).map_err(|error| planted(error, name))?;
        let found = fstat(&folder)?;
        check(&found, name, FileType::Directory)?;
        restrict(&folder, &found, FOLDER_MODE)?;
        Ok(Self(Arc::new(folder)))
    }

    /// Opens a folder in this one, and makes it where it is not; whether it has.
    ///
    /// # Errors
    /// As [`PrivateFolder::open`].
    pub fn open_or_make(&self, name: impl AsRef<OsStr>) -> io::Result<(Self, bool)> {
        let made = match mkdirat(&*self.0, name.as_ref(), Mode::from_raw_mode(FOLDER_MODE)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => return Err(error.into()),
        };
        Ok((self.open(name)?, made))
    }

    /// Opens a file in this folder, with `flags` beside what each is opened with.
    ///
    /// # Errors
    /// The system's answer, or [`Untrusted`].
    pub fn file(&self, name: impl AsRef<OsStr>, flags: OFlags) -> io::Result<OwnedFd> {
        let name = name.as_ref();
        // Of a pipe the open itself would wait.
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = openat(&*self.0, name, flags, Mode::from_raw_mode(FILE_MODE));
        let file = file.map_err(|error| planted(error, name))?;
        let found = fstat(&file)?;
        check(&found, name, FileType::RegularFile)?;
        restrict(&file, &found, FILE_MODE)?;
        // The ring would take the flag for the wish never to wait for the disk.
        rustix::fs::fcntl_setfl(&file, OFlags::empty())?;
        Ok(file)
    }

    /// What is known of something in this folder; of a link, of the link itself.
    ///
    /// # Errors
    /// The system's answer.
    pub fn stat(&self, name: impl AsRef<OsStr>) -> io::Result<Stat> {
        Ok(statat(&*self.0, name.as_ref(), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// The names of what is in this folder.
    ///
    /// # Errors
    /// The system's answer.
    pub fn names(&self) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&*self.0)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsStr::from_bytes(name).to_owned());
            }
        }
        Ok(names)
    }

    /// Moves what is called `name` to `other`, which may be this folder, as `as_name`; a file that has that name goes.
    ///
    /// # Errors
    /// The system's answer.
    pub fn rename(
        &self,
        name: impl AsRef<OsStr>,
        other: &Self,
        as_name: impl AsRef<OsStr>,
    ) -> io::Result<()> {
        Ok(renameat(&*self.0, name.as_ref(), &*other.0, as_name.as_ref())?)
    }

    /// Removes a file, or a link, or a folder that is empty.
    ///
    /// # Errors
    /// The system's answer.
    pub fn remove(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        match unlinkat(&*self.0, name.as_ref(), AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) => Ok(unlinkat(&*self.0, name.as_ref(), AtFlags::REMOVEDIR)?),
            removed => Ok(removed?),
        }
    }

    /// The descriptor itself, to be synced.
    #[must_use]
    pub fn descriptor(&self) -> &Arc<OwnedFd> {
        &self.0
    }
}

impl AsFd for PrivateFolder {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Closes to others what an older version has left open to them.
fn restrict(opened: &OwnedFd, found: &Stat, mode: u32) -> io::Result<()> {
    let is_open = found.st_mode & 0o077 != 0;
    if is_open { Ok(fchmod(opened, Mode::from_raw_mode(mode))?) } else { Ok(()) }
}

/// What a refusal of the system to open `name` without following it means.
fn planted(error: Errno, name: &OsStr) -> io::Error {
    match error {
        // A link, or no folder where one is wanted, or a folder where a file is, or a socket.
        Errno::LOOP | Errno::NOTDIR | Errno::ISDIR | Errno::NXIO => {
            Untrusted::Kind { name: name.to_string_lossy().into_owned() }.into()
        }
        error => error.into(),
    }
}

fn check(found: &Stat, name: &OsStr, wanted: FileType) -> Result<(), Untrusted> {
    let name = || name.to_string_lossy().into_owned();
    let user = geteuid().as_raw();
    let is_file = wanted == FileType::RegularFile;
    if FileType::from_raw_mode(found.st_mode) != wanted || (is_file && found.st_nlink > 1) {
        return Err(Untrusted::Kind { name: name() });
    }
    if found.st_uid != user {
        return Err(Untrusted::Owner { name: name(), owner: found.st_uid, user });
    }
    if found.st_mode & WRITTEN_BY_OTHERS != 0 {
        return Err(Untrusted::Mode { name: name(), mode: found.st_mode & 0o7777 });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    fn refused<T: std::fmt::Debug>(result: io::Result<T>) -> String {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        error.to_string()
    }

    #[test]
    fn links_pipes_and_second_names_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let victim = elsewhere.path().join("victim");
        fs::write(&victim, "theirs").unwrap();
        let folder = PrivateFolder::open_root(&dir.path().join("a/b")).unwrap();
        let at = |name: &str| dir.path().join("a/b").join(name);
        symlink(&victim, at("link")).unwrap();
        symlink(elsewhere.path(), at("folder")).unwrap();
        fs::write(at("one"), "").unwrap();
        fs::hard_link(at("one"), at("two")).unwrap();
        rustix::fs::mknodat(CWD, at("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let create = OFlags::RDWR | OFlags::CREATE;
        for name in ["link", "folder", "two", "pipe"] {
            assert!(refused(folder.file(name, create)).contains(name));
            assert!(refused(folder.open(name)).contains(name));
        }
        assert!(refused(folder.open_or_make("folder")).contains("remove it"));
        folder.file("new", create).unwrap();
        folder.open_or_make("sub").unwrap();
        let mode = |name: &str| fs::metadata(at(name)).unwrap().permissions().mode() & 0o777;
        fs::write(at("older"), "").unwrap();
        fs::set_permissions(at("older"), fs::Permissions::from_mode(0o644)).unwrap();
        folder.file("older", OFlags::RDONLY).unwrap();
        assert_eq!(mode("older"), 0o600, "what an older version has left is closed");
        assert_eq!((mode("new"), mode("sub"), mode("")), (0o600, 0o700, 0o700));
        assert_eq!(fs::read_to_string(&victim).unwrap(), "theirs");
        for name in ["link", "folder", "sub"] {
            folder.remove(name).unwrap();
        }
        assert!(victim.exists());
    }

    #[test]
    fn what_others_own_or_can_write_is_refused_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let folder = PrivateFolder::open_root(dir.path()).unwrap();
        let writable = dir.path().join("writable");
        fs::write(&writable, "").unwrap();
        fs::set_permissions(&writable, fs::Permissions::from_mode(0o620)).unwrap();
        assert!(refused(folder.file("writable", OFlags::RDWR)).contains("mode 620"));
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1777)).unwrap();
        let told = refused(PrivateFolder::open_root(dir.path()));
        assert!(told.contains(&dir.path().display().to_string()) && told.contains("go-w"), "{told}");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        // Who is no super-user cannot give things away.
        if chown(dir.path(), Some(12_345), None).is_ok() {
            assert!(refused(PrivateFolder::open_root(dir.path())).contains("12345"));
        }
    }
}
