//! What waits has no buffer, comes in its turn, and is counted once.

use futures_util::poll;

use super::*;
use crate::{device::MemoryDevice, reactor::ReactorConfig};

fn device(rates: Rates) -> (Limited<MemoryDevice>, Arc<Limit>) {
    let geometry = Geometry { read_only: false, ..Geometry::read_only(1 << 20, 512) };
    let limit = Arc::new(Limit::new(rates));
    (Limited::new(MemoryDevice::new(geometry).unwrap(), Arc::clone(&limit)), limit)
}

fn requests(requests_per_second: u64) -> Rates {
    Rates { requests_per_second, ..Rates::default() }
}

fn run(test: impl AsyncFnOnce(&Reactor)) {
    let reactor = Reactor::new(&ReactorConfig::default()).unwrap();
    reactor.block_on(test(&reactor)).unwrap();
}

#[test]
fn a_request_past_the_limit_waits_without_a_buffer_until_the_limit_is_lifted() {
    run(async |reactor| {
        let (device, limit) = device(requests(1));
        let queue = device.open_queue(reactor).unwrap();
        let pool = reactor.request_buffers();
        queue.write(0, &[1; 512]).await.unwrap();
        let mut write = Box::pin(queue.write_pooled(0, 4096, pool, |data| {
            data.fill(2);
            Ok(())
        }));
        let mut read = Box::pin(queue.read_pooled(0, 4096, pool));
        assert!(poll!(write.as_mut()).is_pending() && poll!(read.as_mut()).is_pending());
        assert_eq!(pool.out_bytes(), 0);
        limit.set(Rates::default());
        write.await.unwrap();
        assert_eq!(read.await.unwrap()[0], 2);
        assert_eq!(limit.rates(), Rates::default());
    });
}

#[test]
fn bytes_are_bounded_as_requests_are() {
    run(async |reactor| {
        let rates = Rates { bytes_per_second: 1 << 20, ..Rates::default() };
        let (device, _) = device(rates);
        let queue = device.open_queue(reactor).unwrap();
        let began = Instant::now();
        // One begins at once; the rest of a quarter of a second's bytes comes in its turn.
        for _ in 0..5 {
            queue.write(0, &[1; 1 << 16]).await.unwrap();
        }
        assert!(began.elapsed() >= Duration::from_millis(200), "{:?}", began.elapsed());
    });
}

#[test]
fn a_read_that_cannot_be_done_in_its_slot_has_its_turn_once() {
    run(async |reactor| {
        let (device, _) = device(requests(1));
        let queue = device.open_queue(reactor).unwrap();
        let Some(slot) = reactor.buffer_slot() else { return };
        let mut dest = [0; 512];
        assert!(!queue.read_to_slot(512, 512, &slot).await, "the device has no file");
        let mut again = Box::pin(queue.read(512, &mut dest));
        assert!(poll!(again.as_mut()).is_ready(), "it waits twice");
        drop(again);
        let mut next = Box::pin(queue.read(512, &mut dest));
        assert!(poll!(next.as_mut()).is_pending(), "another one is free");
        drop(next);
        let mut slotted = Box::pin(queue.read_to_slot(0, 512, &slot));
        assert!(poll!(slotted.as_mut()).is_pending(), "reads without a copy are not bounded");
    });
}
