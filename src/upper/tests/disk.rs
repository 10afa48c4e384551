//! A simulated disk: files in memory, whose operations take a random number of turns and are recorded.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    future::poll_fn,
    io,
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
};

use rustix::io::Errno;

use super::{
    super::{FileId, LayerFiles, Medium},
    crash_image::{CrashImage, Event},
    memory::{Files, Memory},
};
use crate::{block::ByteRange, reactor::Reactor};

#[derive(Debug, Clone)]
pub(super) struct SimulatedDisk(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    image: CrashImage,
    events: Vec<Event>,
    /// Of the machine, where its processes keep journals in it.
    memory: Option<Memory>,
    random: fastrand::Rng,
    next_id: u64,
    /// Turns that an operation may take.
    slowest: u32,
    /// No file may become larger than this.
    size_limit: u64,
    /// All files together may take so many blocks.
    block_limit: usize,
    /// Blocks that files have before they are written.
    kept_ahead: BTreeMap<usize, BTreeSet<u64>>,
    /// After so many writes one fails, when so many of its bytes are written.
    write_limit: Option<(usize, usize)>,
    failing_syncs: u32,
    /// So many syncs succeed before one fails, and what it covered never gets to the disk, as Linux has it.
    lossy_sync: Option<u64>,
    /// Bytes of files that were given back.
    punched: u64,
    syncs: u64,
}

#[derive(Debug)]
pub(super) struct SimulatedFile {
    disk: SimulatedDisk,
    file: usize,
    name: String,
    /// Whether it is a successor that has not got its name.
    is_waiting: AtomicBool,
}

impl SimulatedDisk {
    pub(super) fn new(image: CrashImage, seed: u64) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        let (events, memory, next_id, slowest) = (Vec::new(), None, image.last_id(), 4);
        let (size_limit, write_limit, failing_syncs, punched, syncs) = (u64::MAX, None, 0, 0, 0);
        let (lossy_sync, block_limit, kept_ahead) = (None, usize::MAX, BTreeMap::new());
        Self(Arc::new(Mutex::new(State {
            image,
            events,
            memory,
            random,
            next_id,
            slowest,
            size_limit,
            block_limit,
            kept_ahead,
            write_limit,
            failing_syncs,
            lossy_sync,
            punched,
            syncs,
        })))
    }

    /// Has processes keep journals in memory, which has these files.
    pub(super) fn with_memory(self, files: &Files) -> Self {
        self.state().memory = Some(Memory::of(files));
        self
    }

    /// The memory, which there must be.
    pub(super) fn memory<T>(&self, act: impl FnOnce(&mut Memory) -> T) -> T {
        act(self.state().memory.as_mut().unwrap())
    }

    /// The files of a layer, made if they are not there.
    pub(super) fn layer_files(&self) -> LayerFiles<SimulatedFile> {
        self.layer("data", "index")
    }

    /// The files of another layer, made if they are not there.
    pub(super) fn files_named(&self, name: &str) -> LayerFiles<SimulatedFile> {
        self.layer(&format!("{name}.data"), &format!("{name}.index"))
    }

    fn layer(&self, data: &str, index: &str) -> LayerFiles<SimulatedFile> {
        let (data, index) = (self.open(data), Ok(self.open(index)));
        let journals = self.state().memory.as_ref().map(|memory| memory.path().to_owned());
        LayerFiles { data, index, journals }
    }

    fn open(&self, name: &str) -> SimulatedFile {
        let found = self.state().image.file(name);
        let file = found.unwrap_or_else(|| self.create(name));
        SimulatedFile { disk: self.clone(), file, name: name.to_owned(), is_waiting: AtomicBool::new(false) }
    }

    fn create(&self, name: &str) -> usize {
        let mut state = self.state();
        let file = state.image.files();
        state.event(Event::Created { name: name.to_owned(), file });
        file
    }

    /// What has happened since the last time.
    pub(super) fn take_events(&self) -> Vec<Event> {
        std::mem::take(&mut self.state().events)
    }

    pub(super) fn events(&self) -> usize {
        self.state().events.len()
    }

    pub(super) fn image(&self) -> CrashImage {
        self.state().image.clone()
    }

    pub(super) fn limit_size(&self, size_limit: u64) {
        self.state().size_limit = size_limit;
    }

    /// Leaves room for so many more blocks.
    pub(super) fn limit_room(&self, blocks: usize) {
        let mut state = self.state();
        state.block_limit = state.blocks().saturating_add(blocks);
    }

    /// Blocks that the files take.
    pub(super) fn blocks(&self) -> usize {
        self.state().blocks()
    }

    /// The next write gets that many bytes to the file, and fails.
    pub(super) fn cut_next_write(&self, bytes: usize) {
        self.cut_after(0, bytes);
    }

    /// So many writes succeed, and the one after them fails like that.
    pub(super) fn cut_after(&self, writes: usize, bytes: usize) {
        self.state().write_limit = Some((writes, bytes));
    }

    pub(super) fn fail_next_sync(&self) {
        self.state().failing_syncs += 1;
    }

    /// So many syncs succeed, and the next one fails; what it was to make durable is only in memory from then on, and clean.
    pub(super) fn lose_sync_after(&self, syncs: u64) {
        self.state().lossy_sync = Some(syncs);
    }

    pub(super) fn punched_bytes(&self) -> u64 {
        self.state().punched
    }

    pub(super) fn syncs(&self) -> u64 {
        self.state().syncs
    }

    pub(super) fn set_slowest(&self, turns: u32) {
        self.state().slowest = turns;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    async fn dawdle(&self) {
        let mut turns = {
            let mut state = self.state();
            let slowest = state.slowest;
            state.random.u32(0..=slowest)
        };
        poll_fn(|context| {
            if turns == 0 {
                return Poll::Ready(());
            }
            turns -= 1;
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }
}

impl State {
    fn event(&mut self, event: Event) {
        self.memory.iter_mut().for_each(Memory::before_event);
        self.image.apply(&event);
        self.events.push(event);
    }

    /// Blocks of all files that have a name.
    fn blocks(&self) -> usize {
        let ahead = |file: &usize| self.kept_ahead.get(file).into_iter().flatten();
        let blocks = |file| self.image.kept(file).iter().chain(ahead(&file)).collect::<BTreeSet<_>>().len();
        self.image.named().map(blocks).sum()
    }

    /// Whether there is room for what `range` of the file lacks.
    fn has_room(&self, file: usize, range: Range<u64>) -> bool {
        if self.block_limit == usize::MAX {
            return true;
        }
        let unit = self.image.system.block_bytes;
        let has = |block: &u64| {
            let ahead = self.kept_ahead.get(&file).is_some_and(|ahead| ahead.contains(block));
            ahead || self.image.kept(file).contains(block)
        };
        let lacking = (range.start / unit..range.end.div_ceil(unit)).filter(|block| !has(block)).count();
        lacking == 0 || self.blocks() + lacking <= self.block_limit
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

impl Medium for SimulatedFile {
    fn id(&self) -> io::Result<FileId> {
        Ok(FileId { device: 0, inode: self.file as u64 })
    }

    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.disk.state().image.cached(self.file).len() as u64)
    }

    fn size_limit_bytes(&self) -> io::Result<u64> {
        Ok(self.disk.state().size_limit)
    }

    fn block_bytes(&self) -> u64 {
        self.disk.state().image.system.block_bytes
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        Ok(self.disk.state().image.next_data(self.file, offset))
    }

    fn forget_cached(&self) -> io::Result<()> {
        self.disk.state().event(Event::Forgotten { file: self.file });
        Ok(())
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        let id = state.id();
        state.event(Event::SizeSet { file: self.file, id, size });
        Ok(())
    }

    fn try_read(&self, offset: u64, dest: &mut [u8]) -> io::Result<bool> {
        let mut state = self.disk.state();
        if state.random.bool() {
            return Ok(false);
        }
        let found =
            state.image.cached(self.file).get(offset as usize..).and_then(|rest| rest.get(..dest.len()));
        let Some(found) = found else { return Ok(false) };
        dest.copy_from_slice(found);
        Ok(true)
    }

    async fn read_at(&self, _reactor: &Reactor, offset: u64, dest: &mut [u8]) -> io::Result<()> {
        // Some reads outlast a flush and what it punches out.
        let slow = self.disk.state().random.u8(0..8) == 0;
        for _ in 0..if slow { 20 } else { 1 } {
            self.disk.dawdle().await;
        }
        let state = self.disk.state();
        let found =
            state.image.cached(self.file).get(offset as usize..).and_then(|rest| rest.get(..dest.len()));
        dest.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    async fn write_at(&self, _reactor: &Reactor, offset: u64, data: &[u8]) -> io::Result<()> {
        self.disk.dawdle().await;
        let (id, cut) = {
            let mut state = self.disk.state();
            let end = offset + data.len() as u64;
            if end > state.size_limit {
                return Err(Errno::FBIG.into());
            }
            if !state.has_room(self.file, offset..end) {
                return Err(Errno::NOSPC.into());
            }
            let limit = state.write_limit.take();
            let cut = limit.filter(|(writes, _)| *writes == 0).map(|(_, bytes)| bytes);
            state.write_limit = limit.and_then(|(writes, bytes)| Some((writes.checked_sub(1)?, bytes)));
            let bytes = data[..cut.unwrap_or(data.len())].to_vec();
            let id = state.id();
            state.event(Event::WriteBegan { file: self.file, id, offset, bytes });
            (id, cut)
        };
        self.disk.dawdle().await;
        self.disk.state().event(Event::Ended { file: self.file, id });
        cut.map_or(Ok(()), |_| Err(Errno::NOSPC.into()))
    }

    async fn write_durably(&self, reactor: &Reactor, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_at(reactor, offset, data).await?;
        self.sync(reactor).await
    }

    async fn sync(&self, _reactor: &Reactor) -> io::Result<()> {
        let id = {
            let mut state = self.disk.state();
            state.syncs += 1;
            let id = state.id();
            state.event(Event::SyncBegan { file: self.file, id });
            id
        };
        self.disk.dawdle().await;
        let mut state = self.disk.state();
        if let Some(before) = state.lossy_sync.take() {
            match before.checked_sub(1) {
                Some(left) => state.lossy_sync = Some(left),
                None => {
                    state.event(Event::SyncLost { file: self.file, id });
                    return Err(Errno::IO.into());
                }
            }
        }
        if let Some(left) = state.failing_syncs.checked_sub(1) {
            state.failing_syncs = left;
            return Err(Errno::IO.into());
        }
        state.event(Event::SyncEnded { file: self.file, id });
        Ok(())
    }

    async fn punch(&self, _reactor: &Reactor, range: ByteRange) -> io::Result<()> {
        let unit = self.block_bytes();
        assert!(!range.is_empty(), "the kernel refuses it");
        assert!(range.start().is_multiple_of(unit) && range.len().is_multiple_of(unit), "{range:?}");
        self.disk.dawdle().await;
        let id = {
            let mut state = self.disk.state();
            let id = state.id();
            let (offset, len) = (range.start(), range.len());
            state.event(Event::PunchBegan { file: self.file, id, offset, len });
            state.punched += len;
            id
        };
        self.disk.dawdle().await;
        self.disk.state().event(Event::Ended { file: self.file, id });
        Ok(())
    }

    async fn keep_room(&self, _reactor: &Reactor, range: ByteRange) -> io::Result<()> {
        assert!(!range.is_empty(), "the kernel refuses it");
        self.disk.dawdle().await;
        let mut state = self.disk.state();
        if !state.has_room(self.file, range.start()..range.end()) {
            return Err(Errno::NOSPC.into());
        }
        let unit = state.image.system.block_bytes;
        let blocks = range.start() / unit..range.end().div_ceil(unit);
        state.kept_ahead.entry(self.file).or_default().extend(blocks);
        Ok(())
    }

    async fn successor(&self) -> io::Result<Self> {
        self.disk.dawdle().await;
        let file = self.disk.create(&format!("{}.successor", self.name));
        let is_waiting = AtomicBool::new(true);
        Ok(Self { disk: self.disk.clone(), file, name: self.name.clone(), is_waiting })
    }

    async fn replace_by(&self, successor: &Self) -> io::Result<()> {
        self.disk.dawdle().await;
        let from = format!("{}.successor", successor.name);
        self.disk.state().event(Event::Renamed { from, to: self.name.clone() });
        successor.is_waiting.store(false, Ordering::Relaxed);
        Ok(())
    }

    fn share(&self) -> io::Result<()> {
        Ok(())
    }

    async fn close(self) {
        self.disk.dawdle().await;
    }

    async fn sync_name(&self, _reactor: &Reactor) -> io::Result<()> {
        self.disk.dawdle().await;
        self.disk.state().event(Event::NamesSynced);
        Ok(())
    }
}

impl Drop for SimulatedFile {
    fn drop(&mut self) {
        if *self.is_waiting.get_mut() {
            let name = format!("{}.successor", self.name);
            self.disk.state().event(Event::Removed { name });
        }
    }
}

impl fmt::Display for SimulatedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}
