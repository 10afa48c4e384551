//! What goes: whiteouts, opaque directories, and what gives way to an entry of the same name.

use super::{
    Filesystem,
    path::{Lacking, Location},
};
use crate::{device::Device, directory::Entry, error::Error, extent::Mapping, inode::FileKind, xattr};

impl<D: Device> Filesystem<D> {
    /// Removes what the layers below have of `path`, which is the name of what goes, without `.wh.`. What this layer has made
    /// stays. Nothing happens where nothing is.
    ///
    /// # Errors
    /// When the path has no name, when the file system is damaged, when the device fails.
    pub fn whiteout(&mut self, path: &[u8]) -> Result<(), Error> {
        self.check_usable()?;
        let result = self.try_whiteout(path);
        self.guard(result)
    }

    /// Removes all that the layers below have in the directory `path`, which may be a symbolic link to one.
    ///
    /// # Errors
    /// When the file system is damaged, when the device fails.
    pub fn opaque(&mut self, path: &[u8]) -> Result<(), Error> {
        self.check_usable()?;
        let result = self.try_opaque(path);
        self.guard(result)
    }

    /// Removes what is in the place of something new.
    pub(super) fn remove(&mut self, place: &Location) -> Result<(), Error> {
        let directory = self.loaded(place.directory);
        let Some(entry) = directory.entries.remove(place.name.as_slice()) else { return Ok(()) };
        directory.is_changed = true;
        let mut pending: Vec<(u32, Box<[u8]>, Entry)> =
            vec![(place.directory, place.name.as_slice().into(), entry)];
        while let Some((parent, name, entry)) = pending.pop() {
            if entry.kind == FileKind::Directory {
                self.load(entry.inode, parent, &name)?;
                let directory = self.directories.remove(&entry.inode);
                let entries = directory.into_iter().flat_map(|directory| directory.entries);
                pending.extend(entries.map(|(name, below)| (entry.inode, name, below)));
            }
            // Before its children: one that is reached again is free then, and an error.
            self.unlink(entry)?;
        }
        Ok(())
    }

    fn try_whiteout(&mut self, path: &[u8]) -> Result<(), Error> {
        let place = match self.locate(path, Lacking::Leave) {
            Ok(Some(place)) => place,
            Ok(None) | Err(Error::NotADirectory(_) | Error::TooManySymlinks(_)) => return Ok(()),
            Err(error) => return Err(error),
        };
        if place.is_root() {
            return Err(Error::NoName(path.to_vec()));
        }
        match self.entry(place.directory, &place.name) {
            Some(entry) if !entry.is_made => self.remove(&place),
            Some(entry) if entry.kind == FileKind::Directory => {
                self.load(entry.inode, place.directory, &place.name)?;
                self.prune(entry.inode)
            }
            _ => Ok(()),
        }
    }

    fn try_opaque(&mut self, path: &[u8]) -> Result<(), Error> {
        match self.walk(path, path, Lacking::Leave) {
            Ok(Some(directory)) => self.prune(directory),
            Ok(None) | Err(Error::NotADirectory(_) | Error::TooManySymlinks(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Removes what the layers below have in a directory and in those of it that this layer has made.
    fn prune(&mut self, directory: u32) -> Result<(), Error> {
        let mut pending = vec![directory];
        while let Some(number) = pending.pop() {
            let directory = self.loaded(number);
            if directory.is_all_made {
                continue;
            }
            directory.is_all_made = true;
            let (made, below): (Vec<_>, Vec<_>) = directory
                .entries
                .iter()
                .map(|(name, entry)| (name.to_vec(), *entry))
                .partition(|(_, entry)| entry.is_made);
            for (name, _) in below {
                self.remove(&Location { directory: number, name })?;
            }
            for (name, entry) in made.into_iter().filter(|(_, entry)| entry.kind == FileKind::Directory) {
                self.load(entry.inode, number, &name)?;
                pending.push(entry.inode);
            }
        }
        Ok(())
    }

    /// Takes one name from an inode, and the inode with all it has when it was the last one.
    fn unlink(&mut self, entry: Entry) -> Result<(), Error> {
        let number = entry.inode;
        let (mut inode, kind) = self.volume.read_inode(number)?;
        if kind != entry.kind {
            return Err(Error::inode(number, "an entry says another kind than its inode"));
        }
        if kind != FileKind::Directory && inode.links() > 1 {
            inode.set_links(inode.links() - 1);
            return self.volume.write_inode(number, &inode);
        }
        let has_blocks = match kind {
            FileKind::Regular | FileKind::Directory => true,
            FileKind::Symlink => inode.has_extents(),
            _ => false,
        };
        if has_blocks {
            Mapping::read(&mut self.volume, number, &inode)?.free(&mut self.volume)?;
        }
        xattr::remove(&mut self.volume, &mut inode)?;
        self.volume.free_inode(number, kind)
    }
}
