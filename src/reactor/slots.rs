//! Places in the ring's table of buffers, into which a driver puts the pages of its requests.
//!
//! The kernel can then read a file straight into those pages, which this program never sees. The table is registered empty,
//! when its first place is asked for.

use std::{cell::RefCell, rc::Rc};

use super::ring::Ring;

/// IORING_MAX_REG_BUFFERS of io_uring/rsrc.c. An empty table of that size takes 128 KiB of the kernel's memory.
pub(super) const MOST_SLOTS: u16 = 1 << 14;

/// One place. Free again when it is dropped.
#[derive(Debug)]
pub struct BufferSlot {
    index: u16,
    slots: Rc<Slots>,
}

/// The table of one ring.
#[derive(Debug)]
pub(super) struct Slots {
    most: u16,
    state: RefCell<State>,
}

#[derive(Debug)]
enum State {
    Unregistered,
    /// All below `used` have been given out once; those in `free` have come back.
    Registered {
        used: u16,
        free: Vec<u16>,
    },
    /// The kernel has no such table, or no memory for it.
    Refused,
}

impl Slots {
    pub(super) fn new(most: u16) -> Rc<Self> {
        Rc::new(Self { most: most.min(MOST_SLOTS), state: RefCell::new(State::Unregistered) })
    }

    /// A free place of `ring`'s table; `None` where there is none left, or no table.
    pub(super) fn take(self: &Rc<Self>, ring: &Ring) -> Option<BufferSlot> {
        let mut state = self.state.borrow_mut();
        if matches!(*state, State::Unregistered) && self.most > 0 {
            *state = match ring.register_slots(self.most) {
                Ok(()) => State::Registered { used: 0, free: Vec::new() },
                Err(error) => {
                    tracing::debug!(%error, "no table of buffers");
                    State::Refused
                }
            };
        }
        let State::Registered { used, free } = &mut *state else { return None };
        let index = free.pop().or_else(|| {
            let next = (*used < self.most).then_some(*used)?;
            *used += 1;
            Some(next)
        })?;
        Some(BufferSlot { index, slots: Rc::clone(self) })
    }
}

impl BufferSlot {
    /// Its number, by which a driver is told.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.index
    }
}

impl Drop for BufferSlot {
    fn drop(&mut self) {
        if let State::Registered { free, .. } = &mut *self.slots.state.borrow_mut() {
            free.push(self.index);
        }
    }
}
