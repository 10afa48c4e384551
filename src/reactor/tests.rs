//! What the reactor promises: buffers that outlive their futures, no lost wake-up, a clean end.

use std::{
    any::Any,
    cell::Cell,
    io::Write,
    os::fd::OwnedFd,
    rc::Rc,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use futures_util::{FutureExt, StreamExt};

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
    let config = ReactorConfig { submission_entries: 4, completion_entries: 8, ..ReactorConfig::default() };
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

/// Says when it is dropped.
struct Guard(Rc<Cell<bool>>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.set(true);
    }
}

#[test]
fn tasks_that_hold_their_reactor_end_with_its_owner() {
    let ended = Rc::new(Cell::new(false));
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    let reader = Arc::new(reader);
    let reactor = reactor();
    let (guard, handle, pipe) = (Guard(Rc::clone(&ended)), reactor.clone(), Arc::clone(&reader));
    reactor.spawn(async move {
        let _guard = guard;
        let buffer = handle.io_buffers().acquire(4096).await.unwrap();
        let _ = handle.read_at(&pipe, u64::MAX, buffer).await;
    });
    reactor.block_on(reactor.sleep(Duration::from_millis(1))).unwrap();
    let pool = reactor.io_buffers().clone();
    assert_eq!((Arc::strong_count(&reader), pool.out_bytes(), ended.get()), (3, 4096, false));
    drop(reactor);
    assert_eq!((Arc::strong_count(&reader), pool.out_bytes(), ended.get()), (1, 0, true));
}

#[test]
fn a_read_that_was_never_submitted_leaks_nothing() {
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    let reader = Arc::new(reader);
    let config = ReactorConfig { submission_entries: 2, ..ReactorConfig::default() };
    let reactor = Reactor::new(&config).unwrap();
    let pool = reactor.io_buffers().clone();
    reactor
        .block_on(async {
            for _ in 0..10 {
                let buffer = pool.acquire(4096).await.unwrap();
                let mut read = Box::pin(reactor.read_at(&reader, u64::MAX, buffer));
                assert!(futures_util::poll!(read.as_mut()).is_pending());
            }
        })
        .unwrap();
    assert_eq!(pool.out_bytes(), 10 * 4096);
    drop(reactor);
    assert_eq!((Arc::strong_count(&reader), pool.out_bytes()), (1, 0));
}

#[test]
fn a_handle_that_outlives_the_reactor_is_refused_and_does_not_hang() {
    let owner = reactor();
    let handle = owner.clone();
    drop(owner);
    let ended = Rc::new(Cell::new(false));
    let guard = Guard(Rc::clone(&ended));
    handle.spawn(async move { drop(guard) });
    assert!(ended.get(), "a task that nobody will run is dropped");
    assert!(handle.block_on(handle.sleep(Duration::from_secs(3600))).is_err());
}

#[test]
fn work_for_a_reactor_that_has_ended_is_cancelled() {
    let thread = ReactorThread::start("test", ReactorConfig::default(), || Ok(())).unwrap();
    let handle = thread.handle();
    let stuck = handle.call(|_| std::future::pending::<()>());
    thread.stop().unwrap();
    let late = handle.call(|_| async {});
    let reactor = reactor();
    assert!(reactor.block_on(stuck).unwrap().is_err());
    assert!(reactor.block_on(late).unwrap().is_err());
}

#[test]
fn a_panic_ends_its_task_and_nothing_else() {
    let thread = ReactorThread::start("test", ReactorConfig::default(), || Ok(())).unwrap();
    let other = thread.handle().call(|reactor| async move {
        reactor.sleep(Duration::from_millis(50)).await;
        7
    });
    let polled = thread.handle().call(|reactor| async move {
        reactor.sleep(Duration::from_millis(1)).await;
        panic!("planned");
    });
    let started = thread.handle().call(|_| -> std::future::Ready<()> { panic!("planned") });
    let reactor = reactor();
    let polled: Result<(), _> = reactor.block_on(polled).unwrap();
    assert!(polled.is_err());
    assert!(reactor.block_on(started).unwrap().is_err());
    assert_eq!(reactor.block_on(other).unwrap(), Ok(7));
    assert_eq!(reactor.block_on(thread.handle().call(|_| async { 8 })).unwrap(), Ok(8));
    thread.stop().unwrap();
}

#[test]
fn a_reactor_thread_may_be_dropped_by_its_own_task() {
    let thread = ReactorThread::start("test", ReactorConfig::default(), || Ok(())).unwrap();
    let (sender, receiver) = futures_channel::oneshot::channel::<ReactorThread>();
    let (ended, ends) = mpsc::channel::<()>();
    thread.handle().spawn(move |_| async move {
        drop(receiver.await);
        ended.send(()).unwrap();
        std::future::pending::<()>().await;
    });
    sender.send(thread).unwrap();
    assert_eq!(ends.recv_timeout(Duration::from_secs(20)), Ok(()), "it did not wait for itself");
    assert_eq!(ends.recv_timeout(Duration::from_secs(20)), Err(mpsc::RecvTimeoutError::Disconnected));
}

#[test]
#[expect(unsafe_code, reason = "a driver command, here of /dev/null")]
fn an_abandoned_command_holds_its_file_and_memory_until_the_driver_has_answered() {
    let reactor = reactor();
    let null: Arc<OwnedFd> = Arc::new(std::fs::File::open("/dev/null").unwrap().into());
    let memory: Rc<dyn Any> = Rc::new([0; 64]);
    reactor
        .block_on(async {
            {
                // SAFETY: /dev/null takes any command and looks at no argument.
                let mut command = Box::pin(unsafe { reactor.command(&null, 0, [0; 16], 0, Some(&memory)) });
                assert!(futures_util::poll!(command.as_mut()).is_pending());
            }
            assert_eq!((Arc::strong_count(&null), Rc::strong_count(&memory)), (2, 2));
            reactor.sleep(Duration::from_millis(5)).await;
        })
        .unwrap();
    assert_eq!((Arc::strong_count(&null), Rc::strong_count(&memory)), (1, 1));
}

#[test]
fn the_longest_sleep_does_not_end_at_once() {
    let reactor = reactor();
    reactor
        .block_on(async {
            let mut long = Box::pin(reactor.sleep(Duration::MAX));
            assert!(futures_util::poll!(long.as_mut()).is_pending());
            reactor.sleep(Duration::from_millis(5)).await;
            assert!(futures_util::poll!(long.as_mut()).is_pending());
        })
        .unwrap();
}

#[test]
fn wakers_called_from_many_threads_never_lose_a_wake_up() {
    let thread = ReactorThread::start("test", ReactorConfig::default(), || Ok(())).unwrap();
    let (sender, mut receiver) = futures_channel::mpsc::unbounded::<u32>();
    let sum = thread.handle().call(move |_| async move {
        let mut sum = 0_u64;
        while let Some(value) = receiver.next().await {
            sum += u64::from(value);
        }
        sum
    });
    let senders: Vec<_> = (0..3)
        .map(|_| {
            let sender = sender.clone();
            std::thread::spawn(move || {
                for value in 0..20_000 {
                    sender.unbounded_send(value).unwrap();
                    if value % 64 == 0 {
                        std::thread::yield_now();
                    }
                }
            })
        })
        .collect();
    drop(sender);
    senders.into_iter().for_each(|sender| sender.join().unwrap());
    let limit = reactor();
    let sum = limit.block_on(async {
        futures_util::select! {
            sum = sum.fuse() => sum.unwrap(),
            () = limit.sleep(Duration::from_secs(60)).fuse() => panic!("a wake-up was lost"),
        }
    });
    assert_eq!(sum.unwrap(), 3 * (0..20_000_u64).sum::<u64>());
}

#[test]
fn places_for_buffers_are_few_and_come_back_and_an_empty_one_cannot_be_read_into() {
    let reactor = Reactor::new(&ReactorConfig { buffer_slots: 2, ..ReactorConfig::default() }).unwrap();
    let first = reactor.buffer_slot().unwrap();
    let second = reactor.buffer_slot().unwrap();
    assert_ne!(first.index(), second.index());
    assert!(reactor.buffer_slot().is_none());
    let index = first.index();
    drop(first);
    assert_eq!(reactor.buffer_slot().unwrap().index(), index);
    let file = file(b"content");
    let read = reactor.block_on(reactor.read_to_slot(&file, 0, &second, 4)).unwrap();
    assert_eq!(read.unwrap_err().raw_os_error(), Some(rustix::io::Errno::FAULT.raw_os_error()));
    let none = Reactor::new(&ReactorConfig { buffer_slots: 0, ..ReactorConfig::default() }).unwrap();
    assert!(none.buffer_slot().is_none());
}

#[test]
fn a_place_is_held_until_the_read_into_it_has_been_answered() {
    let reactor = reactor();
    let slot = reactor.buffer_slot().unwrap();
    let file = file(b"content");
    reactor
        .block_on(async {
            let mut read = Box::pin(reactor.read_to_slot(&file, 0, &slot, 4));
            assert!(futures_util::poll!(read.as_mut()).is_pending());
            drop(read);
            assert_eq!(Rc::strong_count(&slot), 2);
            reactor.sleep(Duration::from_millis(20)).await;
            assert_eq!(Rc::strong_count(&slot), 1);
        })
        .unwrap();
}

#[test]
fn what_the_kernel_cuts_short_is_no_outcome() {
    let reactor = reactor();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let reader = Arc::new(reader);
    let read = reactor
        .block_on(async {
            let buffer = reactor.io_buffers().acquire(4).await.unwrap();
            let mut read = Box::pin(reactor.read_at(&reader, u64::MAX, buffer));
            for _ in 0..3 {
                assert!(futures_util::poll!(read.as_mut()).is_pending());
                reactor.sleep(Duration::from_millis(20)).await;
                reactor.cut_short();
            }
            rustix::io::write(&writer, b"late").unwrap();
            read.await
        })
        .unwrap();
    assert_eq!((read.0.unwrap(), &read.1[..]), (4, &b"late"[..]));
}
