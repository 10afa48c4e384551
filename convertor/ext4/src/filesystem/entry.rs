//! What is made by one call: directories, links, devices; and the attributes of what is there.

use super::{
    Attributes, Filesystem, Node,
    path::{Lacking, Location, TARGET_LIMIT},
};
use crate::{
    cache::BLOCK_BYTES,
    device::Device,
    directory::Entry,
    error::Error,
    extent::{self, Extent},
    field::put_u32,
    inode::{CONTENT_BYTES, FileKind, Inode, LINK_LIMIT, ROOT},
    xattr::{self, Placed},
};

/// Permissions that no symbolic link is without.
const SYMLINK_MODE: u32 = 0o777;
const MAJOR_LIMIT: u32 = 1 << 12;
const MINOR_LIMIT: u32 = 1 << 20;
/// Numbers below these fit the old form.
const OLD_LIMIT: u32 = 1 << 8;

impl<D: Device> Filesystem<D> {
    /// Makes a directory, or gives the one that is there, the root too, other attributes.
    ///
    /// # Errors
    /// When the path or the attributes cannot be, when the file system is full or damaged, when the device fails.
    pub fn directory(&mut self, path: &[u8], attributes: &Attributes<'_>) -> Result<(), Error> {
        self.check_usable()?;
        let result = self.try_directory(path, attributes);
        self.guard(result)
    }

    /// Makes a symbolic link.
    ///
    /// # Errors
    /// As [`Filesystem::directory`], and when there can be no such target.
    pub fn symlink(&mut self, path: &[u8], target: &[u8], attributes: &Attributes<'_>) -> Result<(), Error> {
        self.check_usable()?;
        let result = self.try_symlink(path, target, attributes);
        self.guard(result)
    }

    /// Makes a device, a pipe or a socket.
    ///
    /// # Errors
    /// As [`Filesystem::directory`], and when there can be no such device.
    pub fn node(&mut self, path: &[u8], node: Node, attributes: &Attributes<'_>) -> Result<(), Error> {
        self.check_usable()?;
        let result = self.try_node(path, node, attributes);
        self.guard(result)
    }

    /// Makes one more name for the file that `target` names, also of a layer below; its last name is not followed. Parents of
    /// `path` that lack get the time of `attributes`, of which nothing else counts: see [`Filesystem::set_attributes`].
    ///
    /// # Errors
    /// As [`Filesystem::directory`], and when the target is not there, a directory or has 65,000 names.
    pub fn hard_link(
        &mut self,
        path: &[u8],
        target: &[u8],
        attributes: &Attributes<'_>,
    ) -> Result<(), Error> {
        self.check_usable()?;
        let result = self.try_hard_link(path, target, attributes);
        self.guard(result)
    }

    /// Gives what is there other attributes, for all of its names; the last name of the path is not followed.
    ///
    /// # Errors
    /// As [`Filesystem::directory`], and when there is nothing.
    pub fn set_attributes(&mut self, path: &[u8], attributes: &Attributes<'_>) -> Result<(), Error> {
        self.check_usable()?;
        let result = self.try_attributes(path, attributes);
        self.guard(result)
    }

    /// Where an entry is to be made; not the root.
    pub(super) fn place(&mut self, path: &[u8], attributes: &Attributes<'_>) -> Result<Location, Error> {
        let place = self.locate(path, Lacking::Make(attributes.mtime))?;
        place.filter(|place| !place.is_root()).ok_or_else(|| Error::NoName(path.to_vec()))
    }

    /// Has the name stand for an inode, which was made by this layer.
    pub(super) fn insert(&mut self, place: &Location, inode: u32, kind: FileKind) {
        let directory = self.loaded(place.directory);
        directory.entries.insert(place.name.as_slice().into(), Entry { inode, kind, is_made: true });
        directory.is_changed = true;
        self.mark_made(place.directory);
    }

    /// Makes a directory where there is nothing.
    pub(super) fn make_directory(
        &mut self,
        place: &Location,
        attributes: &Attributes<'_>,
    ) -> Result<u32, Error> {
        let (number, mut inode, blocks) = self.new_inode(FileKind::Directory, attributes)?;
        extent::build(&mut self.volume, &mut inode, &[])?;
        inode.set_block_count(blocks);
        self.volume.write_inode(number, &inode)?;
        self.empty_directories.insert(number, place.directory);
        self.insert(place, number, FileKind::Directory);
        Ok(number)
    }

    /// A new inode with one name and `attributes`, not yet written, and how many blocks these take.
    pub(super) fn new_inode(
        &mut self,
        kind: FileKind,
        attributes: &Attributes<'_>,
    ) -> Result<(u32, Inode, u64), Error> {
        let placed = Placed::new(attributes.xattrs)?;
        let number = self.volume.allocate_inode(kind)?;
        let mut inode = Inode::new(kind);
        inode.set_links(1);
        apply(&mut inode, kind, attributes);
        let blocks = placed.store(&mut self.volume, &mut inode)?;
        Ok((number, inode, blocks))
    }

    fn try_directory(&mut self, path: &[u8], attributes: &Attributes<'_>) -> Result<(), Error> {
        Placed::new(attributes.xattrs)?;
        let place = self.locate(path, Lacking::Make(attributes.mtime))?;
        let place = place.ok_or_else(|| Error::NoName(path.to_vec()))?;
        if place.is_root() {
            return self.change_attributes(ROOT, FileKind::Directory, attributes);
        }
        match self.entry(place.directory, &place.name) {
            Some(entry) if entry.kind == FileKind::Directory => {
                self.load(entry.inode, place.directory, &place.name)?;
                self.mark_made(entry.inode);
                self.change_attributes(entry.inode, entry.kind, attributes)
            }
            Some(_) => {
                self.remove(&place)?;
                self.make_directory(&place, attributes).map(drop)
            }
            None => self.make_directory(&place, attributes).map(drop),
        }
    }

    fn try_symlink(&mut self, path: &[u8], target: &[u8], attributes: &Attributes<'_>) -> Result<(), Error> {
        if target.is_empty() || target.len() > TARGET_LIMIT || target.contains(&0) {
            return Err(Error::SymlinkTarget(target.len()));
        }
        Placed::new(attributes.xattrs)?;
        let place = self.place(path, attributes)?;
        self.remove(&place)?;
        let (number, mut inode, mut blocks) = self.new_inode(FileKind::Symlink, attributes)?;
        inode.set_size_bytes(target.len() as u64);
        if target.len() < CONTENT_BYTES {
            inode.set_content(target);
        } else {
            let (physical, length) = self.volume.allocate_blocks(1)?;
            let mut block = target.to_vec();
            block.resize(BLOCK_BYTES, 0);
            self.volume.cache.write_data(physical, &block)?;
            extent::build(&mut self.volume, &mut inode, &[Extent { logical: 0, physical, length }])?;
            blocks += 1;
        }
        inode.set_block_count(blocks);
        self.volume.write_inode(number, &inode)?;
        self.insert(&place, number, FileKind::Symlink);
        Ok(())
    }

    fn try_node(&mut self, path: &[u8], node: Node, attributes: &Attributes<'_>) -> Result<(), Error> {
        let (kind, major, minor) = match node {
            Node::Character { major, minor } => (FileKind::Character, major, minor),
            Node::Block { major, minor } => (FileKind::Block, major, minor),
            Node::Fifo => (FileKind::Fifo, 0, 0),
            Node::Socket => (FileKind::Socket, 0, 0),
        };
        if major >= MAJOR_LIMIT || minor >= MINOR_LIMIT {
            return Err(Error::DeviceNumber { major, minor });
        }
        Placed::new(attributes.xattrs)?;
        let place = self.place(path, attributes)?;
        self.remove(&place)?;
        let (number, mut inode, blocks) = self.new_inode(kind, attributes)?;
        let mut content = [0; 8];
        if major < OLD_LIMIT && minor < OLD_LIMIT {
            put_u32(&mut content, 0, major << 8 | minor);
        } else {
            put_u32(&mut content, 4, minor & 0xff | major << 8 | (minor & !0xff) << 12);
        }
        inode.set_content(&content);
        inode.set_block_count(blocks);
        self.volume.write_inode(number, &inode)?;
        self.insert(&place, number, kind);
        Ok(())
    }

    fn try_hard_link(
        &mut self,
        path: &[u8],
        target: &[u8],
        attributes: &Attributes<'_>,
    ) -> Result<(), Error> {
        let lacks = || Error::NotFound(target.to_vec());
        let from = self.locate(target, Lacking::Leave)?.ok_or_else(lacks)?;
        if from.is_root() {
            return Err(Error::LinkToDirectory(target.to_vec()));
        }
        let entry = self.entry(from.directory, &from.name).ok_or_else(lacks)?;
        if entry.kind == FileKind::Directory {
            return Err(Error::LinkToDirectory(target.to_vec()));
        }
        let place = self.place(path, attributes)?;
        let (mut inode, kind) = self.volume.read_inode(entry.inode)?;
        if kind != entry.kind {
            return Err(Error::inode(entry.inode, "an entry says another kind than its inode"));
        }
        if place == from {
            self.insert(&place, entry.inode, kind);
            return Ok(());
        }
        if inode.links() >= LINK_LIMIT {
            return Err(Error::TooManyLinks(target.to_vec()));
        }
        // Counted first: what gives way may be the directory that the target is in.
        inode.set_links(inode.links() + 1);
        self.volume.write_inode(entry.inode, &inode)?;
        self.remove(&place)?;
        self.insert(&place, entry.inode, kind);
        Ok(())
    }

    fn try_attributes(&mut self, path: &[u8], attributes: &Attributes<'_>) -> Result<(), Error> {
        Placed::new(attributes.xattrs)?;
        let lacks = || Error::NotFound(path.to_vec());
        let place = self.locate(path, Lacking::Leave)?.ok_or_else(lacks)?;
        if place.is_root() {
            return self.change_attributes(ROOT, FileKind::Directory, attributes);
        }
        let entry = self.entry(place.directory, &place.name).ok_or_else(lacks)?;
        self.change_attributes(entry.inode, entry.kind, attributes)
    }

    fn change_attributes(
        &mut self,
        number: u32,
        kind: FileKind,
        attributes: &Attributes<'_>,
    ) -> Result<(), Error> {
        let placed = Placed::new(attributes.xattrs)?;
        let (mut inode, found) = self.volume.read_inode(number)?;
        if found != kind {
            return Err(Error::inode(number, "an entry says another kind than its inode"));
        }
        let without = inode.block_count().saturating_sub(u64::from(inode.xattr_block() != 0));
        xattr::remove(&mut self.volume, &mut inode)?;
        apply(&mut inode, kind, attributes);
        let blocks = placed.store(&mut self.volume, &mut inode)?;
        inode.set_block_count(without + blocks);
        self.volume.write_inode(number, &inode)
    }

    /// Remembers that the layer has made a directory or something in it. Above one that is marked all are.
    fn mark_made(&mut self, directory: u32) {
        let mut at = directory;
        while at != ROOT {
            let (parent, name) = {
                let directory = self.loaded(at);
                (directory.parent, directory.name.clone())
            };
            let Some(entry) = self.loaded(parent).entries.get_mut(&name).filter(|entry| !entry.is_made)
            else {
                return;
            };
            entry.is_made = true;
            at = parent;
        }
    }
}

fn apply(inode: &mut Inode, kind: FileKind, attributes: &Attributes<'_>) {
    let mode = if kind == FileKind::Symlink { SYMLINK_MODE } else { attributes.mode };
    inode.set_permissions(crate::field::low_u16(mode));
    inode.set_owner(attributes.uid, attributes.gid);
    inode.set_times(attributes.mtime);
}
