//! What is said of requests that hang, and that nothing is said of others.

use std::time::{Duration, Instant};

use futures_util::{future::join_all, join, poll};

use super::*;
use crate::{
    block::ErrorKind,
    device::{Fault, FaultPlan, FaultyDevice, MemoryDevice, Op, Trouble},
    reactor::ReactorConfig,
};

const LIMIT: Duration = Duration::from_millis(40);

type Device = Supervised<FaultyDevice<MemoryDevice>>;

fn device(plan: &FaultPlan) -> (Device, Arc<Overdue>) {
    let geometry = Geometry { read_only: false, ..Geometry::read_only(1 << 20, 512) };
    let memory = MemoryDevice::new(geometry).unwrap();
    let overdue = Arc::new(Overdue::new(LIMIT));
    let faulty = FaultyDevice::new(memory, plan.clone());
    (Supervised::new(Arc::new(faulty), Arc::clone(&overdue)), overdue)
}

fn run(test: impl AsyncFnOnce(&Reactor)) {
    let reactor = Reactor::new(&ReactorConfig::default()).unwrap();
    reactor.block_on(test(&reactor)).unwrap();
}

/// Drives `work`, which does not end, until `seen` is.
async fn until(reactor: &Reactor, work: impl Future, mut seen: impl FnMut() -> bool) {
    let mut work = Box::pin(work);
    while !seen() {
        assert!(poll!(work.as_mut()).is_pending());
        reactor.sleep(LIMIT / 10).await;
    }
    // Whoever gives a request up ends it.
}

#[test]
fn a_request_that_hangs_is_told_with_what_it_waits_for_until_it_ends() {
    run(async |reactor| {
        let every = ByteRange::between(0, u64::MAX);
        let plan = FaultPlan::new(
            [Op::Read, Op::Write, Op::Flush, Op::WriteZeroes].map(|op| Fault::at(op, every, Trouble::Hang)),
        );
        let (device, overdue) = device(&plan);
        let queue = device.open_queue(reactor).unwrap();
        let mut dest = [0; 4096];
        let work = async {
            let reads = queue.read(8192, &mut dest);
            join!(reads, queue.write(512, &[1; 512]), queue.flush(), queue.write_zeroes(1024, 2048))
        };
        let mut work = Box::pin(work);
        until(reactor, work.as_mut(), || overdue.list().len() == 4).await;
        let mut found: Vec<_> =
            overdue.list().into_iter().map(|request| (request.kind, request.offset, request.len)).collect();
        found.sort_unstable();
        assert_eq!(
            found,
            [("discard", 1024, 2048), ("flush", 0, 0), ("read", 8192, 4096), ("write", 512, 512)]
        );
        let told = overdue.list();
        assert!(told.iter().all(|request| request.age >= LIMIT));
        assert!(
            told.iter().all(|request| request.waits_for.as_deref() == Some("a planned fault")),
            "{told:?}"
        );
        assert_eq!((overdue.count(), overdue.in_flight()), (4, 4));
        plan.clear();
        plan.release();
        let (read, write, flush, discard) = work.await;
        assert!([read, write, flush, discard].iter().all(Result::is_ok));
        assert_eq!(
            (overdue.list(), overdue.count(), overdue.in_flight()),
            (Vec::new(), 4, 0),
            "what has ended is counted and not listed"
        );
    });
}

#[test]
fn requests_that_end_are_never_told_however_many_there_are() {
    run(async |reactor| {
        let late = Fault { count: u64::MAX, ..Fault::once(Op::Read, Trouble::Delay(LIMIT / 8)) };
        let (device, overdue) = device(&FaultPlan::new([late]));
        let queue = &device.open_queue(reactor).unwrap();
        let begun = Instant::now();
        let mut longest = Duration::ZERO;
        while begun.elapsed() < 4 * LIMIT {
            let reads = (0..64).map(|_| async {
                let begun = Instant::now();
                queue.read(0, &mut [0; 512]).await.unwrap();
                begun.elapsed()
            });
            longest = join_all(reads).await.into_iter().fold(longest, Duration::max);
        }
        // On a machine that stands still for a while they are late.
        assert!(overdue.count() == 0 || longest > LIMIT, "{longest:?}");
        assert!(queue.requests.spare.borrow().len() <= 64, "what entries had is used again");
    });
}

#[test]
fn a_queue_that_goes_takes_along_what_was_told_of_it() {
    run(async |reactor| {
        let plan = FaultPlan::new([Fault::once(Op::Flush, Trouble::Hang)]);
        let (device, overdue) = device(&plan);
        let queue = device.open_queue(reactor).unwrap();
        until(reactor, queue.flush(), || !overdue.list().is_empty()).await;
        drop(queue);
        assert_eq!((overdue.list(), overdue.in_flight()), (Vec::new(), 0));
    });
}

#[test]
fn failures_pass_through() {
    run(async |reactor| {
        let (device, _) =
            device(&FaultPlan::new([Fault::once(Op::Write, Trouble::Fail(ErrorKind::NoSpace))]));
        let queue = device.open_queue(reactor).unwrap();
        assert_eq!(queue.write(0, &[1; 512]).await.unwrap_err().kind(), ErrorKind::NoSpace);
        let mut back = [7; 512];
        queue.read(0, &mut back).await.unwrap();
        assert_eq!(back, [0; 512]);
    });
}
