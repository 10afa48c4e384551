//! The end of ublk devices: nothing is left, whoever holds what open and whoever dies.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use stratabd::{
    block::ByteRange,
    device::{Fault, Op, Trouble},
    frontend::{
        AttachRequest, Detached, Frontend, FrontendError,
        ublk::{CopyMode, Ublk},
    },
};

use crate::{
    devices::{Direct, Reactors, faulty, memory, pattern},
    frame::{in_guest, pause},
};

const MIB: usize = 1 << 20;
const DEADLINE: Duration = Duration::from_secs(20);

/// What a process and the kernel may leak: open files, mappings, device nodes, devices; and the names of the threads.
fn holdings() -> ([usize; 4], Vec<String>) {
    let devices = Ublk::new().list().expect("the driver answers").len();
    // A command has a ring of its own, whose mappings and file are there until its thread ends.
    let threads = threads_without_commands();
    let count = |path: &str| fs::read_dir(path).expect("a folder").count();
    let maps = fs::read_to_string("/proc/self/maps").expect("our mappings");
    let shared = maps.lines().filter(|line| line.contains("ublk") || line.contains("io_uring")).count();
    ([count("/proc/self/fd"), shared, count("/dev"), devices], threads)
}

/// Threads of commands end a moment after their answers, which is waited for; the kernel's own workers for a ring come and go
/// as they like.
fn threads_without_commands() -> Vec<String> {
    let began = Instant::now();
    loop {
        let tasks = fs::read_dir("/proc/self/task").unwrap().filter_map(Result::ok);
        let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
        let mut names: Vec<_> = names.filter(|name| !name.starts_with("iou-wrk")).collect();
        if names.iter().all(|name| name.trim() != "ublk-command") {
            names.sort();
            return names;
        }
        assert!(began.elapsed() < DEADLINE, "a command does not end");
        pause();
    }
}

#[test]
fn fifty_devices_come_and_go_and_leave_nothing() {
    if !in_guest() {
        return;
    }
    let reactors = Reactors::start(2);
    let cycle = |number: u32| {
        let mode = if number.is_multiple_of(2) { CopyMode::User } else { CopyMode::TagBuffer };
        let request = AttachRequest { queues: 2, ..AttachRequest::default() };
        let device = Arc::new(memory(MIB, 1));
        let attachment = Ublk::with_copy(mode).attach(&device, &request, &reactors.handles()).unwrap();
        // The kernel forgets a device a moment before it gives the number back.
        assert!(attachment.id() < 2, "the number of the last device is not free again");
        assert!(Direct::open(attachment.path(), false).read(0, MIB).unwrap() == pattern(MIB, 1));
        assert_eq!(attachment.detach(DEADLINE).unwrap(), Detached::Complete);
        assert_eq!(Arc::strong_count(&device), 1, "a queue has outlived its device");
    };
    // All at once, from as many threads.
    let together = |count: u32| {
        let attach = &|number: u32| {
            let mode = if number.is_multiple_of(2) { CopyMode::User } else { CopyMode::TagBuffer };
            let request = AttachRequest { queues: 2, ..AttachRequest::default() };
            let device = Arc::new(memory(MIB, number.into()));
            Ublk::with_copy(mode).attach(&device, &request, &reactors.handles()).unwrap()
        };
        let attachments: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..count).map(|number| scope.spawn(move || attach(number))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for (number, attachment) in (0..).zip(&attachments) {
            assert!(Direct::open(attachment.path(), false).read(0, MIB).unwrap() == pattern(MIB, number));
        }
        thread::scope(|scope| {
            for attachment in attachments {
                scope.spawn(move || assert_eq!(attachment.detach(DEADLINE).unwrap(), Detached::Complete));
            }
        });
    };
    (0..3).for_each(cycle);
    together(4);
    let before = holdings();
    (0..10).for_each(cycle);
    together(50);
    let began = Instant::now();
    while holdings() != before && began.elapsed() < DEADLINE {
        pause();
    }
    assert_eq!(holdings(), before, "files, threads, mappings, nodes, devices");
}

#[test]
fn a_device_of_an_idle_neighbour_can_be_removed() {
    if !in_guest() {
        return;
    }
    // Up to Linux 6.12 a registered file of one would be held by the waiting commands of the other.
    let reactors = Reactors::start(1);
    let attach =
        || Ublk::new().attach(&Arc::new(memory(MIB, 1)), &AttachRequest::default(), &reactors.handles());
    let neighbour = attach().unwrap();
    for _ in 0..3 {
        assert_eq!(attach().unwrap().detach(DEADLINE).unwrap(), Detached::Complete);
    }
    assert_eq!(neighbour.detach(DEADLINE).unwrap(), Detached::Complete);
}

#[test]
fn an_open_descriptor_does_not_hinder_the_removal() {
    if !in_guest() {
        return;
    }
    let reactors = Reactors::start(1);
    let attachment = Ublk::new()
        .attach(&Arc::new(memory(MIB, 1)), &AttachRequest::default(), &reactors.handles())
        .unwrap();
    let path = attachment.path().to_owned();
    let node = Direct::open(&path, true);
    assert_eq!(node.read(0, 4096).unwrap().len(), 4096);
    let began = Instant::now();
    assert_eq!(attachment.detach(DEADLINE).unwrap(), Detached::HeldOpen);
    assert!(began.elapsed() < DEADLINE / 2);
    assert!(!path.exists(), "the node is still there");
    let late = node.read(0, 4096);
    assert!(late.as_ref().map_or(true, Vec::is_empty), "a device that has gone was read: {late:?}");
    drop(node);
    let began = Instant::now();
    while !Ublk::new().list().unwrap().is_empty() {
        assert!(began.elapsed() < DEADLINE, "the kernel keeps the device");
        pause();
    }
}

#[test]
fn a_taken_number_is_refused_and_its_device_left_alone() {
    if !in_guest() {
        return;
    }
    let reactors = Reactors::start(1);
    let request = AttachRequest { id: Some(5), ..AttachRequest::default() };
    let first = Ublk::new().attach(&Arc::new(memory(MIB, 1)), &request, &reactors.handles()).unwrap();
    for _ in 0..3 {
        let error =
            Ublk::new().attach(&Arc::new(memory(MIB, 2)), &request, &reactors.handles()).err().unwrap();
        assert!(matches!(error, FrontendError::IdTaken(5)), "{error}");
    }
    assert!(Direct::open(first.path(), false).read(0, MIB).unwrap() == pattern(MIB, 1));
    assert!(!first.has_ended());
    assert_eq!(first.detach(DEADLINE).unwrap(), Detached::Complete);
}

#[test]
fn a_device_that_is_dropped_is_removed() {
    if !in_guest() {
        return;
    }
    let reactors = Reactors::start(1);
    let attachment = Ublk::new()
        .attach(&Arc::new(memory(MIB, 1)), &AttachRequest::default(), &reactors.handles())
        .unwrap();
    drop(attachment);
    assert_eq!(Ublk::new().list().unwrap(), []);
}

#[test]
fn a_device_that_another_removes_is_seen_to_have_ended() {
    if !in_guest() {
        return;
    }
    let reactors = Reactors::start(1);
    let attachment = Ublk::new()
        .attach(&Arc::new(memory(MIB, 1)), &AttachRequest::default(), &reactors.handles())
        .unwrap();
    assert!(!attachment.has_ended());
    // The owner still has its file open, so that the kernel keeps the number.
    assert_eq!(Ublk::new().remove(attachment.id(), DEADLINE).unwrap(), Detached::HeldOpen);
    let began = Instant::now();
    while !attachment.has_ended() {
        assert!(began.elapsed() < DEADLINE, "the owner did not notice");
        pause();
    }
    assert_eq!(attachment.detach(DEADLINE).unwrap(), Detached::Complete);
    assert_eq!(Ublk::new().list().unwrap(), []);
    assert!(matches!(Ublk::new().remove(0, DEADLINE), Err(FrontendError::NoSuchDevice(0))));
}

const SERVE: &str = "STRATABD_TEST_SERVES";

/// The process that the test below kills: the same test, told so. It must not use its own device, for a process that waits for
/// itself cannot be killed.
fn serve_until_killed() -> ! {
    let reactors = Reactors::start(1);
    let (device, plan) = faulty(MIB);
    plan.add(Fault::at(Op::Read, ByteRange::between(0, u64::MAX), Trouble::Hang));
    let request = AttachRequest { depth: 8, ..AttachRequest::default() };
    let attachment = Ublk::new().attach(&device, &request, &reactors.handles()).unwrap();
    println!("\nserving {}", attachment.id());
    // All tags that the kernel may use: one is spared where it must be.
    while plan.met() < 7 {
        pause();
    }
    println!("full");
    loop {
        thread::park();
    }
}

#[test]
fn a_device_whose_server_is_killed_under_full_load_can_be_removed() {
    if !in_guest() {
        return;
    }
    if env::var_os(SERVE).is_some() {
        serve_until_killed();
    }
    let mut server = Command::new(env::current_exe().unwrap())
        .args(["--exact", thread::current().name().unwrap(), "--nocapture"])
        .env(SERVE, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(server.stdout.take().unwrap()).lines();
    let id = said.find_map(|line| line.unwrap().strip_prefix("serving ").map(str::to_owned));
    let id: u32 = id.expect("the server serves").parse().unwrap();
    let readers: Vec<_> = (0..16)
        .map(|number| {
            let path = format!("/dev/ublkb{id}");
            thread::spawn(move || Direct::open(Path::new(&path), false).read(number * 4096, 4096))
        })
        .collect();
    assert!(said.any(|line| line.unwrap() == "full"), "the server has ended");
    server.kill().unwrap();
    server.wait().unwrap();
    assert_eq!(Ublk::new().remove(id, DEADLINE).unwrap(), Detached::Complete);
    for reader in readers {
        let outcome = reader.join().unwrap();
        assert!(outcome.as_ref().map_or(true, Vec::is_empty), "{outcome:?}");
    }
    assert!(!Path::new(&format!("/dev/ublkc{id}")).exists());
    assert_eq!(Ublk::new().list().unwrap(), []);
}

/// What has fetched can be given back to nobody, so that a take-over goes on until it is done.
#[test]
fn a_take_over_that_is_late_goes_on_where_it_has_stopped() {
    if !in_guest() {
        return;
    }
    let ublk = Ublk::new();
    if !ublk.features().unwrap().names().iter().any(|name| name == "QUIESCE") {
        // A driver that gives a device back only when its process has ended.
        return;
    }
    let (reactors, device) = (Reactors::start(1), Arc::new(memory(MIB, 1)));
    let attachment = ublk.attach(&device, &AttachRequest::default(), &reactors.handles()).unwrap();
    let id = attachment.id();
    attachment.leave(DEADLINE).unwrap();
    let take_over = || ublk.take_over(&device, id, None, &reactors.handles(), DEADLINE).unwrap();
    // One that was not told to resume holds nothing.
    drop(take_over());
    let mut taken = take_over();
    let (began, mut late) = (Instant::now(), 0);
    while let Err(error) = taken.resume(Duration::ZERO) {
        assert!(matches!(error, FrontendError::Deadline { .. }), "{error}");
        assert!(began.elapsed() < DEADLINE, "{error}");
        late += 1;
        pause();
    }
    assert!(late > 0, "no step was late");
    assert!(Direct::open(taken.path(), false).read(0, MIB).unwrap() == pattern(MIB, 1));
    assert_eq!(taken.detach(DEADLINE).unwrap(), Detached::Complete);
    assert_eq!(Arc::strong_count(&device), 1, "a queue has outlived its device");
}
