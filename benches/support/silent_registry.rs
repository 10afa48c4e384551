//! A registry of one blob, which falls silent when it is told to: it takes connections and requests then, and answers none.

use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

pub(crate) struct SilentRegistry {
    address: SocketAddr,
    content: Arc<Vec<u8>>,
    is_silent: Arc<AtomicBool>,
}

impl SilentRegistry {
    /// Serves ranges of `content` on a free port of this machine, until the process ends.
    pub(crate) fn serve(content: Vec<u8>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        let (content, is_silent) = (Arc::new(content), Arc::new(AtomicBool::new(false)));
        let (served, silent) = (Arc::clone(&content), Arc::clone(&is_silent));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (served, silent) = (Arc::clone(&served), Arc::clone(&silent));
                thread::spawn(move || answer_all(stream, &served, &silent));
            }
        });
        Self { address, content, is_silent }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn content(&self) -> &[u8] {
        &self.content
    }

    pub(crate) fn fall_silent(&self) {
        self.is_silent.store(true, Ordering::Release);
    }
}

/// Answers what comes on one connection, as long as it is understood.
fn answer_all(mut stream: TcpStream, content: &[u8], is_silent: &AtomicBool) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    loop {
        let mut range = None;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let line = line.trim().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            let asked = line.strip_prefix("range: bytes=").and_then(|asked| asked.split_once('-'));
            range = range.or(asked.and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?))));
        }
        if is_silent.load(Ordering::Acquire) {
            loop {
                thread::park();
            }
        }
        let (first, last): (usize, usize) = range?;
        let body = content.get(first..=last)?;
        let (len, size) = (body.len(), content.len());
        let head = format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Length: {len}\r\nContent-Range: bytes {first}-{last}/{size}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).ok()?;
        stream.write_all(body).ok()?;
    }
}
