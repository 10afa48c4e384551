//! What the guest itself must offer before any other guest test means something.

use std::{env, fs, io::Write, os::unix::fs::FileTypeExt, sync::Arc};

use stratabd::reactor::{Reactor, ReactorConfig};

use crate::frame::{in_guest, output_of};

#[test]
fn the_kernel_is_of_the_series_that_was_asked_for() {
    if !in_guest() {
        return;
    }
    let series = env::var("STRATABD_GUEST_KERNEL").expect("guest-tests says which kernel it boots");
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    assert!(release.starts_with(&format!("{series}.")), "{release} is not of {series}");
}

#[test]
fn the_ublk_driver_is_loaded() {
    if !in_guest() {
        return;
    }
    let control = fs::metadata("/dev/ublk-control").unwrap();
    assert!(control.file_type().is_char_device());
}

#[test]
fn the_programs_that_tests_call_start() {
    if !in_guest() {
        return;
    }
    for (program, arguments, answer) in [
        ("fio", "--version", "fio-3"),
        ("docker-registry", "--version", "docker-registry"),
        ("nginx", "-v", "nginx/1"),
        ("openssl", "version", "OpenSSL"),
        ("curl", "--version", "libcurl"),
        ("jq", "--version", "jq-1"),
        ("mkfs.ext4", "-V", "mke2fs"),
    ] {
        let said = output_of(program, &[arguments]);
        assert!(said.contains(answer), "{program} {arguments} says {said}");
    }
    assert!(output_of("htpasswd", &["-nbB", "user", "password"]).starts_with("user:$2y$"));
}

#[test]
fn the_reactor_reads_a_file_through_io_uring() {
    if !in_guest() {
        return;
    }
    let mut file = tempfile::tempfile_in("/var/tmp").unwrap();
    let content: Vec<u8> = (0..=u8::MAX).cycle().take(10_000).collect();
    file.write_all(&content).unwrap();
    let file = Arc::new(file.into());
    let reactor = Reactor::new(&ReactorConfig::default()).expect("io_uring");
    let (count, buffer) = reactor
        .block_on(async {
            let buffer = reactor.io_buffers().acquire(8192).await.unwrap();
            let (count, buffer) = reactor.read_at(&file, 4096, buffer).await;
            (count.unwrap(), buffer)
        })
        .unwrap();
    assert_eq!(buffer[..count], content[4096..]);
}
