//! Discards over many extents: how many are taken out of the map before anybody else has a turn.

use std::{pin::pin, sync::Arc};

use futures_util::poll;

use super::{
    LIMITS,
    content::{self, Device, bytes_of},
    crash_image::{CrashImage, SECTOR},
    disk::SimulatedDisk,
    identity, reactor,
};
use crate::{
    block::{BlockDevice, BlockQueue},
    upper::{LogLimits, Overlay, layer::Layer},
};

const EXTENTS: u64 = 3000;

/// More than this takes so long that requests of other devices are late.
const MOST_AT_ONCE: usize = 512;

#[test]
fn a_discard_over_many_extents_gives_others_a_turn_and_two_take_turns() {
    let reactor = reactor();
    let work = async {
        let disk = SimulatedDisk::new(CrashImage::default(), 1);
        disk.layer_files().format(&reactor, &identity(2 * EXTENTS * SECTOR)).await.unwrap();
        let limits = LogLimits { pending_entries: 1 << 20, rewrite_entries: 1 << 20, ..LIMITS };
        let below = content::below(8, 512);
        let device: Device = Overlay::open(&reactor, disk.layer_files(), Some(below), limits).await.unwrap();
        let queue = device.open_queue(&reactor).unwrap();
        disk.set_slowest(0);
        for extent in 0..EXTENTS {
            let sectors = 2 * extent..2 * extent + 1;
            queue.write(sectors.start * SECTOR, &bytes_of(5, sectors)).await.unwrap();
            if extent % 100 == 0 {
                queue.flush().await.unwrap();
            }
        }
        let Layer::Log(top) = &device.stack.layers().top else { unreachable!("it was made as one") };
        let top = Arc::clone(top);
        let half = EXTENTS * SECTOR;
        {
            let mut discards = [pin!(queue.write_zeroes(0, half)), pin!(queue.write_zeroes(half, half))];
            let (mut left, mut turns, mut ended) = (top.extents(), 0, [false; 2]);
            while ended != [true; 2] {
                for (discard, ended) in discards.iter_mut().zip(&mut ended) {
                    *ended = *ended || poll!(discard.as_mut()).is_ready();
                }
                // Those that both have begun with come in one turn.
                let most = if turns == 0 { 2 * MOST_AT_ONCE } else { MOST_AT_ONCE };
                let gone = left - top.extents();
                assert!(gone <= most, "{gone} extents in turn {turns}");
                (left, turns) = (left - gone, turns + 1);
                reactor.yield_now().await;
            }
        }
        assert_eq!(top.extents(), 1);
        queue.flush().await.unwrap();
        drop((queue, device, top));
        let below = content::below(8, 512);
        let device: Device = Overlay::open(&reactor, disk.layer_files(), Some(below), limits).await.unwrap();
        let queue = device.open_queue(&reactor).unwrap();
        assert!(content::read_all(&device, &queue).await.iter().all(|writer| *writer == content::ZERO));
    };
    reactor.block_on(work).unwrap();
}
