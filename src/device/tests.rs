//! What every member of the family keeps, and the faults of the one that breaks it by script.

use std::{
    fs::{File, OpenOptions},
    io::Read,
    time::{Duration, Instant},
};

use futures_util::future::{Either, join_all, select};

use super::*;
use crate::{
    block::{BlockDevice, BlockQueue, ByteRange, ErrorKind, Geometry},
    reactor::{Reactor, ReactorConfig},
};

const SECTOR: usize = 512;
const SIZE: usize = 256 * SECTOR;

fn geometry() -> Geometry {
    Geometry { read_only: false, discard: true, ..Geometry::read_only(SIZE as u64, 512) }
}

fn memory() -> MemoryDevice {
    MemoryDevice::new(geometry()).unwrap()
}

/// A file device over `bytes`, and the directory that its file lies in.
fn file(bytes: &[u8], read_only: bool) -> (FileDevice, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    std::fs::write(&path, bytes).unwrap();
    (FileDevice::open(&path, read_only).unwrap(), directory)
}

fn run<D: BlockDevice, T>(device: &D, act: impl AsyncFnOnce(Reactor, D::Queue) -> T) -> T {
    let reactor = Reactor::new(&ReactorConfig::default()).unwrap();
    let queue = device.open_queue(&reactor).unwrap();
    reactor.block_on(act(reactor.clone(), queue)).unwrap()
}

/// Rounds of overlapping writes, zeroings and reads in flight together. Each sector then holds what one of the round's
/// writers left there, or what it held before if there was none; a reader saw one of these.
fn overlapping_operations_leave_every_sector_whole<D: BlockDevice>(device: &D) {
    run(device, async |_, queue| {
        let mut random = fastrand::Rng::with_seed(7);
        let mut held = vec![0_u8; SIZE / SECTOR];
        for round in 0..60_u8 {
            let mut candidates: Vec<Vec<u8>> = held.iter().map(|value| vec![*value]).collect();
            let mut writes = Vec::new();
            for writer in 0..8_u8 {
                let first = random.usize(..SIZE / SECTOR);
                let count = random.usize(1..=(SIZE / SECTOR - first).min(40));
                let value = if writer == 7 { 0 } else { 1 + (round % 30) * 8 + writer };
                candidates[first..first + count].iter_mut().for_each(|sector| sector.push(value));
                writes.push((first, count, value));
            }
            let writers = writes.iter().map(|(first, count, value)| async {
                let offset = (*first * SECTOR) as u64;
                match *value {
                    0 => queue.write_zeroes(offset, (*count * SECTOR) as u64).await.unwrap(),
                    value => queue.write(offset, &vec![value; *count * SECTOR]).await.unwrap(),
                }
            });
            let readers = (0..4).map(|_| async {
                let mut seen = vec![0xee; SIZE];
                queue.read(0, &mut seen).await.unwrap();
                seen
            });
            let (_, seen) = futures_util::join!(join_all(writers), join_all(readers));
            for (index, byte) in seen.iter().flat_map(|seen| seen.iter().enumerate()) {
                assert!(candidates[index / SECTOR].contains(byte), "round {round}, byte {index}: {byte}");
            }
            let mut after = vec![0xee; SIZE];
            queue.read(0, &mut after).await.unwrap();
            for (index, sector) in after.chunks(SECTOR).enumerate() {
                assert!(
                    sector.iter().all(|byte| *byte == sector[0]),
                    "round {round}: sector {index} is torn"
                );
                let written = &candidates[index];
                let valid = if written.len() > 1 { &written[1..] } else { &written[..] };
                assert!(valid.contains(&sector[0]), "round {round}: sector {index} holds {}", sector[0]);
                held[index] = sector[0];
            }
        }
        queue.flush().await.unwrap();
    });
}

#[test]
fn overlapping_operations_on_memory_leave_every_sector_whole() {
    overlapping_operations_leave_every_sector_whole(&memory());
}

#[test]
fn overlapping_operations_on_a_file_leave_every_sector_whole() {
    overlapping_operations_leave_every_sector_whole(&file(&[0; SIZE], false).0);
}

#[test]
fn overlapping_operations_with_delays_leave_every_sector_whole() {
    let slow = |op| Fault {
        count: 40,
        ..Fault::at(op, ByteRange::between(0, SIZE as u64), Trouble::Delay(Duration::from_millis(1)))
    };
    let plan = FaultPlan::new([slow(Op::Write), slow(Op::Read)]);
    overlapping_operations_leave_every_sector_whole(&FaultyDevice::new(memory(), plan.clone()));
    assert_eq!(plan.met(), 80);
}

#[test]
fn null_reads_zeroes_and_forgets_what_is_written() {
    run(&NullDevice::new(geometry()).unwrap(), async |_, queue| {
        queue.write(0, &[1; 4096]).await.unwrap();
        let mut dest = [0xee; 4096];
        queue.read(0, &mut dest).await.unwrap();
        assert_eq!(dest, [0; 4096]);
    });
}

#[test]
fn a_read_only_device_takes_no_writes() {
    async fn refuses(queue: impl BlockQueue) {
        assert_eq!(queue.write(0, &[1; 512]).await.unwrap_err().kind(), ErrorKind::ReadOnly);
        assert_eq!(queue.write_zeroes(0, 512).await.unwrap_err().kind(), ErrorKind::ReadOnly);
        queue.flush().await.unwrap();
        queue.read(0, &mut [0; 512]).await.unwrap();
    }
    let geometry = Geometry::read_only(SIZE as u64, 512);
    run(&NullDevice::new(geometry).unwrap(), async |_, queue| refuses(queue).await);
    run(&MemoryDevice::new(geometry).unwrap(), async |_, queue| refuses(queue).await);
    run(&file(&[0; SIZE], true).0, async |_, queue| refuses(queue).await);
}

#[test]
fn memory_outside_the_device_is_invalid_and_not_a_panic() {
    run(&memory(), async |_, queue| {
        for offset in [SIZE as u64, u64::MAX - 511, u64::MAX] {
            assert_eq!(queue.read(offset, &mut [0; 512]).await.unwrap_err().kind(), ErrorKind::Invalid);
            assert_eq!(queue.write(offset, &[0; 512]).await.unwrap_err().kind(), ErrorKind::Invalid);
        }
    });
}

#[test]
fn a_file_is_read_past_the_page_cache_and_in_pieces() {
    let bytes: Vec<u8> = (0..3 << 20).map(|index: u32| (index / 512 * 31 % 251) as u8).collect();
    let (device, directory) = file(&bytes, true);
    let drop_cache = || {
        let file = OpenOptions::new().write(true).open(directory.path().join("disk")).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    };
    run(&device, async |_, queue| {
        drop_cache();
        for (offset, len) in [(0, 4096), (512, 1 << 20), (4096, 8192), (0, 3 << 20), ((3 << 20) - 512, 512)] {
            let mut dest = vec![0xee; len];
            queue.read(offset as u64, &mut dest).await.unwrap();
            assert!(dest == bytes[offset..offset + len], "{len} bytes at {offset}");
        }
    });
}

#[test]
fn a_file_that_has_shrunk_fails_and_never_reads_as_zeroes() {
    let (device, directory) = file(&[5; SIZE], true);
    let file = OpenOptions::new().write(true).open(directory.path().join("disk")).unwrap();
    file.set_len(1000).unwrap();
    run(&device, async |_, queue| {
        let mut dest = [0xee; 4096];
        let error = queue.read(0, &mut dest).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.to_string().contains("cannot read 3096 bytes at 1000"), "{error}");
        queue.read(0, &mut dest[..512]).await.unwrap();
        assert_eq!(dest[..512], [5; 512]);
    });
}

#[test]
fn written_bytes_and_zeroes_are_in_the_file() {
    let (device, directory) = file(&[9; SIZE], false);
    run(&device, async |_, queue| {
        queue.write(1024, &[1; 2048]).await.unwrap();
        queue.write_zeroes(1536, 512).await.unwrap();
        queue.write_zeroes(8192, 65536).await.unwrap();
        queue.flush().await.unwrap();
    });
    let mut expected = vec![9; SIZE];
    expected[1024..3072].fill(1);
    expected[1536..2048].fill(0);
    expected[8192..8192 + 65536].fill(0);
    let mut content = Vec::new();
    File::open(directory.path().join("disk")).unwrap().read_to_end(&mut content).unwrap();
    assert!(content == expected);
}

#[test]
fn what_cannot_be_a_device_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("odd");
    assert!(matches!(FileDevice::open(&path, true), Err(FileDeviceError::Open { .. })));
    std::fs::write(&path, [0; 1000]).unwrap();
    assert!(matches!(FileDevice::open(&path, true), Err(FileDeviceError::Geometry { .. })));
    assert!(matches!(FileDevice::open(directory.path(), true), Err(FileDeviceError::Kind { .. })));
    assert!(matches!(MemoryDevice::new(Geometry::read_only(1000, 512)), Err(MemoryError::Geometry(_))));
    let endless = Geometry::read_only(1 << 63, 512);
    assert!(matches!(MemoryDevice::new(endless), Err(MemoryError::TooLarge { .. })));
}

#[test]
fn a_fault_meets_the_operations_that_it_is_written_for() {
    let second = ByteRange::between(4096, 8192);
    let fail = Trouble::Fail(ErrorKind::NoSpace);
    // The fault, and which of these four reads it meets: at 0, 4096, 4096 and over both.
    let table = [
        (Fault::once(Op::Read, fail), [true, false, false, false]),
        (Fault { skip: 1, ..Fault::once(Op::Read, fail) }, [false, true, false, false]),
        (Fault { count: 2, ..Fault::once(Op::Read, fail) }, [true, true, false, false]),
        (Fault::at(Op::Read, second, fail), [false, true, true, true]),
        (Fault { skip: 2, ..Fault::at(Op::Read, second, fail) }, [false, false, false, true]),
        (Fault::at(Op::Write, second, fail), [false, false, false, false]),
        (Fault::once(Op::Flush, fail), [false, false, false, false]),
    ];
    for (fault, expected) in table {
        let plan = FaultPlan::new([fault]);
        let met = run(&FaultyDevice::new(memory(), plan.clone()), async |_, queue| {
            let mut met = Vec::new();
            for (offset, len) in [(0, 4096), (4096, 4096), (4096, 512), (0, 8192)] {
                let result = queue.read(offset, &mut vec![0; len]).await;
                assert!(result.as_ref().err().is_none_or(|error| error.kind() == ErrorKind::NoSpace));
                met.push(result.is_err());
            }
            met
        });
        assert_eq!(met, expected, "{fault:?}");
        assert_eq!(plan.met(), expected.iter().filter(|met| **met).count() as u64);
    }
}

#[test]
fn a_cut_write_leaves_its_first_bytes_and_a_cut_flush_fails() {
    let device = memory();
    let cut = Trouble::Cut { after_bytes: 512, kind: ErrorKind::Io };
    let plan =
        FaultPlan::new([Op::Write, Op::WriteZeroes, Op::Read, Op::Flush].map(|op| Fault::once(op, cut)));
    run(&FaultyDevice::new(device.clone(), plan), async |_, queue| {
        queue.write(0, &[3; 1024]).await.unwrap_err();
        assert_eq!((device.bytes()[511], device.bytes()[512]), (3, 0));
        queue.write(0, &[3; 1024]).await.unwrap();
        queue.write_zeroes(0, 1024).await.unwrap_err();
        assert_eq!((device.bytes()[511], device.bytes()[512]), (0, 3));
        let mut dest = [0xee; 1024];
        queue.read(0, &mut dest).await.unwrap_err();
        assert_eq!((dest[511], dest[512]), (0, 0xee));
        queue.flush().await.unwrap_err();
        queue.flush().await.unwrap();
    });
}

#[test]
fn a_delay_lasts_and_what_hangs_goes_on_when_it_is_released() {
    let delay = Duration::from_millis(20);
    let plan = FaultPlan::new([
        Fault::once(Op::Read, Trouble::Delay(delay)),
        Fault::at(Op::Write, ByteRange::between(0, 512), Trouble::Hang),
    ]);
    run(&FaultyDevice::new(memory(), plan.clone()), async |reactor, queue| {
        let began = Instant::now();
        queue.read(0, &mut [0; 512]).await.unwrap();
        assert!(began.elapsed() >= delay);
        let stuck = Box::pin(queue.write(0, &[1; 512]));
        let Either::Right((_, stuck)) = select(stuck, Box::pin(reactor.sleep(delay))).await else {
            panic!("it did not hang");
        };
        queue.write(512, &[2; 512]).await.unwrap();
        plan.release();
        stuck.await.unwrap();
        let mut dest = [0; 512];
        queue.read(0, &mut dest).await.unwrap();
        assert_eq!(dest, [1; 512]);
    });
}
