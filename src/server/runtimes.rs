//! The threads that tokio works on: those that a program cannot do without are there before it begins.
//!
//! Tokio panics where it cannot have its first thread for calls that block, and where it has one that is busy, the next call waits, maybe
//! for ever. So threads are asked for here, where it is an error that there are none, and stay.

use std::{convert::Infallible, fs, io, sync::mpsc, thread, time::Duration};

use rustix::process::{Resource, getrlimit};
use tokio::runtime::{Builder, Handle, Runtime};

use super::failure::{Failure, FailureClass};

/// Threads for calls that block which are there from the start: so many names, credentials and files are waited for at once also
/// where the system gives no more threads.
const KEPT_THREADS: usize = 2;

/// Threads for calls that block: the daemon's work on devices takes at most 16 of them, so that files are read while the driver hangs.
const BLOCKING_THREADS: usize = 64;

/// One that has been started stays: there may be no other when it is wanted again.
const KEEP_ALIVE: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Stack of a thread that only shows that it can be had.
const PROBE_STACK_BYTES: usize = 64 << 10;

/// How long threads may take to start, or to be gone.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(1);

/// A runtime of so many threads, for the network.
///
/// # Errors
/// Where the threads cannot be had.
pub fn of_threads(name: &str, threads: usize) -> Result<Runtime, Failure> {
    start(Builder::new_multi_thread().worker_threads(threads), name, threads)
}

/// A runtime of the thread that blocks on it.
///
/// # Errors
/// Where the threads for calls that block cannot be had.
pub fn of_this_thread(name: &str) -> Result<Runtime, Failure> {
    start(&mut Builder::new_current_thread(), name, 0)
}

fn start(builder: &mut Builder, name: &str, threads: usize) -> Result<Runtime, Failure> {
    require_threads(threads + KEPT_THREADS)?;
    let runtime = builder
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(KEEP_ALIVE)
        .thread_name(name)
        .enable_all()
        .build()
        .map_err(|source| Failure::with_source(FailureClass::Internal, "cannot start the runtime", source))?;
    start_kept(runtime.handle())?;
    Ok(runtime)
}

/// Has the threads started that stay.
fn start_kept(handle: &Handle) -> Result<(), Failure> {
    let (started, starting) = mpsc::channel();
    let holds: Vec<_> = (0..KEPT_THREADS)
        .map(|_| {
            let (hold, held) = mpsc::channel::<Infallible>();
            let started = started.clone();
            handle.spawn_blocking(move || {
                let _ = started.send(());
                // Until all are there: one thread could be all of them else.
                let _ = held.recv();
            });
            hold
        })
        .collect();
    let all = holds.iter().try_for_each(|_| starting.recv_timeout(PATIENCE));
    all.map_err(|_| refused(KEPT_THREADS, io::ErrorKind::TimedOut.into()))
}

/// Makes sure that so many threads can be had now, for those who would panic.
///
/// # Errors
/// Where they cannot, which names the limit.
pub fn require_threads(count: usize) -> Result<(), Failure> {
    let before = living();
    let probe = |_| {
        let (hold, held) = mpsc::channel::<Infallible>();
        let thread =
            thread::Builder::new().stack_size(PROBE_STACK_BYTES).spawn(move || held.recv().is_err())?;
        Ok((hold, thread))
    };
    let probes: io::Result<Vec<_>> = (0..count).map(probe).collect();
    let probes = probes.map_err(|error| refused(count, error))?;
    for (hold, thread) in probes {
        drop(hold);
        let _ = thread.join();
    }
    // One that was joined still counts for a moment.
    let mut waited = Duration::ZERO;
    while living() > before && waited < PATIENCE {
        #[expect(clippy::disallowed_methods, reason = "a program waits before it begins to serve anything")]
        thread::sleep(PAUSE);
        waited += PAUSE;
    }
    Ok(())
}

/// Threads of this process; 0 where that cannot be seen.
fn living() -> usize {
    fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

fn refused(count: usize, source: io::Error) -> Failure {
    let limit = getrlimit(Resource::Nproc).current;
    let limit = limit.map_or_else(|| "no limit".to_owned(), |limit| format!("a limit of {limit}"));
    let text = format!(
        "cannot start {count} threads: this user has {limit} of processes and threads (RLIMIT_NPROC, ulimit -u), and a service TasksMax="
    );
    Failure::with_source(FailureClass::Internal, text, source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_that_block_have_threads_from_the_start_that_stay() {
        let named = |name: &str| {
            let threads = fs::read_dir("/proc/self/task").unwrap();
            let names = threads.map(|thread| fs::read_to_string(thread.unwrap().path().join("comm")));
            names.filter(|found| found.as_ref().is_ok_and(|found| found.trim() == name)).count()
        };
        let _network = of_threads("network-test", 1).unwrap();
        let _control = of_this_thread("control-test").unwrap();
        assert_eq!(named("network-test"), 1 + KEPT_THREADS);
        assert_eq!(named("control-test"), KEPT_THREADS);
    }

    #[test]
    fn threads_that_were_probed_are_gone() {
        require_threads(8).unwrap();
        let error = refused(3, io::ErrorKind::WouldBlock.into());
        assert!(error.full_text().contains("RLIMIT_NPROC"), "{}", error.full_text());
    }
}
