//! One queue of a device on its reactor: a task for each tag, which fetches a request, has it served and commits it.
//!
//! Nothing is allocated for a request: its task lives as long as the device. When the device is stopped the driver ends
//! every tag's command exactly once with ENODEV; with the last task goes the queue, and with it the engine's queue, the
//! mapping and this side's hold on the file, and then whoever removes the device is told.
#![expect(unsafe_code, reason = "commands carry the addresses of tag buffers")]

use std::{
    any::Any,
    cell::Cell,
    convert::Infallible,
    io,
    os::fd::OwnedFd,
    rc::Rc,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use rustix::io::Errno;

use super::{
    abi,
    abort::Abort,
    descriptor::Work,
    features::CopyMode,
    gate::Gate,
    memory::{Descriptors, TagBuffers},
    transfer,
};
use crate::{
    block::{BlockDevice, BlockError, BlockQueue, ErrorKind, Geometry},
    frontend::FrontendError,
    reactor::{BufferSlot, Reactor},
};

/// Failed requests are logged as warnings no more often than this, and otherwise for debugging only.
const WARNING_INTERVAL: Duration = Duration::from_secs(1);

/// An index that no table has: what a tag without a place says.
const NO_SLOT: u16 = u16::MAX;

/// What a queue is, before it is opened on its reactor.
#[derive(Debug, Clone, Copy)]
pub(super) struct QueuePlan {
    pub(super) device: u32,
    pub(super) queue: u16,
    pub(super) depth: u16,
    pub(super) max_io_bytes: u32,
    /// As it was when the device was attached.
    pub(super) geometry: Geometry,
    pub(super) copy: CopyMode,
    /// Whether the driver puts the pages of requests into the ring's table of buffers.
    pub(super) registers: bool,
    /// FETCH and COMMIT_AND_FETCH as this driver numbers them.
    pub(super) fetch: u32,
    pub(super) commit: u32,
}

/// What a queue shares with the thread that attaches and removes its device.
#[derive(Debug, Clone)]
pub(super) struct Common {
    pub(super) file: Arc<OwnedFd>,
    pub(super) abort: Arc<Abort>,
    /// The requests of this queue that are being worked at.
    pub(super) gate: Arc<Gate>,
    /// Those of this queue, from the moment when all tags are fetched, which is before any request comes.
    pub(super) descriptors: Arc<OnceLock<Descriptors>>,
    /// Size of the device, which may grow.
    pub(super) size_bytes: Arc<AtomicU64>,
    /// Sends nothing: its receiver learns that all queues have gone when all senders have.
    pub(super) serving: mpsc::Sender<Infallible>,
}

/// One tag, and the place in the ring's table for the pages of its requests.
struct Tag {
    number: u16,
    slot: Option<Rc<BufferSlot>>,
    /// What its commands say of that place.
    registration: u64,
}

/// A queue that is open, and of which no tag has been fetched.
pub(super) struct Opened<Q>(Rc<Queue<Q>>);

struct Queue<Q> {
    engine: Q,
    plan: QueuePlan,
    reactor: Reactor,
    warned: Cell<Option<Instant>>,
    /// Of tags, where the driver copies.
    buffers: Option<Rc<TagBuffers>>,
    /// The same in the form in which commands hold it.
    held: Option<Rc<dyn Any>>,
    file: Arc<OwnedFd>,
    abort: Arc<Abort>,
    gate: Arc<Gate>,
    descriptors: Arc<OnceLock<Descriptors>>,
    size_bytes: Arc<AtomicU64>,
    /// Last, since fields are dropped in this order.
    _serving: mpsc::Sender<Infallible>,
}

/// Opens a queue on `reactor`, the calling thread's own.
pub(super) fn open<D: BlockDevice>(
    reactor: &Reactor,
    device: &D,
    plan: QueuePlan,
    common: Common,
) -> Result<Opened<D::Queue>, FrontendError> {
    let (queue, reactor) = (plan.queue, reactor.for_queue());
    let failed = |what| move |source: io::Error| FrontendError::Queue { queue, what, source };
    let room = reactor.request_buffers().limit_bytes();
    // A pool's buffers are powers of two.
    if (plan.max_io_bytes as usize).next_power_of_two() > room {
        let source =
            io::Error::other(format!("the pool has {room} bytes, a request up to {}", plan.max_io_bytes));
        return Err(failed("its requests are larger than the reactor's buffers")(source));
    }
    let engine = device.open_queue(&reactor).map_err(|source| FrontendError::Engine { queue, source })?;
    let buffers = match plan.copy {
        CopyMode::User => None,
        CopyMode::TagBuffer => {
            let buffers = TagBuffers::new(plan.max_io_bytes, plan.depth);
            Some(Rc::new(buffers.map_err(failed("mapping of buffers"))?))
        }
    };
    Ok(Opened(Rc::new(Queue {
        engine,
        plan,
        reactor,
        warned: Cell::new(None),
        held: buffers.clone().map(|buffers| buffers as Rc<dyn Any>),
        buffers,
        file: common.file,
        abort: common.abort,
        gate: common.gate,
        descriptors: common.descriptors,
        size_bytes: common.size_bytes,
        _serving: common.serving,
    })))
}

impl<Q: BlockQueue + 'static> Opened<Q> {
    /// Fetches all tags, within one turn of the loop and so by one system call, as far as the ring has room. Returns when
    /// the driver has them.
    pub(super) async fn fetch(self) {
        for tag in 0..self.0.plan.depth {
            self.0.reactor.spawn(serve_tag(Rc::clone(&self.0), tag));
        }
        // In the next turn they ask, at the end of that the ring is submitted, and then comes the one after it.
        self.0.reactor.yield_now().await;
        self.0.reactor.yield_now().await;
    }
}

async fn serve_tag<Q: BlockQueue>(queue: Rc<Queue<Q>>, number: u16) {
    let mut tag = Tag { number, slot: None, registration: 0 };
    if queue.plan.registers {
        tag.slot = queue.reactor.buffer_slot();
        tag.registration = abi::registration(tag.slot.as_ref().map_or(NO_SLOT, |slot| slot.index()));
    }
    queue.abort.join().await;
    if queue.abort.is_set() {
        // Removed before it was started: the driver would keep the command.
        return;
    }
    let mut operation = queue.plan.fetch;
    let mut result = 0;
    loop {
        match queue.exchange(operation, &tag, result).await {
            Ok(0) => {}
            Err(error) if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => return,
            outcome => {
                // The driver's own rules exclude this; the tag cannot be fetched again, and the others go on.
                let QueuePlan { device, queue, .. } = queue.plan;
                tracing::error!(
                    device,
                    queue,
                    tag = tag.number,
                    ?outcome,
                    "the driver answered what it must not: tag lost"
                );
                return;
            }
        }
        let Some(_at_work) = queue.gate.enter() else {
            // The device has been left: what is not answered comes to its next server when this process has ended.
            return std::future::pending().await;
        };
        result = queue.answer(&tag).await;
        operation = queue.plan.commit;
    }
}

impl<Q: BlockQueue> Queue<Q> {
    /// Gives the tag to the driver, with the result of its last request, and waits for its next request.
    async fn exchange(&self, operation: u32, tag: &Tag, result: i32) -> io::Result<u32> {
        let command = abi::ublksrv_io_cmd {
            q_id: self.plan.queue,
            tag: tag.number,
            result,
            addr: self.buffers.as_ref().map_or(0, |buffers| buffers.address(tag.number)),
        };
        let argument = abi::bytes_of(&command).try_into().expect("the struct has 16 bytes");
        // SAFETY: the address is zero or that of the tag's own buffer, which lies in what is held, and which only this tag's
        // task borrows, and only between two of these commands. The registration is no address.
        unsafe { self.reactor.command(&self.file, operation, argument, tag.registration, self.held.as_ref()) }
            .await
    }

    /// Serves the request that the tag now describes; returns what to commit: a count of bytes or a negative errno.
    async fn answer(&self, tag: &Tag) -> i32 {
        let Some(descriptors) = self.descriptors.get() else {
            // They are there before the device is started: another program has done that.
            return -ErrorKind::Io.errno().raw_os_error();
        };
        let mut descriptor = descriptors.of_tag(tag.number);
        let mut slot = None;
        if self.plan.registers {
            let registered;
            (descriptor, registered) = descriptor.registered();
            slot = tag.slot.as_ref().filter(|_| registered);
        }
        let size_bytes = self.size_bytes.load(Ordering::Acquire);
        let geometry = Geometry { size_bytes, ..self.plan.geometry };
        let guarded = match descriptor.check(&geometry, self.plan.max_io_bytes) {
            Ok(work) => self.abort.guard(self.perform(tag.number, slot, work)).await,
            Err(error) => Err(BlockError::with_source(error.kind(), "a request breaks a rule", error)),
        };
        // What the engine itself returns it has counted.
        let outcome = guarded.inspect_err(|_| self.engine.count_failure()).flatten();
        match outcome {
            Ok(count) => i32::try_from(count).expect("the largest request is 32 MiB"),
            Err(error) => {
                self.report(tag.number, &error, || format!("{descriptor:?}"));
                // An errno is a small positive number, so that this cannot overflow.
                -error.kind().errno().raw_os_error()
            }
        }
    }

    async fn perform(&self, tag: u16, slot: Option<&Rc<BufferSlot>>, work: Work) -> Result<u32, BlockError> {
        match work {
            Work::Read { offset, len } => {
                if let Some(slot) = slot
                    && self.engine.read_to_slot(offset, len, slot).await
                {
                    return Ok(len);
                }
                match self.plan.copy {
                    CopyMode::User => {
                        let pool = self.reactor.request_buffers();
                        let data = self.engine.read_pooled(offset, len as usize, pool).await?;
                        self.reactor.copied(data.len());
                        transfer::deliver(&self.file, abi::data_position(self.plan.queue, tag), &data)
                            .inspect_err(|_| self.engine.count_failure())?;
                    }
                    // The driver takes what is in a tag's buffer by itself.
                    CopyMode::TagBuffer => self.engine.read(offset, self.data_of_tag(tag, len)?).await?,
                }
                Ok(len)
            }
            Work::Write { offset, len, durable } => {
                match self.plan.copy {
                    CopyMode::User => {
                        let position = abi::data_position(self.plan.queue, tag);
                        let collect = |data: &mut [u8]| {
                            transfer::collect(&self.file, position, data)
                                .inspect_err(|_| self.engine.count_failure())
                        };
                        self.reactor.stretch().await;
                        self.reactor.copied(len as usize);
                        let pool = self.reactor.request_buffers();
                        self.engine.write_pooled(offset, len as usize, pool, collect).await?;
                    }
                    CopyMode::TagBuffer => self.engine.write(offset, self.data_of_tag(tag, len)?).await?,
                }
                if durable {
                    self.engine.flush().await?;
                }
                Ok(len)
            }
            Work::Flush => self.engine.flush().await.map(|()| 0),
            // The driver takes any count for all of it.
            Work::Zero { offset, len } => self.engine.write_zeroes(offset, len).await.map(|()| 0),
        }
    }

    /// The tag's own memory for a request's data.
    #[expect(
        clippy::mut_from_ref,
        reason = "each tag has a buffer of its own, and a task of its own to use it"
    )]
    fn data_of_tag(&self, tag: u16, len: u32) -> Result<&mut [u8], BlockError> {
        // SAFETY: the request has been delivered and is not yet committed, a tag's task serves one at a time, and `perform`
        // calls this once for each.
        let data = self.buffers.as_ref().and_then(|buffers| unsafe { buffers.data(tag, len) });
        data.ok_or_else(|| BlockError::new(ErrorKind::Invalid, "a tag's buffer is too short"))
    }

    /// Logs a failed request: a device on a lost image fails thousands a second.
    fn report(&self, tag: u16, error: &BlockError, request: impl FnOnce() -> String) {
        let QueuePlan { device, queue, .. } = self.plan;
        let now = Instant::now();
        let quiet = self.warned.get().is_some_and(|last| now.duration_since(last) < WARNING_INTERVAL);
        let cause = std::error::Error::source(error);
        if quiet {
            tracing::debug!(device, queue, tag, request = request(), %error, cause, "a request failed");
        } else {
            self.warned.set(Some(now));
            tracing::warn!(device, queue, tag, request = request(), %error, cause, "a request failed");
        }
    }
}
