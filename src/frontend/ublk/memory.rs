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

/// What one queue shares with the driver.
pub(super) struct QueueMemory {
    descriptors: Mapping,
    depth: u16,
    data: Option<TagBuffers>,
}

struct TagBuffers {
    mapping: Mapping,
    stride: usize,
}

impl QueueMemory {
    /// Maps the descriptors of `queue` from the character device.
    pub(super) fn map(file: &OwnedFd, queue: u16, depth: u16) -> io::Result<Self> {
        let bytes = usize::from(depth) * size_of::<abi::ublksrv_io_desc>();
        let len = bytes.next_multiple_of(rustix::param::page_size());
        let offset = u64::from(queue) * abi::DESCRIPTORS_STRIDE_BYTES;
        Ok(Self { descriptors: Mapping::of_file(file, offset, len)?, depth, data: None })
    }

    /// Adds a buffer of `stride` bytes for each tag. Memory is taken only as far as requests have reached.
    pub(super) fn with_tag_buffers(self, stride: u32) -> io::Result<Self> {
        let stride = stride as usize;
        let mapping = Mapping::of_nothing(stride * usize::from(self.depth))?;
        Ok(Self { data: Some(TagBuffers { mapping, stride }), ..self })
    }

    /// The descriptor of `tag` as it is now.
    pub(super) fn descriptor(&self, tag: u16) -> Descriptor {
        assert!(tag < self.depth, "tags are those of the queue");
        let place: *mut abi::ublksrv_io_desc = self.descriptors.start.as_ptr().cast();
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

    /// The address of a tag's buffer, as the driver is told it; zero without tag buffers.
    pub(super) fn data_address(&self, tag: u16) -> u64 {
        self.data_start(tag).map_or(0, |start| start.as_ptr() as u64)
    }

    fn data_start(&self, tag: u16) -> Option<NonNull<u8>> {
        assert!(tag < self.depth, "tags are those of the queue");
        let data = self.data.as_ref()?;
        // SAFETY: the tag was checked, so the place lies inside the mapping.
        Some(unsafe { data.mapping.start.add(usize::from(tag) * data.stride) })
    }

    /// The first `len` bytes of a tag's buffer; None without tag buffers, or when it is shorter.
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
        if len > self.data.as_ref()?.stride {
            return None;
        }
        let start = self.data_start(tag)?;
        // SAFETY: the range lies inside the tag's part of the mapping, anonymous memory that begins as zeroes; that it is
        // not used by others is the caller's promise.
        Some(unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), len) })
    }
}
