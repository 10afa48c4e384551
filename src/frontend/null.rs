//! A frontend that offers no device to anybody: it opens queues, keeps them, and fails where it is told to.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use futures_channel::oneshot;

use super::{AttachRequest, Attachment, AttachmentInfo, Detached, Frontend, FrontendError, Mark};
use crate::{block::BlockDevice, reactor::ReactorHandle};

/// Where a [`NullFrontend`] fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// [`Frontend::attach`], before any queue is opened.
    Attach,
    /// [`Frontend::take_over`], before anything has happened.
    TakeOver,
    /// [`Attachment::resume`].
    Resume,
    /// [`Attachment::resize`].
    Resize,
    /// [`Attachment::detach`], before anything has happened.
    Stop,
    /// [`Attachment::detach`], after the queues have gone.
    Detach,
}

/// Opens a device's queues on its reactors and serves nothing. Numbers are given out as by the kernel: the lowest free.
#[derive(Debug, Clone, Default)]
pub struct NullFrontend {
    taken: Arc<Mutex<Vec<u32>>>,
    left: Arc<Mutex<BTreeMap<u32, Left>>>,
    failing: Option<Stage>,
    /// How often it still fails there.
    failures: Arc<AtomicUsize>,
}

/// A device whose server has left it.
#[derive(Debug)]
struct Left {
    info: AttachmentInfo,
    mark: Option<Mark>,
    size_bytes: u64,
    /// Another server has it, and has not got its requests.
    is_taken: bool,
}

struct NullAttachment {
    frontend: NullFrontend,
    path: PathBuf,
    id: u32,
    info: AttachmentInfo,
    mark: Option<Mark>,
    size_bytes: u64,
    /// It has been left, or its requests do not come yet: it keeps its number.
    stays: bool,
    /// Dropped to let the queues go.
    holding: Vec<oneshot::Sender<Infallible>>,
    serving: mpsc::Receiver<Infallible>,
}

impl NullFrontend {
    /// One that works.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// One that fails at `stage`, always.
    #[must_use]
    pub fn failing(stage: Stage) -> Self {
        Self::failing_times(stage, usize::MAX)
    }

    /// One that fails at `stage` this often, and works from then on.
    #[must_use]
    pub fn failing_times(stage: Stage, times: usize) -> Self {
        Self { failing: Some(stage), failures: Arc::new(AtomicUsize::new(times)), ..Self::default() }
    }

    /// The same, with the same devices, that fails at `stage` this often from now on.
    #[must_use]
    pub fn failing_from_now_on(&self, stage: Stage, times: usize) -> Self {
        Self { failing: Some(stage), failures: Arc::new(AtomicUsize::new(times)), ..self.clone() }
    }

    fn fail_at(&self, stage: Stage, command: &'static str) -> Result<(), FrontendError> {
        let fewer = |left: usize| left.checked_sub(1);
        if self.failing == Some(stage)
            && self.failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer).is_ok()
        {
            return Err(FrontendError::Command { command, source: io::Error::other("told to fail") });
        }
        Ok(())
    }

    fn take(&self, wanted: Option<u32>) -> Result<u32, FrontendError> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let id = wanted.or_else(|| (0..).find(|id| !taken.contains(id))).unwrap_or(u32::MAX);
        if taken.contains(&id) {
            return Err(FrontendError::IdTaken(id));
        }
        taken.push(id);
        Ok(id)
    }

    /// Devices that wait for their next server.
    #[must_use]
    pub fn waiting(&self) -> Vec<u32> {
        self.left().keys().copied().collect()
    }

    /// What the device of this number was made with, while it waits.
    #[must_use]
    pub fn mark(&self, id: u32) -> Option<Mark> {
        self.left().get(&id).and_then(|left| left.mark)
    }

    fn left(&self) -> MutexGuard<'_, BTreeMap<u32, Left>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the queues of device `id`.
    fn serve<D: BlockDevice>(
        &self,
        device: &Arc<D>,
        id: u32,
        info: AttachmentInfo,
        mark: Option<Mark>,
        reactors: &[ReactorHandle],
        deadline: Duration,
    ) -> Result<NullAttachment, FrontendError> {
        let (serving_sender, serving) = mpsc::channel();
        let mut attachment = NullAttachment {
            frontend: self.clone(),
            path: path_of(id),
            id,
            info,
            mark,
            size_bytes: device.geometry().size_bytes,
            stays: false,
            holding: Vec::new(),
            serving,
        };
        let began = Instant::now();
        for (queue, reactor) in (0..info.queues).zip(reactors.iter().cycle()) {
            let (hold, held) = oneshot::channel::<Infallible>();
            let (sender, receiver) = mpsc::channel();
            let (device, serving) = (Arc::clone(device), serving_sender.clone());
            reactor.spawn(move |reactor| {
                let opened = device.open_queue(&reactor.for_queue());
                async move {
                    // In this order: the queue goes before its end is announced.
                    let _serving = serving;
                    let _ = sender.send(opened.as_ref().err().map(|error| (error.kind(), error.to_string())));
                    let _queue = opened;
                    let _ = held.await;
                }
            });
            attachment.holding.push(hold);
            let left = deadline.saturating_sub(began.elapsed());
            match receiver.recv_timeout(left) {
                Ok(None) => {}
                Ok(Some((kind, text))) => {
                    let source = crate::block::BlockError::new(kind, text);
                    return Err(FrontendError::Engine { queue, source });
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    return Err(FrontendError::Deadline { step: "opening the queues", after: deadline });
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => return Err(FrontendError::NoReactor { queue }),
            }
        }
        Ok(attachment)
    }
}

impl Frontend for NullFrontend {
    fn attach<D: BlockDevice>(
        &self,
        device: &Arc<D>,
        request: &AttachRequest,
        reactors: &[ReactorHandle],
    ) -> Result<Box<dyn Attachment>, FrontendError> {
        device.geometry().validate()?;
        self.fail_at(Stage::Attach, "attach")?;
        let id = self.take(request.id)?;
        let info = AttachmentInfo {
            queues: request.queues,
            depth: request.depth,
            max_io_bytes: request.max_io_bytes,
            recoverable: request.recovery,
        };
        Ok(Box::new(self.serve(device, id, info, request.mark, reactors, request.deadline)?))
    }

    fn take_over<D: BlockDevice>(
        &self,
        device: &Arc<D>,
        id: u32,
        mark: Option<Mark>,
        reactors: &[ReactorHandle],
        deadline: Duration,
    ) -> Result<Box<dyn Attachment>, FrontendError> {
        self.fail_at(Stage::TakeOver, "take over")?;
        let (info, found, expected_bytes, is_taken) = match self.left().get(&id) {
            Some(left) => (left.info, left.mark, left.size_bytes, left.is_taken),
            None => return Err(FrontendError::NotWaiting(id)),
        };
        if found != mark {
            return Err(FrontendError::AnotherMark { id, found, expected: mark });
        }
        if is_taken {
            return Err(FrontendError::Command {
                command: "take over",
                source: io::ErrorKind::ResourceBusy.into(),
            });
        }
        let (path, found) = (path_of(id), device.geometry().size_bytes);
        if found != expected_bytes {
            let what = "the size in bytes";
            return Err(FrontendError::Mismatch { what, path, expected: expected_bytes, found });
        }
        let mut attachment = self.serve(device, id, info, mark, reactors, deadline)?;
        attachment.stays = true;
        Ok(Box::new(attachment))
    }
}

fn path_of(id: u32) -> PathBuf {
    PathBuf::from(format!("/dev/null-{id}"))
}

impl Attachment for NullAttachment {
    fn path(&self) -> &Path {
        &self.path
    }

    fn id(&self) -> u32 {
        self.id
    }

    fn info(&self) -> AttachmentInfo {
        self.info
    }

    fn features(&self) -> Vec<String> {
        vec!["NULL".to_owned()]
    }

    fn resume(&mut self, _deadline: Duration) -> Result<(), FrontendError> {
        let mut waiting = self.frontend.left();
        let Some(left) = waiting.get_mut(&self.id) else { return Ok(()) };
        left.is_taken = true;
        self.frontend.fail_at(Stage::Resume, "resume")?;
        waiting.remove(&self.id);
        self.stays = false;
        Ok(())
    }

    fn has_ended(&self) -> bool {
        self.serving.try_recv() == Err(mpsc::TryRecvError::Disconnected)
    }

    fn check_resize(&self, _size_bytes: u64) -> Result<(), FrontendError> {
        Ok(())
    }

    fn resize(&self, _size_bytes: u64, _deadline: Duration) -> Result<(), FrontendError> {
        self.frontend.fail_at(Stage::Resize, "resize")
    }

    fn detach_within(&mut self, deadline: Duration, _patience: Duration) -> Result<Detached, FrontendError> {
        self.frontend.fail_at(Stage::Stop, "stop")?;
        self.holding.clear();
        if self.serving.recv_timeout(deadline) == Err(mpsc::RecvTimeoutError::Timeout) {
            return Err(FrontendError::Deadline { step: "the end of the queues", after: deadline });
        }
        self.frontend.fail_at(Stage::Detach, "detach")?;
        Ok(Detached::Complete)
    }

    fn leave(mut self: Box<Self>, deadline: Duration) -> Result<(), FrontendError> {
        if !self.info.recoverable {
            return Err(FrontendError::NotRecoverable(self.id));
        }
        self.stays = true;
        self.holding.clear();
        let gone = self.serving.recv_timeout(deadline);
        let (info, mark, size_bytes) = (self.info, self.mark, self.size_bytes);
        let left = Left { info, mark, size_bytes, is_taken: false };
        self.frontend.left().insert(self.id, left);
        match gone {
            Err(mpsc::RecvTimeoutError::Timeout) => {
                Err(FrontendError::Deadline { step: "the end of the queues", after: deadline })
            }
            _ => Ok(()),
        }
    }
}

impl Drop for NullAttachment {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        self.frontend.taken.lock().unwrap_or_else(PoisonError::into_inner).retain(|id| *id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        block::Geometry,
        device::NullDevice,
        frontend::ublk::{ShapeError, Ublk},
        reactor::{ReactorConfig, ReactorThread},
    };

    const DEADLINE: Duration = Duration::from_secs(20);

    fn reactor() -> ReactorThread {
        ReactorThread::start("test", ReactorConfig::default(), || Ok(())).unwrap()
    }

    fn device() -> Arc<NullDevice> {
        Arc::new(NullDevice::new(Geometry::read_only(1 << 20, 4096)).unwrap())
    }

    #[test]
    fn queues_are_open_from_attach_to_detach_and_numbers_are_given_back() {
        let (frontend, thread, device) = (NullFrontend::new(), reactor(), device());
        let request = AttachRequest { queues: 3, ..AttachRequest::default() };
        let first = frontend.attach(&device, &request, &[thread.handle()]).unwrap();
        let second = frontend.attach(&device, &request, &[thread.handle()]).unwrap();
        assert_eq!((first.id(), second.id(), first.info().queues), (0, 1, 3));
        assert!(!first.has_ended());
        let taken = AttachRequest { id: Some(1), ..request.clone() };
        assert!(matches!(
            frontend.attach(&device, &taken, &[thread.handle()]),
            Err(FrontendError::IdTaken(1))
        ));
        assert_eq!(first.detach(DEADLINE).unwrap(), Detached::Complete);
        assert_eq!(frontend.attach(&device, &request, &[thread.handle()]).unwrap().id(), 0);
        thread.stop().unwrap();
        assert!(second.has_ended());
    }

    #[test]
    fn a_device_that_is_left_keeps_its_number_for_the_next_server() {
        let (frontend, thread, device) = (NullFrontend::new(), reactor(), device());
        let request = AttachRequest { queues: 2, ..AttachRequest::default() };
        let info = frontend.attach(&device, &request, &[thread.handle()]).unwrap();
        info.leave(DEADLINE).unwrap();
        assert_eq!(frontend.waiting(), [0]);
        let take_over =
            |id, device: &Arc<NullDevice>| frontend.take_over(device, id, None, &[thread.handle()], DEADLINE);
        assert!(matches!(take_over(1, &device).err(), Some(FrontendError::NotWaiting(1))));
        let other = Arc::new(NullDevice::new(Geometry::read_only(2 << 20, 4096)).unwrap());
        assert!(matches!(take_over(0, &other).err(), Some(FrontendError::Mismatch { .. })));
        let mut taken = take_over(0, &device).unwrap();
        assert_eq!(frontend.waiting(), [0], "its requests do not come yet");
        taken.resume(DEADLINE).unwrap();
        assert_eq!((taken.id(), taken.info().queues, frontend.waiting().len()), (0, 2, 0));
        drop(taken);
        let mortal = AttachRequest { recovery: false, ..request };
        let attached = frontend.attach(&device, &mortal, &[thread.handle()]).unwrap();
        assert_eq!(attached.id(), 0);
        assert!(matches!(attached.leave(DEADLINE), Err(FrontendError::NotRecoverable(0))));
        thread.stop().unwrap();
    }

    #[test]
    fn it_fails_where_it_is_told_to() {
        let (thread, device) = (reactor(), device());
        let attach = |frontend: &NullFrontend, handles: &[ReactorHandle]| {
            frontend.attach(&device, &AttachRequest::default(), handles)
        };
        assert!(attach(&NullFrontend::failing(Stage::Attach), &[thread.handle()]).is_err());
        let attachment = attach(&NullFrontend::failing(Stage::Detach), &[thread.handle()]).unwrap();
        attachment.resize(2 << 20, DEADLINE).unwrap();
        assert!(attachment.detach(DEADLINE).is_err());
        let attachment = attach(&NullFrontend::failing(Stage::Resize), &[thread.handle()]).unwrap();
        assert!(attachment.resize(2 << 20, DEADLINE).is_err());
        attachment.detach(DEADLINE).unwrap();
        let stopped = thread.handle();
        thread.stop().unwrap();
        assert!(matches!(
            attach(&NullFrontend::new(), &[stopped]),
            Err(FrontendError::NoReactor { queue: 0 })
        ));
    }

    #[test]
    fn what_cannot_be_is_refused_before_the_driver_is_asked() {
        let thread = reactor();
        let attach = |geometry, request: AttachRequest| {
            // An impossible geometry is told by a device that was made with a possible one.
            struct Liar(NullDevice, Geometry);
            impl BlockDevice for Liar {
                type Queue = crate::device::NullQueue;
                fn geometry(&self) -> Geometry {
                    self.1
                }
                fn open_queue(
                    &self,
                    reactor: &crate::reactor::Reactor,
                ) -> Result<Self::Queue, crate::block::BlockError> {
                    self.0.open_queue(reactor)
                }
            }
            let inner = NullDevice::new(Geometry::read_only(1 << 20, 4096)).unwrap();
            Ublk::new().attach(&Arc::new(Liar(inner, geometry)), &request, &[thread.handle()]).err().unwrap()
        };
        let good = Geometry::read_only(1 << 20, 4096);
        let asked = AttachRequest::default;
        assert!(matches!(attach(Geometry { size_bytes: 4097, ..good }, asked()), FrontendError::Geometry(_)));
        assert!(matches!(
            attach(Geometry { size_bytes: 0, ..good }, asked()),
            FrontendError::Shape(ShapeError::Empty)
        ));
        for request in [
            AttachRequest { queues: 0, ..asked() },
            AttachRequest { queues: 4097, ..asked() },
            AttachRequest { depth: 0, ..asked() },
            AttachRequest { depth: 4097, ..asked() },
            AttachRequest { max_io_bytes: 0, ..asked() },
            AttachRequest { max_io_bytes: 4097, ..asked() },
            AttachRequest { max_io_bytes: 64 << 20, ..asked() },
            AttachRequest { id: Some(u32::MAX), ..asked() },
        ] {
            let error = attach(good, request.clone());
            assert!(matches!(error, FrontendError::Request { .. }), "{request:?}: {error}");
        }
    }
}
