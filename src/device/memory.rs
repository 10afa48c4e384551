//! A device whose bytes lie in memory: the model that other devices are compared with.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use crate::{
    block::{BlockDevice, BlockError, BlockQueue, ErrorKind, Geometry, GeometryError},
    reactor::Reactor,
};

/// A device in memory. Clones share their bytes.
///
/// One lock spans all of it, so that every request is atomic as a whole: more than a disk promises, which makes it a model.
#[derive(Clone)]
pub struct MemoryDevice {
    geometry: Geometry,
    bytes: Arc<RwLock<Vec<u8>>>,
}

/// The queue of a [`MemoryDevice`].
#[derive(Debug)]
pub struct MemoryQueue {
    device: MemoryDevice,
}

/// Why a device in memory cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The geometry contradicts itself.
    #[error("the geometry of a device in memory is wrong")]
    Geometry(#[from] GeometryError),
    /// There is not that much memory.
    #[error("cannot allocate {size_bytes} bytes for a device in memory")]
    TooLarge {
        /// The size asked for in bytes.
        size_bytes: u64,
    },
}

impl MemoryDevice {
    /// A device of zeroes.
    ///
    /// # Errors
    /// A geometry that contradicts itself, or is larger than memory.
    pub fn new(geometry: Geometry) -> Result<Self, MemoryError> {
        geometry.validate()?;
        let too_large = MemoryError::TooLarge { size_bytes: geometry.size_bytes };
        let Ok(len) = usize::try_from(geometry.size_bytes) else { return Err(too_large) };
        let mut bytes = Vec::new();
        if bytes.try_reserve_exact(len).is_err() {
            return Err(too_large);
        }
        bytes.resize(len, 0);
        Ok(Self { geometry, bytes: Arc::new(RwLock::new(bytes)) })
    }

    /// A device that holds `bytes` and has the size of these, whatever `geometry` says of its own.
    ///
    /// # Errors
    /// A geometry that contradicts itself or the number of bytes.
    pub fn with_bytes(geometry: Geometry, bytes: Vec<u8>) -> Result<Self, MemoryError> {
        let geometry = Geometry { size_bytes: bytes.len() as u64, ..geometry };
        geometry.validate()?;
        Ok(Self { geometry, bytes: Arc::new(RwLock::new(bytes)) })
    }

    /// A copy of all bytes as they are now.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.bytes.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn outside(&self, offset: u64, len: u64) -> BlockError {
        let size_bytes = self.geometry.size_bytes;
        let error = GeometryError::Outside { offset, len, size_bytes };
        BlockError::with_source(ErrorKind::Invalid, "cannot reach the memory", error)
    }

    /// Lets `change` at the bytes of a range.
    fn change(&self, offset: u64, len: u64, change: impl FnOnce(&mut [u8])) -> Result<(), BlockError> {
        if self.geometry.read_only {
            return Err(BlockError::new(ErrorKind::ReadOnly, "the device in memory is read-only"));
        }
        let mut bytes = self.bytes.write().unwrap_or_else(PoisonError::into_inner);
        match indexes(offset, len).and_then(|range| bytes.get_mut(range)) {
            Some(target) => change(target),
            None => return Err(self.outside(offset, len)),
        }
        Ok(())
    }
}

fn indexes(offset: u64, len: u64) -> Option<std::ops::Range<usize>> {
    let end = offset.checked_add(len)?;
    Some(usize::try_from(offset).ok()?..usize::try_from(end).ok()?)
}

impl BlockDevice for MemoryDevice {
    type Queue = MemoryQueue;

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn open_queue(&self, _reactor: &Reactor) -> Result<MemoryQueue, BlockError> {
        Ok(MemoryQueue { device: self.clone() })
    }
}

impl BlockQueue for MemoryQueue {
    async fn read(&self, offset: u64, dest: &mut [u8]) -> Result<(), BlockError> {
        let bytes = self.device.bytes.read().unwrap_or_else(PoisonError::into_inner);
        let len = dest.len() as u64;
        match indexes(offset, len).and_then(|range| bytes.get(range)) {
            Some(source) => dest.copy_from_slice(source),
            None => return Err(self.device.outside(offset, len)),
        }
        Ok(())
    }

    async fn write(&self, offset: u64, data: &[u8]) -> Result<(), BlockError> {
        self.device.change(offset, data.len() as u64, |target| target.copy_from_slice(data))
    }

    async fn flush(&self) -> Result<(), BlockError> {
        Ok(())
    }

    async fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        self.device.change(offset, len, |target| target.fill(0))
    }
}

impl fmt::Debug for MemoryDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryDevice").field("geometry", &self.geometry).finish_non_exhaustive()
    }
}
