//! Files registered with the ring, by which ublk queues are addressed without a reference count each time.

use std::{cell::RefCell, fmt, io, os::fd::AsRawFd, os::fd::OwnedFd, rc::Rc, sync::Arc};

use super::ring::Ring;

/// The places of a ring's table of registered files.
#[derive(Default)]
pub(super) struct Slots {
    free: RefCell<Vec<u32>>,
}

impl Slots {
    pub(super) fn new(count: u32) -> Self {
        Self { free: RefCell::new((0..count).rev().collect()) }
    }

    pub(super) fn register(self: &Rc<Self>, ring: &Rc<Ring>, file: Arc<OwnedFd>) -> io::Result<FixedFile> {
        let Some(index) = self.free.borrow_mut().pop() else {
            return Err(io::Error::from(rustix::io::Errno::NFILE));
        };
        let updated =
            ring.with_uring(|uring| uring.submitter().register_files_update(index, &[file.as_raw_fd()]));
        if let Err(error) = updated {
            self.free.borrow_mut().push(index);
            return Err(error);
        }
        Ok(FixedFile(Rc::new(Slot { index, slots: Rc::clone(self), ring: Rc::clone(ring), file })))
    }
}

/// One registered file; the place is cleared and free again when the last operation and handle have gone.
pub(super) struct Slot {
    pub(super) index: u32,
    slots: Rc<Slots>,
    ring: Rc<Ring>,
    file: Arc<OwnedFd>,
}

impl Slot {
    /// Whether the place is in the table of `ring`: in another's its index would mean another file.
    pub(super) fn is_on(&self, ring: &Rc<Ring>) -> bool {
        Rc::ptr_eq(&self.ring, ring)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // A place that cannot be cleared pins its file until the ring goes, and must not be used again.
        match self.ring.with_uring(|uring| uring.submitter().register_files_update(self.index, &[-1])) {
            Ok(_) => self.slots.free.borrow_mut().push(self.index),
            Err(error) => tracing::error!(index = self.index, %error, "cannot clear a registered file"),
        }
    }
}

/// A file that is registered with the reactor's ring until this and every operation on it are gone.
#[derive(Clone)]
pub struct FixedFile(pub(super) Rc<Slot>);

impl FixedFile {
    /// The file itself, for plain system calls.
    #[must_use]
    pub fn file(&self) -> &Arc<OwnedFd> {
        &self.0.file
    }
}

impl fmt::Debug for FixedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FixedFile({})", self.0.index)
    }
}
