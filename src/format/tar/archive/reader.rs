//! The state machine: what the next bytes of an archive are, and what they lead to.

use std::{mem, sync::Arc};

use super::{
    super::block::{BLOCK, BLOCK_BYTES, Block},
    ArchiveError, ArchiveRule, Entry,
    entry::{Draft, Extensions, size_bytes},
    header::{GNU_REAL_SIZE, Header, at},
    number,
    pax::Records,
    sparse::{Form, LinesMap, Map, OldGnuMap},
};
use crate::block::ByteRange;

/// Go's, and libarchive's.
const EXTENSION_LIMIT_BYTES: u64 = 1 << 20;

/// What is next in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'i> {
    /// An entry begins. Its data follows, if it has any, and then its end.
    Entry(Box<Entry>),
    /// Bytes of the entry's content, never none; in order, with gaps only where a sparse file has holes.
    Data {
        /// Where they belong, in bytes from the start of the file.
        offset: u64,
        /// A part of the input.
        bytes: &'i [u8],
    },
    /// All data of the entry has come.
    EntryEnd,
    /// The marker at the end; a stream that just ends has none. Whatever follows is taken and ignored.
    ArchiveEnd,
}

/// Where an archive has been read to.
#[derive(Debug)]
pub struct ArchiveReader {
    /// Of the next byte, from the start of the stream.
    offset: u64,
    /// Of the header at hand.
    header_offset: u64,
    state: State,
    block: Block,
    filled: usize,
    extensions: Extensions,
}

/// What the next bytes are.
#[derive(Debug)]
enum State {
    Block(Purpose),
    Extension(Extension),
    Content(Content),
    Padding { left: u64 },
    End,
    Failed(ArchiveError),
}

/// What a block is for.
#[derive(Debug)]
enum Purpose {
    Header,
    HeaderAfterZeroes,
    OldGnuMap(Box<(Draft, OldGnuMap)>),
    LinesMap(Box<(Draft, LinesMap)>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ExtensionKind {
    LongName,
    LongLink,
    Pax,
    GlobalPax,
}

#[derive(Debug)]
struct Extension {
    kind: ExtensionKind,
    body: Vec<u8>,
    left: u64,
}

/// What of an entry's content is still to come.
#[derive(Debug)]
struct Content {
    /// Where the next bytes belong.
    run: ByteRange,
    extents: Option<Arc<[ByteRange]>>,
    /// Counts the extents that come after the run.
    next_extent: usize,
    /// After all of it.
    padding_bytes: u64,
}

enum Step<'i> {
    Event(Event<'i>),
    On,
    Starved,
}

impl Default for ArchiveReader {
    fn default() -> Self {
        Self::new()
    }
}

impl ArchiveReader {
    /// At the start of an archive.
    #[must_use]
    pub fn new() -> Self {
        Self {
            offset: 0,
            header_offset: 0,
            state: State::Block(Purpose::Header),
            block: [0; BLOCK_BYTES],
            filled: 0,
            extensions: Extensions::default(),
        }
    }

    /// Takes from the front of `input` what the next event needs. `None` when all is taken and more is wanted; then comes
    /// more input, or [`finish`](Self::finish).
    ///
    /// # Errors
    /// [`ArchiveError`], and the same again whenever it is called after that.
    pub fn next<'i>(&mut self, input: &mut &'i [u8]) -> Result<Option<Event<'i>>, ArchiveError> {
        loop {
            match self.step(input) {
                Ok(Step::Event(event)) => return Ok(Some(event)),
                Ok(Step::On) => {}
                Ok(Step::Starved) => return Ok(None),
                Err(error) => {
                    self.state = State::Failed(error);
                    return Err(error);
                }
            }
        }
    }

    /// Leaves out what is left of the content of the entry that has begun, and what pads it: the lengths of both, bytes of the stream that
    /// [`next`](Self::next) is not to be given. It goes on with the next header; there is no [`Event::EntryEnd`].
    pub fn skip_content(&mut self) -> (u64, u64) {
        let State::Content(content) = &self.state else { return (0, 0) };
        let extents = content.extents.iter().flat_map(|extents| extents.iter().skip(content.next_extent));
        let left = extents.fold(content.run.len(), |sum, extent| sum.saturating_add(extent.len()));
        let padding_bytes = content.padding_bytes;
        self.offset = self.offset.saturating_add(left).saturating_add(padding_bytes);
        self.state = State::Block(Purpose::Header);
        (left, padding_bytes)
    }

    /// That the stream has ended, once [`next`](Self::next) has given `None`.
    ///
    /// # Errors
    /// [`ArchiveRule::Truncated`] where an archive cannot end; the error that `next` gave, if it did.
    pub fn finish(&self) -> Result<(), ArchiveError> {
        let header_offset = match &self.state {
            State::Failed(error) => return Err(*error),
            State::Block(Purpose::Header | Purpose::HeaderAfterZeroes) if self.filled == 0 => return Ok(()),
            State::Padding { .. } | State::End => return Ok(()),
            State::Block(Purpose::Header | Purpose::HeaderAfterZeroes) => {
                self.offset.saturating_sub(self.filled as u64)
            }
            State::Block(_) | State::Extension(_) | State::Content(_) => self.header_offset,
        };
        Err(ArchiveError { offset: header_offset, rule: ArchiveRule::Truncated { at: self.offset } })
    }

    fn step<'i>(&mut self, input: &mut &'i [u8]) -> Result<Step<'i>, ArchiveError> {
        let step = match mem::replace(&mut self.state, State::End) {
            State::Block(purpose) => match self.fill_block(input) {
                Some(block) => self.put_block(purpose, &block),
                None => Ok(self.starved(State::Block(purpose))),
            },
            State::Extension(extension) => self.put_extension(extension, input),
            State::Content(content) => Ok(self.put_content(content, input)),
            State::Padding { left } => Ok(self.put_padding(left, input)),
            State::End => {
                self.take(input, u64::MAX);
                Ok(self.starved(State::End))
            }
            State::Failed(error) => return Err(error),
        };
        step.map_err(|rule| ArchiveError { offset: self.header_offset, rule })
    }

    fn starved<'i>(&mut self, state: State) -> Step<'i> {
        self.state = state;
        Step::Starved
    }

    fn go_on<'i>(&mut self, state: State) -> Step<'i> {
        self.state = state;
        Step::On
    }

    /// At most `limit` bytes from the front of the input.
    fn take<'i>(&mut self, input: &mut &'i [u8], limit: u64) -> &'i [u8] {
        let len = usize::try_from(limit).map_or(input.len(), |limit| input.len().min(limit));
        let (taken, rest) = input.split_at_checked(len).unwrap_or((*input, &[]));
        *input = rest;
        self.offset = self.offset.saturating_add(taken.len() as u64);
        taken
    }

    fn fill_block(&mut self, input: &mut &[u8]) -> Option<Block> {
        let lacking = BLOCK_BYTES.saturating_sub(self.filled);
        let taken = self.take(input, lacking as u64);
        let room = self.block.iter_mut().skip(self.filled);
        room.zip(taken).for_each(|(to, from)| *to = *from);
        self.filled = self.filled.saturating_add(taken.len());
        (self.filled == BLOCK_BYTES).then(|| {
            self.filled = 0;
            self.block
        })
    }

    fn put_block<'i>(&mut self, purpose: Purpose, block: &Block) -> Result<Step<'i>, ArchiveRule> {
        match purpose {
            Purpose::Header | Purpose::HeaderAfterZeroes => {
                self.header_offset = self.offset.saturating_sub(BLOCK);
                let is_zeroes = block.iter().all(|byte| *byte == 0);
                match (purpose, is_zeroes) {
                    (Purpose::Header, true) => Ok(self.go_on(State::Block(Purpose::HeaderAfterZeroes))),
                    (Purpose::Header, false) => self.put_header(block),
                    (_, true) => Ok(Step::Event(Event::ArchiveEnd)),
                    (_, false) => Err(ArchiveRule::LoneZeroBlock),
                }
            }
            Purpose::OldGnuMap(at_hand) => {
                let (draft, mut map) = *at_hand;
                let is_continued = map.put_block(block)?;
                self.old_gnu_map(draft, map, is_continued)
            }
            Purpose::LinesMap(at_hand) => {
                let (mut draft, mut map) = *at_hand;
                draft.stored = draft.stored.saturating_sub(BLOCK);
                match map.put(block)? {
                    Some(map) => self.begin(draft, Some(&map)),
                    None => self.lines_map(draft, map),
                }
            }
        }
    }

    fn put_header<'i>(&mut self, block: &Block) -> Result<Step<'i>, ArchiveRule> {
        let header = Header::decode(block)?;
        let kind = match header.kind {
            b'L' => ExtensionKind::LongName,
            b'K' => ExtensionKind::LongLink,
            b'x' => ExtensionKind::Pax,
            b'g' => ExtensionKind::GlobalPax,
            b'X' => return Err(ArchiveRule::Solaris),
            _ => return self.put_entry(header, block),
        };
        let left = size_bytes(header.size)?;
        match kind {
            _ if left > EXTENSION_LIMIT_BYTES => Err(ArchiveRule::ExtensionLength { len: left }),
            ExtensionKind::GlobalPax if !self.extensions.is_empty() => Err(ArchiveRule::Detached),
            ExtensionKind::Pax if self.extensions.records.is_some() => Err(ArchiveRule::SecondPax),
            _ if self.extensions.have_size() => Err(ArchiveRule::SizeBeforeExtension),
            _ => Ok(self.go_on(State::Extension(Extension { kind, body: Vec::new(), left }))),
        }
    }

    fn put_extension<'i>(
        &mut self,
        mut extension: Extension,
        input: &mut &[u8],
    ) -> Result<Step<'i>, ArchiveRule> {
        let taken = self.take(input, extension.left);
        extension.body.extend_from_slice(taken);
        extension.left = extension.left.saturating_sub(taken.len() as u64);
        if extension.left > 0 {
            return Ok(self.starved(State::Extension(extension)));
        }
        let Extension { kind, body, .. } = extension;
        let text = |body: &[u8]| Some(number::text(body).to_vec()).filter(|text| !text.is_empty());
        match kind {
            ExtensionKind::LongName => self.extensions.long_name = text(&body),
            ExtensionKind::LongLink => self.extensions.long_link = text(&body),
            ExtensionKind::Pax => self.extensions.records = Some(Records::parse(&body)?),
            ExtensionKind::GlobalPax => {
                let decides = Records::parse(&body)?.decides();
                decides.map_or(Ok(()), |field| Err(ArchiveRule::Global(field)))?;
            }
        }
        Ok(self.go_on(State::Padding { left: padding_bytes(body.len() as u64) }))
    }

    fn put_entry<'i>(&mut self, header: Header, block: &Block) -> Result<Step<'i>, ArchiveRule> {
        let real_size = number::field(at(block, GNU_REAL_SIZE));
        let extensions = mem::take(&mut self.extensions);
        let (draft, form) = Draft::new(self.header_offset, header, extensions, real_size)?;
        match form {
            None => self.begin(draft, None),
            Some(Form::Records(map)) => self.begin(draft, Some(&map)),
            Some(Form::Lines) => self.lines_map(draft, LinesMap::default()),
            Some(Form::OldGnu) => {
                let mut map = OldGnuMap::default();
                let is_continued = map.put_header(block)?;
                self.old_gnu_map(draft, map, is_continued)
            }
        }
    }

    fn old_gnu_map<'i>(
        &mut self,
        draft: Draft,
        map: OldGnuMap,
        is_continued: bool,
    ) -> Result<Step<'i>, ArchiveRule> {
        if is_continued {
            Ok(self.go_on(State::Block(Purpose::OldGnuMap(Box::new((draft, map))))))
        } else {
            self.begin(draft, Some(&map.into_map()))
        }
    }

    /// The lines are a part of what the archive has of the content.
    fn lines_map<'i>(&mut self, draft: Draft, map: LinesMap) -> Result<Step<'i>, ArchiveRule> {
        if draft.stored < BLOCK {
            return Err(ArchiveRule::SparseMap);
        }
        Ok(self.go_on(State::Block(Purpose::LinesMap(Box::new((draft, map))))))
    }

    fn begin<'i>(&mut self, draft: Draft, map: Option<&Map>) -> Result<Step<'i>, ArchiveRule> {
        let Draft { mut entry, stored } = draft;
        entry.extents = map.map(|map| map.checked(entry.size, stored)).transpose()?;
        let whole = if map.is_some() { 0 } else { stored };
        self.state = State::Content(Content {
            run: ByteRange::between(0, whole),
            extents: entry.extents.clone(),
            next_extent: 0,
            padding_bytes: padding_bytes(stored),
        });
        Ok(Step::Event(Event::Entry(Box::new(entry))))
    }

    fn put_content<'i>(&mut self, mut content: Content, input: &mut &'i [u8]) -> Step<'i> {
        if content.run.is_empty() {
            let next = content.extents.as_ref().and_then(|extents| extents.get(content.next_extent));
            let Some(next) = next else {
                self.state = State::Padding { left: content.padding_bytes };
                return Step::Event(Event::EntryEnd);
            };
            content.run = *next;
            content.next_extent = content.next_extent.saturating_add(1);
        }
        let bytes = self.take(input, content.run.len());
        if bytes.is_empty() {
            return self.starved(State::Content(content));
        }
        let offset = content.run.start();
        content.run = ByteRange::between(offset.saturating_add(bytes.len() as u64), content.run.end());
        self.state = State::Content(content);
        Step::Event(Event::Data { offset, bytes })
    }

    fn put_padding<'i>(&mut self, left: u64, input: &mut &[u8]) -> Step<'i> {
        let left = left.saturating_sub(self.take(input, left).len() as u64);
        if left > 0 {
            self.starved(State::Padding { left })
        } else {
            self.go_on(State::Block(Purpose::Header))
        }
    }
}

fn padding_bytes(len: u64) -> u64 {
    len.next_multiple_of(BLOCK).saturating_sub(len)
}
