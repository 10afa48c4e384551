//! The target of the ext4 writer: damage to a file system that has something of everything, and a layer over it.

use std::{io, sync::LazyLock};

use stratabd_ext4::{Attributes, Device, Error, Filesystem, FormatOptions, MemoryDevice, Node, Timestamp};

const PAGE_BYTES: usize = 4096;
const RECORD_BYTES: usize = 8;
/// More damage finds no more.
const RECORD_LIMIT: usize = 64;
const SIZE_BYTES: u64 = 16 << 20;

/// Made once: the file system, and where its pages of metadata are.
static BASE: LazyLock<(MemoryDevice, Vec<u64>)> = LazyLock::new(|| base().expect("a good one can be made"));

/// The input is damage in records of eight bytes: a page's number, a place in it, four bytes. What follows chooses the layer.
pub fn ext4_layer(input: &[u8]) {
    let (base, pages) = &*BASE;
    let mut device = base.clone();
    let mut records = input.chunks_exact(RECORD_BYTES);
    for record in records.by_ref().take(RECORD_LIMIT) {
        let Some(&[page_low, page_high, low, high, ref bytes @ ..]) = record.first_chunk::<RECORD_BYTES>()
        else {
            continue;
        };
        let page = usize::from(u16::from_le_bytes([page_low, page_high])) % pages.len();
        let place = u64::from(u16::from_le_bytes([low, high])) % (PAGE_BYTES - bytes.len()) as u64;
        let offset = pages.get(page).copied().unwrap_or(0) + place;
        device.write_at(offset, bytes).expect("the page is inside");
    }
    let choice = records.remainder().first().copied().unwrap_or(0);
    // The device refuses what lies outside of it, and nothing may ever ask for that.
    if let Err(Error::Device { source, .. }) = layer(device, choice) {
        panic!("the writer has touched what it may not: {source}");
    }
}

fn layer(device: MemoryDevice, choice: u8) -> Result<(), Error> {
    let mut filesystem = Filesystem::open(device)?;
    let plain = Attributes::default();
    for step in 0..8 {
        match choice.wrapping_add(step) % 8 {
            0 => filesystem.directory(b"directory/below/new", &plain)?,
            1 => filesystem.whiteout(b"many")?,
            2 => filesystem.hard_link(b"short/another", b"sparse", &plain)?,
            3 => filesystem.whiteout(b"sparse")?,
            4 => filesystem.opaque(b"directory")?,
            5 => file(&mut filesystem, b"directory/below", &[3; 70_000])?,
            6 => filesystem.set_attributes(b"directory", &plain)?,
            _ => filesystem.symlink(b"long", b"elsewhere", &plain)?,
        }
    }
    if choice >= 0x80 {
        filesystem.opaque(b"/")?;
    }
    let device = filesystem.finish(Timestamp::default())?;
    let mut again = Filesystem::open(device)?;
    again.opaque(b"/")?;
    again.finish(Timestamp::default())?;
    Ok(())
}

fn base() -> Result<(MemoryDevice, Vec<u64>), Error> {
    let options = FormatOptions { uuid: [1; 16], hash_seed: [2; 16], time: Timestamp::default() };
    let mut filesystem = Filesystem::format(MemoryDevice::new(SIZE_BYTES), &options)?;
    let xattrs = [(b"user.large".to_vec(), vec![7; 1000]), (b"security.capability".to_vec(), vec![1; 20])];
    let attributes = Attributes { mode: 0o755, xattrs: &xattrs, ..Attributes::default() };
    let plain = Attributes { xattrs: &[], ..attributes };
    filesystem.directory(b"directory", &attributes)?;
    for number in 0..20 {
        file(&mut filesystem, format!("directory/below/{number}").as_bytes(), b"content")?;
    }
    for number in 0..300 {
        filesystem.node(format!("many/entry with a long name {number}").as_bytes(), Node::Fifo, &plain)?;
    }
    let mut sparse = filesystem.file(b"sparse", &plain)?;
    for _ in 0..400 {
        sparse.write(&[1; PAGE_BYTES])?;
        sparse.skip(20 * PAGE_BYTES as u64)?;
    }
    sparse.close()?;
    filesystem.symlink(b"long", &[b'x'; 300], &plain)?;
    filesystem.symlink(b"short", b"directory", &plain)?;
    filesystem.hard_link(b"hard", b"directory/below/0", &plain)?;
    let mut device = filesystem.finish(Timestamp::default())?;
    let pages = pages(&mut device).map_err(|source| Error::Device {
        operation: "read",
        offset: 0,
        length: SIZE_BYTES,
        source,
    })?;
    Ok((device, pages))
}

/// Pages of content have one byte all over.
fn pages(device: &mut MemoryDevice) -> io::Result<Vec<u64>> {
    let mut page = [0; PAGE_BYTES];
    let mut found = Vec::new();
    for offset in (0..SIZE_BYTES).step_by(PAGE_BYTES) {
        device.read_at(offset, &mut page)?;
        if page.iter().any(|byte| Some(byte) != page.first()) {
            found.push(offset);
        }
    }
    Ok(found)
}

fn file(filesystem: &mut Filesystem<MemoryDevice>, path: &[u8], content: &[u8]) -> Result<(), Error> {
    let mut file = filesystem.file(path, &Attributes::default())?;
    file.write(content)?;
    file.close()
}
