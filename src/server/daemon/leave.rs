//! The way out of the daemon: devices that outlive it are left to the next one, and the others removed.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::time::{sleep, timeout};

use super::{Daemon, Served, device_work, served::Presence};
use crate::server::failure::{Failure, FailureClass};

/// How often a removal that somebody else has begun is looked after.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

impl Daemon {
    /// Lets no device come any more, waits for those that are being made, which then go again, and lets go of all: those that
    /// outlive this process stay for the next daemon, if there is to be one that brings them back, and the others are removed.
    ///
    /// # Errors
    /// When some have not been let go of after `limit`.
    pub async fn drain(self: &Arc<Self>, limit: Duration) -> Result<(), Failure> {
        self.table.close();
        let _room = self.reserve.lend_all();
        let endings = self.table.served().into_iter().map(|served| async move {
            let id = served.info.id;
            // One that was told to go before goes.
            let stays = self.table.live(id).is_ok() && self.stays(&served);
            self.table.begin_removal(id)?;
            let ended = match stays {
                true => self.leave(&served, limit).await,
                // Nobody wants their numbers, and many may be held open.
                false => self.detach(Arc::clone(&served), limit, Duration::ZERO).await.map(drop),
            };
            match ended {
                // A client has told it to go before; it is waited for below.
                Err(failure) if failure.class() == FailureClass::Conflict => Ok(()),
                Err(failure) => {
                    // Nobody comes again to save what could not be saved now.
                    self.table.remove(&served);
                    let text = format!("device {id} is left behind");
                    Err(Failure::with_source(failure.class(), text, failure))
                }
                Ok(()) => Ok(()),
            }
        });
        let all = async {
            let endings = join_all(endings).await;
            while self.table.has_devices() {
                sleep(LOOK_INTERVAL).await;
            }
            endings.into_iter().collect::<Result<Vec<()>, Failure>>().map(drop)
        };
        // One that hangs must not keep the process, nor the others.
        timeout(limit, all).await.unwrap_or_else(|_| {
            let left = self.table.served();
            let left: Vec<String> = left.iter().map(|served| served.info.id.to_string()).collect();
            let text = match left.as_slice() {
                [] => "a device was still being made when time was over, and may be left behind".to_owned(),
                left => {
                    format!("devices {} could not be removed in time and are left behind", left.join(", "))
                }
            };
            Err(Failure::new(FailureClass::TimedOut, text))
        })
    }

    /// Whether the device is to wait for the next daemon.
    pub(super) fn stays(&self, served: &Served) -> bool {
        self.config().daemon.reattach && served.outlives_server()
    }

    /// Leaves a device to the next daemon, with all that was written to it.
    async fn leave(&self, served: &Arc<Served>, limit: Duration) -> Result<(), Failure> {
        served.leave(limit).await?;
        self.retired.absorb(&served.device);
        self.table.remove(served);
        tracing::info!(id = served.info.id, "device left to the next daemon");
        Ok(())
    }
}

impl Served {
    /// Whether the device outlives the process that serves it.
    fn outlives_server(&self) -> bool {
        matches!(&*self.presence(), Presence::Attached(attachment) if attachment.info().recoverable)
    }

    /// Stops serving the device, which waits for its next server. What was written to it is durable then.
    ///
    /// # Errors
    /// Where it cannot be made durable within `limit`, and [`FailureClass::Conflict`] where somebody removes the device.
    pub(super) async fn leave(self: &Arc<Self>, limit: Duration) -> Result<(), Failure> {
        let (leaving, half) = (Arc::clone(self), limit / 2);
        let left = device_work(move || {
            let found = std::mem::replace(&mut *leaving.presence(), Presence::Leaving);
            match found {
                Presence::Attached(attachment) => Ok(attachment.leave(half)),
                Presence::Unsaved(_) => Ok(Ok(())),
                Presence::Leaving => Err(leaving.is_leaving()),
            }
        });
        let left = left.await?;
        self.merging.end();
        let id = self.info.id;
        if let Err(error) = left {
            tracing::warn!(id, %error, "requests of a device have not ended: the next server gets them again");
        }
        self.save(half).await.map_err(|error| {
            let text = format!("the last writes to device {id} may not be durable");
            Failure::with_source(FailureClass::Internal, text, error)
        })
    }
}
