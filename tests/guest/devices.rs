//! What the tests of devices share: reactors, patterns, a device that takes notes, and direct access to a node.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::{Arc, Mutex},
};

use stratabd::{
    block::{BlockDevice, BlockError, BlockQueue, Geometry},
    device::{FaultPlan, FaultyDevice, MemoryDevice},
    frontend::ublk::{mark_io_flusher, prepare_serving_thread},
    reactor::{Reactor, ReactorConfig, ReactorHandle, ReactorThread},
};

/// Alignment that direct access wants of memory.
const ALIGNMENT: usize = 4096;

/// Threads that serve devices as the daemon's do.
pub(crate) struct Reactors(Vec<ReactorThread>);

impl Reactors {
    pub(crate) fn start(count: usize) -> Self {
        let start = |number| {
            let name = format!("serving-{number}");
            let prepare = || mark_io_flusher().and_then(|()| prepare_serving_thread());
            ReactorThread::start(&name, ReactorConfig::default(), prepare).expect("a reactor")
        };
        Self((0..count).map(start).collect())
    }

    pub(crate) fn handles(&self) -> Vec<ReactorHandle> {
        self.0.iter().map(ReactorThread::handle).collect()
    }
}

/// Bytes that tell their place: no two sectors are alike, and `seed` makes another such pattern.
pub(crate) fn pattern(size_bytes: usize, seed: u64) -> Vec<u8> {
    let word = |index: u64| (index + (seed << 40)).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    (0..size_bytes as u64 / 8).flat_map(word).collect()
}

/// A geometry that takes writes and discards.
pub(crate) fn writable(size_bytes: u64, block_bytes: u32) -> Geometry {
    Geometry { read_only: false, discard: true, ..Geometry::read_only(size_bytes, block_bytes) }
}

/// A device in memory that takes writes and discards.
pub(crate) fn memory(size_bytes: usize, seed: u64) -> MemoryDevice {
    MemoryDevice::with_bytes(writable(0, 512), pattern(size_bytes, seed)).expect("the geometry is sound")
}

/// A device in memory whose operations meet the faults of the plan.
pub(crate) fn faulty(size_bytes: usize) -> (Arc<FaultyDevice<MemoryDevice>>, FaultPlan) {
    let plan = FaultPlan::default();
    (Arc::new(FaultyDevice::new(memory(size_bytes, 1), plan.clone())), plan)
}

/// An operation as an engine saw it: name, offset and length in bytes.
pub(crate) type Note = (&'static str, u64, u64);

/// Takes notes of all operations before it passes them on; panics at those that read the byte `trap`.
#[derive(Clone)]
pub(crate) struct NotingDevice<D> {
    pub(crate) inner: D,
    pub(crate) notes: Arc<Mutex<Vec<Note>>>,
    pub(crate) trap: Option<u64>,
}

pub(crate) struct NotingQueue<Q> {
    inner: Q,
    notes: Arc<Mutex<Vec<Note>>>,
    trap: Option<u64>,
}

impl<D> NotingDevice<D> {
    pub(crate) fn new(inner: D) -> Self {
        Self { inner, notes: Arc::default(), trap: None }
    }

    /// The notes since the last call.
    pub(crate) fn take(&self) -> Vec<Note> {
        std::mem::take(&mut self.notes.lock().expect("no test panics while it notes"))
    }
}

impl<D: BlockDevice> BlockDevice for NotingDevice<D> {
    type Queue = NotingQueue<D::Queue>;

    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn open_queue(&self, reactor: &Reactor) -> Result<Self::Queue, BlockError> {
        let inner = self.inner.open_queue(reactor)?;
        Ok(NotingQueue { inner, notes: Arc::clone(&self.notes), trap: self.trap })
    }
}

impl<Q> NotingQueue<Q> {
    fn note(&self, name: &'static str, offset: u64, len: u64) {
        self.notes.lock().expect("no test panics while it notes").push((name, offset, len));
    }
}

impl<Q: BlockQueue> BlockQueue for NotingQueue<Q> {
    async fn read(&self, offset: u64, dest: &mut [u8]) -> Result<(), BlockError> {
        let len = dest.len() as u64;
        self.note("read", offset, len);
        assert!(!self.trap.is_some_and(|trap| (offset..offset + len).contains(&trap)), "the trap was read");
        self.inner.read(offset, dest).await
    }

    async fn write(&self, offset: u64, data: &[u8]) -> Result<(), BlockError> {
        self.note("write", offset, data.len() as u64);
        self.inner.write(offset, data).await
    }

    fn count_failure(&self) {
        self.note("failure", 0, 0);
    }

    async fn flush(&self) -> Result<(), BlockError> {
        self.note("flush", 0, 0);
        self.inner.flush().await
    }

    async fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        self.note("zero", offset, len);
        self.inner.write_zeroes(offset, len).await
    }
}

/// A node opened past the page cache, so that each call is one request to the driver.
pub(crate) struct Direct(File);

impl Direct {
    pub(crate) fn open(path: &Path, write: bool) -> Self {
        let flags = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).expect("flags are small");
        Self(OpenOptions::new().read(true).write(write).custom_flags(flags).open(path).expect("the node"))
    }

    /// With every write durable before it returns.
    pub(crate) fn open_durable(path: &Path) -> Self {
        let flags = rustix::fs::OFlags::DIRECT | rustix::fs::OFlags::DSYNC;
        let flags = i32::try_from(flags.bits()).expect("flags are small");
        Self(OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).expect("the node"))
    }

    pub(crate) fn file(&self) -> &File {
        &self.0
    }

    pub(crate) fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut memory = vec![0xa5; len + ALIGNMENT];
        let place = aligned(&mut memory, len);
        let count = self.0.read_at(place, offset)?;
        Ok(place.get(..count).expect("as many as fit").to_vec())
    }

    pub(crate) fn write(&self, offset: u64, data: &[u8]) -> io::Result<usize> {
        let mut memory = vec![0; data.len() + ALIGNMENT];
        let place = aligned(&mut memory, data.len());
        place.copy_from_slice(data);
        self.0.write_at(place, offset)
    }
}

/// The part of `memory` that direct access may use.
fn aligned(memory: &mut [u8], len: usize) -> &mut [u8] {
    let start = memory.as_ptr().align_offset(ALIGNMENT);
    memory.get_mut(start..).and_then(|place| place.get_mut(..len)).expect("there is room for the alignment")
}

/// All bytes of a small file or node, through the page cache.
pub(crate) fn content(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)).expect("the file can be read");
    bytes
}
