//! The reactor as its own thread sees it: spawn, read, sleep, command, and the loop itself.
#![expect(unsafe_code, reason = "operations hand pointers to the kernel")]

use std::{
    any::Any,
    cell::Cell,
    fmt,
    future::poll_fn,
    io,
    os::fd::{AsRawFd, OwnedFd},
    pin::pin,
    ptr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use io_uring::{opcode, squeue, types};
use rustix::{
    fs::FallocateFlags,
    io::{Errno, ReadWriteFlags},
};

use super::{
    Buffer, BufferPool, BufferSlot, ReactorConfig, ReactorHandle,
    contain::contain,
    executor::{Executor, is_own_thread},
    inbox::{Inbox, Message},
    operation::Resources,
    pace::Stretch,
    ring::Ring,
    share::Share,
    slots::Slots,
};

/// The kernel takes a time that does not fit its signed nanoseconds for an error; nobody waits a century.
const LONGEST_SLEEP: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// How long it takes until an operation is tried again that was cut short: a process that is killed has ended by then, and where the
/// kernel has no thread for it, others may have ended.
const CUT_SHORT_PAUSE: Duration = Duration::from_millis(10);

/// A reactor, on its own thread.
///
/// Clones are handles to the same reactor, for tasks and queues to hold; they cannot leave the thread. The one that
/// [`Reactor::new`] returned owns it: when that is dropped the reactor ends. All tasks are dropped (they hold handles, so
/// that otherwise neither would ever go), the kernel is waited for, and a task spawned later is dropped at once.
pub struct Reactor {
    inner: Rc<Inner>,
    share: Rc<Share>,
    owns: bool,
}

struct Inner {
    executor: Executor,
    ring: Rc<Ring>,
    inbox: Arc<Inbox>,
    slots: Rc<Slots>,
    stopping: Cell<bool>,
    turns: Cell<u64>,
}

impl Reactor {
    /// A reactor for the calling thread; it does nothing until [`Reactor::block_on`] runs it.
    ///
    /// # Errors
    /// Where the kernel has no io_uring with deferred task work (before 6.1), or forbids it.
    pub fn new(config: &ReactorConfig) -> io::Result<Self> {
        let inbox = Arc::new(Inbox::new()?);
        let inner = Rc::new(Inner {
            ring: Ring::new(config, Arc::clone(&inbox))?,
            executor: Executor::new(Arc::clone(&inbox)),
            inbox,
            slots: Slots::new(config.buffer_slots),
            stopping: Cell::new(false),
            turns: Cell::new(0),
        });
        Ok(Self { inner, share: Share::new(config), owns: true })
    }

    /// A handle for one queue, to be passed to all that serves it: it has shares of its own of the buffers,
    /// and of each turn of the loop.
    #[must_use]
    pub fn for_queue(&self) -> Self {
        Self { inner: Rc::clone(&self.inner), share: self.share.another(), owns: false }
    }

    /// What other threads use to reach this reactor.
    #[must_use]
    pub fn handle(&self) -> ReactorHandle {
        ReactorHandle { inbox: Arc::clone(&self.inner.inbox) }
    }

    /// Drives `future` on this thread, next to all others.
    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        self.inner.executor.spawn(Box::pin(future));
    }

    /// The number of the loop's turn. Between two moments of the same turn the thread has neither slept nor taken up anything
    /// new from the kernel.
    #[must_use]
    pub fn turn_number(&self) -> u64 {
        self.inner.turns.get()
    }

    /// Waits until this handle's queue may work without a pause, in this turn of the loop or a later one; returns how many bytes it
    /// may decode before it asks again. Whoever works says how much with [`Reactor::decoded`] and [`Reactor::copied`].
    pub async fn stretch(&self) -> usize {
        Stretch::new(&self.share.pace, &self.inner.turns).await
    }

    /// This handle's queue has decoded so many bytes.
    pub fn decoded(&self, bytes: usize) {
        self.share.pace.decoded(bytes);
    }

    /// This handle's queue has copied so many bytes.
    pub fn copied(&self, bytes: usize) {
        self.share.pace.copied(bytes);
    }

    /// Buffers for the data of block requests. Acquire one of these before one of [`Reactor::io_buffers`], never after.
    #[must_use]
    pub fn request_buffers(&self) -> &BufferPool {
        &self.share.request_buffers
    }

    /// Buffers for compressed blocks that an engine waits for, apart from those below so that a source may take
    /// one of [`Reactor::io_buffers`] while it fills one of these. Acquire them in that order.
    #[must_use]
    pub fn block_buffers(&self) -> &BufferPool {
        &self.share.block_buffers
    }

    /// Buffers for what lies below a request: reads through the ring.
    #[must_use]
    pub fn io_buffers(&self) -> &BufferPool {
        &self.share.io_buffers
    }

    /// Reads from `file` at `offset` into all of `buffer`, as far as one system call goes; returns the count, which is
    /// short at the end of the file.
    ///
    /// # Errors
    /// The kernel's answer. The buffer comes back either way, except when the future is dropped.
    pub async fn read_at(
        &self,
        file: &Arc<OwnedFd>,
        offset: u64,
        mut buffer: Buffer,
    ) -> (io::Result<usize>, Buffer) {
        let entry = opcode::Read::new(types::Fd(file.as_raw_fd()), buffer.as_mut_ptr(), length(&buffer))
            .offset(offset)
            .build();
        // SAFETY: the pointer leads into the buffer's heap memory, which does not move with the buffer and is held
        // until the completion; the length is the buffer's.
        let ended = unsafe { self.perform(entry, Resources::Transfer(buffer, Arc::clone(file))) };
        finish_transfer(ended.await)
    }

    /// A place for the pages of a driver's requests; `None` where all are taken, or the kernel has no table of them.
    #[must_use]
    pub fn buffer_slot(&self) -> Option<Rc<BufferSlot>> {
        self.inner.slots.take(&self.inner.ring).map(Rc::new)
    }

    /// Reads `len` bytes from `file` at `offset` to the start of the buffer that a driver has put into `slot`; returns the
    /// count, which is short at the end of the file.
    ///
    /// # Errors
    /// The kernel's answer; EFAULT where there is no buffer, or it is shorter, or not one to read into.
    pub async fn read_to_slot(
        &self,
        file: &Arc<OwnedFd>,
        offset: u64,
        slot: &Rc<BufferSlot>,
        len: u32,
    ) -> io::Result<usize> {
        // The address of a driver's buffer counts from its start.
        let entry = opcode::ReadFixed::new(types::Fd(file.as_raw_fd()), ptr::null_mut(), len, slot.index())
            .offset(offset)
            .build();
        // SAFETY: the entry points to no memory of this program: only drivers put buffers into the table, and theirs are the
        // kernel's own pages. The place is held, so that it becomes no other request's before the read has been submitted.
        let ended = unsafe { self.perform(entry, Resources::Slot(Arc::clone(file), Rc::clone(slot))) };
        ended.await.0.map(|count| count as usize)
    }

    /// Writes all of `buffer` to `file` at `offset`, as far as one system call goes; returns the count.
    ///
    /// # Errors
    /// The kernel's answer. The buffer comes back either way, except when the future is dropped.
    pub async fn write_at(
        &self,
        file: &Arc<OwnedFd>,
        offset: u64,
        buffer: Buffer,
    ) -> (io::Result<usize>, Buffer) {
        self.write(file, offset, buffer, ReadWriteFlags::empty()).await
    }

    /// As [`Reactor::write_at`], and makes what it has written durable, as fdatasync(2) would, in the same trip.
    ///
    /// # Errors
    /// As of a write; of what it had written nobody knows whether it is durable.
    pub async fn write_durably_at(
        &self,
        file: &Arc<OwnedFd>,
        offset: u64,
        buffer: Buffer,
    ) -> (io::Result<usize>, Buffer) {
        self.write(file, offset, buffer, ReadWriteFlags::DSYNC).await
    }

    async fn write(
        &self,
        file: &Arc<OwnedFd>,
        offset: u64,
        buffer: Buffer,
        flags: ReadWriteFlags,
    ) -> (io::Result<usize>, Buffer) {
        let entry = opcode::Write::new(types::Fd(file.as_raw_fd()), buffer.as_ptr(), length(&buffer))
            .offset(offset)
            .rw_flags(flags.bits().cast_signed())
            .build();
        // SAFETY: as for reading; the kernel only reads the memory.
        let ended = unsafe { self.perform(entry, Resources::Transfer(buffer, Arc::clone(file))) };
        finish_transfer(ended.await)
    }

    /// Makes the data of `file` durable, as fdatasync(2).
    ///
    /// # Errors
    /// The kernel's answer.
    pub async fn sync_data(&self, file: &Arc<OwnedFd>) -> io::Result<()> {
        let entry =
            opcode::Fsync::new(types::Fd(file.as_raw_fd())).flags(types::FsyncFlags::DATASYNC).build();
        // SAFETY: the entry points to no memory.
        let ended = unsafe { self.perform(entry, Resources::File(Arc::clone(file))) };
        ended.await.0.map(drop)
    }

    /// Makes all of `file` durable, as fsync(2): of a folder, the names in it.
    ///
    /// # Errors
    /// The kernel's answer.
    pub async fn sync_all(&self, file: &Arc<OwnedFd>) -> io::Result<()> {
        let entry = opcode::Fsync::new(types::Fd(file.as_raw_fd())).build();
        // SAFETY: the entry points to no memory.
        let ended = unsafe { self.perform(entry, Resources::File(Arc::clone(file))) };
        ended.await.0.map(drop)
    }

    /// Changes what `file` holds of the range, as fallocate(2) with `flags`: punches a hole or makes zeroes.
    ///
    /// # Errors
    /// The kernel's answer; EOPNOTSUPP where the file system has no such thing.
    pub async fn allocate(
        &self,
        file: &Arc<OwnedFd>,
        flags: FallocateFlags,
        offset: u64,
        len: u64,
    ) -> io::Result<()> {
        // The entry takes the bits of the flags as a signed number.
        let mode = i32::from_ne_bytes(flags.bits().to_ne_bytes());
        let entry =
            opcode::Fallocate::new(types::Fd(file.as_raw_fd()), len).offset(offset).mode(mode).build();
        // SAFETY: the entry points to no memory.
        let ended = unsafe { self.perform(entry, Resources::File(Arc::clone(file))) };
        ended.await.0.map(drop)
    }

    /// Waits for `duration`.
    pub async fn sleep(&self, duration: Duration) {
        let time = Rc::new(types::Timespec::from(duration.min(LONGEST_SLEEP)));
        let entry = opcode::Timeout::new(Rc::as_ptr(&time)).build();
        // SAFETY: the time is on the heap and is held until the completion.
        let started = unsafe { self.inner.ring.start(entry, Resources::Time(time)) };
        // Ends with ETIME, which is what was asked for.
        let _ = started.await;
    }

    /// Lets everything else that is ready have a turn.
    pub async fn yield_now(&self) {
        let turn = self.turn_number();
        poll_fn(|context| {
            if self.turn_number() != turn {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    /// Sends the driver command `operation` with its 16-byte argument, and the entry's `address`, which may be any number that
    /// the driver wants, to `file` and returns the driver's answer.
    /// `memory` is held until then, also when the future is dropped: it owns what the argument points to.
    ///
    /// The file is not registered with the ring, which would save a reference count: up to Linux 6.12 a file leaves the
    /// ring's table only when every operation has ended that began before, so that a device whose commands wait for
    /// requests would keep all others from being deleted.
    ///
    /// # Errors
    /// The driver's answer where negative.
    ///
    /// # Safety
    /// Every address in `argument` and `address` that the driver may use leads into memory which `memory` owns, which does not move,
    /// and which nothing else uses before the answer in a way that the driver's access would break.
    pub async unsafe fn command(
        &self,
        file: &Arc<OwnedFd>,
        operation: u32,
        argument: [u8; 16],
        address: u64,
        memory: Option<&Rc<dyn Any>>,
    ) -> io::Result<u32> {
        let entry = opcode::UringCmd16::new(types::Fd(file.as_raw_fd()), operation)
            .cmd(argument)
            .addr(Some(address))
            .build();
        let held = Resources::Command(Arc::clone(file), memory.map(Rc::clone));
        // SAFETY: the argument is copied into the entry; what it points to is held, by the caller's promise.
        let started = unsafe { self.inner.ring.start(entry, held) };
        started.await.0
    }

    /// Has the kernel do `entry` until that has an outcome of its own.
    ///
    /// # Safety
    /// As of [`Ring::start`].
    async unsafe fn perform(
        &self,
        entry: squeue::Entry,
        mut held: Resources,
    ) -> (io::Result<u32>, Resources) {
        loop {
            // SAFETY: the caller's promise; what comes back is what was given, and memory in it has not moved.
            let (result, returned) = unsafe { self.inner.ring.start(entry.clone(), held) }.await;
            if !is_cut_short(&result) {
                return (result, returned);
            }
            held = returned;
            // On the heap, since it hardly ever is.
            Box::pin(self.sleep(CUT_SHORT_PAUSE)).await;
        }
    }

    /// Cancels all that is under way, as the kernel does with the work of a process that is killed.
    #[cfg(test)]
    pub(super) fn cut_short(&self) {
        self.inner.ring.cancel_all();
    }

    /// Runs the reactor on this thread until `future` is ready.
    ///
    /// A panic of `future` is the caller's; one of a spawned task ends only that task and is logged.
    ///
    /// # Errors
    /// A failure of the ring itself, after which the reactor is of no use, or that the reactor has ended.
    pub fn block_on<F: Future>(&self, future: F) -> io::Result<F::Output> {
        // The caller may have slept since the last time.
        self.count_turn();
        let mut future = pin!(future);
        let main = Arc::new(MainWake { inbox: Arc::clone(&self.inner.inbox), woken: AtomicBool::new(true) });
        let waker = Waker::from(Arc::clone(&main));
        let mut messages = Vec::new();
        loop {
            if main.woken.swap(false, Ordering::AcqRel)
                && let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker))
            {
                return Ok(output);
            }
            if self.inner.stopping.get() {
                return Err(io::Error::other("the reactor has ended"));
            }
            self.turn(&mut messages, || main.woken.load(Ordering::Acquire))?;
        }
    }

    /// Runs the reactor until it is told to stop or fails, and ends it.
    pub(super) fn run(&self) -> io::Result<()> {
        let mut messages = Vec::new();
        let mut ended = Ok(());
        while ended.is_ok() && !self.inner.stopping.get() {
            ended = self.turn(&mut messages, || false);
        }
        self.end();
        ended
    }

    /// One turn of the loop; sleeps in it when there is nothing to do and `more_to_do` agrees.
    fn turn(&self, messages: &mut Vec<Message>, more_to_do: impl Fn() -> bool) -> io::Result<()> {
        let inner = &*self.inner;
        inner.inbox.fetch(messages);
        for message in messages.drain(..) {
            match message {
                Message::Wake(task) => inner.executor.wake(task),
                Message::Run(act) => drop(contain("work from another thread", || act(self))),
                Message::Stop => inner.stopping.set(true),
                Message::Poll => {}
            }
        }
        inner.executor.run_ready();
        let busy = inner.executor.has_ready() || inner.stopping.get() || more_to_do();
        let turned = inner.ring.turn(!busy && inner.inbox.may_sleep());
        inner.inbox.awake();
        self.count_turn();
        turned
    }

    fn count_turn(&self) {
        self.inner.turns.set(self.inner.turns.get().wrapping_add(1));
    }

    /// Takes no more work, drops all tasks and waits for the kernel. The second time there is nothing left to do.
    fn end(&self) {
        self.inner.stopping.set(true);
        for message in self.inner.inbox.close() {
            contain("the end of work from another thread", || drop(message));
        }
        self.inner.executor.close();
        self.inner.ring.drain();
    }
}

impl Clone for Reactor {
    fn clone(&self) -> Self {
        Self { inner: Rc::clone(&self.inner), share: Rc::clone(&self.share), owns: false }
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        if self.owns {
            self.end();
        }
    }
}

/// Wakes the reactor for the future that [`Reactor::block_on`] drives itself.
struct MainWake {
    inbox: Arc<Inbox>,
    woken: AtomicBool,
}

impl Wake for MainWake {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // On its own thread the reactor is awake, and looks at the mark before it sleeps.
        if !self.woken.swap(true, Ordering::AcqRel) && !is_own_thread(&self.inbox) {
            self.inbox.post(Message::Poll);
        }
    }
}

/// Whether a signal has ended the kernel's worker that had the operation, which nobody here has asked for. A worker dies before the
/// threads that it works for do: they would take its end for an answer, and tell a driver that a request has failed, or forget what
/// has not become durable, in the last moment of a process that is killed.
fn is_cut_short(result: &io::Result<u32>) -> bool {
    let errno = result.as_ref().err().and_then(io::Error::raw_os_error);
    [Errno::INTR, Errno::CANCELED].iter().any(|cut| errno == Some(cut.raw_os_error()))
}

fn finish_transfer((result, held): (io::Result<u32>, Resources)) -> (io::Result<usize>, Buffer) {
    let Resources::Transfer(buffer, _) = held else { unreachable!("a transfer holds its buffer") };
    (result.map(|count| count as usize), buffer)
}

/// One transfer is at most what the kernel takes at once (2^31 - 4096 bytes); pools hand out far less.
fn length(buffer: &Buffer) -> u32 {
    u32::try_from(buffer.len()).unwrap_or(i32::MAX as u32)
}

impl fmt::Debug for Reactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reactor")
            .field("request_buffers", &self.share.request_buffers)
            .finish_non_exhaustive()
    }
}
