//! How the devices of a former daemon come back: those that wait in the kernel are taken over, others are made anew, and what fails
//! is tried again and holds up no other.

use std::{num::NonZeroU64, sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::{
    sync::{Semaphore, oneshot},
    task,
    time::{Instant, sleep, timeout},
};

use super::{
    Daemon, device_work,
    fate::{Fate, check_same, fate, of_record},
    waiting::{FIRST_PAUSE, longer},
};
use crate::{
    frontend::Detached,
    server::{
        failure::{Failure, FailureClass, full_text},
        port::KnownDevice,
        state::{Phase, Record, RecordError},
    },
};

/// Devices that are brought back at once: each may hold an index of an image that is being decoded.
static TRIES: Semaphore = Semaphore::const_new(16);

/// How long the daemon waits for the first tries of all before it says that it is ready. What takes longer, as a registry that is
/// down, comes back behind it.
const FIRST_TRIES_PATIENCE: Duration = Duration::from_secs(20);

/// How long a former daemon that was killed may take to end, and how often it is looked after.
const END_PATIENCE: Duration = Duration::from_secs(5);
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

impl Daemon {
    /// Brings back what a former process has left in the state directory, those that take writes first. Returns when each has been
    /// tried once, or after a while; those that fail are tried again until they come, or somebody removes them.
    ///
    /// # Errors
    /// When the records cannot be listed, or the driver not be asked.
    pub async fn reattach(self: &Arc<Self>) -> Result<(), Failure> {
        let mut ids: Vec<u32> = self.stored().await?.iter().map(|stored| stored.id).collect();
        if ids.is_empty() {
            return Ok(());
        }
        let known = self.known().await?;
        ids.sort_by_key(|id| !known.iter().any(|device| device.id == *id && !device.read_only));
        ids.iter().for_each(|id| self.waiting.begin(*id));
        let first_tries = ids.into_iter().map(|id| {
            let (tried, first_try) = oneshot::channel();
            // A task of its own: it must not be dropped half way when the daemon is told to stop.
            task::spawn(Arc::clone(self).bring_back(id, tried));
            first_try
        });
        let first_tries: Vec<_> = first_tries.collect();
        if timeout(FIRST_TRIES_PATIENCE, join_all(first_tries)).await.is_err() {
            tracing::warn!("not all devices of the former daemon have come back yet");
        }
        Ok(())
    }

    /// Tries until device `id` has come or nobody wants it any more. `tried` is dropped after the first time.
    pub(super) async fn bring_back(self: Arc<Self>, id: u32, tried: oneshot::Sender<()>) {
        self.waiting.begin(id);
        let (mut tried, mut pause, began) = (Some(tried), FIRST_PAUSE, Instant::now());
        loop {
            let turn = TRIES.acquire().await.expect("it is never closed");
            let outcome = self.try_to_bring_back(id).await;
            drop(turn);
            let Err(failure) = outcome else { break };
            let reason = failure.full_text();
            if self.table.is_closed() {
                break;
            }
            let left = self.recovery_timeout(id).await.map(|limit| limit.saturating_sub(began.elapsed()));
            if left == Some(Duration::ZERO) && self.give_up(id, &reason).await {
                break;
            }
            let again = left.filter(|left| !left.is_zero()).map_or(pause, |left| left.min(pause));
            tracing::error!(id, error = reason, again_ms = again.as_millis(), "a device has not come back");
            self.waiting.note(id, reason, again);
            // Who waits for the first try finds out how it went.
            drop(tried.take());
            sleep(again).await;
            pause = longer(pause);
        }
        self.waiting.forget(id);
    }

    /// Waits while it is tried to bring device `id` back, for as long as the driver may take, and has a try that is not that far give up:
    /// whoever removes it then finds it served, or waiting.
    pub(super) async fn let_try_end(&self, id: u32) {
        let (began, limit, mut giving_up) = (Instant::now(), self.try_limit(), None);
        while self.table.is_coming(id) && self.was_there(id).await && began.elapsed() < limit {
            giving_up.get_or_insert_with(|| self.unwanted.give_up(id));
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// How long a try may take.
    pub(super) fn try_limit(&self) -> Duration {
        let device = &self.config().device;
        Duration::from_millis(device.attach_timeout_ms.saturating_add(device.detach_timeout_ms))
    }

    /// Whether device `id` is no new one.
    async fn was_there(&self, id: u32) -> bool {
        let stored = self.stored_of(id).await.ok().flatten();
        stored.is_some_and(|stored| stored.record.is_ok_and(|record| record.phase == Phase::Live))
    }

    /// How long device `id` waits for this daemon, if not for as long as it takes.
    async fn recovery_timeout(&self, id: u32) -> Option<Duration> {
        let stored = self.stored_of(id).await.ok().flatten()?;
        let wanted = stored.record.ok()?.request.recovery_timeout_ms.map(NonZeroU64::get);
        let limit_ms = wanted.unwrap_or(self.config().device.recovery_timeout_ms);
        (limit_ms > 0).then(|| Duration::from_millis(limit_ms))
    }

    /// Has the requests of device `id` fail, which has waited for as long as it may. What was written to it stays.
    async fn give_up(&self, id: u32, reason: &str) -> bool {
        match self.remove_orphan(id).await {
            Ok(Some(_)) => {
                tracing::error!(id, error = reason, "a device has not come back in its time: it is removed");
                true
            }
            // Somebody else has it, and knows why.
            Ok(None) => false,
            Err(failure) => {
                tracing::error!(
                    id,
                    error = failure.full_text(),
                    "a device cannot be removed whose time is over"
                );
                false
            }
        }
    }

    /// Does with device `id` what follows from its record, as it is by now. One that has none any more is nobody's.
    pub(super) async fn try_to_bring_back(&self, id: u32) -> Result<(), Failure> {
        let Some(stored) = self.stored_of(id).await? else { return Ok(()) };
        let record = match &stored.record {
            Ok(record) => record.clone(),
            Err(error) => return self.leave_alone(id, error).await,
        };
        if self.taken.has(id) {
            // Whatever the kernel says of it, it is this process that holds it.
            return self.take_over(record).await;
        }
        let known = self.left_behind(&record).await?;
        let another = check_same(&record, known.as_ref());
        match fate(&stored.record, known.as_ref()) {
            // Nothing of that one is touched.
            Fate::Remake if another.is_err() => another,
            Fate::Remove if another.is_err() => self.finish_removal(record).await,
            Fate::TakeOver => self.take_over(record).await,
            Fate::Remake => {
                self.clear(id).await?;
                self.make_again(record).await.map(drop)
            }
            Fate::Remove => {
                self.clear(id).await?;
                self.finish_removal(record).await
            }
            Fate::LeaveAlone => {
                tracing::warn!(id, "another process serves this device; its record is left alone");
                Ok(())
            }
        }
    }

    /// Does nothing with device `id`, whose record says nothing here. One that waits is looked at again, if its record is nobody else's:
    /// whoever repairs that gets the device back.
    async fn leave_alone(&self, id: u32, error: &RecordError) -> Result<(), Failure> {
        let text = format!("its record says nothing: {}", full_text(error));
        if !error.is_of_another() && self.find(id).await?.is_some_and(|known| known.waits) {
            return Err(Failure::new(FailureClass::Conflict, text));
        }
        tracing::warn!(id, error = text, "the record of this device is left alone");
        Ok(())
    }

    /// What the kernel has of the number of `record`, when the process that served the device, if it was this one's forerunner, has
    /// ended.
    async fn left_behind(&self, record: &Record) -> Result<Option<KnownDevice>, Failure> {
        let (id, began) = (record.id, Instant::now());
        loop {
            let known = self.find(id).await?;
            let Some(device) = of_record(record, known.as_ref()) else { return Ok(known) };
            let Some(pid) = device.server_pid.filter(|_| device.recoverable) else { return Ok(known) };
            // Who served it may have had the number that this process has now.
            if i32::try_from(std::process::id()) == Ok(pid) {
                return Ok(known);
            }
            if began.elapsed() > END_PATIENCE {
                let text = format!("process {pid} still serves device {id}");
                return Err(Failure::new(FailureClass::Conflict, text));
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// Makes the number `id` free.
    async fn clear(&self, id: u32) -> Result<(), Failure> {
        let (port, limit) = (Arc::clone(&self.port), self.config().device.detach_timeout_ms);
        match device_work(move || port.remove_orphan(id, Duration::from_millis(limit))).await? {
            Detached::Complete => Ok(()),
            Detached::HeldOpen => {
                let text = format!("a program still has the former device {id} open, or has it mounted");
                Err(Failure::new(FailureClass::Conflict, text))
            }
        }
    }

    /// What the kernel has of `id`.
    pub(super) async fn find(&self, id: u32) -> Result<Option<KnownDevice>, Failure> {
        let port = Arc::clone(&self.port);
        device_work(move || port.find(id)).await
    }

    pub(super) async fn known(&self) -> Result<Vec<KnownDevice>, Failure> {
        let port = Arc::clone(&self.port);
        device_work(move || port.known()).await
    }
}
