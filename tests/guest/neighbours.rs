//! A device that hangs, and what those have that share its threads.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use rustix::process::configure_io_flusher_behavior;
use stratabd::{
    block::ByteRange,
    device::{Fault, Op, Trouble},
    frontend::{
        AttachRequest, Detached, Frontend,
        ublk::{CopyMode, Ublk, mark_io_flusher},
    },
};

use crate::{
    daemon::start,
    devices::{Direct, Reactors, faulty, memory, pattern},
    disk::Disk,
    frame::{in_guest, wait_until},
    support::daemon::Daemon,
    writable::{MIB, config_with_upper, text},
};

const DEADLINE: Duration = Duration::from_secs(60);

#[test]
fn writes_that_hang_leave_a_neighbour_on_the_same_thread_its_buffers() {
    const WRITES: u64 = 40;
    if !in_guest() {
        return;
    }
    let reactors = Reactors::start(1);
    let (device, plan) = faulty(1 << 20);
    plan.add(Fault::at(Op::Write, ByteRange::between(0, u64::MAX), Trouble::Hang));
    let attach = AttachRequest::default;
    let hung = Ublk::with_copy(CopyMode::User).attach(&device, &attach(), &reactors.handles()).unwrap();
    let neighbour =
        Ublk::new().attach(&Arc::new(memory(1 << 20, 1)), &attach(), &reactors.handles()).unwrap();
    let writers: Vec<_> = (0..WRITES)
        .map(|_| {
            let node = Direct::open(hung.path(), true);
            thread::spawn(move || node.write(0, &[1; 1 << 20]))
        })
        .collect();
    // Half of the pool, where 32 would be all of it.
    wait_until("the writes arrive", || plan.met() >= 16);
    let node = Direct::open(neighbour.path(), true);
    for _ in 0..20 {
        assert!(node.read(0, 1 << 20).unwrap() == pattern(1 << 20, 1));
        assert_eq!(node.write(0, &pattern(1 << 20, 1)).unwrap(), 1 << 20);
    }
    plan.clear();
    plan.release();
    for writer in writers {
        assert_eq!(writer.join().unwrap().unwrap(), 1 << 20);
    }
    drop(node);
    assert_eq!(neighbour.detach(DEADLINE).unwrap(), Detached::Complete);
    assert_eq!(hung.detach(DEADLINE).unwrap(), Detached::Complete);
}

/// The kernel's flags of a thread.
fn flags_of(stat: &Path) -> Option<u64> {
    // The name before may have anything in it; a thread may have ended.
    let stat = fs::read_to_string(stat).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(6)?.parse().ok()
}

#[test]
fn every_thread_of_the_daemon_may_be_waited_for_by_writeback() {
    if !in_guest() {
        return;
    }
    // On a thread of its own, since the daemon would inherit the marks of this one.
    let marked = thread::spawn(|| {
        let own = || flags_of(Path::new("/proc/thread-self/stat")).unwrap();
        mark_io_flusher().unwrap();
        let marked = own();
        // Not from the flags before, since it is noted there too that a capability was used.
        configure_io_flusher_behavior(false).unwrap();
        marked & !own()
    });
    let flusher = marked.join().unwrap();
    assert_ne!(flusher, 0);

    let dir = tempfile::tempdir_in("/var").unwrap();
    let daemon = start(dir.path());
    let path = daemon.add(&["--config", &config_with_upper(dir.path(), None, MIB)]);
    let node = Direct::open(&path, true);
    for round in 0..20 {
        node.write(0, &pattern(1 << 16, round)).unwrap();
        node.file().sync_all().unwrap();
    }
    let threads = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    let mut names = Vec::new();
    for thread in threads {
        let thread = thread.unwrap().path();
        let Some(flags) = flags_of(&thread.join("stat")) else { continue };
        let name = fs::read_to_string(thread.join("comm")).unwrap_or_default().trim().to_owned();
        assert_eq!(flags & flusher, flusher, "{name}");
        names.push(name);
    }
    for wanted in ["reactor-0", "opener", "stratabd-net", "iou-wrk-"] {
        assert!(names.iter().any(|name| name.starts_with(wanted)), "{wanted} is not among {names:?}");
    }
    drop(node);
    daemon.json(&["del", text(&path)]);
    daemon.finish();
}

#[test]
fn a_disk_that_hangs_leaves_the_others_of_a_thread_their_workers() {
    // The kernel's own limit is four workers for each processor, of which the guest has two at most.
    const DEVICES: usize = 12;
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir_in("/var").unwrap();
    let disk = Disk::new(dir.path());
    let settings = ["cache.enabled=false", "daemon.private_mounts=true", "reactors.threads=1"];
    let daemon = Daemon::start(dir.path(), &settings);
    let add = |dir: PathBuf| {
        fs::create_dir(&dir).unwrap();
        daemon.add(&["--config", &config_with_upper(&dir, None, MIB)])
    };
    let hung: Vec<PathBuf> = (0..DEVICES).map(|number| add(disk.point.join(number.to_string()))).collect();
    let neighbour = add(dir.path().join("neighbour"));
    disk.stop();
    let flushes: Vec<_> = hung
        .iter()
        .map(|path| {
            let node = Direct::open(path, true);
            thread::spawn(move || node.write(0, &[1; 4096]).and_then(|_| node.file().sync_all()))
        })
        .collect();
    wait_until("the flushes arrive", || {
        let threads = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
        let comms = threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("comm")).ok());
        comms.filter(|comm| comm.starts_with("iou-wrk-")).count() >= 8
    });
    let node = Direct::open(&neighbour, true);
    let (sender, ended) = mpsc::channel();
    let work = thread::spawn(move || {
        for round in 0..20 {
            node.write(0, &pattern(1 << 16, round)).unwrap();
            node.file().sync_all().unwrap();
        }
        sender.send(()).unwrap();
    });
    let in_time = ended.recv_timeout(DEADLINE);
    let still_hung = flushes.iter().filter(|flush| !flush.is_finished()).count();
    disk.go_on();
    work.join().unwrap();
    flushes.into_iter().for_each(|flush| flush.join().unwrap().unwrap());
    assert_eq!((in_time, still_hung), (Ok(()), DEVICES));
    hung.iter().chain([&neighbour]).for_each(|path| drop(daemon.json(&["del", text(path)])));
    daemon.finish();
}
