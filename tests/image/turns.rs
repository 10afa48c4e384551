//! How much of a turn of the loop one queue may take.

use std::{rc::Rc, sync::Arc, time::Duration};

use super::{
    blobs::{Behaviour, MemoryBlob},
    fixtures::Fixture,
    reactor,
};
use stratabd::{
    block::{BlockDevice, BlockQueue},
    image::{Image, ImageOptions},
    source::BlobSource,
};

const LAYER: &str = "ext4/L2.z4k";
const BLOCK_BYTES: u64 = 4096;

/// What a queue may decode in a turn, and some blocks that were begun before that was used up.
const TURN_BYTES: u64 = (128 << 10) + 4 * BLOCK_BYTES;

const REQUESTS: u64 = 64;
const TURNS: u64 = 200;

#[test]
fn all_requests_of_a_queue_together_decode_so_much_a_turn() {
    for behaviour in [Behaviour::Warm, Behaviour::Cold] {
        let reactor = reactor();
        let layers: Vec<Arc<dyn BlobSource>> =
            vec![MemoryBlob::new(LAYER, Fixture::named(LAYER).read(), behaviour)];
        let options = ImageOptions { decoded_cache_bytes: 0, ..ImageOptions::default() };
        let image = reactor.block_on(Image::open(&reactor, layers, options)).unwrap().unwrap();
        let decoded = || image.metrics().decoded_blocks.get() * BLOCK_BYTES;
        let queue = Rc::new(image.open_queue(&reactor.for_queue()).unwrap());
        let is_full = |at: &u64| {
            let before = decoded();
            reactor.block_on(queue.read(*at, &mut vec![0; 1 << 20])).unwrap().unwrap();
            decoded() - before >= TURN_BYTES
        };
        let full: Vec<u64> = (0..64).map(|mib| mib << 20).filter(is_full).collect();
        assert!(!full.is_empty());
        for number in 0..REQUESTS {
            let full = full.clone();
            let len = if number % 2 == 0 { 1 << 20 } else { BLOCK_BYTES as usize };
            let (queue, handle) = (Rc::clone(&queue), reactor.clone());
            reactor.spawn(async move {
                let mut dest = vec![0; len];
                for at in full.into_iter().cycle() {
                    queue.read(at, &mut dest).await.unwrap();
                    handle.sleep(Duration::ZERO).await;
                }
            });
        }
        let work = async {
            let (began, mut before) = (decoded(), (reactor.turn_number(), decoded()));
            let mut most = 0;
            for _ in 0..TURNS {
                reactor.sleep(Duration::ZERO).await;
                let now = (reactor.turn_number(), decoded());
                most = most.max((now.1 - before.1) / (now.0 - before.0));
                before = now;
            }
            assert!(most <= TURN_BYTES, "{behaviour:?}: {most} bytes in a turn");
            assert!(before.1 - began >= 10 * TURN_BYTES, "{behaviour:?}: it goes on, too");
        };
        reactor.block_on(work).unwrap();
    }
}
