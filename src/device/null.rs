//! A device of zeroes that swallows writes: what it costs is the frontend's cost.

use crate::{
    block::{BlockDevice, BlockError, BlockQueue, ErrorKind, Geometry, GeometryError},
    reactor::Reactor,
};

/// Reads as zeroes at once, forgets what is written.
#[derive(Debug, Clone)]
pub struct NullDevice {
    geometry: Geometry,
}

/// The queue of a [`NullDevice`].
#[derive(Debug)]
pub struct NullQueue {
    read_only: bool,
}

impl NullDevice {
    /// A device of this shape.
    ///
    /// # Errors
    /// Where the geometry contradicts itself.
    pub fn new(geometry: Geometry) -> Result<Self, GeometryError> {
        geometry.validate()?;
        Ok(Self { geometry })
    }
}

impl BlockDevice for NullDevice {
    type Queue = NullQueue;

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn open_queue(&self, _reactor: &Reactor) -> Result<NullQueue, BlockError> {
        Ok(NullQueue { read_only: self.geometry.read_only })
    }
}

impl NullQueue {
    fn swallow(&self) -> Result<(), BlockError> {
        if self.read_only {
            return Err(BlockError::new(ErrorKind::ReadOnly, "the null device is read-only"));
        }
        Ok(())
    }
}

impl BlockQueue for NullQueue {
    async fn read(&self, _offset: u64, dest: &mut [u8]) -> Result<(), BlockError> {
        dest.fill(0);
        Ok(())
    }

    async fn write(&self, _offset: u64, _data: &[u8]) -> Result<(), BlockError> {
        self.swallow()
    }

    async fn flush(&self) -> Result<(), BlockError> {
        Ok(())
    }

    async fn write_zeroes(&self, _offset: u64, _len: u64) -> Result<(), BlockError> {
        self.swallow()
    }
}
