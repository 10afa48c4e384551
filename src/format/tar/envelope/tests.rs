//! Tests of the tar envelope against the golden header of the specification and against hostile ones.
#![expect(clippy::arithmetic_side_effects, reason = "a test that overflows fails")]

use proptest::prelude::*;

use super::*;

const PAYLOAD: u64 = 1058;
const SIZE: u64 = 1536 + PAYLOAD;

fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

fn seal(file: &mut [u8], at: usize) {
    put(file, at + 148, b"        ");
    let sum: u64 = file[at..at + 512].iter().map(|byte| u64::from(*byte)).sum();
    put(file, at + 148, format!("{sum:6o} \0").as_bytes());
}

/// The three blocks that upstream's writer puts before a payload of 1058 bytes.
fn golden() -> Vec<u8> {
    let mut file = vec![0; 2048];
    put(&mut file, 0, b"overlaybd.pax");
    put(&mut file, 0x7c, b"         15 ");
    put(&mut file, 0x94, b"  5354 \0x");
    put(&mut file, 257, b"ustar\x0000");
    put(&mut file, 512, b"13 size=1058\n");
    put(&mut file, 1024, b"overlaybd.commit");
    put(&mut file, 1024 + 100, b"100644 \0     0 \0     0 \0          0           0 ");
    put(&mut file, 1024 + 148, b" 12025 \x000");
    put(&mut file, 1024 + 257, b"ustar\x0000root");
    put(&mut file, 1024 + 297, b"root");
    file
}

/// The golden head with other bytes at one place, and the checksums made right again.
fn with(at: usize, bytes: &[u8]) -> Result<Option<Envelope>, TarError> {
    let mut file = golden();
    put(&mut file, at, bytes);
    seal(&mut file, 0);
    seal(&mut file, 1024);
    Envelope::detect(&file, SIZE)
}

#[test]
fn the_golden_envelope_is_found() {
    let found = Envelope { payload_offset: 1536, payload_len: PAYLOAD };
    assert_eq!(Envelope::detect(&golden(), SIZE), Ok(Some(found)));
    assert_eq!(Envelope::detect(&golden()[..1536], SIZE), Ok(Some(found)));
    assert_eq!(Envelope::detect(&golden(), 1 << 40), Ok(Some(found)));
}

#[test]
fn a_plain_header_has_its_size_in_octal() {
    let mut file = golden().split_off(1024);
    put(&mut file, 124, b"00000002042\0");
    seal(&mut file, 0);
    let found = Envelope { payload_offset: 512, payload_len: 0o2042 };
    assert_eq!(Envelope::detect(&file, 4096), Ok(Some(found)));
}

#[test]
fn a_pax_size_of_zero_leaves_it_to_the_header() {
    let mut file = golden();
    put(&mut file, 512, b"10 size=0\n");
    put(&mut file, 124, b"         12 ");
    put(&mut file, 1024 + 124, b"00000002042\0");
    seal(&mut file, 0);
    seal(&mut file, 1024);
    assert_eq!(Envelope::detect(&file, SIZE).unwrap().unwrap().payload_len, PAYLOAD);
    put(&mut file, 1024 + 124, b"00000000000\0");
    seal(&mut file, 1024);
    assert_eq!(Envelope::detect(&file, SIZE), Err(TarError::Empty { offset: 1024 }));
}

#[test]
fn a_broken_magic_version_or_checksum_means_no_tar() {
    for at in [0, 0x94, 257, 263, 300] {
        let mut file = golden();
        file[at] ^= 1;
        assert_eq!(Envelope::detect(&file, SIZE), Ok(None), "byte {at}");
    }
    assert_eq!(Envelope::detect(&golden()[..511], SIZE), Ok(None));
    assert_eq!(Envelope::detect(&[], 0), Ok(None));
}

#[test]
fn a_sum_of_signed_bytes_is_taken_too() {
    let mut file = golden();
    file[20] = 0xff;
    let unsigned: i64 = 0o5354 + 255;
    put(&mut file, 0x94, format!("{:6o} \0", unsigned - 256).as_bytes());
    assert!(Envelope::detect(&file, SIZE).unwrap().is_some());
}

#[test]
fn the_unfinished_marker_means_no_tar() {
    let mut file = golden();
    put(&mut file, 257, b"xxtar\0xx");
    seal(&mut file, 0);
    assert_eq!(Envelope::detect(&file, SIZE), Ok(None));
}

#[test]
fn what_upstream_would_misread_is_refused() {
    assert_eq!(with(124, b"       1001 "), Err(TarError::PaxLength { offset: 0, len: 513 }));
    assert_eq!(with(124, b"          0 "), Err(TarError::PaxLength { offset: 0, len: 0 }));
    assert_eq!(with(124, b"777777777777"), Err(TarError::PaxLength { offset: 0, len: 0o777_777_777_777 }));
    assert_eq!(with(124, b"         8  "), Err(TarError::Octal { offset: 0 }));
    assert_eq!(with(124, b"       1 1  "), Err(TarError::Octal { offset: 0 }));
    assert_eq!(with(124, b"\x80\0\0\0\0\0\0\0\0\0\0\x0d"), Err(TarError::Octal { offset: 0 }));
    assert_eq!(with(156, b"L"), Err(TarError::Kind { offset: 0, kind: b'L' }));
    assert_eq!(with(1024 + 156, b"5"), Err(TarError::Kind { offset: 1024, kind: b'5' }));
    assert_eq!(with(1024 + 156, b"x"), Err(TarError::Kind { offset: 1024, kind: b'x' }));
    assert_eq!(with(1024 + 124, b"           +"), Err(TarError::Octal { offset: 1024 }));
    assert_eq!(with(1024 + 257, b"x"), Err(TarError::Header { offset: 1024 }));
    assert_eq!(Envelope::detect(&golden()[..1023], SIZE), Err(TarError::Truncated { offset: 512 }));
    assert_eq!(Envelope::detect(&golden()[..1535], SIZE), Err(TarError::Truncated { offset: 1024 }));
}

#[test]
fn malformed_pax_records_are_refused() {
    let malformed = Err(TarError::PaxRecord { offset: 512 });
    for body in [
        "14 size=1058\n",
        "12 size=1058\n",
        "xx size=1058\n",
        "13 size=+058\n",
        "13 size:1058\n",
        "13 size=10x8\n",
    ] {
        assert_eq!(with(512, body.as_bytes()), malformed, "{body:?}");
    }
}

#[test]
fn a_payload_past_the_end_is_refused() {
    let outside = |size_bytes, len| Err(TarError::Outside { offset: 1536, len, size_bytes });
    assert_eq!(Envelope::detect(&golden(), SIZE - 1), outside(SIZE - 1, PAYLOAD));
    let mut file = golden();
    put(&mut file, 512, b"29 size=18446744073709551615\n");
    put(&mut file, 124, b"         35 ");
    seal(&mut file, 0);
    assert_eq!(Envelope::detect(&file, SIZE), outside(SIZE, u64::MAX));
}

#[test]
fn the_golden_head_is_written_byte_for_byte() {
    assert_eq!(Envelope::head(PAYLOAD), golden()[..1536]);
    assert_eq!(Envelope::tail(PAYLOAD).len(), 512 * 3 - 1058 + 1024);
    assert_eq!(Envelope::tail(1024).len(), 1024);
}

#[test]
fn a_second_member_is_found_by_readers_of_archives_and_begins_with_a_page() {
    for payload_len in (1..5000).step_by(37).chain([512, 1024, 2048, 2560, 4096]) {
        let payload_end = Envelope::HEAD_BYTES + payload_len;
        let member = SecondMember::behind(payload_end);
        let head = member.head("overlaybd.verity", 8192);
        assert_eq!(member.offset % ALIGNMENT, 0);
        assert_eq!(member.offset, payload_end + head.len() as u64);
        assert!(head.len() <= 4096 + 2047, "{payload_len}");
        let payload = vec![7; usize::try_from(payload_len).unwrap()];
        let blob = [Envelope::head(payload_len), payload, head, vec![9; 8192], vec![0; 1024]].concat();
        let found = Envelope::detect(&blob[..HEAD_BYTES], blob.len() as u64).unwrap().unwrap();
        assert_eq!((found.payload_offset, found.payload_len), (1536, payload_len));
    }
}

proptest! {
    #[test]
    fn an_envelope_that_is_written_is_found_again(payload_len in 1_u64..1 << 60) {
        let mut head = Envelope::head(payload_len);
        prop_assert_eq!(head.len() as u64, Envelope::HEAD_BYTES);
        head.resize(HEAD_BYTES, 7);
        let found = Envelope::detect(&head, payload_len + 1536).unwrap();
        prop_assert_eq!(found, Some(Envelope { payload_offset: 1536, payload_len }));
    }
}
