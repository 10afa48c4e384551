//! A frontend that reads by itself what it is given, as programs would.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, RecvError},
    },
    time::{Duration, Instant},
};

use futures_channel::oneshot;
use futures_util::future::{join_all, select};
use stratabd::{
    block::{BlockDevice, BlockQueue},
    frontend::{AttachRequest, Attachment, Frontend, FrontendError, Mark, NullFrontend},
    reactor::{Reactor, ReactorHandle},
};

/// Requests under way in a flood.
const DEPTH: usize = 128;

/// Reads of [`Work::Now`], and how long it is quiet after each.
const READS: usize = 2000;
const PAUSE: Duration = Duration::from_micros(500);

#[derive(Clone, Copy)]
pub(crate) enum Work {
    /// All of the device once.
    All,
    /// A read of 4 KiB anywhere, now and then.
    Now,
    /// As many reads of so many bytes anywhere as a queue has, without end.
    Flood(usize),
}

/// A frontend for one device.
pub(crate) struct Load {
    work: Work,
    sender: mpsc::Sender<Vec<Duration>>,
    times: mpsc::Receiver<Vec<Duration>>,
    /// Dropped to end the work.
    hold: Mutex<Option<oneshot::Sender<Infallible>>>,
}

impl Load {
    pub(crate) fn new(work: Work) -> Self {
        let (sender, times) = mpsc::channel();
        Self { work, sender, times, hold: Mutex::default() }
    }

    /// Waits until the work has been done; says how long each read took.
    pub(crate) fn times(self) -> Result<Vec<Duration>, RecvError> {
        let Self { sender, times, hold, .. } = self;
        drop(sender);
        let done = times.recv();
        drop(hold);
        done
    }
}

impl Frontend for Load {
    fn attach<D: BlockDevice>(
        &self,
        device: &Arc<D>,
        request: &AttachRequest,
        reactors: &[ReactorHandle],
    ) -> Result<Box<dyn Attachment>, FrontendError> {
        let attachment = NullFrontend::new().attach(device, request, reactors)?;
        let (hold, held) = oneshot::channel();
        *self.hold.lock().unwrap_or_else(PoisonError::into_inner) = Some(hold);
        let (device, work, sender) = (Arc::clone(device), self.work, self.sender.clone());
        let reactor = reactors.first().ok_or(FrontendError::NoReactor { queue: 0 })?;
        reactor.spawn(move |reactor| {
            let reactor = reactor.for_queue();
            async move {
                let queue = device.open_queue(&reactor).expect("a queue");
                let size = device.geometry().size_bytes;
                let work = Box::pin(async { drop(sender.send(do_work(&reactor, &queue, size, work).await)) });
                select(work, held).await;
            }
        });
        Ok(attachment)
    }

    fn take_over<D: BlockDevice>(
        &self,
        _device: &Arc<D>,
        id: u32,
        _mark: Option<Mark>,
        _reactors: &[ReactorHandle],
        _deadline: Duration,
    ) -> Result<Box<dyn Attachment>, FrontendError> {
        Err(FrontendError::NotWaiting(id))
    }
}

async fn do_work<Q: BlockQueue>(reactor: &Reactor, queue: &Q, size: u64, work: Work) -> Vec<Duration> {
    let pool = reactor.request_buffers();
    let mut times = Vec::new();
    match work {
        Work::All => {
            for offset in (0..size).step_by(1 << 20) {
                let len = (size - offset).min(1 << 20) as usize;
                queue.read_pooled(offset, len, pool).await.expect("a read");
            }
        }
        Work::Now => {
            let mut random = fastrand::Rng::with_seed(1);
            for _ in 0..READS {
                let due = Instant::now() + PAUSE;
                reactor.sleep(PAUSE).await;
                let offset = random.u64(0..size / 4096) * 4096;
                queue.read_pooled(offset, 4096, pool).await.expect("a read of what the cache has");
                times.push(due.elapsed());
            }
        }
        Work::Flood(len) => {
            let stream = async |number: usize| {
                let mut random = fastrand::Rng::with_seed(number as u64);
                loop {
                    let offset = random.u64(0..=(size - len as u64) / 4096) * 4096;
                    // Those of a registry that does not answer fail in the end.
                    drop(queue.read_pooled(offset, len, pool).await);
                }
            };
            join_all((0..DEPTH).map(stream)).await;
        }
    }
    times
}
