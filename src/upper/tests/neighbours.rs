//! Requests that wait for something else than the medium hold no buffer, and those that hang with theirs leave others one.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::{future::join_all, poll};

use super::{BELOW_SECTORS, Kind, SECTORS, crash_image::SECTOR, fresh_disk_of, open, reactor};
use crate::{
    block::{BlockDevice, BlockError, BlockQueue, ByteRange, ErrorKind, Geometry, acquire},
    device::{Fault, FaultPlan, FaultyDevice, MemoryDevice, Op, Trouble},
    reactor::{Buffer, BufferPool, Reactor, ReactorConfig, Watched},
    upper::{LogLimits, Overlay},
};

/// More requests than any pool has buffers for.
const REQUESTS: usize = 64;

fn memory() -> MemoryDevice {
    let size_bytes = SECTORS * SECTOR;
    MemoryDevice::new(Geometry { read_only: false, ..Geometry::read_only(size_bytes, 512) }).unwrap()
}

fn ones(data: &mut [u8]) -> Result<(), BlockError> {
    data.fill(1);
    Ok(())
}

/// Polls all of them until they wait for something else than the reactor.
async fn settle<F: Future>(reactor: &Reactor, requests: &mut [Pin<Box<F>>]) {
    for _ in 0..10 {
        for request in &mut *requests {
            assert!(poll!(request.as_mut()).is_pending());
        }
        reactor.sleep(Duration::ZERO).await;
    }
}

#[test]
fn writes_that_hang_leave_a_neighbour_its_buffers() {
    let config = ReactorConfig { request_buffer_bytes: 64 << 10, ..ReactorConfig::default() };
    let owner = Reactor::new(&config).unwrap();
    let work = async {
        let every = ByteRange::between(0, u64::MAX);
        let plan = FaultPlan::new([Fault::at(Op::Write, every, Trouble::Hang)]);
        // Two that hang, since one alone leaves half of the pool.
        let hung = [(); 2].map(|()| (owner.for_queue(), FaultyDevice::new(memory(), plan.clone())));
        let queues: Vec<_> = hung.iter().map(|(handle, device)| device.open_queue(handle).unwrap()).collect();
        let mut stuck = Vec::new();
        for (queue, (handle, _)) in queues.iter().zip(&hung) {
            let write = || Box::pin(queue.write_pooled(0, 16 << 10, handle.request_buffers(), ones));
            stuck.extend((0..REQUESTS).map(|_| write()));
        }
        settle(&owner, &mut stuck).await;
        let handle = owner.for_queue();
        let neighbour = memory().open_queue(&handle).unwrap();
        for _ in 0..REQUESTS {
            let mut read = Box::pin(neighbour.read_pooled(0, 32 << 10, handle.request_buffers()));
            assert!(poll!(read.as_mut()).is_ready(), "it had to wait");
            let mut write = Box::pin(neighbour.write_pooled(0, 32 << 10, handle.request_buffers(), ones));
            assert!(poll!(write.as_mut()).is_ready(), "it had to wait");
        }
        plan.clear();
        plan.release();
        join_all(stuck).await.into_iter().for_each(|written| written.unwrap());
        assert_eq!(owner.request_buffers().out_bytes(), 0);
    };
    owner.block_on(work).unwrap();
}

#[test]
fn writes_that_wait_at_the_gate_hold_no_buffer() {
    let reactor = reactor();
    let work = async {
        for kind in Kind::ALL {
            let disk = fresh_disk_of(&reactor, kind, 1).await;
            let device = open(&reactor, &disk).await;
            let queue = device.open_queue(&reactor).unwrap();
            let pool = reactor.request_buffers();
            let closed = device.stack.gate.close().await;
            let mut writes: Vec<_> =
                (0..REQUESTS).map(|_| Box::pin(queue.write_pooled(0, 512, pool, ones))).collect();
            settle(&reactor, &mut writes).await;
            assert_eq!(pool.out_bytes(), 0, "{kind:?}");
            drop(closed);
            join_all(writes).await.into_iter().for_each(|written| written.unwrap());
        }
    };
    reactor.block_on(work).unwrap();
}

#[test]
fn requests_that_wait_for_what_completes_a_block_hold_no_buffer() {
    let reactor = reactor();
    let work = async {
        let disk = fresh_disk_of(&reactor, Kind::Sparse, 1).await;
        let every = ByteRange::between(0, u64::MAX);
        let plan = FaultPlan::new([Fault::at(Op::Read, every, Trouble::Hang)]);
        let lower = FaultyDevice::new(memory(), plan.clone());
        let device =
            Overlay::open(&reactor, disk.layer_files(), Some(lower), LogLimits::default()).await.unwrap();
        let queue = device.open_queue(&reactor).unwrap();
        let pool = reactor.request_buffers();
        // The first completes its block, the others wait for the first.
        let mut writes: Vec<_> =
            (0..REQUESTS).map(|_| Box::pin(queue.write_pooled(512, 512, pool, ones))).collect();
        settle(&reactor, &mut writes).await;
        assert_eq!(pool.out_bytes(), 0);
        plan.clear();
        let mut reads: Vec<_> = (0..REQUESTS).map(|_| Box::pin(queue.read_pooled(512, 512, pool))).collect();
        settle(&reactor, &mut reads).await;
        assert_eq!(pool.out_bytes(), 0, "what comes from below is there, and what was written is not");
        plan.release();
        join_all(writes).await.into_iter().for_each(|written| written.unwrap());
        for read in join_all(reads).await {
            assert!(read.unwrap().iter().all(|byte| *byte == 1));
        }
    };
    reactor.block_on(work).unwrap();
}

#[test]
fn reads_across_the_end_of_what_lies_below_hold_no_buffer_while_they_wait_for_it() {
    let reactor = reactor();
    let work = async {
        let disk = fresh_disk_of(&reactor, Kind::Log, 1).await;
        let source = Far::new((BELOW_SECTORS - 1) * SECTOR);
        let lower = source.clone();
        let device =
            Overlay::open(&reactor, disk.layer_files(), Some(lower), LogLimits::default()).await.unwrap();
        let queue = device.open_queue(&reactor).unwrap();
        let pool = reactor.request_buffers();
        let offset = (BELOW_SECTORS - 2) * SECTOR;
        let mut reads: Vec<_> =
            (0..REQUESTS).map(|_| Box::pin(queue.read_pooled(offset, 4096, pool))).collect();
        settle(&reactor, &mut reads).await;
        assert_eq!(pool.out_bytes(), 0);
        source.come();
        for read in join_all(reads).await {
            let bytes = read.unwrap();
            assert!(bytes[..512].iter().all(|byte| *byte == 7) && bytes[512..].iter().all(|byte| *byte == 0));
        }
    };
    reactor.block_on(work).unwrap();
}

/// A device whose bytes are far until they come. Like an image, it holds no buffer of a pool until then.
#[derive(Debug, Clone)]
struct Far {
    near: Arc<Watched<bool>>,
    size_bytes: u64,
}

impl Far {
    fn new(size_bytes: u64) -> Self {
        Self { near: Arc::default(), size_bytes }
    }

    fn come(&self) {
        self.near.change(|near| *near = true);
    }
}

impl BlockDevice for Far {
    type Queue = Self;

    fn geometry(&self) -> Geometry {
        Geometry::read_only(self.size_bytes, 512)
    }

    fn open_queue(&self, _reactor: &Reactor) -> Result<Self, BlockError> {
        Ok(self.clone())
    }
}

impl BlockQueue for Far {
    async fn read(&self, _offset: u64, dest: &mut [u8]) -> Result<(), BlockError> {
        self.near.wait(|near| near.then(|| dest.fill(7))).await;
        Ok(())
    }

    async fn read_pooled(&self, offset: u64, len: usize, pool: &BufferPool) -> Result<Buffer, BlockError> {
        self.near.wait(|near| near.then_some(())).await;
        let mut dest = acquire(pool, len).await?;
        self.read(offset, &mut dest).await?;
        Ok(dest)
    }

    async fn write(&self, _offset: u64, _data: &[u8]) -> Result<(), BlockError> {
        Err(BlockError::new(ErrorKind::ReadOnly, "nobody writes below"))
    }

    async fn flush(&self) -> Result<(), BlockError> {
        Ok(())
    }

    async fn write_zeroes(&self, _offset: u64, _len: u64) -> Result<(), BlockError> {
        Err(BlockError::new(ErrorKind::ReadOnly, "nobody writes below"))
    }
}
