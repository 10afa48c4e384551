//! Extended attributes: as many as fit lie in the inode, the others in one block of its own.

use crate::{
    acl,
    cache::{BLOCK_BYTES, Block},
    device::Device,
    error::Error,
    field::{low_u16, low_u32, put, put_u8, put_u16, put_u32, u32_at},
    inode::{Inode, XATTR_AT},
    superblock::INODE_BYTES,
    volume::Volume,
};

const MAGIC: u32 = 0xea02_0000;
/// A block's header, before its first entry.
const BLOCK_HEADER_BYTES: usize = 32;
/// An entry before its name.
const ENTRY_HEADER_BYTES: usize = 16;
/// Four zero bytes behind the last entry.
const TERMINATOR_BYTES: usize = 4;
const NAME_LIMIT: usize = 255;
/// No more have room, and each one is held against all others.
const COUNT_LIMIT: usize = (BLOCK_BYTES + INODE_BYTES) / ENTRY_HEADER_BYTES;
/// Of the namespaces: the number that stands for it, and for access control lists for the whole name.
const NAMESPACES: [(&[u8], u8); 5] = [
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"user.", 1),
    (b"trusted.", 4),
    (b"security.", 6),
];
const ACLS: [u8; 2] = [2, 3];

/// An attribute as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Attribute {
    namespace: u8,
    name: Vec<u8>,
    value: Vec<u8>,
}

/// Whether ext4 can hold an attribute of this name; a caller may want to leave out those that it cannot.
#[must_use]
pub fn xattr_is_supported(name: &[u8]) -> bool {
    split(name).is_some()
}

/// Attributes, placed: what comes into the inode, and what into the block.
#[derive(Debug)]
pub(crate) struct Placed {
    inside: Vec<u8>,
    block: Option<Box<Block>>,
}

impl Placed {
    /// Places names and values as Linux gives them out; of two with the same name the last one counts.
    pub(crate) fn new<N: AsRef<[u8]>, V: AsRef<[u8]>>(xattrs: &[(N, V)]) -> Result<Self, Error> {
        let mut attributes: Vec<Attribute> = Vec::new();
        for (name, value) in xattrs {
            let (name, value) = (name.as_ref(), value.as_ref());
            let (namespace, short) = split(name).ok_or_else(|| Error::XattrName(name.to_vec()))?;
            let value = if ACLS.contains(&namespace) { acl::stored(name, value)? } else { value.to_vec() };
            if value.len() > BLOCK_BYTES {
                return Err(Error::XattrsTooLarge);
            }
            attributes.retain(|other| (other.namespace, &*other.name) != (namespace, short));
            if attributes.len() >= COUNT_LIMIT {
                return Err(Error::XattrsTooLarge);
            }
            attributes.push(Attribute { namespace, name: short.to_vec(), value });
        }
        // The order of entries in a block.
        attributes.sort_by(|one, other| one.order().cmp(&other.order()));
        let mut area = Area::new(INODE_BYTES - XATTR_AT - 4, 0, false);
        attributes.retain(|attribute| !area.push(attribute));
        let inside = area.end();
        if attributes.is_empty() {
            return Ok(Self { inside, block: None });
        }
        let mut area = Area::new(BLOCK_BYTES - BLOCK_HEADER_BYTES, BLOCK_HEADER_BYTES, true);
        if !attributes.iter().all(|attribute| area.push(attribute)) {
            return Err(Error::XattrsTooLarge);
        }
        let mut block = Box::new([0; BLOCK_BYTES]);
        put_u32(&mut block[..], 0, MAGIC);
        put_u32(&mut block[..], 4, 1);
        put_u32(&mut block[..], 8, 1);
        put_u32(&mut block[..], 12, area.hash);
        put(&mut block[..], BLOCK_HEADER_BYTES, &area.end());
        Ok(Self { inside, block: Some(block) })
    }

    /// Puts them into an inode that has none; returns how many blocks they take.
    pub(crate) fn store<D: Device>(&self, volume: &mut Volume<D>, inode: &mut Inode) -> Result<u64, Error> {
        if !self.inside.is_empty() {
            put_u32(&mut inode.bytes, XATTR_AT, MAGIC);
            put(&mut inode.bytes, XATTR_AT + 4, &self.inside);
        }
        let Some(bytes) = &self.block else { return Ok(0) };
        let (block, _) = volume.allocate_blocks(1)?;
        volume.cache.fresh(block)?.copy_from_slice(&bytes[..]);
        inode.set_xattr_block(block);
        Ok(1)
    }
}

/// Takes all attributes from an inode. A block that others have too stays theirs.
pub(crate) fn remove<D: Device>(volume: &mut Volume<D>, inode: &mut Inode) -> Result<(), Error> {
    put(&mut inode.bytes, XATTR_AT, &[0; INODE_BYTES - XATTR_AT]);
    let block = inode.xattr_block();
    if block == 0 {
        return Ok(());
    }
    volume.check_range(block, 1)?;
    let bytes = volume.cache.read(block)?;
    let (magic, owners) = (u32_at(bytes, 0), u32_at(bytes, 4));
    if magic != MAGIC || owners == 0 || u32_at(bytes, 8) != 1 {
        return Err(Error::block(block, "a block of extended attributes has no header"));
    }
    if owners > 1 {
        put_u32(volume.cache.change(block)?, 4, owners - 1);
    } else {
        volume.free_blocks(block, 1)?;
    }
    inode.set_xattr_block(0);
    Ok(())
}

impl Attribute {
    fn order(&self) -> (u8, usize, &[u8]) {
        (self.namespace, self.name.len(), &self.name)
    }

    fn hash(&self) -> u32 {
        let name = self.name.iter().fold(0_u32, |hash, byte| hash.rotate_left(5) ^ u32::from(*byte));
        self.value.chunks(4).fold(name, |hash, word| {
            let mut padded = [0; 4];
            put(&mut padded, 0, word);
            hash.rotate_left(16) ^ u32::from_le_bytes(padded)
        })
    }
}

/// Entries from the front and their values from the back.
struct Area {
    bytes: Vec<u8>,
    /// Where values are counted from is so much before the area.
    base: usize,
    front: usize,
    back: usize,
    has_hashes: bool,
    hash: u32,
}

impl Area {
    fn new(bytes: usize, base: usize, has_hashes: bool) -> Self {
        Self { bytes: vec![0; bytes], base, front: 0, back: bytes, has_hashes, hash: 0 }
    }

    /// Whether there was room.
    fn push(&mut self, attribute: &Attribute) -> bool {
        let entry_bytes = (ENTRY_HEADER_BYTES + attribute.name.len()).next_multiple_of(4);
        let value_bytes = attribute.value.len().next_multiple_of(4);
        if self.front + entry_bytes + value_bytes + TERMINATOR_BYTES > self.back {
            return false;
        }
        self.back -= value_bytes;
        let offset = if attribute.value.is_empty() { 0 } else { self.base + self.back };
        let at = self.front;
        put_u8(&mut self.bytes, at, u8::try_from(attribute.name.len()).unwrap_or(u8::MAX));
        put_u8(&mut self.bytes, at + 1, attribute.namespace);
        put_u16(&mut self.bytes, at + 2, low_u16(low_u32(offset as u64)));
        put_u32(&mut self.bytes, at + 8, low_u32(attribute.value.len() as u64));
        if self.has_hashes {
            let hash = attribute.hash();
            put_u32(&mut self.bytes, at + 12, hash);
            self.hash = self.hash.rotate_left(16) ^ hash;
        }
        put(&mut self.bytes, at + ENTRY_HEADER_BYTES, &attribute.name);
        put(&mut self.bytes, self.back, &attribute.value);
        self.front += entry_bytes;
        true
    }

    /// Empty if there is no entry.
    fn end(self) -> Vec<u8> {
        if self.front == 0 { Vec::new() } else { self.bytes }
    }
}

/// The number of the namespace, and what is left of the name.
fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    NAMESPACES.into_iter().find_map(|(prefix, namespace)| {
        let short = name.strip_prefix(prefix)?;
        let fits = if ACLS.contains(&namespace) { short.is_empty() } else { !short.is_empty() };
        (fits && short.len() <= NAME_LIMIT && !short.contains(&0)).then_some((namespace, short))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_ones_lie_in_the_inode_and_the_others_in_a_block() {
        let place = |sizes: &[usize]| {
            let xattrs: Vec<_> =
                sizes.iter().enumerate().map(|(at, size)| (format!("user.{at}"), vec![1; *size])).collect();
            Placed::new(&xattrs).map(|placed| (!placed.inside.is_empty(), placed.block.is_some()))
        };
        assert_eq!(place(&[]).unwrap(), (false, false));
        assert_eq!(place(&[68]).unwrap(), (true, false));
        assert_eq!(place(&[69]).unwrap(), (false, true));
        assert_eq!(place(&[20, 200]).unwrap(), (true, true));
        assert_eq!(place(&[4040]).unwrap(), (false, true));
        assert!(matches!(place(&[4041]), Err(Error::XattrsTooLarge)));
        assert!(matches!(place(&[5000]), Err(Error::XattrsTooLarge)));
        assert!(matches!(place(&[0; 100_000]), Err(Error::XattrsTooLarge)));
    }

    #[test]
    fn of_two_with_one_name_the_last_counts_and_the_order_does_not() {
        let placed = |xattrs: &[(&str, &str)]| Placed::new(xattrs).unwrap().inside;
        let once = placed(&[("user.a", "2"), ("security.b", "3")]);
        assert_eq!(placed(&[("user.a", "1"), ("security.b", "3"), ("user.a", "2")]), once);
        assert_ne!(placed(&[("user.a", "1"), ("security.b", "3")]), once);
    }

    #[test]
    fn names_of_other_namespaces_are_refused() {
        for (name, is_supported) in [
            ("user.x", true),
            ("trusted.overlay.opaque", true),
            ("security.capability", true),
            ("system.posix_acl_access", true),
            ("user.", false),
            ("system.posix_acl_accessible", false),
            ("system.other", false),
            ("com.apple.what", false),
            ("", false),
        ] {
            assert_eq!(xattr_is_supported(name.as_bytes()), is_supported, "{name}");
        }
    }
}
