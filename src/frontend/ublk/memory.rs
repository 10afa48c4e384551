//! The memory that a queue shares with the driver: descriptors of requests, and, without user copy, their data.
#![expect(unsafe_code, reason = "memory that the driver changes")]

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    ptr::{self, NonNull},
};

use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::{abi, descriptor::Descriptor};

/// One mapping, gone when dropped. It is not passed on to forked children, where it would pin the device.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

impl Mapping {
    fn of_file(file: &OwnedFd, offset: u64, len: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at a place of the kernel's choice overlays nothing.
        let start = unsafe {
            rustix::mm::mmap(ptr::null_mut(), len, ProtFlags::READ, MapFlags::SHARED, file.as_fd(), offset)
        }?;
        Self::own(start.cast(), len)
    }

    fn of_nothing(len: usize) -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: as above.
        let start = unsafe {
            rustix::mm::mmap_anonymous(
                ptr::null_mut(),
                len,
                protection,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        Self::own(start.cast(), len)
    }

    fn own(start: *mut u8, len: usize) -> io::Result<Self> {
        let start = NonNull::new(start).ok_or_else(|| io::Error::other("a mapping at address zero"))?;
        let mapping = Self { start, len };
        // SAFETY: the range is the mapping's, and the advice changes nothing for this process.
        unsafe { rustix::mm::madvise(start.as_ptr().cast(), len, Advice::LinuxDontFork) }?;
        Ok(mapping)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's own, and nothing borrows from it any more.
        if let Err(error) = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) } {
            tracing::error!(%error, "cannot unmap memory shared with the driver");
        }
    }
}

/// The descriptors of a queue's requests, as the driver keeps them.
#[derive(Debug)]
pub(super) struct Descriptors {
    mapping: Mapping,
    depth: u16,
}

// SAFETY: the mapping is the process's, whichever thread has made it, and only read.
unsafe impl Send for Descriptors {}
// SAFETY: as above; each read is one of its own, volatile.
unsafe impl Sync for Descriptors {}

impl Descriptors {
    /// Maps those of `queue` from the character device.
    pub(super) fn map(file: &OwnedFd, queue: u16, depth: u16) -> io::Result<Self> {
        let bytes = usize::from(depth) * size_of::<abi::ublksrv_io_desc>();
        let len = bytes.next_multiple_of(rustix::param::page_size());
        let offset = u64::from(queue) * abi::DESCRIPTORS_STRIDE_BYTES;
        Ok(Self { mapping: Mapping::of_file(file, offset, len)?, depth })
    }

    /// That of `tag` as it is now.
    pub(super) fn of_tag(&self, tag: u16) -> Descriptor {
        assert!(tag < self.depth, "tags are those of the queue");
        let place: *mut abi::ublksrv_io_desc = self.mapping.start.as_ptr().cast();
        // SAFETY: the tag was checked, so its place lies inside the mapping, whose start is that of a page. The driver may
        // write at any time, so each field is read once and volatile; any value is possible, and is checked by whoever
        // makes something of it.
        unsafe {
            let place = place.add(usize::from(tag));
            Descriptor {
                op_flags: ptr::read_volatile(&raw const (*place).op_flags),
                sectors: ptr::read_volatile(&raw const (*place).nr_sectors),
                start_sector: ptr::read_volatile(&raw const (*place).start_sector),
            }
        }
    }
}

/// Memory of this process for the data of a queue's requests, where the driver copies by itself: a part for each tag.
pub(super) struct TagBuffers {
    mapping: Mapping,
    stride: usize,
    depth: u16,
}

impl TagBuffers {
    /// A buffer of `stride` bytes for each tag. Memory is taken only as far as requests have reached.
    pub(super) fn new(stride: u32, depth: u16) -> io::Result<Self> {
        let stride = stride as usize;
        Ok(Self { mapping: Mapping::of_nothing(stride * usize::from(depth))?, stride, depth })
    }

    /// The address of a tag's buffer, as the driver is told it.
    pub(super) fn address(&self, tag: u16) -> u64 {
        self.start(tag).as_ptr() as u64
    }

    fn start(&self, tag: u16) -> NonNull<u8> {
        assert!(tag < self.depth, "tags are those of the queue");
        // SAFETY: the tag was checked, so the place lies inside the mapping.
        unsafe { self.mapping.start.add(usize::from(tag) * self.stride) }
    }

    /// The first `len` bytes of a tag's buffer; None when it is shorter.
    ///
    /// # Safety
    /// The driver does not have the tag (its request has been delivered, and not yet committed), and nothing else
    /// borrows its buffer.
    #[expect(
        clippy::mut_from_ref,
        reason = "each tag has a buffer of its own; who may use it is the caller's promise"
    )]
    pub(super) unsafe fn data(&self, tag: u16, len: u32) -> Option<&mut [u8]> {
        let len = len as usize;
        if len > self.stride {
            return None;
        }
        // SAFETY: the range lies inside the tag's part of the mapping, anonymous memory that begins as zeroes; that it is
        // not used by others is the caller's promise.
        Some(unsafe { std::slice::from_raw_parts_mut(self.start(tag).as_ptr(), len) })
    }
}
