//! Work on many threads whose results are taken in order.

use std::{
    collections::VecDeque,
    num::NonZeroUsize,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use super::OfflineError;

/// Most threads of a stage, whose chunks take some 256 MiB then. What is made does not depend on their number.
const THREADS_LIMIT: usize = 256;

/// Jobs that are under way or done and not taken yet, for each thread.
const JOBS_OF_A_THREAD: usize = 2;

/// Has each of `jobs` done by one of `workers`, and gives the results to `done` in the order of the jobs. The calling thread is that
/// of one worker, and each of the others has one of its own; whoever finds the next result there takes it, so that no processor
/// waits for a thread that only writes. At most [`JOBS_OF_A_THREAD`] jobs for each worker are under way. The first error ends it.
pub(super) fn in_order<J, R, W>(
    workers: Vec<W>,
    jobs: impl Iterator<Item = J> + Send,
    done: impl FnMut(R) -> Result<(), OfflineError> + Send,
) -> Result<(), OfflineError>
where
    R: Send,
    W: FnMut(J) -> Result<R, OfflineError> + Send,
{
    let room = workers.len().saturating_mul(JOBS_OF_A_THREAD);
    let state = State {
        results: VecDeque::with_capacity(room),
        first: 0,
        ended: false,
        sink: Some(done),
        failure: None,
    };
    let line = Line { jobs: Mutex::new(jobs), state: Mutex::new(state), changed: Condvar::new(), room };
    let mut workers = workers.into_iter();
    let own = workers.next();
    thread::scope(|scope| {
        let spawn = |work| thread::Builder::new().spawn_scoped(scope, || line.serve(work));
        let threads: Vec<_> = workers
            .filter_map(|work| spawn(work).map_err(|error| line.fail(OfflineError::NoThread(error))).ok())
            .collect();
        own.into_iter().for_each(|work| line.serve(work));
        for thread in threads {
            if thread.join().is_err() {
                line.fail(OfflineError::Thread);
            }
        }
    });
    let state = line.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    state.failure.map_or(Ok(()), Err)
}

/// `count` workers, or as many as there may be.
pub(super) fn workers<W>(
    count: NonZeroUsize,
    make: impl Fn() -> Result<W, OfflineError>,
) -> Result<Vec<W>, OfflineError> {
    (0..count.get().min(THREADS_LIMIT)).map(|_| make()).collect()
}

/// What the threads share. Whoever needs both locks takes that of the jobs first.
struct Line<I, R, D> {
    /// To take a job may wait for a stage before this one; results are delivered and taken meanwhile.
    jobs: Mutex<I>,
    state: Mutex<State<R, D>>,
    /// There is room, or it has ended.
    changed: Condvar,
    room: usize,
}

struct State<R, D> {
    /// Of each job that was begun, in order, the result once it is there.
    results: VecDeque<Option<R>>,
    /// Number of the job that the first of them belongs to.
    first: u64,
    /// There are no more jobs.
    ended: bool,
    /// Away while a thread uses it.
    sink: Option<D>,
    failure: Option<OfflineError>,
}

impl<I, J, R, D> Line<I, R, D>
where
    I: Iterator<Item = J>,
    D: FnMut(R) -> Result<(), OfflineError>,
{
    fn serve(&self, mut work: impl FnMut(J) -> Result<R, OfflineError>) {
        let _ends_a_panic = EndsAPanic(self);
        while let Some((number, job)) = self.next_job() {
            match work(job) {
                Ok(result) => self.deliver(number, result),
                Err(error) => self.fail(error),
            }
        }
    }

    fn next_job(&self) -> Option<(u64, J)> {
        let mut jobs = lock(&self.jobs);
        let mut state = lock(&self.state);
        while state.results.len() >= self.room && state.failure.is_none() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.ended || state.failure.is_some() {
            return None;
        }
        drop(state);
        let job = jobs.next();
        let mut state = lock(&self.state);
        state.ended = job.is_none();
        let job = job?;
        let number = state.first.saturating_add(state.results.len() as u64);
        state.results.push_back(None);
        Some((number, job))
    }

    /// Notes the result, and takes all whose turn it is, unless another thread does so: that one sees this result too.
    fn deliver(&self, number: u64, result: R) {
        let mut state = lock(&self.state);
        let place = usize::try_from(number.saturating_sub(state.first)).unwrap_or(usize::MAX);
        if let Some(slot) = state.results.get_mut(place) {
            *slot = Some(result);
        }
        let Some(mut sink) = state.sink.take() else { return };
        while state.failure.is_none()
            && let Some(result) = state.results.front_mut().and_then(Option::take)
        {
            state.results.pop_front();
            state.first = state.first.saturating_add(1);
            drop(state);
            self.changed.notify_one();
            if let Err(error) = sink(result) {
                self.fail(error);
            }
            state = lock(&self.state);
        }
        state.sink = Some(sink);
    }
}

impl<I, R, D> Line<I, R, D> {
    fn fail(&self, error: OfflineError) {
        lock(&self.state).failure.get_or_insert(error);
        self.changed.notify_all();
    }
}

/// Others would wait for ever for the result of a thread that has panicked.
struct EndsAPanic<'a, I, R, D>(&'a Line<I, R, D>);

impl<I, R, D> Drop for EndsAPanic<'_, I, R, D> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.fail(OfflineError::Thread);
        }
    }
}

/// What is locked is whole between any two statements that may panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{
        num::NonZeroUsize,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use super::{JOBS_OF_A_THREAD, OfflineError, in_order, workers};

    const THREADS: NonZeroUsize = NonZeroUsize::new(4).unwrap();

    /// Lets others go first, for a time that differs from job to job.
    fn slow(number: u64) {
        (0..number * 7919 % 97).for_each(|_| std::thread::yield_now());
    }

    #[test]
    fn results_come_in_the_order_of_the_jobs_and_few_wait() {
        let (begun, taken) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let jobs = (0..500_u64).inspect(|_| {
            begun.fetch_add(1, Ordering::SeqCst);
        });
        let mut results = Vec::new();
        let work = workers(THREADS, || {
            Ok(|number: u64| {
                slow(number);
                Ok(number)
            })
        });
        in_order(work.unwrap(), jobs, |number| {
            let under_way = begun.load(Ordering::SeqCst) - taken.fetch_add(1, Ordering::SeqCst);
            assert!(under_way <= THREADS.get() * JOBS_OF_A_THREAD + 1, "{under_way}");
            results.push(number);
            Ok(())
        })
        .unwrap();
        assert!(results.into_iter().eq(0..500));
    }

    #[test]
    fn the_first_error_of_a_worker_or_of_what_takes_the_results_ends_it() {
        let failing =
            |at: u64| move |number: u64| if number == at { Err(OfflineError::Cancelled) } else { Ok(number) };
        let mut taken = 0;
        let ended = in_order(vec![failing(100), failing(100)], 0.., |_| {
            taken += 1;
            Ok(())
        });
        assert!(matches!(ended, Err(OfflineError::Cancelled)) && taken <= 100, "{taken}");
        let ended = in_order(vec![failing(u64::MAX), failing(u64::MAX)], 0.., |number| {
            if number == 100 { Err(OfflineError::NoLayers) } else { Ok(()) }
        });
        assert!(matches!(ended, Err(OfflineError::NoLayers)));
    }

    #[test]
    fn a_panic_of_a_thread_is_an_error_and_leaves_nobody_waiting() {
        let own = std::thread::current().id();
        let work = || {
            move |number: u64| {
                slow(number);
                assert!(number < 100 || std::thread::current().id() == own, "as the test wants it");
                Ok(number)
            }
        };
        let ended = in_order(vec![work(), work(), work()], 0.., |_| Ok(()));
        assert!(matches!(ended, Err(OfflineError::Thread)));
    }
}
