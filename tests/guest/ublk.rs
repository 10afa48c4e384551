//! ublk devices as programs see them: their bytes, in both ways of copying, and what the kernel says of them.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use rustix::fs::FallocateFlags;
use stratabd::{
    block::{BlockDevice, Geometry},
    device::{MemoryDevice, NullDevice},
    frontend::{
        AttachRequest, Attachment, Detached, Frontend, FrontendError,
        ublk::{CopyMode, DeviceState, Ublk},
    },
};

use crate::{
    devices::{Direct, NotingDevice, Reactors, content, memory, pattern, writable},
    frame::{in_guest, output_of},
};

const MIB: usize = 1 << 20;
const DEADLINE: Duration = Duration::from_secs(20);

fn attach<D: BlockDevice>(device: &Arc<D>, reactors: &Reactors) -> Box<dyn Attachment> {
    Ublk::new()
        .attach(device, &AttachRequest::default(), &reactors.handles())
        .expect("the device is attached")
}

fn end(attachment: Box<dyn Attachment>) {
    assert_eq!(attachment.detach(DEADLINE).expect("the device is detached"), Detached::Complete);
}

#[test]
fn a_whole_device_is_read_and_written_in_both_ways_of_copying_with_any_queues_and_depth() {
    if !in_guest() {
        return;
    }
    let reactors = Reactors::start(2);
    let mut seed = 10;
    for mode in [CopyMode::User, CopyMode::TagBuffer] {
        for (queues, depth) in [(1, 1), (2, 3), (2, 64), (1, 128)] {
            let device = Arc::new(memory(MIB + 512, 1));
            let request = AttachRequest { queues, depth, ..AttachRequest::default() };
            let attachment = Ublk::with_copy(mode).attach(&device, &request, &reactors.handles()).unwrap();
            let before = content(attachment.path());
            assert!(before == pattern(MIB + 512, 1), "{mode:?}, {queues} queues of {depth}");
            seed += 1;
            let after = pattern(MIB + 512, seed);
            let node = Direct::open(attachment.path(), true);
            for (number, part) in after.chunks(300 * 512).enumerate() {
                assert_eq!(node.write(number as u64 * 300 * 512, part).unwrap(), part.len());
            }
            drop(node);
            assert!(device.bytes() == after, "{mode:?}, {queues} queues of {depth}, after writing");
            end(attachment);
        }
    }
}

fn queue_limit(attachment: &dyn Attachment, name: &str) -> u64 {
    let path = format!("/sys/block/ublkb{}/queue/{name}", attachment.id());
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    text.trim().parse().unwrap_or_else(|error| panic!("{path}: {text}: {error}"))
}

#[test]
fn a_read_only_device_says_what_it_is() {
    if !in_guest() {
        return;
    }
    let reactors = Reactors::start(1);
    for block_bytes in [512, 4096] {
        let geometry =
            Geometry { optimal_io_bytes: 65536, ..Geometry::read_only(8 * MIB as u64, block_bytes) };
        let attachment = attach(&Arc::new(MemoryDevice::new(geometry).unwrap()), &reactors);
        let limit = |name| queue_limit(&*attachment, name);
        assert_eq!(limit("logical_block_size"), u64::from(block_bytes));
        assert_eq!(limit("physical_block_size"), 4096);
        assert_eq!(limit("minimum_io_size"), 4096);
        assert_eq!(limit("optimal_io_size"), 65536);
        assert_eq!(limit("rotational"), 0);
        assert_eq!(limit("max_hw_sectors_kb"), 1024);
        assert_eq!(limit("max_sectors_kb"), 1024);
        assert_eq!(limit("discard_max_bytes"), 0);
        let size = fs::read_to_string(format!("/sys/block/ublkb{}/size", attachment.id())).unwrap();
        assert_eq!(size.trim(), (8 * MIB / 512).to_string());
        let refused = fs::OpenOptions::new().write(true).open(attachment.path());
        let written = refused.and_then(|file| std::os::unix::fs::FileExt::write_at(&file, &[1; 4096], 0));
        assert!(written.is_err(), "a read-only device was written");
        end(attachment);
    }
}

#[test]
fn a_writable_device_says_what_it_is_and_gets_discards_flushes_and_durable_writes() {
    if !in_guest() {
        return;
    }
    let reactors = Reactors::start(1);
    let device = Arc::new(NotingDevice::new(memory(4 * MIB, 1)));
    let attachment = attach(&device, &reactors);
    assert_eq!(queue_limit(&*attachment, "discard_max_bytes"), 1 << 30);
    assert_eq!(queue_limit(&*attachment, "discard_granularity"), 4096);
    assert_eq!(queue_limit(&*attachment, "write_zeroes_max_bytes"), 1 << 30);
    assert_eq!(queue_limit(&*attachment, "fua"), 1);
    let cache = fs::read_to_string(format!("/sys/block/ublkb{}/queue/write_cache", attachment.id())).unwrap();
    assert_eq!(cache.trim(), "write back");

    let node = Direct::open(attachment.path(), true);
    let _ = device.take();
    let mib = MIB as u64;
    rustix::fs::fallocate(node.file(), FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, mib, mib)
        .unwrap();
    rustix::fs::fallocate(node.file(), FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, 3 * mib, 4096)
        .unwrap();
    let zeroed = [("zero", mib, mib), ("zero", 3 * mib, 4096)];
    assert_eq!(device.take(), zeroed);
    let mut expected = pattern(4 * MIB, 1);
    expected[MIB..2 * MIB].fill(0);
    expected[3 * MIB..3 * MIB + 4096].fill(0);
    assert!(device.inner.bytes() == expected);

    node.file().sync_all().unwrap();
    assert_eq!(device.take(), [("flush", 0, 0)]);
    let durable = Direct::open_durable(attachment.path());
    assert_eq!(durable.write(8192, &[7; 4096]).unwrap(), 4096);
    // The first flush is the write's own, for it was marked FUA; the second is asked for by the kernel's O_DSYNC.
    assert_eq!(device.take(), [("write", 8192, 4096), ("flush", 0, 0), ("flush", 0, 0)]);
    drop((node, durable));
    end(attachment);
}

#[test]
fn a_request_of_one_mebibyte_reaches_the_engine_whole() {
    if !in_guest() {
        return;
    }
    let reactors = Reactors::start(1);
    for mode in [CopyMode::User, CopyMode::TagBuffer] {
        let device = Arc::new(NotingDevice::new(memory(4 * MIB, 1)));
        let attachment =
            Ublk::with_copy(mode).attach(&device, &AttachRequest::default(), &reactors.handles()).unwrap();
        let node = Direct::open(attachment.path(), true);
        let _ = device.take();
        assert!(node.read(MIB as u64, MIB).unwrap() == pattern(4 * MIB, 1)[MIB..2 * MIB]);
        assert_eq!(node.write(3 * MIB as u64, &pattern(MIB, 2)).unwrap(), MIB);
        let mib = MIB as u64;
        assert_eq!(device.take(), [("read", mib, mib), ("write", 3 * mib, mib)], "{mode:?}");
        assert!(device.inner.bytes()[3 * MIB..4 * MIB] == pattern(MIB, 2));
        drop(node);
        end(attachment);
    }
}

#[test]
fn devices_that_share_a_reactor_verify_under_load_while_others_come_and_go() {
    if !in_guest() {
        return;
    }
    let reactors = Reactors::start(1);
    let attachments: Vec<_> = [CopyMode::User, CopyMode::TagBuffer, CopyMode::User, CopyMode::TagBuffer]
        .into_iter()
        .map(|mode| {
            let device = Arc::new(MemoryDevice::new(writable(16 * MIB as u64, 512)).unwrap());
            let request = AttachRequest { queues: 2, depth: 32, ..AttachRequest::default() };
            Ublk::with_copy(mode).attach(&device, &request, &reactors.handles()).unwrap()
        })
        .collect();
    let mut jobs: Vec<_> = attachments
        .iter()
        .zip(["4k", "16k", "100k", "1m"])
        .map(|(attachment, block)| {
            Command::new("fio")
                .args(["--name=verify", "--rw=randrw", "--direct=1", "--ioengine=io_uring", "--iodepth=16"])
                .args([
                    "--verify=crc32c",
                    "--verify_fatal=1",
                    "--size=8m",
                    "--loops=2",
                    "--output-format=terse",
                ])
                .arg(format!("--bs={block}"))
                .arg(format!("--filename={}", attachment.path().display()))
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let mut cycles = 0;
    while jobs.iter_mut().any(|job| job.try_wait().unwrap().is_none()) {
        let other = attach(&Arc::new(memory(MIB, 3)), &reactors);
        assert!(content(other.path()) == pattern(MIB, 3));
        end(other);
        cycles += 1;
    }
    for job in jobs {
        let output = job.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(cycles > 0);
    attachments.into_iter().for_each(end);
}

#[test]
fn a_device_with_a_partition_table_is_not_scanned() {
    if !in_guest() {
        return;
    }
    let reactors = Reactors::start(1);
    let mut bytes = vec![0; 4 * MIB];
    // One entry of a master boot record: type 0x83, from sector 2048, 4096 sectors.
    bytes[446..462].copy_from_slice(&[0, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 16, 0, 0]);
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    let device = Arc::new(NotingDevice::new(MemoryDevice::with_bytes(writable(0, 512), bytes).unwrap()));
    let attachment = attach(&device, &reactors);
    assert_eq!(device.take(), [], "attaching read the device");
    assert!(!Path::new(&format!("{}p1", attachment.path().display())).exists());
    end(attachment);
}

#[test]
fn devices_of_any_owner_are_listed_with_what_they_are() {
    if !in_guest() {
        return;
    }
    let ublk = Ublk::new();
    assert!(ublk.features().unwrap().names().contains(&"USER_COPY".to_owned()));
    assert_eq!(ublk.list().unwrap(), []);
    let reactors = Reactors::start(1);
    let request =
        AttachRequest { id: Some(7), queues: 1, depth: 16, max_io_bytes: 65536, ..AttachRequest::default() };
    let device = Arc::new(NullDevice::new(Geometry::read_only(1 << 40, 4096)).unwrap());
    let seven = ublk.attach(&device, &request, &reactors.handles()).unwrap();
    let three = AttachRequest { id: Some(3), ..AttachRequest::default() };
    let three = ublk.attach(&Arc::new(memory(MIB, 1)), &three, &reactors.handles()).unwrap();
    let list = ublk.list().unwrap();
    assert_eq!(list.iter().map(|device| device.id).collect::<Vec<_>>(), [3, 7]);
    let info = ublk.info(7).unwrap();
    assert_eq!(info, list[1]);
    assert_eq!((info.state, info.queues, info.depth, info.max_io_bytes), (DeviceState::Live, 1, 16, 65536));
    assert_eq!((info.server_pid.unsigned_abs(), info.owner_uid), (std::process::id(), 0));
    assert_eq!(info.path, seven.path());
    let shape = info.shape.unwrap();
    assert_eq!((shape.size_bytes, shape.logical_block_bytes, shape.read_only), (1 << 40, 4096, true));
    end(seven);
    end(three);
    assert!(matches!(ublk.info(7), Err(FrontendError::NoSuchDevice(7))));
}

#[test]
fn a_serving_thread_has_no_administrator_capability_and_is_an_io_flusher() {
    if !in_guest() {
        return;
    }
    let reactors = Reactors::start(1);
    let handle = reactors.handles().remove(0);
    let (sender, receiver) = std::sync::mpsc::channel();
    handle.spawn(move |_| async move {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
        let effective = u64::from_str_radix(line.trim(), 16).unwrap();
        sender.send((effective >> 21 & 1, rustix::process::is_io_flusher().unwrap())).unwrap();
    });
    assert_eq!(receiver.recv_timeout(DEADLINE).unwrap(), (0, true));
    assert!(
        rustix::thread::capabilities(None)
            .unwrap()
            .effective
            .contains(rustix::thread::CapabilitySet::SYS_ADMIN)
    );
}

#[test]
fn a_file_system_on_a_device_survives_being_unmounted_and_attached_again() {
    if !in_guest() {
        return;
    }
    let reactors = Reactors::start(1);
    let device = Arc::new(MemoryDevice::new(writable(16 * MIB as u64, 4096)).unwrap());
    for round in 0..2 {
        let attachment = attach(&device, &reactors);
        let node = attachment.path().to_str().unwrap().to_owned();
        if round == 0 {
            output_of("mkfs.ext4", &["-q", "-F", &node]);
        }
        fs::create_dir_all("/tmp/mounted").unwrap();
        output_of("mount", &[&node, "/tmp/mounted"]);
        if round == 0 {
            fs::write("/tmp/mounted/file", pattern(MIB, 5)).unwrap();
        }
        assert!(content(Path::new("/tmp/mounted/file")) == pattern(MIB, 5));
        output_of("umount", &["/tmp/mounted"]);
        end(attachment);
    }
}
