//! A decorator that makes chosen operations of a device fail, dawdle, stop half way or hang, by a script.

use std::{sync::Arc, time::Duration};

use crate::{
    block::{BlockDevice, BlockError, BlockQueue, ByteRange, ErrorKind, Geometry},
    reactor::{Reactor, Watched, waiting_for},
};

/// The operations of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// [`BlockQueue::read`]
    Read,
    /// [`BlockQueue::write`]
    Write,
    /// [`BlockQueue::flush`]
    Flush,
    /// [`BlockQueue::write_zeroes`]
    WriteZeroes,
}

/// What happens to an operation that a [`Fault`] meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Trouble {
    /// It fails and does nothing.
    Fail(ErrorKind),
    /// It waits, and then is done as if nothing had happened.
    Delay(Duration),
    /// Its first bytes are done, and then it fails: a torn write, or a read that fills a part.
    Cut {
        /// How many bytes are done; a longer operation is cut, a shorter one just fails.
        after_bytes: usize,
        /// What it fails with.
        kind: ErrorKind,
    },
    /// It waits until [`FaultPlan::release`], and then is done.
    Hang,
}

/// One line of the script.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    /// Which operations it may meet.
    pub op: Op,
    /// Only those that touch this range; flushes touch every range.
    pub range: ByteRange,
    /// Operations that it could meet and lets pass first.
    pub skip: u64,
    /// How many it then meets, until it is used up.
    pub count: u64,
    /// What happens to these.
    pub trouble: Trouble,
}

impl Fault {
    /// Meets the next operation of this kind, wherever it goes.
    #[must_use]
    pub fn once(op: Op, trouble: Trouble) -> Self {
        Self { op, range: ByteRange::between(0, u64::MAX), skip: 0, count: 1, trouble }
    }

    /// Meets every operation of this kind that touches `range`.
    #[must_use]
    pub fn at(op: Op, range: ByteRange, trouble: Trouble) -> Self {
        Self { op, range, skip: 0, count: u64::MAX, trouble }
    }

    fn concerns(&self, op: Op, range: ByteRange) -> bool {
        self.op == op && (op == Op::Flush || !self.range.intersect(range).is_empty())
    }
}

/// The script of a [`FaultyDevice`], shared by all its queues and by whoever changes it meanwhile.
///
/// Each operation meets at most one fault: the first of the script that concerns it and is neither waiting nor used up.
#[derive(Debug, Clone, Default)]
pub struct FaultPlan(Arc<Watched<Script>>);

#[derive(Debug, Default)]
struct Script {
    faults: Vec<Fault>,
    met: u64,
    /// Counts calls of [`FaultPlan::release`], by which one that hangs sees that it was meant.
    releases: u64,
}

impl FaultPlan {
    /// A script of these faults.
    #[must_use]
    pub fn new(faults: impl IntoIterator<Item = Fault>) -> Self {
        let plan = Self::default();
        faults.into_iter().for_each(|fault| plan.add(fault));
        plan
    }

    /// Puts a fault at the end of the script.
    pub fn add(&self, fault: Fault) {
        self.0.look(|script| script.faults.push(fault));
    }

    /// Takes all faults away. What hangs goes on hanging until it is released.
    pub fn clear(&self) {
        self.0.look(|script| script.faults.clear());
    }

    /// Operations that have met a fault so far.
    #[must_use]
    pub fn met(&self) -> u64 {
        self.0.look(|script| script.met)
    }

    /// Lets all operations go on that hang now.
    pub fn release(&self) {
        self.0.change(|script| script.releases += 1);
    }

    fn meet(&self, op: Op, range: ByteRange) -> Option<Trouble> {
        self.0.look(|script| script.meet(op, range))
    }

    async fn hang(&self) {
        let before = self.0.look(|script| script.releases);
        self.0.wait(|script| (script.releases != before).then_some(())).await;
    }
}

impl Script {
    fn meet(&mut self, op: Op, range: ByteRange) -> Option<Trouble> {
        for fault in self.faults.iter_mut().filter(|fault| fault.count > 0 && fault.concerns(op, range)) {
            if fault.skip > 0 {
                fault.skip -= 1;
                continue;
            }
            fault.count -= 1;
            self.met += 1;
            return Some(fault.trouble);
        }
        None
    }
}

/// A device with faults.
#[derive(Debug, Clone)]
pub struct FaultyDevice<D> {
    inner: D,
    plan: FaultPlan,
}

/// The queue of a [`FaultyDevice`].
#[derive(Debug)]
pub struct FaultyQueue<Q> {
    inner: Q,
    plan: FaultPlan,
    reactor: Reactor,
}

impl<D> FaultyDevice<D> {
    /// `inner`, troubled by `plan`.
    #[must_use]
    pub fn new(inner: D, plan: FaultPlan) -> Self {
        Self { inner, plan }
    }
}

impl<D: BlockDevice> BlockDevice for FaultyDevice<D> {
    type Queue = FaultyQueue<D::Queue>;

    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn reach_bytes(&self) -> u64 {
        self.inner.reach_bytes()
    }

    fn open_queue(&self, reactor: &Reactor) -> Result<Self::Queue, BlockError> {
        let inner = self.inner.open_queue(reactor)?;
        Ok(FaultyQueue { inner, plan: self.plan.clone(), reactor: reactor.clone() })
    }
}

/// How an operation goes on after it has met its fault, if any.
enum Outcome {
    Whole,
    /// Only the first bytes, and then the failure.
    Part(usize, BlockError),
}

impl<Q> FaultyQueue<Q> {
    async fn trouble(&self, op: Op, offset: u64, len: u64) -> Outcome {
        let range = ByteRange::between(offset, offset.saturating_add(len));
        let failure =
            |kind| BlockError::new(kind, format!("planned failure of {op:?}, {len} bytes at {offset}"));
        match self.plan.meet(op, range) {
            None => Outcome::Whole,
            Some(Trouble::Fail(kind)) => Outcome::Part(0, failure(kind)),
            Some(Trouble::Cut { after_bytes, kind }) => Outcome::Part(after_bytes, failure(kind)),
            Some(Trouble::Delay(duration)) => {
                self.reactor.sleep(duration).await;
                Outcome::Whole
            }
            Some(Trouble::Hang) => {
                waiting_for(|| "a planned fault", self.plan.hang()).await;
                Outcome::Whole
            }
        }
    }
}

impl<Q: BlockQueue> BlockQueue for FaultyQueue<Q> {
    async fn read(&self, offset: u64, dest: &mut [u8]) -> Result<(), BlockError> {
        match self.trouble(Op::Read, offset, dest.len() as u64).await {
            Outcome::Whole => self.inner.read(offset, dest).await,
            Outcome::Part(bytes, failure) => {
                let bytes = bytes.min(dest.len());
                if let Some(part) = dest.get_mut(..bytes).filter(|part| !part.is_empty()) {
                    self.inner.read(offset, part).await?;
                }
                Err(failure)
            }
        }
    }

    async fn write(&self, offset: u64, data: &[u8]) -> Result<(), BlockError> {
        match self.trouble(Op::Write, offset, data.len() as u64).await {
            Outcome::Whole => self.inner.write(offset, data).await,
            Outcome::Part(bytes, failure) => {
                if let Some(part) = data.get(..bytes.min(data.len())).filter(|part| !part.is_empty()) {
                    self.inner.write(offset, part).await?;
                }
                Err(failure)
            }
        }
    }

    fn count_failure(&self) {
        self.inner.count_failure();
    }

    fn next_data(&self, range: ByteRange) -> ByteRange {
        self.inner.next_data(range)
    }

    async fn flush(&self) -> Result<(), BlockError> {
        match self.trouble(Op::Flush, 0, 0).await {
            Outcome::Whole => self.inner.flush().await,
            Outcome::Part(_, failure) => Err(failure),
        }
    }

    async fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        match self.trouble(Op::WriteZeroes, offset, len).await {
            Outcome::Whole => self.inner.write_zeroes(offset, len).await,
            Outcome::Part(bytes, failure) => {
                let bytes = len.min(bytes as u64);
                if bytes > 0 {
                    self.inner.write_zeroes(offset, bytes).await?;
                }
                Err(failure)
            }
        }
    }
}
