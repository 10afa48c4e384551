//! The index of a directory of more than one block: leaves in the order of the names' hashes, a root, and a level between.

use crate::{
    cache::BLOCK_BYTES,
    directory::{Directory, Entry, EntryBlock, entry_bytes},
    dirhash::NameHash,
    error::Error,
    field::{low_u16, low_u32, put_u8, put_u16, put_u32},
    inode::FileKind,
};

/// How full leaves are: the kernel splits one that is, so some room is left.
const LEAF_FILL_BYTES: usize = BLOCK_BYTES / 8 * 7;
/// Where the entries of the root begin: behind `.`, `..` and what it says of itself.
const ROOT_ENTRIES_AT: usize = 32;
/// Where those of a node begin: behind an entry that takes all of the block.
const NODE_ENTRIES_AT: usize = 8;
const ENTRY_BYTES: usize = 8;
const ROOT_LIMIT: usize = (BLOCK_BYTES - ROOT_ENTRIES_AT) / ENTRY_BYTES;
const NODE_LIMIT: usize = (BLOCK_BYTES - NODE_ENTRIES_AT) / ENTRY_BYTES;
/// Of the versions: half of MD4. Whether bytes are signed is said in the superblock.
const HALF_MD4: u8 = 1;
const INFO_BYTES: u8 = 8;

/// The names of a directory by their hashes.
type Sorted<'a> = Vec<((u32, u32), &'a Box<[u8]>, &'a Entry)>;

/// A leaf: the lowest hash in it, whose bit 0 is set where the hash goes on from the leaf before, and how many names it has.
struct Leaf {
    hash: u32,
    count: usize,
}

/// The blocks of a directory with its index, one after another.
pub(crate) fn encode(number: u32, directory: &Directory, hash: NameHash) -> Result<Vec<u8>, Error> {
    let mut sorted: Sorted<'_> =
        directory.entries.iter().map(|(name, entry)| (hash.of(name), name, entry)).collect();
    sorted.sort_unstable_by_key(|(hash, name, _)| (*hash, *name));
    let leaves = leaves(&sorted);
    let nodes = if leaves.len() > ROOT_LIMIT { leaves.len().div_ceil(NODE_LIMIT) } else { 0 };
    if nodes > ROOT_LIMIT {
        return Err(Error::DirectoryTooLarge(number));
    }
    // All at once: a copy of the largest takes its time and memory.
    let mut bytes = Vec::with_capacity((1 + nodes + leaves.len()) * BLOCK_BYTES);
    bytes.append(&mut root(number, directory.parent, u8::from(nodes > 0)));
    let first_leaf = 1 + nodes;
    let places: Vec<(u32, u32)> =
        leaves.iter().zip(first_leaf..).map(|(leaf, block)| (leaf.hash, low_u32(block as u64))).collect();
    if nodes == 0 {
        put_index(&mut bytes, ROOT_ENTRIES_AT, ROOT_LIMIT, &places);
    } else {
        let chunks = places.chunks(NODE_LIMIT);
        let above: Vec<(u32, u32)> = chunks
            .clone()
            .zip(1..)
            .map(|(entries, block)| (entries.first().map_or(0, |(hash, _)| *hash), block))
            .collect();
        put_index(&mut bytes, ROOT_ENTRIES_AT, ROOT_LIMIT, &above);
        for entries in chunks {
            let mut node = vec![0; BLOCK_BYTES];
            put_u16(&mut node, 4, low_u16(low_u32(BLOCK_BYTES as u64)));
            put_index(&mut node, NODE_ENTRIES_AT, NODE_LIMIT, entries);
            bytes.extend_from_slice(&node);
        }
    }
    let mut rest = sorted.into_iter();
    for leaf in leaves {
        let mut block = EntryBlock::new();
        for (_, name, entry) in rest.by_ref().take(leaf.count) {
            block.push(name, entry.inode, entry.kind);
        }
        bytes.append(&mut block.end());
    }
    Ok(bytes)
}

/// Which names each leaf has.
fn leaves(sorted: &Sorted<'_>) -> Vec<Leaf> {
    let mut leaves = Vec::new();
    let mut leaf = Leaf { hash: 0, count: 0 };
    let (mut filled, mut previous) = (0, 0);
    for ((hash, _), name, _) in sorted {
        if leaf.count > 0 && filled + entry_bytes(name) > LEAF_FILL_BYTES {
            let next = Leaf { hash: if *hash == previous { hash | 1 } else { *hash }, count: 0 };
            leaves.push(std::mem::replace(&mut leaf, next));
            filled = 0;
        }
        leaf.count += 1;
        filled += entry_bytes(name);
        previous = *hash;
    }
    leaves.push(leaf);
    leaves
}

/// The root without its entries.
fn root(number: u32, parent: u32, levels: u8) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK_BYTES];
    for (at, inode, length, name) in [(0, number, 12, &b"."[..]), (12, parent, BLOCK_BYTES - 12, &b".."[..])]
    {
        put_u32(&mut bytes, at, inode);
        put_u16(&mut bytes, at + 4, low_u16(low_u32(length as u64)));
        put_u8(&mut bytes, at + 6, u8::try_from(name.len()).unwrap_or(0));
        put_u8(&mut bytes, at + 7, FileKind::Directory as u8);
        crate::field::put(&mut bytes, at + 8, name);
    }
    put_u8(&mut bytes, 28, HALF_MD4);
    put_u8(&mut bytes, 29, INFO_BYTES);
    put_u8(&mut bytes, 30, levels);
    bytes
}

/// Writes limit, count and entries. The first one has no hash: limit and count lie in its place.
fn put_index(bytes: &mut [u8], at: usize, limit: usize, entries: &[(u32, u32)]) {
    for ((hash, block), place) in entries.iter().zip((at..).step_by(ENTRY_BYTES)) {
        put_u32(bytes, place, *hash);
        put_u32(bytes, place + 4, *block);
    }
    put_u16(bytes, at, low_u16(low_u32(limit as u64)));
    put_u16(bytes, at + 2, low_u16(low_u32(entries.len() as u64)));
}
