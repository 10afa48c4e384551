//! A directory in memory: read from its blocks with every check, changed as a map, and given out as blocks again.

use std::collections::BTreeMap;

use crate::{
    cache::BLOCK_BYTES,
    error::Error,
    field::{low_u16, low_u32, put, put_u8, put_u16, put_u32, u8_at, u16_at, u32_at},
    inode::FileKind,
};

/// Bytes of an entry before its name.
pub(crate) const ENTRY_HEADER_BYTES: usize = 8;
/// The longest name.
pub(crate) const NAME_LIMIT: usize = 255;

/// A name's inode.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) inode: u32,
    pub(crate) kind: FileKind,
    /// Whether this layer has made it, or something in it: whiteouts spare it.
    pub(crate) is_made: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Directory {
    /// The directory that it is in: for the root itself.
    pub(crate) parent: u32,
    /// Its name there.
    pub(crate) name: Box<[u8]>,
    pub(crate) entries: BTreeMap<Box<[u8]>, Entry>,
    pub(crate) is_changed: bool,
    /// Whether all below it was made by this layer, so that no whiteout finds anything here.
    pub(crate) is_all_made: bool,
}

impl Directory {
    /// One that is not on the device yet.
    pub(crate) fn new(parent: u32, name: &[u8]) -> Self {
        let name = name.into();
        Self { parent, name, entries: BTreeMap::new(), is_changed: true, is_all_made: true }
    }

    /// One that will be read.
    pub(crate) fn below(parent: u32, name: &[u8]) -> Self {
        Self { is_changed: false, is_all_made: false, ..Self::new(parent, name) }
    }

    /// Adds what a block of the directory `number` has. `is_first` is the one that begins with `.` and `..`.
    pub(crate) fn add_block(&mut self, number: u32, bytes: &[u8], is_first: bool) -> Result<(), Error> {
        let damaged = |rule| Error::inode(number, rule);
        let mut rest = bytes;
        let mut place = 0;
        while !rest.is_empty() {
            let length = usize::from(u16_at(rest, 4));
            let name_length = usize::from(u8_at(rest, 6));
            if length < ENTRY_HEADER_BYTES + name_length
                || length < ENTRY_HEADER_BYTES + 4
                || !length.is_multiple_of(4)
                || length > rest.len()
            {
                return Err(damaged("an entry of the directory does not fit into its block"));
            }
            let (inode, name) =
                (u32_at(rest, 0), rest.get(ENTRY_HEADER_BYTES..ENTRY_HEADER_BYTES + name_length));
            let (name, kind) = (name.unwrap_or(&[]), u8_at(rest, 7));
            match (is_first, place) {
                (true, 0) if name != b"." || inode != number => {
                    return Err(damaged("the directory does not begin with itself"));
                }
                (true, 1) if name != b".." || inode != self.parent => {
                    return Err(damaged(
                        "the directory has another parent than the one that it was found in",
                    ));
                }
                (true, 0 | 1) => {}
                _ if inode == 0 => {}
                _ => self.add_entry(number, name, inode, kind)?,
            }
            place += 1;
            rest = rest.get(length..).unwrap_or(&[]);
        }
        if is_first && place < 2 {
            return Err(damaged("the directory lacks its parent"));
        }
        Ok(())
    }

    fn add_entry(&mut self, number: u32, name: &[u8], inode: u32, kind: u8) -> Result<(), Error> {
        let damaged = |rule| Error::inode(number, rule);
        if name.is_empty()
            || name == b"."
            || name == b".."
            || name.iter().any(|byte| matches!(byte, 0 | b'/'))
        {
            return Err(damaged("an entry of the directory has a name that nothing can have"));
        }
        let kind =
            FileKind::of_entry(kind).ok_or(damaged("an entry of the directory is of no kind of file"))?;
        if self.entries.insert(name.into(), Entry { inode, kind, is_made: false }).is_some() {
            return Err(damaged("a name is twice in the directory"));
        }
        Ok(())
    }

    /// How many directories are in it.
    pub(crate) fn subdirectories(&self) -> usize {
        self.entries.values().filter(|entry| entry.kind == FileKind::Directory).count()
    }

    /// All of it as one block, unless it needs more.
    pub(crate) fn encode_single(&self, number: u32) -> Option<Vec<u8>> {
        let names: usize = self.entries.keys().map(|name| entry_bytes(name)).sum();
        if names + 2 * entry_bytes(b".") > BLOCK_BYTES {
            return None;
        }
        let mut block = EntryBlock::new();
        block.push(b".", number, FileKind::Directory);
        block.push(b"..", self.parent, FileKind::Directory);
        for (name, entry) in &self.entries {
            block.push(name, entry.inode, entry.kind);
        }
        Some(block.end())
    }
}

/// Bytes that an entry needs.
pub(crate) fn entry_bytes(name: &[u8]) -> usize {
    (ENTRY_HEADER_BYTES + name.len()).next_multiple_of(4)
}

/// A block of entries that is being filled.
#[derive(Debug)]
pub(crate) struct EntryBlock {
    bytes: Vec<u8>,
    last: usize,
}

impl EntryBlock {
    pub(crate) fn new() -> Self {
        Self { bytes: Vec::with_capacity(BLOCK_BYTES), last: 0 }
    }

    /// The caller has seen to it that there is room.
    pub(crate) fn push(&mut self, name: &[u8], inode: u32, kind: FileKind) {
        self.last = self.bytes.len();
        let length = entry_bytes(name);
        self.bytes.resize(self.last + length, 0);
        let entry = self.bytes.get_mut(self.last..).unwrap_or(&mut []);
        put_u32(entry, 0, inode);
        put_u16(entry, 4, low_u16(low_u32(length as u64)));
        put_u8(entry, 6, u8::try_from(name.len()).unwrap_or(u8::MAX));
        put_u8(entry, 7, kind as u8);
        put(entry, ENTRY_HEADER_BYTES, name);
    }

    /// The block: its last entry has what is left.
    pub(crate) fn end(mut self) -> Vec<u8> {
        let length = low_u16(low_u32((BLOCK_BYTES - self.last) as u64));
        self.bytes.resize(BLOCK_BYTES, 0);
        put_u16(&mut self.bytes, self.last + 4, length);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{dirhash::NameHash, htree};

    fn filled(names: u32) -> Directory {
        let mut directory = Directory::new(2, b"name");
        for number in 0..names {
            let name = format!("name {number}").into_bytes().into_boxed_slice();
            let kind = if number % 3 == 0 { FileKind::Directory } else { FileKind::Symlink };
            directory.entries.insert(name, Entry { inode: 100 + number, kind, is_made: true });
        }
        directory
    }

    fn read(number: u32, bytes: &[u8]) -> Result<Directory, Error> {
        let mut directory = Directory::below(2, b"name");
        for (at, block) in bytes.chunks(BLOCK_BYTES).enumerate() {
            directory.add_block(number, block, at == 0)?;
        }
        Ok(directory)
    }

    #[test]
    fn what_is_given_out_is_read_again() {
        let hash = NameHash { seed: [1, 2, 3, 4], is_unsigned: true };
        for names in [0, 1, 200, 5000, 60_000] {
            let directory = filled(names);
            let single = directory.encode_single(7);
            assert_eq!(single.is_some(), names <= 200);
            let bytes = single.unwrap_or_else(|| htree::encode(7, &directory, hash).unwrap());
            let again = read(7, &bytes).unwrap();
            assert_eq!(again.entries.len(), names as usize);
            assert_eq!(again.subdirectories(), directory.subdirectories());
            let mut pairs = again.entries.iter().zip(&directory.entries);
            assert!(pairs.all(|(one, other)| (one.0, one.1.inode) == (other.0, other.1.inode)));
        }
    }

    #[test]
    fn damage_is_found_by_its_rule() {
        let good = filled(3).encode_single(7).unwrap();
        let cases: [(usize, &[u8], &str); 11] = [
            (0, &[8], "begin with itself"),
            (8, b"x", "begin with itself"),
            (12, &[9], "another parent"),
            (20, b"y", "another parent"),
            (28, &[0, 0], "fit"),
            (28, &[6, 0], "fit"),
            (28, &[8, 0], "fit"),
            (28, &[0xfc, 0xff], "fit"),
            (31, &[9], "kind"),
            (32, b"n/m", "name that nothing"),
            (44, &[8], "fit"),
        ];
        for (at, bytes, rule) in cases {
            let mut damaged = good.clone();
            put(&mut damaged, at, bytes);
            let message = read(7, &damaged).unwrap_err().to_string();
            assert!(message.contains(rule), "{at} {bytes:?}: {message}");
        }
        let twice = [&good[..], &good[..]].concat();
        assert!(read(7, &twice).unwrap_err().to_string().contains("name that nothing"));
        let mut lone = vec![0; BLOCK_BYTES];
        put(&mut lone, 0, &[7, 0, 0, 0, 0, 16, 1, 2, b'.']);
        assert!(read(7, &lone).unwrap_err().to_string().contains("lacks its parent"));
    }
}
