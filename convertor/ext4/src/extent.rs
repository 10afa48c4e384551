//! Extents: where the blocks of a file lie. Read with every check, and built anew where they change.

use crate::{
    cache::BLOCK_BYTES,
    device::Device,
    error::Error,
    field::{low_u16, low_u32, put_u16, put_u32, u16_at, u32_at},
    inode::{CONTENT_BYTES, Inode},
    volume::Volume,
};

/// The longest extent.
pub(crate) const LENGTH_LIMIT: u64 = 32768;
const MAGIC: u16 = 0xf30a;
const HEADER_BYTES: usize = 12;
const ENTRY_BYTES: usize = 12;
/// Entries in the inode.
const ROOT_ENTRIES: usize = (CONTENT_BYTES - HEADER_BYTES) / ENTRY_BYTES;
/// Entries in a block.
const NODE_ENTRIES: usize = (BLOCK_BYTES - HEADER_BYTES) / ENTRY_BYTES;
/// The kernel allows no deeper trees.
const DEPTH_LIMIT: u16 = 5;
/// Extents of one file that are read: 64 MiB of memory. No sane file has so many.
const EXTENT_LIMIT: usize = 1 << 22;

/// Blocks of a file that follow one another, in it and on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    /// The first block in the file.
    pub(crate) logical: u32,
    /// The first block on the device.
    pub(crate) physical: u64,
    /// At most [`LENGTH_LIMIT`].
    pub(crate) length: u64,
}

/// The extents of an inode, and the blocks that their tree takes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) extents: Vec<Extent>,
    pub(crate) nodes: Vec<u64>,
}

/// A node that is to be read: its block, the depth it must have, and the blocks of the file that it may speak of.
struct Pending {
    block: u64,
    depth: u16,
    from: u64,
    end: u64,
}

impl Mapping {
    /// Reads that of an inode.
    pub(crate) fn read<D: Device>(volume: &mut Volume<D>, number: u32, inode: &Inode) -> Result<Self, Error> {
        if !inode.has_extents() && inode.content().iter().all(|byte| *byte == 0) {
            return Ok(Self::default());
        }
        if !inode.has_extents() {
            return Err(Error::Unsupported(format!("inode {number} has no extents but indirect blocks")));
        }
        let mut mapping = Self::default();
        let mut pending = Vec::new();
        let depth = u16_at(inode.content(), 6);
        if depth > DEPTH_LIMIT {
            return Err(Error::inode(number, "its extents are nested too deeply"));
        }
        let damaged = |rule| Error::inode(number, rule);
        let root = Pending { block: 0, depth, from: 0, end: 1 << 32 };
        mapping.add_node(volume, inode.content(), &root, &mut pending, damaged)?;
        while let Some(node) = pending.pop() {
            volume.check_range(node.block, 1)?;
            let bytes = *volume.cache.read(node.block)?;
            let block = node.block;
            mapping.nodes.push(block);
            if u16_at(&bytes, 2) == 0 {
                return Err(Error::block(block, "a node of extents is empty"));
            }
            mapping.add_node(volume, &bytes, &node, &mut pending, |rule| Error::block(block, rule))?;
        }
        Ok(mapping)
    }

    /// Adds what a node has; its children are put off, so that the first one is next.
    fn add_node<D: Device>(
        &mut self,
        volume: &Volume<D>,
        bytes: &[u8],
        node: &Pending,
        pending: &mut Vec<Pending>,
        damaged: impl Fn(&'static str) -> Error,
    ) -> Result<(), Error> {
        let (entries, limit) = (usize::from(u16_at(bytes, 2)), usize::from(u16_at(bytes, 4)));
        if u16_at(bytes, 0) != MAGIC || entries > limit || HEADER_BYTES + limit * ENTRY_BYTES > bytes.len() {
            return Err(damaged("a node of extents has no header"));
        }
        if u16_at(bytes, 6) != node.depth {
            return Err(damaged("a node of extents has another depth than its place"));
        }
        if self.extents.len() + self.nodes.len() + pending.len() + entries > EXTENT_LIMIT {
            return Err(damaged("it has more than 4194304 extents"));
        }
        let mut next = node.from;
        let first_child = pending.len();
        for entry in 0..entries {
            let at = HEADER_BYTES + entry * ENTRY_BYTES;
            let logical = u32_at(bytes, at);
            if u64::from(logical) < next || u64::from(logical) >= node.end {
                return Err(damaged("extents overlap or are out of order"));
            }
            if node.depth > 0 {
                let block = u64::from(u16_at(bytes, at + 8)) << 32 | u64::from(u32_at(bytes, at + 4));
                if let Some(previous) = pending.get_mut(first_child..).and_then(<[Pending]>::last_mut) {
                    previous.end = logical.into();
                }
                next = u64::from(logical) + 1;
                pending.push(Pending { block, depth: node.depth - 1, from: logical.into(), end: node.end });
            } else {
                // Longer ones are allocated but read as zeroes.
                let stored = u64::from(u16_at(bytes, at + 4));
                let length = if stored > LENGTH_LIMIT { stored - LENGTH_LIMIT } else { stored };
                let physical = u64::from(u16_at(bytes, at + 6)) << 32 | u64::from(u32_at(bytes, at + 8));
                next = u64::from(logical) + length;
                if length == 0 || next > node.end {
                    return Err(damaged("an extent is empty or goes beyond its place"));
                }
                volume.check_range(physical, length)?;
                self.extents.push(Extent { logical, physical, length });
            }
        }
        if let Some(children) = pending.get_mut(first_child..) {
            children.reverse();
        }
        Ok(())
    }

    /// Gives all blocks back.
    pub(crate) fn free<D: Device>(&self, volume: &mut Volume<D>) -> Result<(), Error> {
        for extent in &self.extents {
            volume.free_blocks(extent.physical, extent.length)?;
        }
        self.free_nodes(volume)
    }

    /// Gives those of the tree back.
    pub(crate) fn free_nodes<D: Device>(&self, volume: &mut Volume<D>) -> Result<(), Error> {
        self.nodes.iter().try_for_each(|block| volume.free_blocks(*block, 1))
    }
}

/// Adds an extent, to the last one where it goes on.
pub(crate) fn append(extents: &mut Vec<Extent>, mut extent: Extent) {
    if let Some(last) = extents.last_mut()
        && u64::from(last.logical) + last.length == u64::from(extent.logical)
        && last.physical + last.length == extent.physical
    {
        let taken = extent.length.min(LENGTH_LIMIT - last.length);
        last.length += taken;
        extent.length -= taken;
        extent.physical += taken;
        extent.logical = extent.logical.saturating_add(low_u32(taken));
    }
    while extent.length > 0 {
        let length = extent.length.min(LENGTH_LIMIT);
        extents.push(Extent { length, ..extent });
        extent.length -= length;
        extent.physical += length;
        extent.logical = extent.logical.saturating_add(low_u32(length));
    }
}

/// Has `inode` consist of `extents`, in order; returns how many blocks the tree has taken.
pub(crate) fn build<D: Device>(
    volume: &mut Volume<D>,
    inode: &mut Inode,
    extents: &[Extent],
) -> Result<u64, Error> {
    let mut depth = 0;
    let mut nodes = 0;
    let mut level: Vec<(u32, [u8; ENTRY_BYTES])> =
        extents.iter().map(|extent| (extent.logical, leaf_entry(extent))).collect();
    while level.len() > ROOT_ENTRIES {
        let mut above = Vec::new();
        for entries in level.chunks(NODE_ENTRIES) {
            let (block, _) = volume.allocate_blocks(1)?;
            fill(volume.cache.fresh(block)?, entries, NODE_ENTRIES, depth);
            let first = entries.first().map_or(0, |(logical, _)| *logical);
            above.push((first, index_entry(first, block)));
            nodes += 1;
        }
        level = above;
        depth += 1;
    }
    let mut content = [0; CONTENT_BYTES];
    fill(&mut content, &level, ROOT_ENTRIES, depth);
    inode.set_content(&content);
    inode.mark_extents();
    Ok(nodes)
}

fn fill(bytes: &mut [u8], entries: &[(u32, [u8; ENTRY_BYTES])], limit: usize, depth: u16) {
    put_u16(bytes, 0, MAGIC);
    put_u16(bytes, 2, low_u16(low_u32(entries.len() as u64)));
    put_u16(bytes, 4, low_u16(low_u32(limit as u64)));
    put_u16(bytes, 6, depth);
    let places = bytes.get_mut(HEADER_BYTES..).unwrap_or(&mut []).chunks_exact_mut(ENTRY_BYTES);
    for (place, (_, entry)) in places.zip(entries) {
        place.copy_from_slice(entry);
    }
}

fn leaf_entry(extent: &Extent) -> [u8; ENTRY_BYTES] {
    let mut bytes = [0; ENTRY_BYTES];
    put_u32(&mut bytes, 0, extent.logical);
    put_u16(&mut bytes, 4, low_u16(low_u32(extent.length)));
    put_u16(&mut bytes, 6, low_u16(low_u32(extent.physical >> 32)));
    put_u32(&mut bytes, 8, low_u32(extent.physical));
    bytes
}

fn index_entry(logical: u32, block: u64) -> [u8; ENTRY_BYTES] {
    let mut bytes = [0; ENTRY_BYTES];
    put_u32(&mut bytes, 0, logical);
    put_u32(&mut bytes, 4, low_u32(block));
    put_u16(&mut bytes, 8, low_u16(low_u32(block >> 32)));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Filesystem, FormatOptions, MemoryDevice, Timestamp, field::put, inode::FileKind};

    fn volume() -> Volume<MemoryDevice> {
        let options = FormatOptions { uuid: [1; 16], hash_seed: [2; 16], time: Timestamp::default() };
        Filesystem::format(MemoryDevice::new(1 << 30), &options).unwrap().into_volume()
    }

    /// One block in twenty.
    fn comb(teeth: u32) -> Vec<Extent> {
        (0..teeth)
            .map(|at| Extent { logical: at * 20, physical: 100_000 + u64::from(at % 50_000), length: 1 })
            .collect()
    }

    #[test]
    fn an_extent_goes_on_until_it_is_too_long() {
        let mut extents = Vec::new();
        append(&mut extents, Extent { logical: 0, physical: 10, length: 30_000 });
        append(&mut extents, Extent { logical: 30_000, physical: 30_010, length: 10_000 });
        append(&mut extents, Extent { logical: 40_000, physical: 90_000, length: 1 });
        let expected = [(0, 10, 32_768), (32_768, 32_778, 7232), (40_000, 90_000, 1)];
        assert_eq!(extents, expected.map(|(logical, physical, length)| Extent { logical, physical, length }));
    }

    #[test]
    fn what_is_built_is_read_again_at_each_depth() {
        let mut volume = volume();
        for (teeth, nodes) in [(0, 0), (4, 0), (5, 1), (340, 1), (1361, 6), (120_000, 353 + 2)] {
            let mut inode = Inode::new(FileKind::Regular);
            let extents = comb(teeth);
            assert_eq!(build(&mut volume, &mut inode, &extents).unwrap(), nodes, "{teeth}");
            let mapping = Mapping::read(&mut volume, 20, &inode).unwrap();
            assert!(mapping.extents == extents && mapping.nodes.len() as u64 == nodes);
            mapping.free_nodes(&mut volume).unwrap();
        }
    }

    #[test]
    fn damage_is_found_by_its_rule() {
        let mut volume = volume();
        let mut inode = Inode::new(FileKind::Regular);
        build(&mut volume, &mut inode, &comb(800)).unwrap();
        let nodes = Mapping::read(&mut volume, 20, &inode).unwrap().nodes;
        // Of the root: magic, entries, depth, order, the same child twice, a bitmap as a child, one beyond the end.
        let cases: [(usize, &[u8], &str); 7] = [
            (0, &[0], "no header"),
            (2, &[9], "no header"),
            (6, &[2], "another depth"),
            (24, &[0, 0], "out of order"),
            (28, &u32::try_from(nodes[0]).unwrap().to_le_bytes(), "out of order"),
            (16, &[2, 0, 0, 0], "is a bitmap"),
            (20, &[1], "beyond the file system"),
        ];
        for (at, bytes, rule) in cases {
            let mut content = inode.content().to_vec();
            put(&mut content, at, bytes);
            let mut damaged = inode.clone();
            damaged.set_content(&content);
            let message = Mapping::read(&mut volume, 20, &damaged).unwrap_err().to_string();
            assert!(message.contains(rule), "{at}: {message}");
        }
        // Of a leaf: no entries, a length of 0, blocks of the file that belong to the next leaf.
        for (at, bytes, rule) in
            [(2, [0, 0], "is empty"), (16, [0, 0], "an extent is empty"), (4084, [0, 0x60], "goes beyond")]
        {
            let good = *volume.cache.read(nodes[0]).unwrap();
            put(volume.cache.change(nodes[0]).unwrap(), at, &bytes);
            let message = Mapping::read(&mut volume, 20, &inode).unwrap_err().to_string();
            assert!(message.contains(rule), "{at}: {message}");
            *volume.cache.change(nodes[0]).unwrap() = good;
        }
    }
}
