//! Work on many threads whose results come in order.

use std::{
    collections::VecDeque,
    num::NonZeroUsize,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

use super::OfflineError;

/// Most threads of a stage, whose chunks take some 256 MiB then. What is made does not depend on their number.
const THREADS_LIMIT: usize = 256;

/// Jobs that a thread has at once: the one that it does and the one that it does next.
const JOBS_OF_A_THREAD: usize = 2;

struct Worker<J, R> {
    jobs: SyncSender<J>,
    results: Receiver<Result<R, OfflineError>>,
}

/// Has each of `jobs` done by one of `workers`, each on a thread of its own, and gives the results to `done` in the order of the
/// jobs, on the calling thread. At most [`JOBS_OF_A_THREAD`] jobs for each thread are under way. The first error ends it.
pub(super) fn in_order<J, R, W>(
    workers: Vec<W>,
    mut jobs: impl Iterator<Item = J>,
    mut done: impl FnMut(R) -> Result<(), OfflineError>,
) -> Result<(), OfflineError>
where
    J: Send,
    R: Send,
    W: FnMut(J) -> Result<R, OfflineError> + Send,
{
    thread::scope(|scope| {
        let workers = workers
            .into_iter()
            .map(|mut work| {
                let (jobs, to_do) = sync_channel(JOBS_OF_A_THREAD);
                let (finished, results) = sync_channel(JOBS_OF_A_THREAD);
                let its = thread::Builder::new().spawn_scoped(scope, move || {
                    // Ends when the other side has gone, because all is done or something has failed.
                    while let Ok(job) = to_do.recv() {
                        if finished.send(work(job)).is_err() {
                            break;
                        }
                    }
                });
                its.map(|_| Worker { jobs, results }).map_err(OfflineError::NoThread)
            })
            .collect::<Result<Vec<Worker<J, R>>, _>>()?;
        let room = workers.len().saturating_mul(JOBS_OF_A_THREAD);
        let mut under_way = VecDeque::with_capacity(room);
        let mut turns = workers.iter().cycle();
        loop {
            while under_way.len() < room
                && let Some(job) = jobs.next()
            {
                let Some(worker) = turns.next() else { return Err(OfflineError::Thread) };
                worker.jobs.send(job).map_err(|_| OfflineError::Thread)?;
                under_way.push_back(worker);
            }
            let Some(oldest) = under_way.pop_front() else { return Ok(()) };
            done(oldest.results.recv().map_err(|_| OfflineError::Thread)??)?;
        }
    })
}

/// `count` workers, or as many as there may be.
pub(super) fn workers<W>(
    count: NonZeroUsize,
    make: impl Fn() -> Result<W, OfflineError>,
) -> Result<Vec<W>, OfflineError> {
    (0..count.get().min(THREADS_LIMIT)).map(|_| make()).collect()
}
