//! The socket between the old process and the new one: a line of JSON for each message.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, ErrorKind, Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

/// The longest line that is read: the numbers of all devices that there can be.
const LINE_LIMIT_BYTES: u64 = 16 << 20;

/// What the two say to each other. Both may be of any version: what one does not know is a failure to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Message {
    /// The new process could begin.
    Prepared,
    /// The old one has left these devices, and lets go of all in a moment.
    Begin {
        /// Their numbers.
        devices: Vec<u32>,
    },
    /// The new one serves them.
    Serving,
    /// It cannot, for this reason.
    Failed(String),
}

/// One end of the socket.
#[derive(Debug)]
pub struct Channel(BufReader<UnixStream>);

impl Channel {
    /// Both ends of a new one.
    pub(super) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (own, other) = UnixStream::pair()?;
        Ok((Self::over(own.into()), other.into()))
    }

    /// The end that this process was started with, which it has alone from now on.
    ///
    /// # Errors
    /// Where its standard input cannot be had.
    pub fn inherited() -> io::Result<Self> {
        let stdin = rustix::stdio::stdin();
        let own = rustix::io::fcntl_dupfd_cloexec(stdin, 3)?;
        rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
        Ok(Self::over(own))
    }

    pub(super) fn over(socket: OwnedFd) -> Self {
        Self(BufReader::new(socket.into()))
    }

    /// The socket once more, for a program that is about to be executed. All that has come must have been received.
    pub(super) fn duplicate(&self) -> io::Result<OwnedFd> {
        debug_assert!(self.0.buffer().is_empty(), "it would be lost");
        Ok(self.0.get_ref().try_clone()?.into())
    }

    /// Sends a message.
    pub(super) fn send(&self, message: &Message) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        let mut socket = self.0.get_ref();
        socket.set_write_timeout(Some(Duration::from_secs(5)))?;
        socket.write_all(&line)
    }

    /// Waits for a message until `deadline`. [`ErrorKind::UnexpectedEof`] where the other process has ended, and
    /// [`ErrorKind::TimedOut`].
    pub(super) fn receive(&mut self, deadline: Instant) -> io::Result<Message> {
        let mut line = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            self.0.get_ref().set_read_timeout(Some(left))?;
            let room = LINE_LIMIT_BYTES.saturating_sub(line.len() as u64);
            match self.0.by_ref().take(room).read_until(b'\n', &mut line) {
                Ok(_) if line.ends_with(b"\n") => return Ok(serde_json::from_slice(&line)?),
                Ok(_) if line.len() as u64 == LINE_LIMIT_BYTES => return Err(ErrorKind::InvalidData.into()),
                Ok(_) => return Err(ErrorKind::UnexpectedEof.into()),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn messages_arrive_whole_and_one_after_the_other() {
        let (old, new) = Channel::pair().unwrap();
        let mut new = Channel::over(new);
        let all = [
            Message::Prepared,
            Message::Begin { devices: (0..50_000).collect() },
            Message::Failed("two\nlines".to_owned()),
            Message::Serving,
        ];
        let sent = all.clone();
        let sender = std::thread::spawn(move || {
            sent.iter().for_each(|message| old.send(message).unwrap());
            old
        });
        for message in &all {
            assert_eq!(new.receive(soon()).unwrap(), *message);
        }
        drop(sender.join().unwrap());
        assert_eq!(new.receive(soon()).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn silence_ends_and_what_is_no_message_is_refused() {
        let (mut old, new) = Channel::pair().unwrap();
        let short = Instant::now() + Duration::from_millis(20);
        assert_eq!(old.receive(short).unwrap_err().kind(), ErrorKind::TimedOut);
        let mut raw = UnixStream::from(new);
        raw.write_all(b"{\"unheard_of\":1}\n").unwrap();
        assert_eq!(old.receive(soon()).unwrap_err().kind(), ErrorKind::InvalidData);
        raw.write_all(b"\"prepa").unwrap();
        drop(raw);
        assert_eq!(old.receive(soon()).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }
}
