//! The header and the trailer of an LSMT file: the same 390 bytes in a 4096-byte slot.

use super::{
    super::{field::Fields, foreign::Foreign, uuid::Uuid},
    LsmtError, SlotRule,
};

/// Size of the slot that a header or a trailer takes, in bytes.
pub const SLOT_BYTES: usize = 4096;

const MAGIC0: [u8; 8] = *b"LSMT\x00\x01\x02\x00";
const MAGIC1: [u8; 16] =
    [0x65, 0x7e, 0x63, 0xd2, 0x94, 0x44, 0x08, 0x4c, 0xa2, 0xd2, 0xc8, 0xec, 0x4f, 0xcf, 0xae, 0x8a];
/// Bytes of the slot that have a meaning; readers never check the field that says so.
const USED_BYTES: u32 = 390;
const VERSION: u8 = 1;
const SUB_VERSION: u8 = 1;

const FLAG_HEADER: u32 = 1 << 0;
const FLAG_DATA: u32 = 1 << 1;
const FLAG_SEALED: u32 = 1 << 2;
const FLAG_SPARSE: u32 = 1 << 4;
/// Two that upstream's old description names, of a layer that was compacted and of fields that are valid. No writer sets them, and
/// no reader looks at them.
const FLAGS_WITHOUT_EFFECT: u32 = 1 << 3 | 1 << 5;
const FLAGS_KNOWN: u32 = FLAG_HEADER | FLAG_DATA | FLAG_SEALED | FLAG_SPARSE | FLAGS_WITHOUT_EFFECT;

/// Which end of the file a slot says it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotPosition {
    /// The start.
    Header,
    /// The end.
    Trailer,
}

/// What an LSMT file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// Data, and once sealed also its index.
    Data,
    /// The index of a layer that is still written.
    Index,
}

/// Free text that whoever committed the layer left: 256 bytes, zero padded, of no promised encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserTag([u8; Self::LIMIT_BYTES]);

impl UserTag {
    /// Longest text in bytes.
    pub const LIMIT_BYTES: usize = 256;

    /// The tag of this text, or `None` where it is too long.
    #[must_use]
    pub fn new(text: &[u8]) -> Option<Self> {
        let mut tag = [0; Self::LIMIT_BYTES];
        tag.get_mut(..text.len())?.copy_from_slice(text);
        Some(Self(tag))
    }

    /// The text up to its first NUL, or all 256 bytes.
    #[must_use]
    pub fn text(&self) -> &[u8] {
        self.0.split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

impl Default for UserTag {
    fn default() -> Self {
        Self([0; Self::LIMIT_BYTES])
    }
}

/// A decoded header or trailer. Of a read-only layer only the trailer's fields count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Which end of the file it says it is for.
    pub position: SlotPosition,
    /// What the file holds.
    pub kind: FileKind,
    /// The file will not be written any more.
    pub sealed: bool,
    /// Data lies at its own virtual offset, plus 4096.
    pub sparse: bool,
    /// Where the index starts, in bytes from the start of the file.
    pub index_offset: u64,
    /// Number of segments in the index, padding included.
    pub index_count: u64,
    /// Size of the device in bytes; 0 means that the layer below decides.
    pub virtual_size_bytes: u64,
    /// The layer's UUID; `None` where the field holds no UUID text.
    pub uuid: Option<Uuid>,
    /// The UUID of the layer below; `None` where the field holds no UUID text.
    pub parent_uuid: Option<Uuid>,
    /// Free text.
    pub user_tag: UserTag,
}

impl Header {
    /// Where [`Header::virtual_size_bytes`] lies in the slot, as 8 bytes, of which the lowest comes first.
    pub const VIRTUAL_SIZE_OFFSET: u64 = 48;

    /// Reads the slot of [`SLOT_BYTES`] that starts at `offset` of its file.
    ///
    /// Magic numbers, major version and flags are checked here: one that is not known may change what the bytes of the layer mean. Whether
    /// this header may stand where it stands is checked by [`super::LayerLayout::decode`]. Reserved bytes are ignored.
    ///
    /// # Errors
    /// [`LsmtError::Slot`].
    pub fn decode(slot: &[u8], offset: u64) -> Result<Self, LsmtError> {
        let refused = |rule| LsmtError::Slot { offset, rule };
        if slot.len() < SLOT_BYTES {
            return Err(refused(SlotRule::Short));
        }
        let mut fields = Fields::new(slot);
        if fields.array() != Some(&MAGIC0) || fields.array() != Some(&MAGIC1) {
            let foreign = Foreign::of(slot).filter(|_| offset == 0);
            return Err(refused(foreign.map_or(SlotRule::Magic, SlotRule::Foreign)));
        }
        let (header, flags, version) = Self::decode_fields(fields).ok_or(refused(SlotRule::Short))?;
        if version != VERSION {
            return Err(refused(SlotRule::Version(version)));
        }
        match flags & !FLAGS_KNOWN {
            0 => Ok(header),
            unknown => Err(refused(SlotRule::Flags(unknown))),
        }
    }

    /// Everything after the magic numbers, the flags, and the major version.
    fn decode_fields(mut fields: Fields<'_>) -> Option<(Self, u32, u8)> {
        let _used_bytes = fields.u32()?;
        let flags = fields.u32()?;
        let [index_offset, index_count, virtual_size_bytes] = [fields.u64()?, fields.u64()?, fields.u64()?];
        let [uuid, parent_uuid] = [decode_uuid(fields.array()?), decode_uuid(fields.array()?)];
        let _reserved: &[u8; 2] = fields.array()?;
        let [version, _sub_version] = [fields.u8()?, fields.u8()?];
        let header = Self {
            position: if flags & FLAG_HEADER != 0 { SlotPosition::Header } else { SlotPosition::Trailer },
            kind: if flags & FLAG_DATA != 0 { FileKind::Data } else { FileKind::Index },
            sealed: flags & FLAG_SEALED != 0,
            sparse: flags & FLAG_SPARSE != 0,
            index_offset,
            index_count,
            virtual_size_bytes,
            uuid,
            parent_uuid,
            user_tag: UserTag(*fields.array()?),
        };
        Some((header, flags, version))
    }

    /// The slot of [`SLOT_BYTES`] bytes. A missing UUID is written as the null one.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut slot = Vec::with_capacity(SLOT_BYTES);
        slot.extend(MAGIC0);
        slot.extend(MAGIC1);
        slot.extend(USED_BYTES.to_le_bytes());
        slot.extend(self.flags().to_le_bytes());
        slot.extend(self.index_offset.to_le_bytes());
        slot.extend(self.index_count.to_le_bytes());
        slot.extend(self.virtual_size_bytes.to_le_bytes());
        for uuid in [self.uuid, self.parent_uuid] {
            slot.extend(uuid.unwrap_or(Uuid::NULL).as_bytes());
            slot.push(0);
        }
        slot.extend([0, 0, VERSION, SUB_VERSION]);
        slot.extend(self.user_tag.0);
        slot.resize(SLOT_BYTES, 0);
        slot
    }

    fn flags(&self) -> u32 {
        let position = if self.position == SlotPosition::Header { FLAG_HEADER } else { 0 };
        let kind = if self.kind == FileKind::Data { FLAG_DATA } else { 0 };
        let sealed = if self.sealed { FLAG_SEALED } else { 0 };
        let sparse = if self.sparse { FLAG_SPARSE } else { 0 };
        position | kind | sealed | sparse
    }
}

/// The text before the closing NUL. Readers never refuse a layer for its UUID, so a bad one is only absent.
fn decode_uuid(field: &[u8; 37]) -> Option<Uuid> {
    field.first_chunk().and_then(|text| Uuid::from_text(text).ok())
}
