//! What the kernel makes of an image: mounted read-only and held against a model, name by name.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs,
    io::Read,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{lgetxattr, llistxattr};
use stratabd_ext4::Node;

use super::{
    Image,
    model::{Kind, Model, Thing, Xattrs},
    output,
};

const UNMOUNT_TRIES: usize = 200;

/// A mount, until it is dropped.
pub(crate) struct Mounted {
    at: PathBuf,
}

impl Mounted {
    /// Read-only. `None` where this process may not mount: then others have to be asked.
    pub(crate) fn new(image: &Image) -> Option<Self> {
        Self::with(image, "ro,loop")
    }

    /// For the kernel to write.
    pub(crate) fn writable(image: &Image) -> Option<Self> {
        Self::with(image, "rw,loop")
    }

    fn with(image: &Image, options: &str) -> Option<Self> {
        let at = image.folder.path().join("mounted");
        fs::create_dir_all(&at).unwrap();
        let mounted = output("mount", &["-o", options, image.path.to_str().unwrap(), at.to_str().unwrap()]);
        if !mounted.status.success() {
            eprintln!("not held against the kernel: {}", String::from_utf8_lossy(&mounted.stderr));
            return None;
        }
        Some(Self { at })
    }

    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        self.at.join(inside)
    }

    /// Fails where the two differ.
    pub(crate) fn compare(&self, model: &Model) {
        let mut links: HashMap<usize, u64> = HashMap::new();
        count_links(model, 0, &mut links);
        let mut numbers = HashMap::new();
        let mut pending = vec![(self.at.clone(), 0)];
        while let Some((path, id)) = pending.pop() {
            let thing = &model.things[id];
            compare_thing(&path, thing, links.get(&id).copied().unwrap_or(0), model);
            let number = fs::symlink_metadata(&path).unwrap().ino();
            assert_eq!(*numbers.entry(id).or_insert(number), number, "hard links of {}", path.display());
            if let Kind::Directory(children) = &thing.kind {
                let mut found: Vec<Vec<u8>> =
                    fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name().into_vec()).collect();
                found.sort();
                found.retain(|name| id != 0 || name != b"lost+found");
                let expected: Vec<&Vec<u8>> = children.keys().collect();
                assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{}", path.display());
                let below =
                    children.iter().map(|(name, child)| (path.join(OsStr::from_bytes(name)), child.id));
                pending.extend(below);
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Something that looks at all mounts may hold it for a moment.
        let is_gone =
            (0..UNMOUNT_TRIES).any(|_| output("umount", &[self.at.to_str().unwrap()]).status.success());
        assert!(is_gone || std::thread::panicking(), "{} stays mounted", self.at.display());
    }
}

fn count_links(model: &Model, directory: usize, links: &mut HashMap<usize, u64>) {
    for child in model.children(directory).values() {
        *links.entry(child.id).or_default() += 1;
        if matches!(model.things[child.id].kind, Kind::Directory(_)) {
            count_links(model, child.id, links);
        }
    }
}

fn compare_thing(path: &Path, thing: &Thing, links: u64, model: &Model) {
    let place = path.display();
    let (found, wanted) = (fs::symlink_metadata(path).unwrap(), &thing.metadata);
    assert_eq!(found.mode() & 0o7777, wanted.mode & 0o7777, "mode of {place}");
    assert_eq!((found.uid(), found.gid()), (wanted.uid, wanted.gid), "owner of {place}");
    let times = (wanted.mtime.seconds, i64::from(wanted.mtime.nanoseconds));
    for time in [(found.mtime(), found.mtime_nsec()), (found.ctime(), found.ctime_nsec())] {
        assert_eq!(time, times, "time of {place}");
    }
    assert_eq!(xattrs(path), sorted(&wanted.xattrs), "attributes of {place}");
    let kind = found.file_type();
    let number = |major: u32, minor: u32| rustix::fs::makedev(major, minor);
    match &thing.kind {
        Kind::Directory(children) => {
            let directories =
                children.values().filter(|child| matches!(model.things[child.id].kind, Kind::Directory(_)));
            let lost = u64::from(path.join("lost+found").exists());
            assert_eq!(found.nlink(), directories.count() as u64 + 2 + lost, "links of {place}");
            return;
        }
        Kind::File(content) => {
            assert!(kind.is_file(), "{place}");
            assert_eq!(found.size(), content.len() as u64, "size of {place}");
            let mut bytes = Vec::new();
            fs::File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
            assert!(bytes == *content, "content of {place}");
        }
        Kind::Symlink(target) => {
            assert_eq!(fs::read_link(path).unwrap().as_os_str().as_bytes(), target, "target of {place}");
        }
        Kind::Node(Node::Fifo) => assert!(kind.is_fifo(), "{place}"),
        Kind::Node(Node::Socket) => assert!(kind.is_socket(), "{place}"),
        Kind::Node(Node::Character { major, minor }) => {
            assert!(kind.is_char_device() && found.rdev() == number(*major, *minor), "{place}");
        }
        Kind::Node(Node::Block { major, minor }) => {
            assert!(kind.is_block_device() && found.rdev() == number(*major, *minor), "{place}");
        }
    }
    assert_eq!(found.nlink(), links, "links of {place}");
}

fn xattrs(path: &Path) -> Xattrs {
    let mut names = vec![0; 65536];
    let length = llistxattr(path, &mut names[..]).unwrap();
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let values = names.map(|name| {
        let mut value = vec![0; 65536];
        let length = lgetxattr(path, OsStr::from_bytes(name), &mut value[..]).unwrap();
        value.truncate(length);
        (name.to_vec(), value)
    });
    sorted(&values.collect::<Vec<_>>())
}

fn sorted(xattrs: &Xattrs) -> Xattrs {
    let mut sorted = xattrs.clone();
    sorted.sort();
    sorted
}
