//! What the writer makes: the golden file of the specification byte for byte, and files that the reader takes.

use proptest::prelude::*;

use super::*;

/// A whole file of `content`, with the final header or with the first one.
fn written(content: &[u8], format: BlockFormat, final_header: bool) -> Vec<u8> {
    let (mut encoder, mut writer) = (Encoder::new(format).unwrap(), Writer::new(format));
    let mut file = writer.start();
    for block in content.chunks(format.block_size() as usize) {
        let taken = encoder.encode(block, &mut file).unwrap();
        writer.add(u32::try_from(block.len()).unwrap(), taken).unwrap();
    }
    let tail = writer.finish();
    file.extend(tail.index);
    file.extend(tail.trailer);
    if final_header {
        file[..SLOT_BYTES].copy_from_slice(&tail.header);
    }
    file
}

fn read(file: &[u8]) -> Vec<u8> {
    let size_bytes = file.len() as u64;
    let part = |range: crate::block::ByteRange| {
        &file[usize::try_from(range.start()).unwrap()..usize::try_from(range.end()).unwrap()]
    };
    let layout = match Start::decode(file, size_bytes).unwrap() {
        Start::Complete(layout) => layout,
        Start::TrailerAt(range) => Layout::from_trailer(part(range), size_bytes).unwrap(),
    };
    let table = JumpTable::decode(layout, part(layout.index_range())).unwrap();
    let mut decoder = Decoder::new();
    let mut content = Vec::new();
    for number in 0..layout.block_count() {
        let block = table.block(number).unwrap();
        let mut dest = vec![0; usize::try_from(block.content.len()).unwrap()];
        decoder.decode(&layout, &block, part(block.encoded), &mut dest).unwrap();
        content.extend(dest);
    }
    content
}

#[test]
fn the_golden_file_of_the_specification_is_written_byte_for_byte() {
    let format = BlockFormat::new(Algorithm::Lz4, 4096).unwrap();
    assert_eq!(written(&[0; 4096], format, true), tests::golden());
    assert_eq!(written(&[0; 4096], format, false), tests::golden_with_trailer());
    assert_eq!(Writer::new(format).start()[28..32], 0xc7a2_12fc_u32.to_le_bytes());
}

#[test]
fn blocks_that_upstream_could_not_read_are_refused() {
    let mut random = fastrand::Rng::with_seed(1);
    let noise: Vec<u8> = (0..65_536).map(|_| random.u8(..)).collect();
    for algorithm in [Algorithm::Lz4, Algorithm::Zstd] {
        let mut encoder = Encoder::new(BlockFormat::new(algorithm, 65_536).unwrap()).unwrap();
        let mut out = vec![1];
        assert!(
            matches!(encoder.encode(&noise, &mut out), Err(EncodeError::DoesNotShrink(taken)) if taken > 65_536)
        );
        assert_eq!(out, [1], "nothing of it was written");
        let small = BlockFormat::new(algorithm, 32_768).unwrap();
        assert!(read(&written(&noise, small, true)) == noise);
    }
}

#[test]
fn a_short_block_is_the_last_and_sizes_are_the_formats() {
    for wrong in [0, 1, 2048, 4095, 12_288, 131_072] {
        assert_eq!(BlockFormat::new(Algorithm::Zstd, wrong), Err(EncodeError::BlockSize(wrong)));
    }
    let format = BlockFormat::new(Algorithm::Lz4, 4096).unwrap();
    let mut writer = Writer::new(format);
    writer.add(4096, 100).unwrap();
    writer.add(5, 10).unwrap();
    assert!(matches!(writer.add(4096, 10), Err(EncodeError::BlockLength { len: 4096, .. })));
    let mut encoder = Encoder::new(format).unwrap();
    for len in [0, 4097] {
        let refused = encoder.encode(&vec![0; len], &mut Vec::new());
        assert!(matches!(refused, Err(EncodeError::BlockLength { .. })));
    }
}

proptest! {
    #[test]
    fn any_content_reads_back(
        words in proptest::collection::vec((any::<u8>(), 1_usize..3000), 0..60),
        zstd in any::<bool>(),
        shift in 12_u32..=16,
        final_header in any::<bool>(),
    ) {
        let algorithm = if zstd { Algorithm::Zstd } else { Algorithm::Lz4 };
        let content: Vec<u8> =
            words.iter().flat_map(|(byte, count)| (0..*count).map(|at| byte.wrapping_add(u8::try_from(at / 7 % 251).unwrap()))).collect();
        let format = BlockFormat::new(algorithm, 1 << shift).unwrap();
        let file = written(&content, format, final_header);
        prop_assert_eq!(read(&file), content.clone());
        prop_assert_eq!(file, written(&content, format, final_header));
    }
}
