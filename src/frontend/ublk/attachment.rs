//! A device while it is served, and its removal.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{
    abi,
    abort::Abort,
    command::Command,
    control::{Control, Reply},
    deadline::Deadline,
    features::{CopyMode, Features},
    inventory, node, params,
    queue::{Common, QueuePlan},
    queues::Queues,
    recovery::Resumption,
};
use crate::{
    block::{BlockDevice, Geometry, SECTOR_BYTES},
    crash_point::CrashPoint,
    frontend::{Attachment, AttachmentInfo, CLOSE_PATIENCE, Detached, FrontendError},
    reactor::ReactorHandle,
};

/// For devices that are dropped instead of detached, among them those whose attach failed.
const DROP_DEADLINE: Duration = Duration::from_secs(10);

/// How long the queues of a stopped device may take to end before it is stopped again.
const STOP_INTERVAL: Duration = Duration::from_millis(200);

/// How often the last requests of a device that is left are looked after.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// One device from ADD on.
pub(super) struct UblkAttachment {
    pub(super) id: u32,
    pub(super) info: AttachmentInfo,
    features: Features,
    control: Control,
    copy: CopyMode,
    path: PathBuf,
    /// From the moment when all are open.
    queues: Option<Queues>,
    abort: Arc<Abort>,
    /// Of the device, as its queues take it.
    size_bytes: Arc<AtomicU64>,
    started: bool,
    /// Of a device that was taken over and whose requests do not come yet.
    resumption: Option<Resumption>,
    /// It is not to be removed when this is dropped: somebody has asked for its removal before, and knows how that went, or it is
    /// the next server's, or still the former one's.
    stays: bool,
}

impl UblkAttachment {
    /// A device of `size_bytes` that ADD has made, as it was granted.
    pub(super) fn new(control: Control, granted: &abi::ublksrv_ctrl_dev_info, size_bytes: u64) -> Self {
        let features = Features::new(granted.flags);
        Self {
            id: granted.dev_id,
            info: AttachmentInfo {
                queues: granted.nr_hw_queues,
                depth: granted.queue_depth,
                max_io_bytes: granted.max_io_buf_bytes,
                recoverable: features.recovers(),
            },
            features,
            control,
            copy: if features.has(abi::UBLK_F_USER_COPY) { CopyMode::User } else { CopyMode::TagBuffer },
            path: node::block_path(granted.dev_id),
            queues: None,
            abort: Arc::default(),
            size_bytes: Arc::new(AtomicU64::new(size_bytes)),
            started: false,
            resumption: None,
            stays: false,
        }
    }

    /// A device of `size_bytes` that another process has made, as it was granted. Until its requests come it is not this process's to
    /// remove.
    pub(super) fn of_former_server(
        control: Control,
        granted: &abi::ublksrv_ctrl_dev_info,
        size_bytes: u64,
    ) -> Self {
        let mut attachment = Self::new(control, granted, size_bytes);
        (attachment.started, attachment.stays) = (true, true);
        attachment.resumption = Some(Resumption::default());
        attachment
    }

    /// Has every queue opened by its reactor.
    pub(super) fn open_queues<D: BlockDevice>(
        &mut self,
        device: &Arc<D>,
        geometry: Geometry,
        reactors: &[ReactorHandle],
        deadline: &Deadline,
    ) -> Result<(), FrontendError> {
        let file = Arc::new(node::open_character(self.id, deadline)?.into());
        let plans: Vec<_> = (0..self.info.queues).map(|queue| self.plan(queue, geometry)).collect();
        let share = |file, serving| Common {
            file,
            abort: Arc::clone(&self.abort),
            gate: Arc::default(),
            descriptors: Arc::default(),
            size_bytes: Arc::clone(&self.size_bytes),
            serving,
        };
        let queues = Queues::begin(file, device, &plans, share, reactors);
        self.queues.insert(queues).wait_until_open(deadline)
    }

    /// Has the queues, which are open, fetch all tags.
    pub(super) fn fetch(&mut self, deadline: &Deadline) -> Result<(), FrontendError> {
        self.queues.as_mut().map_or(Ok(()), |queues| queues.fetch(deadline))
    }

    fn plan(&self, queue: u16, geometry: Geometry) -> QueuePlan {
        QueuePlan {
            device: self.id,
            queue,
            depth: self.info.depth,
            max_io_bytes: self.info.max_io_bytes,
            geometry,
            copy: self.copy,
            registers: self.features.has(abi::UBLK_F_AUTO_BUF_REG),
            fetch: self.control.operation(abi::UBLK_U_IO_FETCH_REQ),
            commit: self.control.operation(abi::UBLK_U_IO_COMMIT_AND_FETCH_REQ),
        }
    }

    /// Makes the block device, whose queues must be fetching.
    pub(super) fn start(&mut self, deadline: &Deadline) -> Result<(), FrontendError> {
        // Also when it fails, for an answer that comes too late does not undo it.
        self.started = true;
        self.run(Command::start(self.id, std::process::id().into()), deadline).map(drop)
    }

    pub(super) fn run(&self, command: Command, deadline: &Deadline) -> Result<Reply, FrontendError> {
        self.control.run(command, deadline.remaining())
    }

    /// Removes the device, however far it has come. Where a step fails, all are done again the next time: the driver does each twice.
    fn remove(&mut self, limit: Duration, patience: Duration) -> Result<Detached, FrontendError> {
        let deadline = Deadline::after(limit);
        if !self.started {
            // There are no requests yet, and tags that have not been fetched need not be.
            self.abort.set();
        }
        self.stop(&deadline)?;
        CrashPoint::RemovalStopped.reach();
        self.abort.set();
        if let Some(queues) = &mut self.queues {
            queues.let_go();
        }
        if let Some(queues) = &self.queues {
            // A command that reached the driver after it had ended the others' waits for the next STOP.
            while !queues.have_ended_within(STOP_INTERVAL.min(deadline.remaining())) {
                if deadline.has_passed() {
                    return Err(FrontendError::Deadline { step: "the end of the queues", after: limit });
                }
                self.stop(&deadline)?;
            }
        }
        self.queues = None;
        let deleted = inventory::delete(&self.control, self.id, false, patience, &deadline)?;
        CrashPoint::RemovalDeleted.reach();
        Ok(deleted)
    }

    /// Has the driver keep back requests that are not yet here.
    fn quiesce(&self, limit: Duration) -> Result<(), FrontendError> {
        let timeout_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        self.control.run(Command::quiesce(self.id, timeout_ms), limit).map(drop)
    }

    /// Ends the block device, and makes the driver give up all tags. Whoever still waits for the engine after half of the
    /// time is failed, since the driver waits for them.
    fn stop(&self, deadline: &Deadline) -> Result<(), FrontendError> {
        let pending = self.control.start(Command::stop(self.id))?;
        let outcome = pending.wait(deadline.remaining() / 2).or_else(|pending| {
            tracing::warn!(
                id = self.id,
                "requests are failed, for the device is being removed and they have not ended"
            );
            self.abort.set();
            pending.wait(deadline.remaining())
        });
        match outcome {
            // Another program has deleted it, or is about to.
            Ok(Ok(_) | Err(FrontendError::NoSuchDevice(_))) => Ok(()),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(FrontendError::Deadline { step: "STOP_DEV", after: deadline.limit() }),
        }
    }
}

impl Attachment for UblkAttachment {
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
        self.features.names()
    }

    fn resume(&mut self, limit: Duration) -> Result<(), FrontendError> {
        let Some(mut resumption) = self.resumption.take() else { return Ok(()) };
        let deadline = Deadline::after(limit);
        let resumed = self.fetch(&deadline).and_then(|()| {
            CrashPoint::TakeOverFetching.reach();
            resumption.end(&self.control, self.id, &deadline)
        });
        match resumed {
            Ok(()) => self.stays = false,
            Err(_) => self.resumption = Some(resumption),
        }
        resumed
    }

    fn has_ended(&self) -> bool {
        self.queues.as_ref().is_some_and(|queues| queues.have_ended_within(Duration::ZERO))
    }

    fn check_resize(&self, size_bytes: u64) -> Result<(), FrontendError> {
        params::check_size(size_bytes)?;
        match self.features.has(abi::UBLK_F_UPDATE_SIZE) {
            true => Ok(()),
            false => Err(FrontendError::Unsupported { feature: "UPDATE_SIZE", since: "Linux 6.16" }),
        }
    }

    fn resize(&self, size_bytes: u64, deadline: Duration) -> Result<(), FrontendError> {
        self.check_resize(size_bytes)?;
        // Requests for what is new may come as soon as the kernel has been told.
        self.size_bytes.store(size_bytes, Ordering::Release);
        let command = Command::update_size(self.id, size_bytes / SECTOR_BYTES);
        self.control.run(command, deadline)?;
        CrashPoint::ResizeTold.reach();
        Ok(())
    }

    fn detach_within(&mut self, deadline: Duration, patience: Duration) -> Result<Detached, FrontendError> {
        self.stays = true;
        self.remove(deadline, patience)
    }

    fn leave(mut self: Box<Self>, deadline: Duration) -> Result<(), FrontendError> {
        if !self.info.recoverable {
            return Err(FrontendError::NotRecoverable(self.id));
        }
        self.stays = true;
        let limit = Deadline::after(deadline);
        if self.features.has(abi::UBLK_F_QUIESCE)
            && let Err(error) = self.quiesce(limit.remaining() / 2)
        {
            // What comes meanwhile only comes twice.
            tracing::warn!(id = self.id, %error, "the driver goes on to send requests to a device that is left");
        }
        let Some(queues) = &self.queues else { return Ok(()) };
        queues.close();
        while !queues.have_emptied() {
            if limit.has_passed() {
                return Err(FrontendError::Deadline { step: "the last requests", after: deadline });
            }
            limit.pause(LOOK_INTERVAL);
        }
        Ok(())
    }
}

impl Drop for UblkAttachment {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        let deadline = Deadline::after(DROP_DEADLINE);
        while let Err(error) = self.remove(deadline.remaining(), CLOSE_PATIENCE) {
            // There may be a thread for the command in a moment.
            if matches!(error, FrontendError::System(_)) && !deadline.has_passed() {
                deadline.pause(STOP_INTERVAL);
                continue;
            }
            let cause = std::error::Error::source(&error);
            tracing::error!(id = self.id, %error, cause, "a device is left behind");
            return;
        }
    }
}
