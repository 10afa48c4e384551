//! Pooled buffers: bounded in total, recycled, handed out in the order of asking.

use std::{
    cell::RefCell,
    collections::VecDeque,
    fmt,
    ops::{Deref, DerefMut},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

/// Smallest buffer; requests below it share one size class.
const SMALLEST_BYTES: usize = 4096;

/// Free memory kept for reuse, as a share of the pool's limit: the rest goes back to the allocator.
const KEPT_SHARE: usize = 4;

/// A pool of buffers for one thread. Cloning gives another handle to the same pool.
#[derive(Clone)]
pub struct BufferPool(Rc<RefCell<State>>);

struct State {
    limit_bytes: usize,
    out_bytes: usize,
    free: Vec<Vec<Vec<u8>>>,
    free_bytes: usize,
    waiters: VecDeque<(u64, Option<Waker>)>,
    next_ticket: u64,
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
    /// A pool that hands out at most `limit_bytes` at once.
    #[must_use]
    pub fn new(limit_bytes: usize) -> Self {
        Self(Rc::new(RefCell::new(State {
            limit_bytes,
            out_bytes: 0,
            free: Vec::new(),
            free_bytes: 0,
            waiters: VecDeque::new(),
            next_ticket: 0,
        })))
    }

    /// A buffer of `len` bytes with unspecified content; waits, in turn, until the pool has room.
    ///
    /// A task must not hold one buffer of a pool while it waits for another of the same pool.
    ///
    /// # Errors
    /// When `len` can never be had.
    pub async fn acquire(&self, len: usize) -> Result<Buffer, BufferError> {
        let limit_bytes = self.0.borrow().limit_bytes;
        match class_bytes(len) {
            Some(bytes) if bytes <= limit_bytes => {}
            _ => return Err(BufferError { len, limit_bytes }),
        }
        Ok(Acquire { pool: self, len, ticket: None }.await)
    }

    /// Bytes that may be handed out at once; also the largest buffer.
    #[must_use]
    pub fn limit_bytes(&self) -> usize {
        self.0.borrow().limit_bytes
    }

    /// Bytes that are handed out now.
    #[must_use]
    pub fn out_bytes(&self) -> usize {
        self.0.borrow().out_bytes
    }

    fn take(&self, len: usize) -> Option<Buffer> {
        let bytes = class_bytes(len)?;
        let mut state = self.0.borrow_mut();
        if state.out_bytes.checked_add(bytes)? > state.limit_bytes {
            return None;
        }
        state.out_bytes += bytes;
        let recycled = state.free.get_mut(class_index(bytes)).and_then(Vec::pop);
        if recycled.is_some() {
            state.free_bytes -= bytes;
        }
        let memory = recycled.unwrap_or_else(|| vec![0; bytes]);
        Some(Buffer { memory, len, pool: self.clone() })
    }

    fn give_back(&self, memory: Vec<u8>) {
        let mut state = self.0.borrow_mut();
        let bytes = memory.len();
        state.out_bytes -= bytes;
        if state.free_bytes + bytes <= state.limit_bytes / KEPT_SHARE {
            let index = class_index(bytes);
            if state.free.len() <= index {
                state.free.resize_with(index + 1, Vec::new);
            }
            if let Some(class) = state.free.get_mut(index) {
                class.push(memory);
                state.free_bytes += bytes;
            }
        }
        let first = state.first_waker();
        // Only now, since a waker may come back here.
        drop(state);
        wake(first);
    }
}

impl State {
    fn first_waker(&mut self) -> Option<Waker> {
        self.waiters.front_mut().and_then(|(_, waker)| waker.take())
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.borrow();
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
    pool: &'a BufferPool,
    len: usize,
    ticket: Option<u64>,
}

impl Future for Acquire<'_> {
    type Output = Buffer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Buffer> {
        let first = {
            let state = self.pool.0.borrow();
            state.waiters.front().is_none_or(|(ticket, _)| Some(*ticket) == self.ticket)
        };
        if first && let Some(buffer) = self.pool.take(self.len) {
            return Poll::Ready(buffer);
        }
        let mut state = self.pool.0.borrow_mut();
        match self.ticket {
            Some(mine) => {
                if let Some((_, waker)) = state.waiters.iter_mut().find(|(ticket, _)| *ticket == mine) {
                    *waker = Some(cx.waker().clone());
                }
            }
            None => {
                let ticket = state.next_ticket;
                state.next_ticket += 1;
                state.waiters.push_back((ticket, Some(cx.waker().clone())));
                drop(state);
                self.ticket = Some(ticket);
            }
        }
        Poll::Pending
    }
}

impl Drop for Acquire<'_> {
    fn drop(&mut self) {
        if let Some(mine) = self.ticket {
            let mut state = self.pool.0.borrow_mut();
            state.waiters.retain(|(ticket, _)| *ticket != mine);
            let first = state.first_waker();
            drop(state);
            wake(first);
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
        self.pool.give_back(std::mem::take(&mut self.memory));
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
}
