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
        let file = file_header(b"overlaybd.commit", ZERO_SIZE);
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

/// A second member of the archive, behind the payload, whose content begins at a multiple of [`ALIGNMENT`]. Readers of layers take
/// the first one and do not look further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SecondMember {
    payload_end: u64,
    /// Where its content begins in the file, in bytes.
    pub offset: u64,
}

/// Where the content of a [`SecondMember`] may begin, in bytes.
pub const ALIGNMENT: u64 = 4096;

impl SecondMember {
    /// Zeroes behind its content, which ends with a block: those that end an archive.
    pub const END_BYTES: u64 = 2 * BLOCK;

    /// The one behind a payload that ends at `payload_end` of the file.
    #[must_use]
    pub fn behind(payload_end: u64) -> Self {
        // A pax header, at least a block of its body, and the member's own header.
        let least = payload_end.next_multiple_of(BLOCK).saturating_add(3 * BLOCK);
        Self { payload_end, offset: least.next_multiple_of(ALIGNMENT) }
    }

    /// What lies between the payload and the content, which is `len` bytes of a file called `name`: zeroes to the end of the block,
    /// a pax header whose one record is a comment as long as it takes, and a header.
    #[must_use]
    pub fn head(&self, name: &str, len: u64) -> Vec<u8> {
        let start = self.payload_end.next_multiple_of(BLOCK);
        let in_memory = |bytes: u64| usize::try_from(bytes).unwrap_or(0);
        let body_len = in_memory(self.offset.saturating_sub(start).saturating_sub(2 * BLOCK));
        let mut body = format!("{body_len} comment=").into_bytes();
        body.resize(body_len.saturating_sub(1), b' ');
        body.push(b'\n');
        let size = format!("{body_len:>11o} ");
        let mut pax = block(&[(0, b"overlaybd.pax"), (124, size.as_bytes()), (156, b"x")]);
        seal(&mut pax);
        let file = file_header(name.as_bytes(), format!("{len:>11o} ").as_bytes());
        let padding = vec![0; in_memory(start.saturating_sub(self.payload_end))];
        [&padding, &pax[..], &body, &file].concat()
    }
}

/// The header of a regular file, as upstream's writer has it.
fn file_header(name: &[u8], size: &[u8]) -> [u8; BLOCK_BYTES] {
    let mut file = block(&[
        (0, name),
        (100, MODE),
        (108, b"     0 \0"),
        (116, b"     0 \0"),
        (124, size),
        (136, ZERO_SIZE),
        (156, b"0"),
        (265, b"root"),
        (297, b"root"),
    ]);
    seal(&mut file);
    file
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
