//! Exports of devices in memory: the bytes, the holes, and what is left behind when something fails.
#![expect(clippy::disallowed_methods, reason = "a test may read its own small files")]

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::*;
use crate::{
    block::Geometry,
    device::{Fault, FaultPlan, FaultyDevice, MemoryDevice, Op, Trouble},
    reactor::{ReactorConfig, ReactorThread},
};

const SIZE_BYTES: usize = 5 * (1 << 20) + 4096;

/// Data in the first, third and last chunk; the rest is zero.
fn bytes() -> Vec<u8> {
    let mut bytes = vec![0; SIZE_BYTES];
    bytes[100] = 1;
    bytes[(2 << 20) + 8192..(2 << 20) + 12288].fill(7);
    bytes[SIZE_BYTES - 1] = 9;
    bytes
}

fn device() -> MemoryDevice {
    MemoryDevice::with_bytes(Geometry::read_only(SIZE_BYTES as u64, 512), bytes()).unwrap()
}

fn run<D: BlockDevice>(
    device: D,
    options: ExportOptions,
    cancel_after: Option<Duration>,
) -> Result<Exported, Failure> {
    let (held, cancel) = oneshot::channel();
    let canceling = std::thread::spawn(move || match cancel_after {
        Some(time) => {
            #[expect(clippy::disallowed_methods, reason = "a test gives up after some time")]
            std::thread::sleep(time);
            drop(held);
            None
        }
        None => Some(held),
    });
    let reactor = ReactorThread::start("test", ReactorConfig::default(), || Ok(())).unwrap();
    let last = AtomicU64::new(0);
    let done = export(&reactor.handle(), &Arc::new(device), options, cancel, |done| {
        assert!(last.swap(done, Ordering::Relaxed) < done, "progress only grows");
    });
    drop(canceling.join().unwrap());
    if done.is_ok() {
        assert_eq!(last.into_inner(), SIZE_BYTES as u64);
    }
    done
}

fn to_file(path: &Path, overwrite: bool) -> ExportOptions {
    let output = ExportOutput::File { path: path.to_owned(), overwrite };
    ExportOptions { output: Some(output), sha256: true }
}

fn files(dir: &Path) -> Vec<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn the_file_has_the_devices_bytes_and_holes_where_they_are_zero() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("disk.img");
    let done = run(device(), to_file(&output, false), None).unwrap();
    assert!(fs::read(&output).unwrap() == bytes(), "the bytes differ");
    assert_eq!(done.data_bytes, Some(3 * 4096));
    assert!(fs::metadata(&output).unwrap().blocks() * 512 < 1 << 20, "the holes are allocated");
    let sum: String = Sha256::digest(bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(done.sha256, Some(sum));
    assert_eq!(files(dir.path()), ["disk.img"]);
}

#[test]
fn an_existing_file_is_replaced_only_on_request_and_a_directory_never() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("disk.img");
    fs::write(&output, b"precious").unwrap();
    let refused = |path: &Path, overwrite| run(device(), to_file(path, overwrite), None).unwrap_err().class();
    assert_eq!(refused(&output, false), FailureClass::Conflict);
    assert_eq!(fs::read(&output).unwrap(), b"precious");
    run(device(), to_file(&output, true), None).unwrap();
    assert_eq!(fs::metadata(&output).unwrap().len(), SIZE_BYTES as u64);
    assert_eq!(refused(dir.path(), true), FailureClass::Conflict);
}

#[test]
fn nothing_is_left_behind_when_reading_fails_or_the_user_gives_up() {
    let dir = tempfile::tempdir().unwrap();
    let options = || to_file(&dir.path().join("disk.img"), false);
    let hang = FaultPlan::new([Fault::once(Op::Read, Trouble::Hang)]);
    let hanging = FaultyDevice::new(device(), hang);
    let given_up = run(hanging, options(), Some(Duration::from_millis(50))).unwrap_err();
    assert!(given_up.full_text().contains("interrupted"), "{given_up:?}");
    assert!(files(dir.path()).is_empty());
    let plan = FaultPlan::new([Fault { skip: 3, ..Fault::once(Op::Read, Trouble::Fail(ErrorKind::Io)) }]);
    let failure = run(FaultyDevice::new(device(), plan), options(), None).unwrap_err();
    assert_eq!(failure.class(), FailureClass::Image);
    assert!(files(dir.path()).is_empty());
}

#[test]
fn a_stream_gets_every_byte() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let reading = std::thread::spawn(move || {
        let mut found = Vec::new();
        std::io::Read::read_to_end(&mut reader, &mut found).map(|_| found)
    });
    let output = Some(ExportOutput::Stream(std::os::fd::OwnedFd::from(writer).into()));
    let done = run(device(), ExportOptions { output, sha256: false }, None).unwrap();
    assert_eq!((done.output, done.data_bytes), (None, None));
    assert!(reading.join().unwrap().unwrap() == bytes(), "the bytes differ");
}
