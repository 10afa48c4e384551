//! `layer diff`: where the devices of two stacks differ.

use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};

use super::{
    OfflineError, Stack, Watch,
    content::Content,
    lock::LockMode,
    pipeline::{in_order, workers},
    place::SECTOR,
    source::Source,
    window::{Side, Window, Windows},
};
use crate::block::SECTOR_BYTES;

/// A range of the device, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Where it starts.
    pub offset_bytes: u64,
    /// How long it is.
    pub len_bytes: u64,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compared {
    /// Whether the devices have the same bytes, and the same size where both stacks say one.
    pub equal: bool,
    /// Sizes of the two devices in bytes; 0 where a stack says none.
    pub size_bytes: [u64; 2],
    /// Bytes of all ranges together.
    pub differing_bytes: u64,
    /// The sectors that differ, joined, in order. What only one device has, because the other is smaller, differs.
    pub ranges: Vec<Difference>,
}

/// Compares the devices that two stacks make. A hole is zero, as the device reads it, and only what one of them has data for is
/// read, unless both have it from the same file. It takes memory for each range that differs.
///
/// # Errors
/// [`OfflineError`].
pub fn diff<P: Fn(u64, u64) + Sync>(
    left: &Stack,
    right: &Stack,
    threads: NonZeroUsize,
    watch: &Watch<P>,
) -> Result<Compared, OfflineError> {
    compare_sources(
        &[Source::open_stack(left, LockMode::Shared)?, Source::open_stack(right, LockMode::Shared)?],
        threads,
        watch,
    )
}

/// Compares the devices of two sources.
pub(super) fn compare_sources<P: Fn(u64, u64) + Sync>(
    sources: &[Source; 2],
    threads: NonZeroUsize,
    watch: &Watch<P>,
) -> Result<Compared, OfflineError> {
    let size_bytes = sources.each_ref().map(|source| source.identity.virtual_size_bytes);
    let known = size_bytes.iter().copied().filter(|size| *size > 0);
    let common = known.clone().min().map_or(u64::MAX, |bytes| bytes.div_ceil(SECTOR_BYTES));
    let most = known.max().map_or(u64::MAX, |bytes| bytes.div_ceil(SECTOR_BYTES));
    let inodes = sources.each_ref().map(|source| source.files.iter().map(Content::inode).collect());
    let [left, right]: [Result<Vec<_>, _>; 2] = inodes;
    let inodes = [left?, right?];
    let readers = workers(threads, || {
        let (mut sides, inodes) = (sources.each_ref().map(Side::new), &inodes);
        Ok(move |window: Window| match is_shared(inodes, &window) {
            true => Ok((window.end, Vec::new())),
            false => compare(&mut sides, &window),
        })
    })?;
    let total_bytes = common.min(last_sector(sources)).saturating_mul(SECTOR_BYTES);
    let mut ranges = Vec::new();
    let windows = Windows::of(sources.each_ref().map(|it| it.segments.as_slice()), common);
    in_order(readers, windows, |compared: (u64, Vec<(u64, u64)>)| {
        let (at, differing) = compared;
        differing.into_iter().for_each(|(start, end)| join(&mut ranges, start, end));
        watch.tell(at.saturating_mul(SECTOR_BYTES).min(total_bytes), total_bytes)
    })?;
    if common < most {
        join(&mut ranges, common, most);
    }
    let differing_bytes = ranges.iter().fold(0_u64, |sum, range| sum.saturating_add(range.len_bytes));
    let [left_bytes, right_bytes] = size_bytes;
    let same_size = left_bytes == right_bytes || size_bytes.contains(&0);
    Ok(Compared { equal: ranges.is_empty() && same_size, size_bytes, differing_bytes, ranges })
}

/// One past the last sector that either has.
fn last_sector(sources: &[Source; 2]) -> u64 {
    sources.iter().filter_map(|source| source.segments.last()).map(|last| last.end()).max().unwrap_or(0)
}

/// Adds the sectors `start..end`, or makes the last range longer where they continue it.
fn join(ranges: &mut Vec<Difference>, start: u64, end: u64) {
    let [offset_bytes, end_bytes] = [start, end].map(|sector| sector.saturating_mul(SECTOR_BYTES));
    let len_bytes = end_bytes.saturating_sub(offset_bytes);
    match ranges.last_mut() {
        Some(last) if last.offset_bytes.saturating_add(last.len_bytes) == offset_bytes => {
            last.len_bytes = last.len_bytes.saturating_add(len_bytes);
        }
        _ => ranges.push(Difference { offset_bytes, len_bytes }),
    }
}

/// Whether both have the window from the same places of the same files, so that it need not be read.
fn is_shared(inodes: &[Vec<(u64, u64)>; 2], window: &Window) -> bool {
    let [left, right] = [0, 1].map(|side| {
        let (parts, inodes) = (window.parts.get(side), inodes.get(side));
        parts.into_iter().flatten().map(move |part| {
            let inode = inodes.and_then(|inodes| inodes.get(usize::from(part.tag())));
            (inode, part.offset(), part.length(), part.moffset())
        })
    });
    left.eq(right)
}

/// One past the last sector of the window, and the runs of sectors that differ.
fn compare(sides: &mut [Side<'_>; 2], window: &Window) -> Result<(u64, Vec<(u64, u64)>), OfflineError> {
    for (side, parts) in sides.iter_mut().zip(&window.parts) {
        side.read(window.start, parts)?;
    }
    let [left, right] = sides.each_ref().map(|side| side.bytes().as_chunks::<SECTOR>().0);
    let mut runs: Vec<(u64, u64)> = Vec::new();
    if left != right {
        let sectors = (window.start..window.end).zip(left.iter().zip(right));
        for (sector, _) in sectors.filter(|(_, (left, right))| left != right) {
            match runs.last_mut() {
                Some(last) if last.1 == sector => last.1 = sector.saturating_add(1),
                _ => runs.push((sector, sector.saturating_add(1))),
            }
        }
    }
    Ok((window.end, runs))
}
