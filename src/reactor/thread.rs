//! A reactor on a thread of its own.

use std::{io, sync::mpsc, thread};

use super::{Reactor, ReactorConfig, ReactorHandle};

/// Owns a thread that runs a reactor; dropping it stops and joins the thread.
///
/// Should the ring fail, the failure is logged, the reactor ends as when it is stopped, and every
/// [`ReactorHandle::call`] is cancelled.
#[derive(Debug)]
pub struct ReactorThread {
    handle: ReactorHandle,
    thread: Option<thread::JoinHandle<io::Result<()>>>,
}

impl ReactorThread {
    /// Starts a thread called `name`; `prepare` runs on it first, and may for example drop capabilities.
    ///
    /// # Errors
    /// Of the thread, of `prepare` or of the ring.
    pub fn start<P>(name: &str, config: ReactorConfig, prepare: P) -> io::Result<Self>
    where
        P: FnOnce() -> io::Result<()> + Send + 'static,
    {
        let (sender, receiver) = mpsc::sync_channel(1);
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            let reactor = match prepare().and_then(|()| Reactor::new(&config)) {
                Ok(reactor) => reactor,
                Err(error) => {
                    let _ = sender.send(Err(error));
                    return Ok(());
                }
            };
            let _ = sender.send(Ok(reactor.handle()));
            drop(sender);
            reactor.run().inspect_err(|error| tracing::error!(%error, "a reactor has failed"))
        })?;
        match receiver.recv() {
            Ok(Ok(handle)) => Ok(Self { handle, thread: Some(thread) }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::Error::other("the reactor's thread ended before it began")),
        }
    }

    /// What other threads use to reach it.
    #[must_use]
    pub fn handle(&self) -> ReactorHandle {
        self.handle.clone()
    }

    /// Stops the reactor, dropping all its tasks, and waits for the thread.
    ///
    /// # Errors
    /// What ended the reactor, if it was not this call.
    pub fn stop(mut self) -> io::Result<()> {
        self.finish()
    }

    fn finish(&mut self) -> io::Result<()> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        self.handle.stop();
        if thread.thread().id() == thread::current().id() {
            // A task of this very reactor drops it: the thread ends after the task, and cannot wait for itself.
            return Ok(());
        }
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the reactor's thread panicked")))
    }
}

impl Drop for ReactorThread {
    fn drop(&mut self) {
        // A failure has been logged where it happened, and there is nobody left to tell.
        let _ = self.finish();
    }
}
