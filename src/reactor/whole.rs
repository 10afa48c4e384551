//! Reads and writes of all of a range, however little of it one system call does.

use std::{io, os::fd::OwnedFd, sync::Arc};

use super::{Buffer, Reactor};

/// How often one is taken up again after a refusal that means "later".
const RETRIES: u32 = 16;

impl Reactor {
    /// Fills `dest` from `file` at `offset`, through one buffer of the pool as long as what is left. Whoever wants much asks for it in
    /// pieces that many can have at once.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] where the file ends before, else the kernel's answer.
    pub async fn read_exact_at(&self, file: &Arc<OwnedFd>, offset: u64, dest: &mut [u8]) -> io::Result<()> {
        let (mut rest, mut at, mut retries) = (dest, offset, 0);
        while !rest.is_empty() {
            let buffer = self.io_buffers().acquire(rest.len()).await.map_err(io::Error::other)?;
            let (answer, buffer) = self.read_at(file, at, buffer).await;
            let count = count_of(answer, io::ErrorKind::UnexpectedEof, &mut retries)?;
            let (done, left) = rest.split_at_mut_checked(count).ok_or_else(too_many)?;
            done.copy_from_slice(buffer.get(..count).ok_or_else(too_many)?);
            rest = left;
            at = at.saturating_add(count as u64);
        }
        Ok(())
    }

    /// Fills `buffer` from `file` at `offset`, all at once: who held one part of what he needs and waited for room for the next could wait
    /// for others that do the same.
    ///
    /// # Errors
    /// As [`Reactor::read_exact_at`].
    pub async fn read_buffer_at(
        &self,
        file: &Arc<OwnedFd>,
        offset: u64,
        mut buffer: Buffer,
    ) -> io::Result<Buffer> {
        let mut retries = 0;
        loop {
            let (answer, read) = self.read_at(file, offset, buffer).await;
            let count = count_of(answer, io::ErrorKind::UnexpectedEof, &mut retries)?;
            if count == read.len() {
                return Ok(read);
            }
            if count != 0 {
                retries += 1;
                if retries > RETRIES {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            buffer = read;
        }
    }

    /// Writes all of `data` to `file` at `offset`, with a buffer as in [`Reactor::read_exact_at`].
    ///
    /// # Errors
    /// [`io::ErrorKind::WriteZero`] where the file takes nothing, else the kernel's answer.
    pub async fn write_all_at(&self, file: &Arc<OwnedFd>, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_pieces(offset, data, async |at, buffer| self.write_at(file, at, buffer).await.0).await
    }

    /// As [`Reactor::write_all_at`], and makes what it has written durable, as fdatasync(2) would.
    ///
    /// # Errors
    /// As of a write; of what it had written nobody knows whether it is durable.
    pub async fn write_all_durably_at(
        &self,
        file: &Arc<OwnedFd>,
        offset: u64,
        data: &[u8],
    ) -> io::Result<()> {
        self.write_pieces(offset, data, async |at, buffer| self.write_durably_at(file, at, buffer).await.0)
            .await
    }

    async fn write_pieces(
        &self,
        offset: u64,
        data: &[u8],
        write: impl AsyncFn(u64, Buffer) -> io::Result<usize>,
    ) -> io::Result<()> {
        let (mut rest, mut at, mut retries) = (data, offset, 0);
        while !rest.is_empty() {
            let mut buffer = self.io_buffers().acquire(rest.len()).await.map_err(io::Error::other)?;
            buffer.copy_from_slice(rest);
            let count = count_of(write(at, buffer).await, io::ErrorKind::WriteZero, &mut retries)?;
            rest = rest.get(count..).ok_or_else(too_many)?;
            at = at.saturating_add(count as u64);
        }
        Ok(())
    }
}

/// How many bytes that were, 0 where it is to be tried again; `none` is what it means where the kernel says so.
fn count_of(answer: io::Result<usize>, none: io::ErrorKind, retries: &mut u32) -> io::Result<usize> {
    match answer {
        Ok(0) => Err(none.into()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock && *retries < RETRIES => {
            *retries += 1;
            Ok(0)
        }
        answer => answer,
    }
}

fn too_many() -> io::Error {
    io::Error::other("the kernel says that it has done more than it was asked for")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_that_means_later_is_borne_so_often_and_nothing_at_all_never() {
        let mut retries = 0;
        let later = || Err(io::ErrorKind::WouldBlock.into());
        for _ in 0..RETRIES {
            assert_eq!(count_of(later(), io::ErrorKind::WriteZero, &mut retries).unwrap(), 0);
        }
        for (answer, kind) in [
            (later(), io::ErrorKind::WouldBlock),
            (Ok(0), io::ErrorKind::WriteZero),
            (Err(io::ErrorKind::StorageFull.into()), io::ErrorKind::StorageFull),
        ] {
            assert_eq!(count_of(answer, io::ErrorKind::WriteZero, &mut retries).unwrap_err().kind(), kind);
        }
    }
}
