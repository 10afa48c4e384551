//! One mapping of an LSMT index: 16 bytes on disk and in memory.

/// Size of a segment on disk and in memory, in bytes.
pub const SEGMENT_BYTES: usize = 16;

/// Longest segment in sectors: its length has 14 bits.
pub const SEGMENT_LENGTH_LIMIT: u32 = (1 << 14) - 1;

/// First sector of a file that data may lie in: the header takes the eight before it.
pub const DATA_START_SECTOR: u64 = 8;

/// One past the last sector of a device that a segment may cover. The sector itself marks padding.
pub const DEVICE_SECTOR_LIMIT: u64 = OFFSET_MASK;

const OFFSET_BITS: u32 = 50;
const OFFSET_MASK: u64 = (1 << OFFSET_BITS) - 1;
const MOFFSET_BITS: u32 = 55;
const MOFFSET_MASK: u64 = (1 << MOFFSET_BITS) - 1;
const ZEROED_BIT: u64 = 1 << MOFFSET_BITS;
const TAG_SHIFT: u32 = 56;

/// A run of sectors of the device and where its bytes are. All positions and lengths are in 512-byte sectors.
///
/// Kept in the packed form of the disk, so that an index of a million segments takes 16 MB. A zeroed segment reads as
/// zeroes, hides the layers below it, and has no bytes in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Segment {
    /// Offset in bits 0 to 49, length in bits 50 to 63.
    span: u64,
    /// Place in the file in bits 0 to 54, zeroed in bit 55, tag in bits 56 to 63.
    place: u64,
}

impl Segment {
    /// What fills up an index whose number of entries is to be a round one; see [`Segment::is_padding`].
    pub const PADDING: Self = Self { span: OFFSET_MASK, place: 0 };

    /// The segment of these fields, or `None` where the length is zero or more than [`SEGMENT_LENGTH_LIMIT`], or the
    /// last sector of device or file does not fit its bits.
    #[must_use]
    pub fn new(offset: u64, length: u32, moffset: u64, zeroed: bool, tag: u8) -> Option<Self> {
        let data = if zeroed { 0 } else { u64::from(length) };
        let fits = (1..=SEGMENT_LENGTH_LIMIT).contains(&length)
            && offset.checked_add(u64::from(length)).is_some_and(|end| end <= DEVICE_SECTOR_LIMIT)
            && moffset.checked_add(data).is_some_and(|mend| mend <= MOFFSET_MASK);
        fits.then(|| Self {
            span: offset | u64::from(length) << OFFSET_BITS,
            place: moffset | if zeroed { ZEROED_BIT } else { 0 } | u64::from(tag) << TAG_SHIFT,
        })
    }

    /// Reads the 16 bytes of the disk. Every value of them is some segment; the layer checks whether it may stand there.
    #[must_use]
    pub fn decode(bytes: &[u8; SEGMENT_BYTES]) -> Self {
        let [a, b, c, d, e, f, g, h, place @ ..] = *bytes;
        Self { span: u64::from_le_bytes([a, b, c, d, e, f, g, h]), place: u64::from_le_bytes(place) }
    }

    /// The 16 bytes of the disk.
    #[must_use]
    pub fn encode(self) -> [u8; SEGMENT_BYTES] {
        (u128::from(self.span) | u128::from(self.place) << u64::BITS).to_le_bytes()
    }

    /// First sector of the device.
    #[must_use]
    #[inline]
    pub fn offset(self) -> u64 {
        self.span & OFFSET_MASK
    }

    /// Sectors covered, at most [`SEGMENT_LENGTH_LIMIT`].
    #[must_use]
    #[inline]
    pub fn length(self) -> u32 {
        (self.span >> OFFSET_BITS) as u32
    }

    /// One past the last sector of the device.
    #[must_use]
    #[inline]
    pub fn end(self) -> u64 {
        // A 50-bit and a 14-bit number cannot overflow 64 bits.
        self.offset().wrapping_add(u64::from(self.length()))
    }

    /// First sector in the file. Of a zeroed segment it says nothing.
    #[must_use]
    #[inline]
    pub fn moffset(self) -> u64 {
        self.place & MOFFSET_MASK
    }

    /// One past the last sector in the file; a zeroed segment takes none.
    #[must_use]
    #[inline]
    pub fn mend(self) -> u64 {
        // A 55-bit and a 14-bit number cannot overflow 64 bits.
        self.moffset().wrapping_add(if self.zeroed() { 0 } else { u64::from(self.length()) })
    }

    /// Whether it reads as zeroes.
    #[must_use]
    #[inline]
    pub fn zeroed(self) -> bool {
        self.place & ZEROED_BIT != 0
    }

    /// Which file the bytes are in; 0 in a plain layer once it is loaded.
    #[must_use]
    #[inline]
    pub fn tag(self) -> u8 {
        (self.place >> TAG_SHIFT) as u8
    }

    /// The same mapping with another tag.
    #[must_use]
    #[inline]
    pub fn with_tag(self, tag: u8) -> Self {
        Self { span: self.span, place: self.place & !(0xff << TAG_SHIFT) | u64::from(tag) << TAG_SHIFT }
    }

    /// What of it lies in the sectors `start..end` of the device, or `None` where none does.
    #[must_use]
    pub fn within(self, start: u64, end: u64) -> Option<Self> {
        let (from, to) = (self.offset().max(start), self.end().min(end));
        let length = u32::try_from(to.checked_sub(from)?).ok()?;
        let skipped = if self.zeroed() { 0 } else { from.saturating_sub(self.offset()) };
        Self::new(from, length, self.moffset().saturating_add(skipped), self.zeroed(), self.tag())
    }

    /// Whether it is filler: any entry whose offset is the largest there is.
    #[must_use]
    #[inline]
    pub fn is_padding(self) -> bool {
        self.offset() == OFFSET_MASK
    }
}

#[cfg(test)]
mod tests {
    use super::{SEGMENT_LENGTH_LIMIT, Segment};

    #[test]
    fn the_worked_bytes_of_the_specification_hold() {
        let bytes = [0x23, 1, 0, 0, 0, 0, 0xfc, 0xff, 8, 0, 0, 0, 0, 0, 0x80, 5];
        let segment = Segment::new(0x123, 16383, 8, true, 5).unwrap();
        assert_eq!(segment.encode(), bytes);
        assert_eq!(Segment::decode(&bytes), segment);
        assert_eq!((segment.offset(), segment.length(), segment.moffset()), (0x123, 16383, 8));
        assert!(segment.zeroed());
        assert_eq!((segment.tag(), segment.with_tag(0).tag()), (5, 0));
        assert_eq!((segment.end(), segment.mend()), (0x123 + 16383, 8));
    }

    #[test]
    fn padding_is_known_by_the_bytes_that_writers_use() {
        let bytes = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert!(Segment::decode(&bytes).is_padding());
        assert_eq!(Segment::PADDING.encode(), bytes);
        assert!(!Segment::decode(&[0; 16]).is_padding());
    }

    #[test]
    fn a_part_keeps_its_data_and_a_zeroed_part_its_place() {
        let data = Segment::new(10, 20, 100, false, 3).unwrap();
        assert_eq!(data.within(15, 18), Segment::new(15, 3, 105, false, 3));
        assert_eq!(data.within(0, 12), Segment::new(10, 2, 100, false, 3));
        assert_eq!(data.within(0, 1000), Some(data));
        assert_eq!((data.within(0, 10), data.within(30, 40), data.within(18, 15)), (None, None, None));
        let zeroed = Segment::new(10, 20, 100, true, 0).unwrap();
        assert_eq!(zeroed.within(15, 18), Segment::new(15, 3, 100, true, 0));
    }

    #[test]
    fn a_field_that_does_not_fit_makes_no_segment() {
        assert_eq!(Segment::new((1 << 50) - 1, 1, 8, false, 0), None);
        assert_eq!(Segment::new((1 << 50) - 5, 5, 8, false, 0), None);
        assert!(Segment::new((1 << 50) - 6, 5, 8, false, 0).is_some());
        assert_eq!(Segment::new(0, 0, 8, false, 0), None);
        assert_eq!(Segment::new(0, SEGMENT_LENGTH_LIMIT + 1, 8, false, 0), None);
        assert_eq!(Segment::new(0, 1, 1 << 55, true, 0), None);
        assert_eq!(Segment::new(0, 2, (1 << 55) - 2, false, 0), None);
        assert_eq!(Segment::new(u64::MAX, 1, u64::MAX, false, 0), None);
    }
}
