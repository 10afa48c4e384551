//! What a file system lies on: bytes of a known size that can be read, written and zeroed.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, ErrorKind},
    os::unix::fs::FileExt,
};

use crate::field;

/// The grain of the [`MemoryDevice`]: that of the file systems on it.
const PAGE_BYTES: usize = 4096;
/// What a [`FileDevice`] writes at once where it is zeroed.
static ZEROES: [u8; 1 << 16] = [0; 1 << 16];

/// A device: a file, a stack of layers with a new one on top, memory.
///
/// Ranges lie within [`Device::size_bytes`], and writes of the file system are whole blocks of 4,096 bytes in their places.
/// Data comes as it is written, and is not read again; what describes it comes once, when a layer is finished, in ascending order, but for
/// what is set aside before.
pub trait Device {
    /// How many bytes there are.
    fn size_bytes(&self) -> u64;

    /// Fills `buffer` with what lies at `offset`; what was never written reads as zeroes.
    ///
    /// # Errors
    /// What keeps all of it from being read.
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// What keeps all of it from being written.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Has a range read as zeroes from now on, whatever lay there before, also in a layer below.
    ///
    /// # Errors
    /// What keeps it from that.
    fn zero_at(&mut self, offset: u64, length: u64) -> io::Result<()>;

    /// Keeps what describes the data and has no room in memory any more. It is read again, and written, set aside or zeroed once more if
    /// it changes; where it does not, it counts as written in the end. For a device on which nothing is final this is a write.
    ///
    /// # Errors
    /// What keeps all of it from being kept.
    fn set_aside(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_at(offset, bytes)
    }
}

/// A file of fixed size. What was never written in a new one is a hole.
#[derive(Debug)]
pub struct FileDevice {
    file: File,
    size_bytes: u64,
}

/// Memory: only pages that are not zero take any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryDevice {
    pages: HashMap<u64, Box<[u8]>>,
    size_bytes: u64,
}

impl FileDevice {
    /// All of `file`.
    ///
    /// # Errors
    /// When its size cannot be had.
    pub fn new(file: File) -> io::Result<Self> {
        let size_bytes = file.metadata()?.len();
        Ok(Self { file, size_bytes })
    }
}

impl MemoryDevice {
    /// Zeroes.
    #[must_use]
    pub fn new(size_bytes: u64) -> Self {
        Self { pages: HashMap::new(), size_bytes }
    }

    /// How many pages of 4,096 bytes are not zero.
    #[must_use]
    pub fn page_count(&self) -> usize {
        self.pages.len()
    }

    /// Calls `each` with the part of each page that a range touches: the page's number, and the parts within page and range.
    fn parts(&self, offset: u64, length: u64) -> io::Result<Vec<(u64, usize, usize)>> {
        if offset.checked_add(length).is_none_or(|end| end > self.size_bytes) {
            return Err(io::Error::new(ErrorKind::InvalidInput, "beyond the end of the device"));
        }
        let page_bytes = PAGE_BYTES as u64;
        let mut parts = Vec::new();
        let (mut at, end) = (offset, offset + length);
        while at < end {
            let inside = at % page_bytes;
            let taken = (page_bytes - inside).min(end - at);
            parts.push((at / page_bytes, field::index(inside), field::index(taken)));
            at += taken;
        }
        Ok(parts)
    }
}

impl Device for FileDevice {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn zero_at(&mut self, offset: u64, length: u64) -> io::Result<()> {
        let mut done = 0;
        while done < length {
            let piece = ZEROES.get(..field::index(length - done)).unwrap_or(&ZEROES);
            self.file.write_all_at(piece, offset + done)?;
            done += piece.len() as u64;
        }
        Ok(())
    }
}

impl Device for MemoryDevice {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&mut self, offset: u64, mut buffer: &mut [u8]) -> io::Result<()> {
        for (page, inside, taken) in self.parts(offset, buffer.len() as u64)? {
            let (part, rest) = buffer.split_at_mut(taken);
            match self.pages.get(&page).and_then(|bytes| bytes.get(inside..inside + taken)) {
                Some(bytes) => part.copy_from_slice(bytes),
                None => part.fill(0),
            }
            buffer = rest;
        }
        Ok(())
    }

    fn write_at(&mut self, offset: u64, mut bytes: &[u8]) -> io::Result<()> {
        for (page, inside, taken) in self.parts(offset, bytes.len() as u64)? {
            let (part, rest) = bytes.split_at(taken);
            let page = self.pages.entry(page).or_insert_with(|| vec![0; PAGE_BYTES].into_boxed_slice());
            field::put(page, inside, part);
            bytes = rest;
        }
        Ok(())
    }

    fn zero_at(&mut self, offset: u64, length: u64) -> io::Result<()> {
        for (page, inside, taken) in self.parts(offset, length)? {
            if taken == PAGE_BYTES {
                self.pages.remove(&page);
            } else if let Some(bytes) = self.pages.get_mut(&page) {
                field::put(bytes, inside, ZEROES.get(..taken).unwrap_or(&ZEROES));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_members_keep_what_was_written_and_zero_what_is_zeroed() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(20_000).unwrap();
        let mut devices: [Box<dyn Device>; 2] =
            [Box::new(FileDevice::new(file).unwrap()), Box::new(MemoryDevice::new(20_000))];
        for device in &mut devices {
            device.write_at(4000, &[7; 9000]).unwrap();
            device.zero_at(4096, 5000).unwrap();
            let mut read = vec![1; 20_000];
            device.read_at(0, &mut read).unwrap();
            let expected = [vec![0; 4000], vec![7; 96], vec![0; 5000], vec![7; 3904], vec![0; 7000]].concat();
            assert!(read == expected);
            assert!(device.read_at(19_999, &mut [0; 2]).is_err());
        }
    }
}
