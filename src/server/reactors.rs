//! The threads that serve devices. All devices share them; their number is fixed at start.

use std::{
    io,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use futures_util::future::{join_all, select_all};

use super::{
    advice,
    config::ReactorSection,
    failure::{Failure, FailureClass},
    runtimes::require_threads,
};
use crate::reactor::{ReactorConfig, ReactorHandle, ReactorThread};

/// Threads where the configuration leaves it open: more than this few devices can use, and each holds its buffers.
const DEFAULT_THREADS: usize = 4;

/// Threads that open images: with two, one large index holds up every other image at most, and opening takes no more than two
/// processors from serving.
const OPENERS: usize = 2;

/// The running reactors.
#[derive(Debug)]
pub struct Reactors {
    threads: Vec<ReactorThread>,
    /// Serve no device, so that work without a pause holds up none.
    openers: Vec<ReactorThread>,
    /// Does what a device waits for with its writes kept out, and so nothing else.
    sealer: ReactorThread,
    next: AtomicUsize,
    next_opener: AtomicUsize,
}

impl Reactors {
    /// Starts them. `prepare` runs on each thread first.
    ///
    /// # Errors
    /// When a thread or a ring cannot be had, or `prepare` fails.
    pub fn start(section: &ReactorSection, prepare: fn() -> io::Result<()>) -> Result<Self, Failure> {
        let count = match usize::from(section.threads) {
            0 => Self::default_threads(),
            count => count,
        };
        require_threads(count + OPENERS + 1)?;
        let config = ReactorConfig {
            request_buffer_bytes: mebibytes(section.request_buffer_mib),
            io_buffer_bytes: mebibytes(section.io_buffer_mib),
            ..ReactorConfig::default()
        };
        let failed = |source| {
            let text = format!("cannot start a reactor ({})", advice::IO_URING);
            Failure::with_source(FailureClass::Driver, text, source)
        };
        let threads = (0..count)
            .map(|index| ReactorThread::start(&format!("reactor-{index}"), config.clone(), prepare))
            .collect::<io::Result<Vec<_>>>()
            .map_err(failed)?;
        let openers = (0..OPENERS)
            .map(|index| ReactorThread::start(&format!("opener-{index}"), config.clone(), || Ok(())))
            .collect::<io::Result<Vec<_>>>()
            .map_err(failed)?;
        let sealer = ReactorThread::start("sealer", config, || Ok(())).map_err(failed)?;
        let [next, next_opener] = [AtomicUsize::new(0), AtomicUsize::new(0)];
        Ok(Self { threads, openers, sealer, next, next_opener })
    }

    /// Threads where the configuration leaves it open, on this machine.
    #[must_use]
    pub fn default_threads() -> usize {
        thread::available_parallelism().map_or(1, usize::from).min(DEFAULT_THREADS)
    }

    /// A reactor on which an image is opened, the next in turn: to decode and merge the indexes of large ones takes a tenth of a
    /// second and more, which the requests of other devices would wait for.
    ///
    /// # Panics
    /// Never: there is at least one.
    #[must_use]
    pub fn opener(&self) -> ReactorHandle {
        let turn = self.next_opener.fetch_add(1, Ordering::Relaxed);
        let opener = self.openers.get(turn % OPENERS).expect("as many were started");
        opener.handle()
    }

    /// The reactor on which layers are sealed, made larger and flushed at the end of their device: writes wait meanwhile, and no
    /// image that is being opened holds them up.
    #[must_use]
    pub fn sealer(&self) -> ReactorHandle {
        self.sealer.handle()
    }

    /// `count` reactors, the next ones in turn, so that devices spread over all of them.
    #[must_use]
    pub fn choose(&self, count: u16) -> Vec<ReactorHandle> {
        let count = usize::from(count);
        let first = self.next.fetch_add(count, Ordering::Relaxed);
        self.threads
            .iter()
            .cycle()
            .skip(first % self.threads.len())
            .take(count)
            .map(ReactorThread::handle)
            .collect()
    }

    /// Waits for `work`, and gives it up when a reactor has ended, which none does by itself unless its ring has failed. Its
    /// devices hang from then on, or no image can be opened, and it must not be chosen again.
    ///
    /// # Errors
    /// Those of `work`, and [`FailureClass::Internal`] where a reactor has ended.
    pub fn while_all_run<T, W>(&self, work: W) -> impl Future<Output = Result<T, Failure>> + use<T, W>
    where
        W: Future<Output = Result<T, Failure>>,
    {
        // These never return, and are cancelled by the reactor's end.
        let threads = self.threads.iter().chain(&self.openers).chain([&self.sealer]);
        let calls = threads.map(|thread| thread.handle().call(|_| std::future::pending::<()>()));
        let ended = select_all(calls.collect::<Vec<_>>());
        async move {
            tokio::select! {
                done = work => done,
                _ = ended => Err(Failure::new(FailureClass::Internal, "a thread that serves devices has failed")),
            }
        }
    }

    /// Waits until all threads that serve devices have answered.
    pub async fn answer(&self) {
        let calls = self.threads.iter().map(|thread| thread.handle().call(|_| std::future::ready(())));
        // One that has ended does not answer either, which is told by [`Self::while_all_run`].
        join_all(calls.collect::<Vec<_>>()).await;
    }

    /// One reactor, the next in turn.
    ///
    /// # Panics
    /// Never: there is at least one.
    #[must_use]
    pub fn one(&self) -> ReactorHandle {
        self.choose(1).pop().expect("at least one reactor runs")
    }
}

fn mebibytes(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX).saturating_mul(1 << 20)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn the_end_of_a_reactor_is_noticed() {
        let section = ReactorSection { threads: 2, ..ReactorSection::default() };
        let mut reactors = Reactors::start(&section, || Ok(())).unwrap();
        let work = tokio::time::sleep(std::time::Duration::from_millis(50));
        reactors.while_all_run(work.map(Ok)).await.unwrap();
        let watched = reactors.while_all_run(std::future::pending::<Result<(), Failure>>());
        reactors.threads.pop().unwrap().stop().unwrap();
        assert_eq!(watched.await.unwrap_err().class(), FailureClass::Internal);
    }

    #[test]
    fn queues_spread_over_all_threads() {
        let section = ReactorSection { threads: 2, ..ReactorSection::default() };
        let reactors = Reactors::start(&section, || Ok(())).unwrap();
        assert_eq!(reactors.choose(5).len(), 5);
        let names = reactors.choose(2).into_iter().map(|handle| {
            let name = handle.call(|_| async { thread::current().name().unwrap_or_default().to_owned() });
            tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(name).unwrap()
        });
        let mut names: Vec<String> = names.collect();
        names.sort();
        assert_eq!(names, ["reactor-0", "reactor-1"]);
    }

    #[test]
    fn what_opens_images_is_never_chosen_for_a_device() {
        let section = ReactorSection { threads: 1, ..ReactorSection::default() };
        let reactors = Reactors::start(&section, || Ok(())).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let thread_of = |handle: ReactorHandle| {
            runtime.block_on(handle.call(|_| async { thread::current().id() })).unwrap()
        };
        let opener = thread_of(reactors.opener());
        let sealer = thread_of(reactors.sealer());
        assert_ne!(opener, sealer);
        assert_ne!(opener, thread_of(reactors.opener()), "the next one has its turn");
        let serving = reactors.choose(3).into_iter().map(thread_of);
        assert!(serving.into_iter().all(|thread| thread != opener && thread != sealer));
    }
}
