//! Layers made up for a bench: an LSMT file over data of a chosen order.

use stratabd::format::lsmt::{FileKind, Header, SLOT_BYTES, Segment, SlotPosition, UserTag};

const SECTOR: usize = 512;

/// The unit that is placed anywhere in the file: a page.
pub(crate) const PAGE: usize = 4096;

/// A device of `pages` pages of data that compresses to about a half, as those of programs and texts do, also in blocks of one
/// page: so few words that they come again within it.
pub(crate) fn pages(count: usize, random: &mut fastrand::Rng) -> Vec<u8> {
    let words: Vec<[u8; 12]> = (0..40).map(|_| std::array::from_fn(|_| random.u8(..))).collect();
    let mut data = Vec::with_capacity(count * PAGE + 12);
    while data.len() < count * PAGE {
        if random.u8(0..3) == 0 {
            data.extend((0..12).map(|_| random.u8(..)));
        } else if let Some(word) = random.choice(&words) {
            data.extend_from_slice(word.get(..random.usize(4..=12)).unwrap_or_default());
        }
    }
    data.truncate(count * PAGE);
    data
}

/// An LSMT file of `data`. Where `scattered`, its pages lie in random order, and `skew` sectors after a page's boundary.
pub(crate) fn lsmt(data: &[u8], scattered: bool, skew: usize, random: &mut fastrand::Rng) -> Vec<u8> {
    let count = data.len() / PAGE;
    let mut order: Vec<usize> = (0..count).collect();
    if scattered {
        random.shuffle(&mut order);
    }
    let mut content = vec![0; SLOT_BYTES + skew * SECTOR];
    let mut places = vec![0; count];
    for page in order {
        if let Some(place) = places.get_mut(page) {
            *place = content.len() / SECTOR;
        }
        content.extend_from_slice(data.get(page * PAGE..(page + 1) * PAGE).unwrap_or_default());
    }
    let index_offset = content.len() as u64;
    for (page, place) in places.iter().enumerate() {
        let segment = Segment::new((page * PAGE / SECTOR) as u64, 8, *place as u64, false, 0);
        content.extend_from_slice(&segment.expect("the fields fit their bits").encode());
    }
    let header = Header {
        position: SlotPosition::Header,
        kind: FileKind::Data,
        sealed: true,
        sparse: false,
        index_offset,
        index_count: count as u64,
        virtual_size_bytes: data.len() as u64,
        uuid: None,
        parent_uuid: None,
        user_tag: UserTag::default(),
    };
    content.extend_from_slice(&Header { position: SlotPosition::Trailer, ..header }.encode());
    content.splice(..SLOT_BYTES, header.encode());
    content
}
