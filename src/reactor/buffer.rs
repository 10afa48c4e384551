//! Pooled buffers: bounded in total, recycled, and shared so that nobody takes the last one from another.
//!
//! A request may hold its buffer for as long as a disk or a network hangs. So each queue has a share of the pool, of no fixed
//! size: one that holds something may hold as much as it leaves to the others, which is half of the pool where it is alone. One
//! that holds nothing gets its buffer at once, if need be past the limit, so that no queue waits for another's requests: in all
//! that is one buffer for each queue more.

use std::{
    cell::RefCell,
    fmt,
    ops::{Deref, DerefMut},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use slab::Slab;

use super::WaitList;

/// Smallest buffer; requests below it share one size class.
const SMALLEST_BYTES: usize = 4096;

/// Free memory kept for reuse, as a share of the pool's limit: the rest goes back to the allocator.
const KEPT_SHARE: usize = 4;

/// A share of a pool of buffers for one thread. Cloning gives another handle to the same share.
#[derive(Clone)]
pub struct BufferPool(Rc<Handle>);

struct Handle {
    pool: Rc<RefCell<State>>,
    share: usize,
}

struct State {
    limit_bytes: usize,
    out_bytes: usize,
    free: Vec<Vec<Vec<u8>>>,
    free_bytes: usize,
    shares: Slab<Share>,
    /// How many wait, in all shares.
    waiting: usize,
    /// The share to look at first when there is room again, so that each has its turn.
    next_share: usize,
}

#[derive(Default)]
struct Share {
    out_bytes: usize,
    /// Those who wait for so many bytes. Whoever is not in here any more has them.
    waiting: WaitList<usize>,
}

/// A request for more memory than the pool may ever hand out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a buffer of {len} bytes exceeds the pool's {limit_bytes} bytes")]
pub struct BufferError {
    /// Bytes asked for.
    pub len: usize,
    /// Bytes the pool may hand out in all.
    pub limit_bytes: usize,
}

impl BufferPool {
    /// A pool that hands out at most `limit_bytes` at once, and one share of it.
    #[must_use]
    pub fn new(limit_bytes: usize) -> Self {
        let pool = State {
            limit_bytes,
            out_bytes: 0,
            free: Vec::new(),
            free_bytes: 0,
            shares: Slab::new(),
            waiting: 0,
            next_share: 0,
        };
        Self::of(Rc::new(RefCell::new(pool)))
    }

    /// Another share of the same pool.
    #[must_use]
    pub fn share(&self) -> Self {
        Self::of(Rc::clone(&self.0.pool))
    }

    fn of(pool: Rc<RefCell<State>>) -> Self {
        let share = pool.borrow_mut().shares.insert(Share::default());
        Self(Rc::new(Handle { pool, share }))
    }

    /// A buffer of `len` bytes with unspecified content; waits, in turn, until the share has room.
    ///
    /// A task must not hold one buffer of a share while it waits for another of the same share.
    ///
    /// # Errors
    /// When `len` can never be had.
    pub async fn acquire(&self, len: usize) -> Result<Buffer, BufferError> {
        let limit_bytes = self.limit_bytes();
        match class_bytes(len) {
            Some(bytes) if bytes <= limit_bytes => {
                Acquire { share: self, bytes, ticket: None }.await;
                let memory = self.0.pool.borrow_mut().recycled(bytes).unwrap_or_else(|| vec![0; bytes]);
                Ok(Buffer { memory, len, pool: self.clone() })
            }
            _ => Err(BufferError { len, limit_bytes }),
        }
    }

    /// Bytes that may be handed out at once, but for the last buffer of each share; also the largest buffer.
    #[must_use]
    pub fn limit_bytes(&self) -> usize {
        self.0.pool.borrow().limit_bytes
    }

    /// Bytes that are handed out now, of all shares.
    #[must_use]
    pub fn out_bytes(&self) -> usize {
        self.0.pool.borrow().out_bytes
    }

    /// Takes `bytes` back that were handed out, with their memory, and lets those go on who can now.
    fn give_back(&self, bytes: usize, memory: Option<Vec<u8>>) {
        let mut state = self.0.pool.borrow_mut();
        state.count(self.0.share, |out| out - bytes);
        state.keep(memory);
        let woken = state.grant();
        // Only now, since a waker may come back here.
        drop(state);
        woken.into_iter().for_each(Waker::wake);
    }
}

impl State {
    fn has_room(&self, share: &Share, bytes: usize) -> bool {
        let left = self.limit_bytes.saturating_sub(self.out_bytes.saturating_add(bytes));
        share.out_bytes == 0 || share.out_bytes.saturating_add(bytes) <= left
    }

    /// Changes how much a share has out.
    fn count(&mut self, share: usize, change: impl FnOnce(usize) -> usize) {
        if let Some(share) = self.shares.get_mut(share) {
            let before = share.out_bytes;
            share.out_bytes = change(before);
            self.out_bytes = self.out_bytes - before + share.out_bytes;
        }
    }

    /// Takes `bytes` for somebody who comes now, if nobody of the same share waits and there is room.
    fn take(&mut self, share: usize, bytes: usize) -> bool {
        let found = self.shares.get(share);
        let taken = found.is_some_and(|share| share.waiting.is_empty() && self.has_room(share, bytes));
        if taken {
            self.count(share, |out| out + bytes);
        }
        taken
    }

    /// Gives room to those who wait, one of each share in turn, and returns how to wake them.
    fn grant(&mut self) -> Vec<Waker> {
        let (mut woken, shares) = (Vec::new(), self.shares.capacity());
        let mut passed = 0;
        while self.waiting > 0 && passed < shares {
            let key = self.next_share % shares;
            self.next_share = key + 1;
            passed += 1;
            let Some(share) = self.shares.get(key) else { continue };
            let wanted = share.waiting.first().map(|(_, bytes)| *bytes);
            let Some(bytes) = wanted.filter(|bytes| self.has_room(share, *bytes)) else { continue };
            woken.extend(self.shares.get_mut(key).and_then(|share| share.waiting.pop()));
            self.waiting -= 1;
            self.count(key, |out| out + bytes);
            passed = 0;
        }
        woken
    }

    fn recycled(&mut self, bytes: usize) -> Option<Vec<u8>> {
        let memory = self.free.get_mut(class_index(bytes)).and_then(Vec::pop)?;
        self.free_bytes -= bytes;
        Some(memory)
    }

    fn keep(&mut self, memory: Option<Vec<u8>>) {
        let Some(memory) = memory else { return };
        let bytes = memory.len();
        if self.free_bytes + bytes <= self.limit_bytes / KEPT_SHARE {
            let index = class_index(bytes);
            if self.free.len() <= index {
                self.free.resize_with(index + 1, Vec::new);
            }
            if let Some(class) = self.free.get_mut(index) {
                class.push(memory);
                self.free_bytes += bytes;
            }
        }
    }
}

impl Drop for Handle {
    /// All its buffers have come back, since each has a handle.
    fn drop(&mut self) {
        self.pool.borrow_mut().shares.try_remove(self.share);
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.pool.borrow();
        f.debug_struct("BufferPool")
            .field("limit_bytes", &state.limit_bytes)
            .field("out_bytes", &state.out_bytes)
            .finish_non_exhaustive()
    }
}

fn class_bytes(len: usize) -> Option<usize> {
    len.max(SMALLEST_BYTES).checked_next_power_of_two()
}

fn class_index(bytes: usize) -> usize {
    (bytes.trailing_zeros() - SMALLEST_BYTES.trailing_zeros()) as usize
}

/// Waits for its turn and for room.
struct Acquire<'a> {
    share: &'a BufferPool,
    bytes: usize,
    /// From the first wait on until the room has been taken over.
    ticket: Option<u64>,
}

impl Future for Acquire<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Handle { pool, share } = &*self.share.0;
        let mut state = pool.borrow_mut();
        if let Some(ticket) = self.ticket {
            let waits =
                state.shares.get_mut(*share).is_some_and(|share| share.waiting.renew(ticket, cx.waker()));
            drop(state);
            if waits {
                return Poll::Pending;
            }
            self.ticket = None;
            return Poll::Ready(());
        }
        if state.take(*share, self.bytes) {
            return Poll::Ready(());
        }
        let bytes = self.bytes;
        let ticket = state.shares.get_mut(*share).map(|share| share.waiting.push(bytes, cx.waker()));
        state.waiting += 1;
        drop(state);
        self.ticket = ticket;
        Poll::Pending
    }
}

impl Drop for Acquire<'_> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let Handle { pool, share } = &*self.share.0;
        let mut state = pool.borrow_mut();
        let waited = state.shares.get_mut(*share).is_some_and(|share| share.waiting.remove(ticket));
        if waited {
            state.waiting -= 1;
        }
        let woken = state.grant();
        drop(state);
        woken.into_iter().for_each(Waker::wake);
        if !waited {
            // It was given room, and goes without it.
            self.share.give_back(self.bytes, None);
        }
    }
}

/// Memory of a [`BufferPool`]; goes back to it when dropped.
pub struct Buffer {
    /// A vector and not a box, for the kernel's pointer into a box would not survive that the box moves.
    memory: Vec<u8>,
    len: usize,
    pool: BufferPool,
}

impl Buffer {
    /// Makes it shorter; a longer `len` changes nothing.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.memory.get(..self.len).unwrap_or_default()
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.memory.get_mut(..self.len).unwrap_or_default()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        self.pool.give_back(memory.len(), Some(memory));
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    fn poll_now<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_buffer_past_the_limit_is_refused_and_one_within_it_waits_its_turn() {
        let pool = BufferPool::new(8192);
        let first = match poll_now(pin!(pool.acquire(5000))) {
            Poll::Ready(Ok(buffer)) => buffer,
            other => panic!("expected a buffer, got {other:?}"),
        };
        assert_eq!((first.len(), pool.out_bytes()), (5000, 8192));
        assert!(matches!(poll_now(pin!(pool.acquire(8193))), Poll::Ready(Err(_))));

        let mut large = pin!(pool.acquire(8192));
        let mut small = pin!(pool.acquire(1));
        assert!(poll_now(large.as_mut()).is_pending());
        assert!(poll_now(small.as_mut()).is_pending());
        drop(first);
        assert!(poll_now(small.as_mut()).is_pending(), "the small one may not overtake");
        let Poll::Ready(Ok(second)) = poll_now(large.as_mut()) else { panic!("its turn has come") };
        drop(second);
        assert!(poll_now(small).is_ready());
    }

    #[test]
    fn a_waiter_that_gives_up_lets_the_next_one_pass() {
        let pool = BufferPool::new(4096);
        let Poll::Ready(Ok(held)) = poll_now(pin!(pool.acquire(1))) else { panic!("room for one") };
        {
            let mut gone = pin!(pool.acquire(1));
            assert!(poll_now(gone.as_mut()).is_pending());
        }
        let mut next = pin!(pool.acquire(1));
        assert!(poll_now(next.as_mut()).is_pending());
        drop(held);
        assert!(poll_now(next).is_ready());
    }

    fn take(share: &BufferPool, len: usize) -> Buffer {
        match poll_now(pin!(share.acquire(len))) {
            Poll::Ready(Ok(buffer)) => buffer,
            other => panic!("expected a buffer, got {other:?}"),
        }
    }

    #[test]
    fn a_share_that_holds_all_it_may_leaves_every_other_one_its_buffer() {
        let greedy = BufferPool::new(1 << 20);
        let mut held = Vec::new();
        while let Poll::Ready(Ok(buffer)) = poll_now(pin!(greedy.acquire(64 << 10))) {
            held.push(buffer);
        }
        assert_eq!(greedy.out_bytes(), 512 << 10, "alone it may hold half");
        let others: Vec<BufferPool> = (0..100).map(|_| greedy.share()).collect();
        let last: Vec<Buffer> = others.iter().map(|share| take(share, 1 << 20)).collect();
        {
            let mut more = pin!(others[0].acquire(4096));
            assert!(poll_now(more.as_mut()).is_pending(), "past the limit, one each is enough");
            drop(last);
            assert!(poll_now(more).is_ready());
        }
        drop((others, held));
        assert_eq!((greedy.out_bytes(), greedy.0.pool.borrow().shares.len()), (0, 1));
    }

    #[test]
    fn room_that_comes_back_goes_to_all_shares_in_turn() {
        let shares = [(); 2].map({
            let pool = BufferPool::new(64 << 10);
            move |()| pool.share()
        });
        let mut held: Vec<Buffer> = shares.iter().map(|share| take(share, 16 << 10)).collect();
        held.push(take(&shares[0], 4096));
        let mut waiting: Vec<_> = (0..8).map(|at| Box::pin(shares[at % 2].acquire(16 << 10))).collect();
        assert!(waiting.iter_mut().all(|wait| poll_now(wait.as_mut()).is_pending()));
        let mut served = [0_usize; 2];
        while !waiting.is_empty() {
            held.clear();
            waiting.retain_mut(|wait| match poll_now(wait.as_mut()) {
                Poll::Ready(Ok(buffer)) => {
                    let of = usize::from(Rc::ptr_eq(&buffer.pool.0, &shares[1].0));
                    served[of] += 1;
                    held.push(buffer);
                    false
                }
                _ => true,
            });
            assert!(served[0].abs_diff(served[1]) <= 1, "{served:?}");
        }
    }

    #[test]
    fn room_that_was_given_to_somebody_who_goes_is_given_on() {
        let share = BufferPool::new(4096);
        let held = take(&share, 1);
        let mut gone = Box::pin(share.acquire(1));
        let mut next = pin!(share.acquire(1));
        assert!(poll_now(gone.as_mut()).is_pending() && poll_now(next.as_mut()).is_pending());
        drop(held);
        assert!(poll_now(next.as_mut()).is_pending());
        drop(gone);
        assert!(poll_now(next).is_ready());
    }
}
