//! Blocks between the file system and its device: metadata is kept and written once, data goes past in long writes.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::{device::Device, error::Error, field};

/// The only size of blocks that is supported.
pub(crate) const BLOCK_BYTES: usize = 4096;
/// Metadata that is kept: 32 MiB, as much as 100,000 files have. More is set aside.
const CACHED_BLOCK_LIMIT: usize = (32 << 20) / BLOCK_BYTES;
/// The longest write that is put together, of data as of metadata.
const WRITE_BYTES: usize = 1 << 20;
/// Data from this length on is not copied together with its neighbours.
const STRAIGHT_BYTES: usize = 1 << 18;

pub(crate) type Block = [u8; BLOCK_BYTES];

/// See the module.
#[derive(Debug)]
pub(crate) struct BlockCache<D> {
    device: D,
    block_count: u64,
    blocks: HashMap<u64, Cached>,
    /// Data that was written last and waits for its neighbour, from block `stream_start` on.
    stream: Vec<u8>,
    stream_start: u64,
}

#[derive(Debug)]
struct Cached {
    bytes: Box<Block>,
    dirty: bool,
}

impl<D: Device> BlockCache<D> {
    /// Nothing beyond `block_count` blocks is touched, which the device has.
    pub(crate) fn new(device: D, block_count: u64) -> Self {
        Self { device, block_count, blocks: HashMap::new(), stream: Vec::new(), stream_start: 0 }
    }

    /// A metadata block as it is now.
    pub(crate) fn read(&mut self, block: u64) -> Result<&Block, Error> {
        self.load(block, true).map(|cached| &*cached.bytes)
    }

    /// A metadata block that will be written.
    pub(crate) fn change(&mut self, block: u64) -> Result<&mut Block, Error> {
        let cached = self.load(block, true)?;
        cached.dirty = true;
        Ok(&mut cached.bytes)
    }

    /// A new metadata block of zeroes, whatever lies there.
    pub(crate) fn fresh(&mut self, block: u64) -> Result<&mut Block, Error> {
        let cached = self.load(block, false)?;
        cached.dirty = true;
        cached.bytes.fill(0);
        Ok(&mut cached.bytes)
    }

    /// Drops what is kept of blocks that are free now, or are written past the cache.
    pub(crate) fn forget(&mut self, start: u64, count: u64) {
        if count > self.blocks.len() as u64 {
            self.blocks.retain(|block, _| !(start..start + count).contains(block));
        } else {
            for block in start..start + count {
                self.blocks.remove(&block);
            }
        }
    }

    /// Whole blocks of data, which the cache has no copies of.
    pub(crate) fn write_data(&mut self, start: u64, bytes: &[u8]) -> Result<(), Error> {
        debug_assert!(bytes.len().is_multiple_of(BLOCK_BYTES));
        self.check(start, (bytes.len() / BLOCK_BYTES) as u64)?;
        let stream_end = self.stream_start + (self.stream.len() / BLOCK_BYTES) as u64;
        if start != stream_end || self.stream.len() + bytes.len() > WRITE_BYTES {
            self.flush_data()?;
        }
        if bytes.len() >= STRAIGHT_BYTES {
            self.flush_data()?;
            return write(&mut self.device, start, bytes);
        }
        if self.stream.is_empty() {
            self.stream_start = start;
        }
        self.stream.extend_from_slice(bytes);
        Ok(())
    }

    /// Whole blocks of data.
    pub(crate) fn read_data(&mut self, start: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.check(start, bytes.len().div_ceil(BLOCK_BYTES) as u64)?;
        self.flush_data()?;
        read(&mut self.device, start, bytes)
    }

    /// Writes all that is kept, data first, and gives the device back.
    pub(crate) fn into_device(mut self) -> Result<D, Error> {
        self.flush_data()?;
        self.flush_metadata()?;
        Ok(self.device)
    }

    fn load(&mut self, block: u64, is_read: bool) -> Result<&mut Cached, Error> {
        self.check(block, 1)?;
        if self.blocks.len() >= CACHED_BLOCK_LIMIT && !self.blocks.contains_key(&block) {
            // What is data no more must not be written over what has taken its place.
            self.flush_data()?;
            self.set_metadata_aside()?;
            self.blocks.clear();
        }
        match self.blocks.entry(block) {
            Entry::Occupied(occupied) => Ok(occupied.into_mut()),
            Entry::Vacant(vacant) => {
                let mut bytes = Box::new([0; BLOCK_BYTES]);
                if is_read {
                    read(&mut self.device, block, &mut bytes[..])?;
                }
                Ok(vacant.insert(Cached { bytes, dirty: false }))
            }
        }
    }

    fn check(&self, start: u64, count: u64) -> Result<(), Error> {
        match start.checked_add(count) {
            Some(end) if end <= self.block_count => Ok(()),
            _ => Err(Error::block(start, "a block lies beyond the end of the file system")),
        }
    }

    fn flush_data(&mut self) -> Result<(), Error> {
        if !self.stream.is_empty() {
            write(&mut self.device, self.stream_start, &self.stream)?;
            self.stream.clear();
        }
        Ok(())
    }

    /// Has the device keep what has changed, to be read again.
    fn set_metadata_aside(&mut self) -> Result<(), Error> {
        for (block, cached) in self.blocks.iter().filter(|(_, cached)| cached.dirty) {
            let (offset, length) = (block * BLOCK_BYTES as u64, BLOCK_BYTES as u64);
            let result = self.device.set_aside(offset, &cached.bytes[..]);
            result.map_err(|source| Error::Device { operation: "set aside", offset, length, source })?;
        }
        Ok(())
    }

    /// Writes what has changed, neighbours at once, and what is zeroes as such.
    fn flush_metadata(&mut self) -> Result<(), Error> {
        let mut dirty: Vec<(u64, &mut Cached)> = self
            .blocks
            .iter_mut()
            .filter(|(_, cached)| cached.dirty)
            .map(|(at, cached)| (*at, cached))
            .collect();
        dirty.sort_unstable_by_key(|(block, _)| *block);
        let mut run = Run::default();
        for (block, cached) in dirty {
            run.add(&mut self.device, block, &cached.bytes)?;
            cached.dirty = false;
        }
        run.end(&mut self.device)
    }
}

/// Metadata blocks that follow one another, either all zeroes or with their bytes.
#[derive(Debug, Default)]
struct Run {
    start: u64,
    count: u64,
    /// Empty for zeroes.
    bytes: Vec<u8>,
}

impl Run {
    fn add(&mut self, device: &mut impl Device, block: u64, bytes: &Block) -> Result<(), Error> {
        let is_zero = is_zero(bytes);
        let goes_on = block == self.start + self.count
            && is_zero == self.bytes.is_empty()
            && self.bytes.len() < WRITE_BYTES;
        if self.count > 0 && !goes_on {
            self.end(device)?;
        }
        if self.count == 0 {
            self.start = block;
        }
        self.count += 1;
        if !is_zero {
            self.bytes.extend_from_slice(bytes);
        }
        Ok(())
    }

    fn end(&mut self, device: &mut impl Device) -> Result<(), Error> {
        if self.count > 0 && self.bytes.is_empty() {
            zero(device, self.start, self.count)?;
        } else if self.count > 0 {
            write(device, self.start, &self.bytes)?;
        }
        self.count = 0;
        self.bytes.clear();
        Ok(())
    }
}

/// Whether all bytes are zero. Data mostly shows at its beginning that it is not.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(64).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}

fn read(device: &mut impl Device, block: u64, bytes: &mut [u8]) -> Result<(), Error> {
    let (offset, length) = (block * BLOCK_BYTES as u64, bytes.len() as u64);
    let result = device.read_at(offset, bytes);
    result.map_err(|source| Error::Device { operation: "read", offset, length, source })
}

fn write(device: &mut impl Device, block: u64, bytes: &[u8]) -> Result<(), Error> {
    let (offset, length) = (block * BLOCK_BYTES as u64, bytes.len() as u64);
    let result = device.write_at(offset, bytes);
    result.map_err(|source| Error::Device { operation: "write", offset, length, source })
}

fn zero(device: &mut impl Device, block: u64, count: u64) -> Result<(), Error> {
    let (offset, length) = (block * BLOCK_BYTES as u64, count * BLOCK_BYTES as u64);
    let result = device.zero_at(offset, length);
    result.map_err(|source| Error::Device { operation: "zero", offset, length, source })
}

/// The block and the place in it of an offset in bytes.
pub(crate) fn place(offset: u64) -> (u64, usize) {
    let block_bytes = BLOCK_BYTES as u64;
    (offset / block_bytes, field::index(offset % block_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::MemoryDevice;
    use std::io;

    /// Writes down what it is asked for.
    #[derive(Debug)]
    struct Recorder {
        below: MemoryDevice,
        calls: Vec<(char, u64, u64)>,
    }

    impl Device for Recorder {
        fn size_bytes(&self) -> u64 {
            self.below.size_bytes()
        }

        fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
            self.below.read_at(offset, buffer)
        }

        fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
            self.calls.push(('w', offset / 4096, bytes.len() as u64 / 4096));
            self.below.write_at(offset, bytes)
        }

        fn zero_at(&mut self, offset: u64, length: u64) -> io::Result<()> {
            self.calls.push(('z', offset / 4096, length / 4096));
            self.below.zero_at(offset, length)
        }
    }

    fn cache() -> BlockCache<Recorder> {
        BlockCache::new(Recorder { below: MemoryDevice::new(100_000 * 4096), calls: Vec::new() }, 100_000)
    }

    #[test]
    fn metadata_is_written_once_in_order_and_zeroes_are_said() {
        let mut cache = cache();
        for block in [9, 3, 4, 5, 6, 3] {
            cache.change(block).unwrap().fill(u8::from(block != 5 && block != 6));
        }
        assert_eq!(cache.read(7).unwrap()[0], 0);
        cache.change(50).unwrap().fill(1);
        cache.forget(50, 1);
        cache.write_data(20, &[1; 4096]).unwrap();
        cache.write_data(21, &[1; 8192]).unwrap();
        let calls = cache.into_device().unwrap().calls;
        assert_eq!(calls, [('w', 20, 3), ('w', 3, 2), ('z', 5, 2), ('w', 9, 1)]);
    }

    #[test]
    fn memory_is_bounded_and_what_was_spilled_comes_back() {
        let mut cache = cache();
        for block in 0..40_000 {
            field::put_u32(cache.change(block).unwrap(), 0, u32::try_from(block).unwrap() + 1);
            assert!(cache.blocks.len() <= CACHED_BLOCK_LIMIT);
        }
        for block in (0..40_000).step_by(997) {
            assert_eq!(u64::from(field::u32_at(cache.read(block).unwrap(), 0)), block + 1);
        }
    }

    #[test]
    fn nothing_beyond_the_end_is_touched() {
        let mut cache = cache();
        assert!(cache.read(100_000).is_err() && cache.write_data(99_999, &[0; 8192]).is_err());
        assert!(
            cache.read_data(u64::MAX, &mut [0; 1]).is_err() && cache.read_data(100_000, &mut [0; 1]).is_err()
        );
    }
}
