//! A small writer of layers, independent of the library, so that tests and benches can serve bytes of their own making.

use std::collections::HashMap;

/// How the payload of a ZFile is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// LZ4 blocks.
    Lz4,
    /// One zstd frame a block, level 3.
    Zstd,
}

/// One mapping of a layer: where on the device, and the bytes; `None` for a zeroed range of that many sectors.
pub type Mapping<'a> = (u64, Result<&'a [u8], u64>);

const SECTOR: usize = 512;
const MAX_SECTORS: usize = 16_383;

/// A read-only LSMT layer of `flat`, leaving out 4 KiB blocks of zeroes.
pub fn lsmt_of(flat: &[u8]) -> Vec<u8> {
    let mut mappings: Vec<Mapping> = Vec::new();
    let mut start = 0;
    let blocks: Vec<bool> = flat.chunks(4096).map(|block| block.iter().any(|byte| *byte != 0)).collect();
    while start < blocks.len() {
        if !blocks[start] {
            start += 1;
            continue;
        }
        let run = blocks[start..].iter().take(2000).take_while(|used| **used).count();
        let end = ((start + run) * 4096).min(flat.len());
        mappings.push(((start * 8) as u64, Ok(&flat[start * 4096..end])));
        start += run;
    }
    lsmt(flat.len() as u64, &mappings)
}

/// A read-only LSMT layer of `mappings`, whose offsets are in sectors, ascending and disjoint.
pub fn lsmt(virtual_size: u64, mappings: &[Mapping]) -> Vec<u8> {
    let mut out = lsmt_header(0x07, 0, 0, virtual_size);
    let mut index = Vec::new();
    let mut count = 0_u64;
    for (offset, content) in mappings {
        let position = (out.len() / SECTOR) as u64;
        let mut entry = |offset: u64, sectors: u64, position: u64, zeroed: u64| {
            index.extend_from_slice(&(offset | sectors << 50).to_le_bytes());
            index.extend_from_slice(&(position | zeroed << 55).to_le_bytes());
            count += 1;
        };
        match content {
            Ok(data) => {
                for (number, piece) in data.chunks(MAX_SECTORS * SECTOR).enumerate() {
                    let skip = (number * MAX_SECTORS) as u64;
                    entry(offset + skip, (piece.len() / SECTOR) as u64, position + skip, 0);
                }
                out.extend_from_slice(data);
            }
            Err(sectors) => entry(*offset, *sectors, position, 1),
        }
    }
    let index_offset = out.len() as u64;
    while !count.is_multiple_of(256) {
        index.extend_from_slice(&((1_u64 << 50) - 1).to_le_bytes());
        index.extend_from_slice(&0_u64.to_le_bytes());
        count += 1;
    }
    out.extend_from_slice(&index);
    out.extend_from_slice(&lsmt_header(0x06, index_offset, count, virtual_size));
    out
}

fn lsmt_header(flags: u32, index_offset: u64, index_size: u64, virtual_size: u64) -> Vec<u8> {
    const MAGIC: [u8; 24] = [
        0x4c, 0x53, 0x4d, 0x54, 0, 1, 2, 0, 0x65, 0x7e, 0x63, 0xd2, 0x94, 0x44, 0x08, 0x4c, 0xa2, 0xd2, 0xc8,
        0xec, 0x4f, 0xcf, 0xae, 0x8a,
    ];
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&390_u32.to_le_bytes());
    out.extend_from_slice(&flags.to_le_bytes());
    for word in [index_offset, index_size, virtual_size] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    for _ in 0..2 {
        out.extend_from_slice(b"00000000-0000-0000-0000-000000000000\0");
    }
    out.extend_from_slice(&[0, 0, 1, 1]);
    out.resize(4096, 0);
    out
}

/// `content` as a ZFile with a CRC after each block and the final header in front.
pub fn zfile(content: &[u8], algorithm: Algorithm, block_bytes: usize) -> Vec<u8> {
    let mut body = Vec::new();
    let mut sizes = Vec::new();
    // Equal blocks compress equally, and most of a test image repeats itself.
    let mut known: HashMap<&[u8], Vec<u8>> = HashMap::new();
    for block in content.chunks(block_bytes) {
        let packed = known.entry(block).or_insert_with(|| compress(block, algorithm));
        body.extend_from_slice(packed);
        sizes.extend_from_slice(&(packed.len() as u32).to_le_bytes());
    }
    let slot = |flags: u64| {
        let mut slot = b"ZFile\0\x01\0tuji.yyf@Alibaba".to_vec();
        slot.extend_from_slice(&96_u32.to_le_bytes());
        slot.extend_from_slice(&0_u32.to_le_bytes());
        for word in [flags, 512 + body.len() as u64, (sizes.len() / 4) as u64, content.len() as u64] {
            slot.extend_from_slice(&word.to_le_bytes());
        }
        slot.extend_from_slice(&raw_crc(0, &sizes).to_le_bytes());
        slot.extend_from_slice(&0_u32.to_le_bytes());
        slot.extend_from_slice(&(block_bytes as u32).to_le_bytes());
        slot.push(if algorithm == Algorithm::Lz4 { 1 } else { 2 });
        slot.resize(88, 0);
        slot.push(1);
        slot.resize(512, 0);
        let digest = raw_crc(0, &slot);
        slot[28..32].copy_from_slice(&digest.to_le_bytes());
        slot
    };
    let mut out = slot(0x1b);
    out.extend_from_slice(&body);
    out.extend_from_slice(&sizes);
    out.extend_from_slice(&slot(0x16));
    out
}

fn compress(block: &[u8], algorithm: Algorithm) -> Vec<u8> {
    let mut packed = match algorithm {
        Algorithm::Lz4 => lz4::block::compress(block, None, false).unwrap(),
        Algorithm::Zstd => zstd::bulk::compress(block, 3).unwrap(),
    };
    let crc = raw_crc(100_007, &packed);
    packed.extend_from_slice(&crc.to_le_bytes());
    packed
}

/// CRC-32C without the inversions of its standard form.
fn raw_crc(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

/// `payload` in the pax tar that registries see.
pub fn tar(payload: &[u8]) -> Vec<u8> {
    let mut length = 0;
    let record = loop {
        let record = format!("{length} size={}\n", payload.len());
        if record.len() == length {
            break record;
        }
        length = record.len();
    };
    let mut out = tar_header("overlaybd.pax", b'x', record.len());
    out.extend_from_slice(record.as_bytes());
    out.resize(1024, 0);
    out.extend_from_slice(&tar_header("overlaybd.commit", b'0', 0));
    out.extend_from_slice(payload);
    out.resize(out.len().next_multiple_of(512) + 1024, 0);
    out
}

fn tar_header(name: &str, kind: u8, size: usize) -> Vec<u8> {
    let mut block = vec![0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[124..136].copy_from_slice(format!("{size:11o} ").as_bytes());
    block[148..156].fill(b' ');
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:6o} \0").as_bytes());
    block
}
