//! ublk devices whose engine fails, hangs, panics or cannot be opened.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use stratabd::{
    block::{BlockDevice, BlockError, ByteRange, ErrorKind, Geometry},
    device::{Fault, MemoryDevice, MemoryQueue, Op, Trouble},
    frontend::{
        AttachRequest, Detached, Frontend, FrontendError,
        ublk::{CopyMode, Ublk},
    },
    reactor::Reactor,
};

use crate::{
    devices::{Direct, NotingDevice, Reactors, faulty, memory, pattern},
    frame::{in_guest, pause},
};

const MIB: usize = 1 << 20;
const DEADLINE: Duration = Duration::from_secs(20);
const EIO: i32 = 5;

#[test]
fn a_failing_engine_fails_the_request_and_the_device_stays_usable() {
    if !in_guest() {
        return;
    }
    let reactors = Reactors::start(1);
    for mode in [CopyMode::User, CopyMode::TagBuffer] {
        let (device, plan) = faulty(MIB);
        let attachment =
            Ublk::with_copy(mode).attach(&device, &AttachRequest::default(), &reactors.handles()).unwrap();
        let node = Direct::open(attachment.path(), true);
        for (kind, errno) in [(ErrorKind::Io, EIO), (ErrorKind::NoSpace, 28), (ErrorKind::ReadOnly, EIO)] {
            plan.add(Fault::once(Op::Write, Trouble::Fail(kind)));
            assert_eq!(node.write(0, &[9; 4096]).unwrap_err().raw_os_error(), Some(errno), "{kind:?}");
        }
        // Half of the bytes have been read when it fails: none may be seen.
        plan.add(Fault::once(Op::Read, Trouble::Cut { after_bytes: 2048, kind: ErrorKind::Io }));
        assert_eq!(node.read(0, 4096).unwrap_err().raw_os_error(), Some(EIO));
        plan.add(Fault::once(Op::Flush, Trouble::Fail(ErrorKind::Io)));
        assert_eq!(node.file().sync_all().unwrap_err().raw_os_error(), Some(EIO));
        node.file().sync_all().unwrap();
        assert!(node.read(0, MIB).unwrap() == pattern(MIB, 1));
        drop(node);
        assert_eq!(attachment.detach(DEADLINE).unwrap(), Detached::Complete);
    }
}

#[test]
fn a_panicking_engine_fails_its_request_and_no_other() {
    if !in_guest() {
        return;
    }
    let reactors = Reactors::start(1);
    let device = Arc::new(NotingDevice { trap: Some(8192), ..NotingDevice::new(memory(MIB, 1)) });
    let attachment = Ublk::new().attach(&device, &AttachRequest::default(), &reactors.handles()).unwrap();
    let node = Direct::open(attachment.path(), false);
    // More often than there are tags: none is lost.
    for _ in 0..100 {
        assert_eq!(node.read(8192, 4096).unwrap_err().raw_os_error(), Some(EIO));
    }
    assert!(node.read(0, 8192).unwrap() == pattern(MIB, 1)[..8192]);
    let failures = device.take().into_iter().filter(|(name, ..)| *name == "failure").count();
    assert_eq!(failures, 100, "requests that panicked are counted");
    drop(node);
    assert_eq!(attachment.detach(DEADLINE).unwrap(), Detached::Complete);
}

#[test]
fn requests_that_hang_hold_up_no_others() {
    if !in_guest() {
        return;
    }
    let reactors = Reactors::start(1);
    let (device, plan) = faulty(MIB);
    plan.add(Fault::at(Op::Read, ByteRange::between(0, 4096), Trouble::Hang));
    let attachment = Ublk::new().attach(&device, &AttachRequest::default(), &reactors.handles()).unwrap();
    let (sender, receiver) = mpsc::channel();
    for _ in 0..3 {
        let (path, sender) = (attachment.path().to_owned(), sender.clone());
        thread::spawn(move || sender.send(Direct::open(&path, false).read(0, 4096)).unwrap());
    }
    let began = Instant::now();
    while plan.met() < 3 {
        assert!(began.elapsed() < DEADLINE, "the hanging requests did not arrive");
        pause();
    }
    let node = Direct::open(attachment.path(), false);
    let expected = pattern(MIB, 1);
    for round in 1..200 {
        let offset = round * 4096;
        assert!(node.read(offset as u64, 4096).unwrap() == expected[offset..offset + 4096]);
    }
    assert!(receiver.try_recv().is_err(), "a hanging request has ended");
    plan.release();
    for _ in 0..3 {
        let bytes = receiver.recv_timeout(DEADLINE).unwrap().unwrap();
        assert!(bytes == expected[..4096]);
    }
    drop(node);
    assert_eq!(attachment.detach(DEADLINE).unwrap(), Detached::Complete);
}

#[test]
fn removing_a_device_fails_the_requests_that_hang_and_ends() {
    if !in_guest() {
        return;
    }
    let reactors = Reactors::start(1);
    for mode in [CopyMode::User, CopyMode::TagBuffer] {
        let (device, plan) = faulty(MIB);
        plan.add(Fault::at(Op::Read, ByteRange::between(0, u64::MAX), Trouble::Hang));
        let request = AttachRequest { depth: 8, ..AttachRequest::default() };
        let attachment = Ublk::with_copy(mode).attach(&device, &request, &reactors.handles()).unwrap();
        let nodes: Vec<_> = (0..12).map(|_| Direct::open(attachment.path(), false)).collect();
        let readers: Vec<_> = (0..)
            .zip(nodes)
            .map(|(number, node)| thread::spawn(move || node.read(number * 4096, 4096)))
            .collect();
        let began = Instant::now();
        while plan.met() < 7 {
            assert!(began.elapsed() < DEADLINE, "the requests did not arrive");
            pause();
        }
        let began = Instant::now();
        assert_eq!(attachment.detach(Duration::from_secs(6)).unwrap(), Detached::Complete);
        assert!(began.elapsed() < Duration::from_secs(6));
        for reader in readers {
            // Those that the driver had not yet passed on see a device that has gone.
            let outcome = reader.join().unwrap();
            assert!(outcome.as_ref().map_or(true, Vec::is_empty), "{outcome:?}");
        }
    }
}

/// Opens a few queues, and no more.
struct Stingy(MemoryDevice, AtomicU64);

impl BlockDevice for Stingy {
    type Queue = MemoryQueue;

    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn open_queue(&self, reactor: &Reactor) -> Result<MemoryQueue, BlockError> {
        if self.1.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_err() {
            return Err(BlockError::new(ErrorKind::NoSpace, "no more queues"));
        }
        self.0.open_queue(reactor)
    }
}

#[test]
fn an_engine_that_opens_too_few_queues_leaves_no_device() {
    if !in_guest() {
        return;
    }
    let reactors = Reactors::start(2);
    for round in 0..20 {
        let (copy, queues) =
            if round % 2 == 0 { (CopyMode::User, 1) } else { (CopyMode::TagBuffer, round % 3) };
        let queues = queues.min(1);
        let device = Arc::new(Stingy(memory(MIB, 1), AtomicU64::new(queues)));
        // One that outlives its server has one queue on some kernels.
        let request = AttachRequest { queues: 2, recovery: false, ..AttachRequest::default() };
        let error = Ublk::with_copy(copy).attach(&device, &request, &reactors.handles()).err().unwrap();
        assert!(matches!(error, FrontendError::Engine { .. }), "{error}");
        assert_eq!(Ublk::new().list().unwrap(), []);
        assert_eq!(Arc::strong_count(&device), 1);
    }
}

#[test]
fn a_stopped_reactor_leaves_no_device() {
    if !in_guest() {
        return;
    }
    let handles = Reactors::start(1).handles();
    let error =
        Ublk::new().attach(&Arc::new(memory(MIB, 1)), &AttachRequest::default(), &handles).err().unwrap();
    assert!(matches!(error, FrontendError::NoReactor { queue: 0 }), "{error}");
    assert_eq!(Ublk::new().list().unwrap(), []);
}
