//! A tree in memory, with what an entry of a layer does to it: the plainest way to say it, by recursion and copies.

use std::collections::BTreeMap;

use stratabd_ext4::{Node, Timestamp};

pub(crate) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Metadata {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Timestamp,
    pub(crate) xattrs: Xattrs,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind {
    Directory(BTreeMap<Vec<u8>, Child>),
    File(Vec<u8>),
    Symlink(Vec<u8>),
    Node(Node),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Child {
    pub(crate) id: usize,
    pub(crate) is_made: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Thing {
    pub(crate) metadata: Metadata,
    pub(crate) kind: Kind,
}

/// One entry of a layer.
#[derive(Debug, Clone)]
pub(crate) enum Operation {
    Directory(Vec<u8>, Metadata),
    File(Vec<u8>, Vec<u8>, Metadata),
    Symlink(Vec<u8>, Vec<u8>, Metadata),
    Node(Vec<u8>, Node, Metadata),
    HardLink(Vec<u8>, Vec<u8>, Metadata),
    Attributes(Vec<u8>, Metadata),
    Whiteout(Vec<u8>),
    Opaque(Vec<u8>),
}

/// Things by their number; the root is 0. What nothing leads to any more stays.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) things: Vec<Thing>,
}

/// Where a path ends: directories from the root to the one that has the name.
type Place = (Vec<usize>, Vec<u8>);

impl Model {
    pub(crate) fn new(time: Timestamp) -> Self {
        let metadata = Metadata { mode: 0o755, uid: 0, gid: 0, mtime: time, xattrs: Vec::new() };
        Self { things: vec![Thing { metadata, kind: Kind::Directory(BTreeMap::new()) }] }
    }

    /// Whether it can be done.
    pub(crate) fn apply(&mut self, operation: &Operation) -> Result<(), ()> {
        match operation.clone() {
            Operation::Directory(path, metadata) => {
                let place = self.place(&path, Some(metadata.mtime))?.unwrap();
                if place.1.is_empty() {
                    self.things[0].metadata = metadata;
                    return Ok(());
                }
                match self.child(&place) {
                    Some(id) if self.is_directory(id) => {
                        self.things[id].metadata = metadata;
                        self.put(&place, id);
                    }
                    _ => self.make(&place, Kind::Directory(BTreeMap::new()), metadata),
                }
            }
            Operation::File(path, content, metadata) => {
                let place = self.place(&path, Some(metadata.mtime))?.unwrap();
                self.make(&place, Kind::File(content), metadata);
            }
            Operation::Symlink(path, target, metadata) => {
                let place = self.place(&path, Some(metadata.mtime))?.unwrap();
                self.make(&place, Kind::Symlink(target), Metadata { mode: 0o777, ..metadata });
            }
            Operation::Node(path, node, metadata) => {
                let place = self.place(&path, Some(metadata.mtime))?.unwrap();
                self.make(&place, Kind::Node(node), metadata);
            }
            Operation::HardLink(path, target, metadata) => {
                let from = self.place(&target, None)?.ok_or(())?;
                let id = self.child(&from).filter(|id| !self.is_directory(*id)).ok_or(())?;
                let place = self.place(&path, Some(metadata.mtime))?.unwrap();
                self.put(&place, id);
            }
            Operation::Attributes(path, metadata) => {
                let place = self.place(&path, None)?.ok_or(())?;
                let id = if place.1.is_empty() { 0 } else { self.child(&place).ok_or(())? };
                let is_symlink = matches!(self.things[id].kind, Kind::Symlink(_));
                let mode = if is_symlink { 0o777 } else { metadata.mode };
                self.things[id].metadata = Metadata { mode, ..metadata };
            }
            Operation::Whiteout(path) => {
                let Ok(Some(place)) = self.place(&path, None) else { return Ok(()) };
                let Some(id) = self.child(&place) else { return Ok(()) };
                let parent = *place.0.last().unwrap();
                if !self.children(parent)[&place.1].is_made {
                    self.children_mut(parent).remove(&place.1);
                } else if self.is_directory(id) {
                    self.prune(id);
                }
            }
            Operation::Opaque(path) => {
                let mut inside = path.clone();
                inside.extend_from_slice(b"/x");
                if let Ok(Some(place)) = self.place(&inside, None) {
                    self.prune(*place.0.last().unwrap());
                }
            }
        }
        Ok(())
    }

    /// A new layer begins: nothing is made by it yet.
    pub(crate) fn begin_layer(&mut self) {
        for thing in &mut self.things {
            if let Kind::Directory(children) = &mut thing.kind {
                children.values_mut().for_each(|child| child.is_made = false);
            }
        }
    }

    fn prune(&mut self, directory: usize) {
        self.children_mut(directory).retain(|_, child| child.is_made);
        for child in self.children(directory).clone().into_values() {
            if self.is_directory(child.id) {
                self.prune(child.id);
            }
        }
    }

    fn place(&mut self, path: &[u8], making: Option<Timestamp>) -> Result<Option<Place>, ()> {
        let mut names: Vec<Vec<u8>> = names(path);
        let Some(last) = names.pop() else { return Ok(Some((vec![0], Vec::new()))) };
        names.reverse();
        let mut stack = vec![0];
        let mut symlinks = 0;
        while let Some(name) = names.pop() {
            if name == b".." {
                if stack.len() > 1 {
                    stack.pop();
                }
                continue;
            }
            let at = *stack.last().unwrap();
            let id = match (self.children(at).get(&name), making) {
                (Some(child), _) => child.id,
                (None, None) => return Ok(None),
                (None, Some(mtime)) => {
                    let metadata = Metadata { mode: 0o755, uid: 0, gid: 0, mtime, xattrs: Vec::new() };
                    self.make(&(stack.clone(), name.clone()), Kind::Directory(BTreeMap::new()), metadata);
                    self.things.len() - 1
                }
            };
            match &self.things[id].kind {
                Kind::Directory(_) => stack.push(id),
                Kind::Symlink(target) => {
                    symlinks += 1;
                    if symlinks > 255 {
                        return Err(());
                    }
                    if target[0] == b'/' {
                        stack.truncate(1);
                    }
                    names.extend(self::names(target).into_iter().rev());
                }
                _ => return Err(()),
            }
        }
        Ok(Some((stack, last)))
    }

    fn make(&mut self, place: &Place, kind: Kind, metadata: Metadata) {
        self.things.push(Thing { metadata, kind });
        self.put(place, self.things.len() - 1);
    }

    /// Gives a name to a thing, and marks all directories above.
    fn put(&mut self, place: &Place, id: usize) {
        let (stack, name) = place;
        self.children_mut(*stack.last().unwrap()).insert(name.clone(), Child { id, is_made: true });
        for pair in stack.windows(2) {
            let inside = self.children_mut(pair[0]).values_mut().find(|child| child.id == pair[1]);
            if let Some(child) = inside {
                child.is_made = true;
            }
        }
    }

    fn child(&self, place: &Place) -> Option<usize> {
        self.children(*place.0.last().unwrap()).get(&place.1).map(|child| child.id)
    }

    fn is_directory(&self, id: usize) -> bool {
        matches!(self.things[id].kind, Kind::Directory(_))
    }

    pub(crate) fn children(&self, id: usize) -> &BTreeMap<Vec<u8>, Child> {
        match &self.things[id].kind {
            Kind::Directory(children) => children,
            other => panic!("{other:?}"),
        }
    }

    fn children_mut(&mut self, id: usize) -> &mut BTreeMap<Vec<u8>, Child> {
        match &mut self.things[id].kind {
            Kind::Directory(children) => children,
            other => panic!("{other:?}"),
        }
    }
}

fn names(path: &[u8]) -> Vec<Vec<u8>> {
    let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".");
    names.map(<[u8]>::to_vec).collect()
}
