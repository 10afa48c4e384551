//! The queues of a device, each on its reactor, from the side of the thread that attaches and removes the device.
//!
//! They are opened, then told to fetch, and only then are their descriptors mapped: up to Linux 6.15 the driver lets no other
//! process map those of a device whose server has died after it had mapped and before it had fetched.

use std::{
    convert::Infallible,
    os::fd::OwnedFd,
    sync::{Arc, OnceLock, mpsc},
    time::Duration,
};

use futures_channel::oneshot;

use super::{
    deadline::Deadline,
    gate::Gate,
    memory::Descriptors,
    queue::{self, Common, QueuePlan},
};
use crate::{block::BlockDevice, crash_point::CrashPoint, frontend::FrontendError, reactor::ReactorHandle};

/// All queues of one device. Dropping it lets those go that have not fetched.
pub(super) struct Queues {
    /// The character device; other references are the queues'.
    file: Arc<OwnedFd>,
    each: Vec<NearSide>,
    depth: u16,
    /// One message from each queue, when it is open or cannot be.
    opened: mpsc::Receiver<Result<(), FrontendError>>,
    /// One message from each queue, when the driver has its tags.
    fetched: mpsc::Receiver<()>,
    unfetched: usize,
    /// Cut off when the last queue has gone.
    serving: mpsc::Receiver<Infallible>,
}

/// What there is of a queue here.
struct NearSide {
    gate: Arc<Gate>,
    descriptors: Arc<OnceLock<Descriptors>>,
    /// Has it fetch. Dropped unused, it lets it go.
    go: Option<oneshot::Sender<()>>,
}

impl Queues {
    /// Has the queues of `plans` opened by their reactors; queue `i` of device `k` goes to reactor `k + i`, so that devices with one
    /// queue spread as well as those with many.
    pub(super) fn begin<D: BlockDevice>(
        file: Arc<OwnedFd>,
        device: &Arc<D>,
        plans: &[QueuePlan],
        share: impl Fn(Arc<OwnedFd>, mpsc::Sender<Infallible>) -> Common,
        reactors: &[ReactorHandle],
    ) -> Self {
        let (serving_sender, serving) = mpsc::channel();
        let (fetched_sender, fetched) = mpsc::channel();
        let (sender, opened) = mpsc::channel();
        let mut each = Vec::new();
        let first = plans.first().and_then(|plan| usize::try_from(plan.device).ok()).unwrap_or(0);
        for (plan, reactor) in plans.iter().zip(reactors.iter().cycle().skip(first % reactors.len())) {
            let (device, sender, fetched, plan) =
                (Arc::clone(device), sender.clone(), fetched_sender.clone(), *plan);
            let common = share(Arc::clone(&file), serving_sender.clone());
            let (go, going) = oneshot::channel();
            each.push(NearSide {
                gate: Arc::clone(&common.gate),
                descriptors: Arc::clone(&common.descriptors),
                go: Some(go),
            });
            reactor.spawn(move |reactor| {
                let opened = queue::open(reactor, &*device, plan, common);
                async move {
                    let (queue, outcome) = match opened {
                        Ok(queue) => (Some(queue), Ok(())),
                        Err(error) => (None, Err(error)),
                    };
                    // The caller gives up only when its deadline has passed, or a queue has failed.
                    let _ = sender.send(outcome);
                    if let (Some(queue), Ok(())) = (queue, going.await) {
                        queue.fetch().await;
                        let _ = fetched.send(());
                    }
                }
            });
        }
        let depth = plans.first().map_or(0, |plan| plan.depth);
        Self { file, depth, opened, unfetched: each.len(), each, fetched, serving }
    }

    /// Waits until all are open. What is only open does not hold on to the device.
    pub(super) fn wait_until_open(&self, deadline: &Deadline) -> Result<(), FrontendError> {
        for queue in 0..self.each.len() {
            receive(&self.opened, queue, "opening the queues", deadline)??;
        }
        CrashPoint::QueuesOpen.reach();
        Ok(())
    }

    /// Has all tags fetched, and the descriptors mapped. What has been done is not done again: where it fails it may be called again.
    pub(super) fn fetch(&mut self, deadline: &Deadline) -> Result<(), FrontendError> {
        for (queue, near) in (0..).zip(&mut self.each) {
            if let Some(go) = near.go.take() {
                go.send(()).map_err(|()| FrontendError::NoReactor { queue })?;
                CrashPoint::QueueFetches.reach();
            }
        }
        while self.unfetched > 0 {
            receive(&self.fetched, self.each.len() - self.unfetched, "fetching the tags", deadline)?;
            self.unfetched -= 1;
        }
        CrashPoint::QueuesFetched.reach();
        for (queue, near) in (0..).zip(&self.each) {
            if near.descriptors.get().is_none() {
                let failed = |source| FrontendError::Queue { queue, what: "mapping of descriptors", source };
                let mapped = Descriptors::map(&self.file, queue, self.depth).map_err(failed)?;
                // Nobody else sets it.
                let _ = near.descriptors.set(mapped);
            }
        }
        Ok(())
    }

    /// Lets those go that have not been told to fetch.
    pub(super) fn let_go(&mut self) {
        self.each.iter_mut().for_each(|near| drop(near.go.take()));
    }

    /// Lets no request in any more.
    pub(super) fn close(&self) {
        self.each.iter().for_each(|near| near.gate.close());
    }

    /// Whether all requests have ended that were let in before [`Queues::close`].
    pub(super) fn have_emptied(&self) -> bool {
        self.each.iter().all(|near| near.gate.has_emptied())
    }

    /// Whether all have gone, after `patience` at most.
    pub(super) fn have_ended_within(&self, patience: Duration) -> bool {
        self.serving.recv_timeout(patience) == Err(mpsc::RecvTimeoutError::Disconnected)
    }
}

/// What queue number `queue` has to say.
fn receive<T>(
    from: &mpsc::Receiver<T>,
    queue: usize,
    step: &'static str,
    deadline: &Deadline,
) -> Result<T, FrontendError> {
    from.recv_timeout(deadline.remaining()).map_err(|error| match error {
        mpsc::RecvTimeoutError::Timeout => FrontendError::Deadline { step, after: deadline.limit() },
        mpsc::RecvTimeoutError::Disconnected => {
            FrontendError::NoReactor { queue: u16::try_from(queue).unwrap_or(u16::MAX) }
        }
    })
}
