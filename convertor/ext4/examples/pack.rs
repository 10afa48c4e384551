//! Packs a folder into an ext4 image, as `mke2fs -d` does: for measurements, and to look at what the writer makes.
//!
//! ```text
//! pack FOLDER IMAGE SIZE-IN-MIB
//! ```

use std::{
    collections::HashMap,
    env,
    error::Error,
    ffi::OsStr,
    fs::{self, File, Metadata},
    io::Read,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use stratabd_ext4::{Attributes, FileDevice, Filesystem, FormatOptions, Node, Timestamp};

/// What is read at once.
const PIECE_BYTES: usize = 1 << 18;

struct Packer {
    filesystem: Filesystem<FileDevice>,
    /// The first path of each inode with several names.
    seen: HashMap<u64, Vec<u8>>,
    piece: Vec<u8>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    let [folder, image, size_mib] = arguments.as_slice() else {
        return Err("usage: pack FOLDER IMAGE SIZE-IN-MIB".into());
    };
    let file = File::options().read(true).write(true).create(true).truncate(true).open(image)?;
    file.set_len(size_mib.to_str().unwrap_or_default().parse::<u64>()? << 20)?;
    let options = FormatOptions { uuid: [1; 16], hash_seed: [2; 16], time: Timestamp::default() };
    let filesystem = Filesystem::format(FileDevice::new(file)?, &options)?;
    let mut packer = Packer { filesystem, seen: HashMap::new(), piece: vec![0; PIECE_BYTES] };
    packer.pack(Path::new(folder))?;
    packer.filesystem.finish(Timestamp::default())?;
    Ok(())
}

impl Packer {
    fn pack(&mut self, root: &Path) -> Result<(), Box<dyn Error>> {
        let mut pending = vec![PathBuf::new()];
        while let Some(inside) = pending.pop() {
            let outside = root.join(&inside);
            let metadata = fs::symlink_metadata(&outside)?;
            self.entry(inside.as_os_str(), &outside, &metadata)?;
            if metadata.is_dir() {
                let mut names = Vec::new();
                for entry in fs::read_dir(&outside)? {
                    names.push(inside.join(entry?.file_name()));
                }
                names.sort_unstable_by(|one, other| other.cmp(one));
                pending.extend(names);
            }
        }
        Ok(())
    }

    fn entry(&mut self, inside: &OsStr, outside: &Path, metadata: &Metadata) -> Result<(), Box<dyn Error>> {
        let path = inside.as_bytes();
        let attributes = Attributes {
            mode: metadata.mode(),
            uid: metadata.uid(),
            gid: metadata.gid(),
            mtime: Timestamp {
                seconds: metadata.mtime(),
                nanoseconds: u32::try_from(metadata.mtime_nsec()).unwrap_or(0),
            },
            xattrs: &[],
        };
        let kind = metadata.file_type();
        if !kind.is_dir() && metadata.nlink() > 1 {
            if let Some(first) = self.seen.get(&metadata.ino()) {
                return Ok(self.filesystem.hard_link(path, first, &attributes)?);
            }
            self.seen.insert(metadata.ino(), path.to_vec());
        }
        let number = metadata.rdev();
        let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
        if kind.is_dir() {
            self.filesystem.directory(path, &attributes)?;
        } else if kind.is_symlink() {
            self.filesystem.symlink(path, fs::read_link(outside)?.as_os_str().as_bytes(), &attributes)?;
        } else if kind.is_file() {
            self.content(path, outside, &attributes)?;
        } else if kind.is_char_device() {
            self.filesystem.node(path, Node::Character { major, minor }, &attributes)?;
        } else if kind.is_block_device() {
            self.filesystem.node(path, Node::Block { major, minor }, &attributes)?;
        } else if kind.is_fifo() {
            self.filesystem.node(path, Node::Fifo, &attributes)?;
        } else {
            self.filesystem.node(path, Node::Socket, &attributes)?;
        }
        Ok(())
    }

    fn content(
        &mut self,
        path: &[u8],
        outside: &Path,
        attributes: &Attributes<'_>,
    ) -> Result<(), Box<dyn Error>> {
        let mut file = self.filesystem.file(path, attributes)?;
        let mut from = File::open(outside)?;
        loop {
            let count = from.read(&mut self.piece)?;
            if count == 0 {
                break;
            }
            file.write(self.piece.get(..count).unwrap_or(&[]))?;
        }
        Ok(file.close()?)
    }
}
