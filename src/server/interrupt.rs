//! The signals by which the user or the system ends a program.

use std::{fs, future};

use rustix::process::Signal as Number;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::failure::{Failure, FailureClass};

/// SIGINT, SIGTERM and SIGHUP, caught from the moment this is made; and SIGXFSZ, so that a write past the limit of a file's size
/// fails, as one to a full disk does, and does not kill the program.
#[derive(Debug)]
pub struct Interrupt {
    int: Signal,
    term: Signal,
    hup: Option<Signal>,
    _xfsz: Signal,
}

impl Interrupt {
    /// Catches them. A program that nohup(1) has started goes on ignoring SIGHUP.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn catch() -> Result<Self, Failure> {
        let catch = |kind| {
            signal(kind).map_err(|source| {
                Failure::with_source(FailureClass::Internal, "cannot catch signals", source)
            })
        };
        let hup = if is_ignored(Number::HUP) { None } else { Some(catch(SignalKind::hangup())?) };
        Ok(Self {
            int: catch(SignalKind::interrupt())?,
            term: catch(SignalKind::terminate())?,
            hup,
            _xfsz: catch(SignalKind::from_raw(Number::XFSZ.as_raw()))?,
        })
    }

    /// Waits for one that is to end the program.
    pub async fn wait(&mut self) {
        let hup = async {
            match &mut self.hup {
                Some(hup) => hup.recv().await,
                None => future::pending().await,
            }
        };
        tokio::select! {
            _ = self.int.recv() => {}
            _ = self.term.recv() => {}
            _ = hup => {}
        }
    }
}

/// Whether whoever has started the program wants it to ignore this signal, as proc(5) says.
fn is_ignored(number: Number) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    u32::try_from(number.as_raw() - 1)
        .is_ok_and(|bit| mask.checked_shr(bit).is_some_and(|rest| rest & 1 == 1))
}
