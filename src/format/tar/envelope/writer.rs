//! Makes the envelope: three blocks before the payload and zeroes after it, as upstream writes them byte for byte.

use super::{
    super::block::{BLOCK, BLOCK_BYTES, CHECKSUM_PLACE},
    Envelope, PaxBlocks,
};

/// Mode of the file inside: a regular one, with the permissions that `overlaybd-commit` makes its output with. Upstream writes what
/// the umask has left of them; here the same layer is the same bytes, and so has the same digest, whoever makes it where.
const MODE: &[u8] = b"100644 \0";
/// Numbers are eleven wide and end with a space.
const ZERO_SIZE: &[u8] = b"          0 ";

impl Envelope {
    /// Where the payload of an envelope begins that [`Envelope::head`] makes.
    pub const HEAD_BYTES: u64 = PaxBlocks::PAYLOAD_OFFSET;

    /// The blocks before a payload of `payload_len` bytes: [`Envelope::HEAD_BYTES`].
    #[must_use]
    pub fn head(payload_len: u64) -> Vec<u8> {
        let body = pax_record(payload_len);
        let pax_size = format!("{:>11o} ", body.len());
        let mut pax = block(&[(0, b"overlaybd.pax"), (124, pax_size.as_bytes()), (156, b"x")]);
        seal(&mut pax);
        let mut file = block(&[
            (0, b"overlaybd.commit"),
            (100, MODE),
            (108, b"     0 \0"),
            (116, b"     0 \0"),
            (124, ZERO_SIZE),
            (136, ZERO_SIZE),
            (156, b"0"),
            (265, b"root"),
            (297, b"root"),
        ]);
        seal(&mut file);
        [pax, block(&[(0, body.as_bytes())]), file].concat()
    }

    /// The zeroes after a payload of `payload_len` bytes: to the end of its block, and two blocks.
    #[must_use]
    pub fn tail(payload_len: u64) -> Vec<u8> {
        let rest = payload_len.next_multiple_of(BLOCK).saturating_sub(payload_len);
        let rest = usize::try_from(rest).unwrap_or(0);
        vec![0; rest.saturating_add(2 * BLOCK_BYTES)]
    }
}

/// `<length of all> size=<bytes>` and a line feed; the length counts its own digits.
fn pax_record(payload_len: u64) -> String {
    let rest = format!(" size={payload_len}\n");
    let mut len = rest.len();
    loop {
        let record = format!("{len}{rest}");
        if record.len() == len {
            return record;
        }
        len = record.len();
    }
}

/// A block of zeroes with `fields` at their places.
fn block(fields: &[(usize, &[u8])]) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    for (at, field) in fields {
        let place = block.iter_mut().skip(*at);
        place.zip(*field).for_each(|(to, from)| *to = *from);
    }
    block
}

/// Adds magic, version and checksum.
fn seal(header: &mut [u8; BLOCK_BYTES]) {
    let mut put = |at: usize, bytes: &[u8]| {
        header.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
    };
    put(257, b"ustar\x0000");
    put(CHECKSUM_PLACE.start, b"        ");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    let text = format!("{sum:>6o} \0");
    let mut put = |at: usize, bytes: &[u8]| {
        header.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
    };
    put(CHECKSUM_PLACE.start, text.as_bytes());
}
