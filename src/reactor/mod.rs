//! One thread, one io_uring, one local executor.
//!
//! A [`Reactor`] drives futures that never leave its thread. Work from other threads arrives through a
//! [`ReactorHandle`]; wakers may be called from any thread and cost a system call only when the reactor sleeps.
//! An operation in flight owns its buffer and its file until the kernel has answered, so a future may be dropped at
//! any time. SQEs that the ready tasks produce are submitted together, once per turn of the loop.
//!
//! Ring flags and the wake-up were chosen by measurement: SINGLE_ISSUER with DEFER_TASKRUN avoids interrupting
//! the thread, and an eventfd written only while the reactor sleeps costs a burst of wake-ups 10-20 ns each.

mod buffer;
mod config;
mod executor;
mod file;
mod inbox;
mod operation;
mod ring;
mod running;
mod thread;

pub use buffer::{Buffer, BufferError, BufferPool};
pub use config::ReactorConfig;
pub use file::FixedFile;
pub use inbox::ReactorHandle;
pub use running::Reactor;
pub use thread::ReactorThread;

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        os::fd::OwnedFd,
        sync::{Arc, mpsc},
        time::{Duration, Instant},
    };

    use super::*;

    fn reactor() -> Reactor {
        Reactor::new(&ReactorConfig::default()).expect("io_uring")
    }

    fn file(content: &[u8]) -> Arc<OwnedFd> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        Arc::new(file.into())
    }

    #[test]
    fn a_read_fills_the_buffer_and_is_short_at_the_end_of_the_file() {
        let reactor = reactor();
        let file = file(&[7; 6000]);
        let (count, buffer) = reactor
            .block_on(async {
                let buffer = reactor.io_buffers().acquire(4096).await.unwrap();
                let (count, buffer) = reactor.read_at(&file, 4000, buffer).await;
                (count.unwrap(), buffer)
            })
            .unwrap();
        assert_eq!(count, 2000);
        assert!(buffer[..2000].iter().all(|byte| *byte == 7));
    }

    #[test]
    fn a_dropped_read_keeps_its_buffer_until_the_kernel_has_answered() {
        let reactor = reactor();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let reader = Arc::new(reader);
        reactor
            .block_on(async {
                let buffer = reactor.io_buffers().acquire(4096).await.unwrap();
                {
                    let mut read = Box::pin(reactor.read_at(&reader, u64::MAX, buffer));
                    assert!(futures_util::poll!(read.as_mut()).is_pending());
                    reactor.sleep(Duration::from_millis(1)).await;
                }
                assert_eq!(reactor.io_buffers().out_bytes(), 4096, "the kernel may still write into it");
                rustix::io::write(&writer, b"late").unwrap();
                while reactor.io_buffers().out_bytes() != 0 {
                    reactor.sleep(Duration::from_millis(1)).await;
                }
            })
            .unwrap();
    }

    #[test]
    fn a_reactor_that_goes_with_a_read_in_flight_waits_for_the_kernel() {
        let reactor = reactor();
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        let reader = Arc::new(reader);
        let other = reactor.clone();
        reactor.spawn(async move {
            let buffer = other.io_buffers().acquire(4096).await.unwrap();
            let _ = other.read_at(&reader, u64::MAX, buffer).await;
        });
        reactor.block_on(reactor.sleep(Duration::from_millis(5))).unwrap();
    }

    #[test]
    fn sleep_lasts_and_a_dropped_timer_does_not_hold_the_reactor() {
        let reactor = reactor();
        let began = Instant::now();
        reactor
            .block_on(async {
                let mut long = Box::pin(reactor.sleep(Duration::from_secs(3600)));
                assert!(futures_util::poll!(long.as_mut()).is_pending());
                reactor.sleep(Duration::from_millis(20)).await;
            })
            .unwrap();
        drop(reactor);
        assert!((Duration::from_millis(20)..Duration::from_secs(60)).contains(&began.elapsed()));
    }

    #[test]
    fn work_from_other_threads_wakes_a_sleeping_reactor_every_time() {
        let thread = ReactorThread::start("test", ReactorConfig::default(), || Ok(())).unwrap();
        let (sender, receiver) = mpsc::channel();
        for round in 0..10_000_u32 {
            let sender = sender.clone();
            thread.handle().spawn(move |_| async move { sender.send(round).unwrap() });
            if round % 16 == 0 {
                assert!(receiver.recv_timeout(Duration::from_secs(20)).is_ok(), "lost in round {round}");
            }
        }
        drop(sender);
        assert_eq!(receiver.iter().count(), 10_000 - 625);
        thread.stop().unwrap();
    }

    #[test]
    fn a_waker_called_elsewhere_reaches_its_task() {
        let thread = ReactorThread::start("test", ReactorConfig::default(), || Ok(())).unwrap();
        for round in 0..1000 {
            let (sender, receiver) = futures_channel::oneshot::channel();
            let answer = thread.handle().call(move |_| async move { receiver.await.unwrap() });
            sender.send(round).unwrap();
            assert_eq!(reactor().block_on(answer).unwrap(), Ok(round));
            if round == 50 {
                break;
            }
        }
    }

    #[test]
    fn more_operations_than_the_ring_has_entries_all_complete() {
        let config =
            ReactorConfig { submission_entries: 4, completion_entries: 8, ..ReactorConfig::default() };
        let reactor = Reactor::new(&config).unwrap();
        let file = file(&[1; 65536]);
        let reads = (0..300_u64).map(|index| {
            let (reactor, file) = (reactor.clone(), Arc::clone(&file));
            async move {
                let buffer = reactor.io_buffers().acquire(4096).await.unwrap();
                reactor.read_at(&file, index % 16 * 4096, buffer).await.0.unwrap()
            }
        });
        let counts = reactor.block_on(futures_util::future::join_all(reads)).unwrap();
        assert!(counts.iter().all(|count| *count == 4096));
    }
}
