//! Where a path leads: through directories and symbolic links, never out of the root.

use std::borrow::Cow;

use super::{Attributes, Filesystem};
use crate::{
    cache::BLOCK_BYTES,
    device::Device,
    directory::{Entry, NAME_LIMIT},
    error::Error,
    extent::Mapping,
    field::index,
    inode::{FileKind, ROOT},
    timestamp::Timestamp,
};

/// Symbolic links that a path may go through.
const SYMLINK_LIMIT: usize = 255;
/// The longest target that Linux makes.
pub(super) const TARGET_LIMIT: usize = 4095;
/// Of the parents that no entry speaks of.
const PARENT_MODE: u32 = 0o755;

/// A name in a directory. The root has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Location {
    pub(super) directory: u32,
    pub(super) name: Vec<u8>,
}

impl Location {
    pub(super) fn is_root(&self) -> bool {
        self.name.is_empty()
    }
}

/// What is done where a parent lacks.
#[derive(Debug, Clone, Copy)]
pub(super) enum Lacking {
    /// It is made, with this time.
    Make(Timestamp),
    /// The path leads nowhere.
    Leave,
}

impl<D: Device> Filesystem<D> {
    /// Where `path` leads; its last name is not followed. `None` where a parent lacks.
    pub(super) fn locate(&mut self, path: &[u8], lacking: Lacking) -> Result<Option<Location>, Error> {
        let (parents, name) = split(path);
        let Some(directory) = self.walk(parents, path, lacking)? else { return Ok(None) };
        Ok(Some(match name {
            b".." => self.location_of(self.parent_of(directory)),
            b"" => Location { directory: ROOT, name: Vec::new() },
            _ => {
                check_name(name)?;
                Location { directory, name: name.to_vec() }
            }
        }))
    }

    /// The directory that all of `path` leads to; an error names `whole`. `None` where one lacks.
    pub(super) fn walk(&mut self, path: &[u8], whole: &[u8], lacking: Lacking) -> Result<Option<u32>, Error> {
        let mut rest = Cow::Borrowed(path);
        let mut at = 0;
        let mut directory = ROOT;
        let mut symlinks = 0;
        loop {
            let (name, next) = next_name(&rest, at);
            if name.is_empty() {
                return Ok(Some(directory));
            }
            match name {
                b"." => {}
                b".." => directory = self.parent_of(directory),
                _ => match (self.entry(directory, name), lacking) {
                    (Some(entry), _) if entry.kind == FileKind::Directory => {
                        self.load(entry.inode, directory, name)?;
                        directory = entry.inode;
                    }
                    (Some(entry), _) if entry.kind == FileKind::Symlink => {
                        symlinks += 1;
                        if symlinks > SYMLINK_LIMIT {
                            return Err(Error::TooManySymlinks(whole.to_vec()));
                        }
                        let mut target = self.target(entry.inode)?;
                        if target.first() == Some(&b'/') {
                            directory = ROOT;
                        }
                        target.push(b'/');
                        target.extend_from_slice(rest.get(next..).unwrap_or(&[]));
                        rest = Cow::Owned(target);
                        at = 0;
                        continue;
                    }
                    (Some(_), _) => return Err(Error::NotADirectory(whole.to_vec())),
                    (None, Lacking::Leave) => return Ok(None),
                    (None, Lacking::Make(mtime)) => {
                        check_name(name)?;
                        let name = name.to_vec();
                        let attributes = Attributes { mode: PARENT_MODE, mtime, ..Attributes::default() };
                        let place = Location { directory, name };
                        directory = self.make_directory(&place, &attributes)?;
                        self.load(directory, place.directory, &place.name)?;
                    }
                },
            }
            at = next;
        }
    }

    pub(super) fn entry(&self, directory: u32, name: &[u8]) -> Option<Entry> {
        self.directories.get(&directory)?.entries.get(name).copied()
    }

    /// What a name of a directory stands for, read: an entry that says another kind is damage.
    fn target(&mut self, number: u32) -> Result<Vec<u8>, Error> {
        let (inode, kind) = self.volume.read_inode(number)?;
        if kind != FileKind::Symlink {
            return Err(Error::inode(number, "an entry says that it is a symbolic link, and it is not"));
        }
        let size = index(inode.size_bytes());
        if size == 0 || size > TARGET_LIMIT {
            return Err(Error::inode(number, "the target of a symbolic link is empty or longer than 4095"));
        }
        if !inode.has_extents() {
            let target = inode.content().get(..size);
            return Ok(target
                .ok_or(Error::inode(number, "a symbolic link is longer than its inode"))?
                .to_vec());
        }
        let mapping = Mapping::read(&mut self.volume, number, &inode)?;
        // One block needs no tree, and a tree would be read anew for each path that leads through here.
        if !mapping.nodes.is_empty() {
            return Err(Error::inode(number, "a symbolic link has a tree of extents"));
        }
        let extent = mapping.extents.first().filter(|extent| extent.logical == 0);
        let extent = extent.ok_or(Error::inode(number, "a symbolic link has no block"))?;
        let mut block = vec![0; BLOCK_BYTES];
        self.volume.cache.read_data(extent.physical, &mut block)?;
        block.truncate(size);
        Ok(block)
    }

    fn parent_of(&self, directory: u32) -> u32 {
        self.directories.get(&directory).map_or(ROOT, |directory| directory.parent)
    }

    fn location_of(&self, directory: u32) -> Location {
        let name = self.directories.get(&directory).map_or(Vec::new(), |directory| directory.name.to_vec());
        Location { directory: self.parent_of(directory), name }
    }
}

/// The parents of a path and its last name, which is empty for the root and for nothing else.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let mut path = path;
    loop {
        let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
        let trimmed = path.get(..end).unwrap_or(&[]);
        let start = trimmed.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        let (parents, name) = trimmed.split_at(start);
        if name != b"." {
            return (parents, name);
        }
        path = parents;
    }
}

/// The next name from `at` on, empty at the end, and where to go on.
fn next_name(path: &[u8], at: usize) -> (&[u8], usize) {
    let rest = path.get(at..).unwrap_or(&[]);
    let start = rest.iter().position(|byte| *byte != b'/').unwrap_or(rest.len());
    let rest = rest.get(start..).unwrap_or(&[]);
    let length = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
    (rest.get(..length).unwrap_or(&[]), at + start + length)
}

fn check_name(name: &[u8]) -> Result<(), Error> {
    if name.len() > NAME_LIMIT || name.contains(&0) {
        return Err(Error::Name(name.to_vec()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_split_at_their_last_name() {
        for (path, parents, name) in [
            ("", "", ""),
            ("/", "", ""),
            ("./", "", ""),
            ("a", "", "a"),
            ("./a/", "./", "a"),
            ("/a/b/./", "/a/", "b"),
            ("a/..", "a/", ".."),
        ] {
            assert_eq!(split(path.as_bytes()), (parents.as_bytes(), name.as_bytes()), "{path}");
        }
        assert_eq!(next_name(b"//ab/c", 0), (&b"ab"[..], 4));
        assert_eq!(next_name(b"//ab/c", 4), (&b"c"[..], 6));
        assert_eq!(next_name(b"//ab/c/", 6), (&b""[..], 7));
    }
}
