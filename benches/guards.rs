//! What stands between a frontend and each device costs a request: the limit, which is not set, and the watch over requests that
//! do not end.
//!
//! Reads of 4 KiB of a null device, where nothing else is to be seen, and of a file in the page cache, which is the least that a
//! request of an image costs. `cargo bench --bench guards`.
#![expect(clippy::cast_possible_truncation, reason = "a bench runs where usize has 64 bits")]

mod support;

use std::{io::Write, sync::Arc, time::Duration};

use stratabd::{
    block::{BlockDevice, BlockQueue, Geometry},
    device::{FileDevice, NullDevice},
    limit::{Limit, Limited, Rates},
    reactor::{Reactor, ReactorConfig},
    supervision::{Overdue, Supervised},
};
use support::{paired, verdict};

/// Pages of the device.
const PAGES: u64 = 4096;

/// Reads of one round.
const READS: u64 = 64 << 10;

/// Most nanoseconds that both may cost a read: little beside the microseconds that its way through the driver takes.
const MOST_NS: f64 = 60.0;

fn main() {
    let reactor = Reactor::new(&ReactorConfig::default()).expect("a reactor");
    println!("processor time of a random read of 4 KiB in nanoseconds, median of rounds in turn");
    let null = NullDevice::new(Geometry::read_only(PAGES << 12, 4096)).expect("a device");
    let [bare, guarded] = measure(&reactor, null);
    println!("of zeroes: bare {bare:.0}, guarded {guarded:.0}");
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(&vec![1; (PAGES << 12) as usize]).expect("room for a file");
    let device = FileDevice::open(file.path(), true).expect("a device");
    let [bare, guarded] = measure(&reactor, device);
    let cost = guarded - bare;
    println!(
        "of a file: bare {bare:.0}, guarded {guarded:.0}, {cost:.0} more (at most {MOST_NS}: {})",
        verdict(cost <= MOST_NS)
    );
}

/// Nanoseconds of a read of `device`, and of one through all that stands before it.
fn measure<D: BlockDevice>(reactor: &Reactor, device: D) -> [f64; 2] {
    let device = Arc::new(device);
    let bare = device.open_queue(reactor).expect("a queue");
    let supervised = Supervised::new(device, Arc::new(Overdue::new(Duration::from_secs(30))));
    let guarded = Limited::new(supervised, Arc::new(Limit::new(Rates::default())));
    let guarded = guarded.open_queue(reactor).expect("a queue");
    let times = paired([&mut || round(reactor, &bare), &mut || round(reactor, &guarded)]);
    times.map(|time| time / READS as f64)
}

fn round(reactor: &Reactor, queue: &impl BlockQueue) -> u64 {
    let mut random = fastrand::Rng::with_seed(1);
    let work = async {
        let mut sum = 0;
        for _ in 0..READS {
            let offset = random.u64(0..PAGES) << 12;
            let data = queue.read_pooled(offset, 4096, reactor.request_buffers()).await.expect("a read");
            sum += u64::from(data.first().copied().unwrap_or_default());
        }
        sum
    };
    reactor.block_on(work).expect("a reactor that runs")
}
