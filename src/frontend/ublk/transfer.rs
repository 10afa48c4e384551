//! User copy: the data of a request, moved by a plain read or write of the character device.
//!
//! Not through the ring: the device has no non-blocking path, so that the kernel gives each copy to a worker, three times
//! slower. The copy itself waits for nothing. The count that Linux 6.12 returns is what was asked for, whatever it
//! copied; so the length is always exactly the request's, and the count only ever proves a failure.

use std::os::fd::OwnedFd;

use rustix::io::Errno;

use crate::block::{BlockError, ErrorKind};

/// Copies what was read into the pages of the request at `position`: all of it, or the request fails.
pub(super) fn deliver(file: &OwnedFd, position: u64, data: &[u8]) -> Result<(), BlockError> {
    complete(data.len(), || rustix::io::pwrite(file, data, position))
}

/// Copies what is to be written out of the pages of the request at `position`: all of it, or the request fails.
pub(super) fn collect(file: &OwnedFd, position: u64, data: &mut [u8]) -> Result<(), BlockError> {
    complete(data.len(), || rustix::io::pread(file, &mut *data, position))
}

fn complete(len: usize, mut copy: impl FnMut() -> Result<usize, Errno>) -> Result<(), BlockError> {
    loop {
        return match copy() {
            Ok(count) if count == len => Ok(()),
            Ok(count) => {
                Err(BlockError::new(ErrorKind::Io, format!("the driver copied {count} of {len} bytes")))
            }
            Err(Errno::INTR) => continue,
            Err(errno) => Err(BlockError::with_source(ErrorKind::Io, "the driver's copy failed", errno)),
        };
    }
}
