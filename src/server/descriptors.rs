//! File descriptors: as many as the system allows, and some that are kept back for those who list and remove devices.

use std::{
    error::Error,
    fs::{self, File},
    io,
    sync::{Arc, Mutex, PoisonError},
};

use rustix::{
    io::Errno,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

use super::failure::{Failure, FailureClass};

/// Kept back: four operations at once, or connections that ask for them.
const KEPT: usize = 32;

/// What one operation on devices has open at most: the control file of the driver, a ring, a node, a record and their folders.
pub(super) const FOR_AN_OPERATION: usize = 8;

/// Of the limit, the part that devices leave to what comes and goes: connections to registries and of the control API. 256 are
/// enough for the most that the settings allow of both by default.
const MARGIN_PART: u64 = 8;
const MARGIN_LIMIT: u64 = 256;

const OWN_FILES: &str = "/proc/self/fd";

const ADVICE: &str = "raise RLIMIT_NOFILE: LimitNOFILE= of the service, or ulimit -n";

/// Raises the limit as far as the process may: each layer of each image takes some, and nothing here is hurt by high numbers.
pub fn raise_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// Whether the process, or the system, has as many files open as it may.
pub(super) fn is_exhausted(error: &io::Error) -> bool {
    Errno::from_io_error(error).is_some_and(|errno| [Errno::MFILE, Errno::NFILE].contains(&errno))
}

/// Says of a failure for want of a descriptor which limit it is.
pub(super) fn explained(failure: Failure) -> Failure {
    let mut cause: Option<&(dyn Error + 'static)> = Some(&failure);
    while let Some(error) = cause {
        if error.downcast_ref().is_some_and(is_exhausted) {
            let text = format!("too many open files, of which there may be {} ({ADVICE})", limit());
            return Failure::with_source(failure.class(), text, failure);
        }
        cause = error.source();
    }
    failure
}

/// Files that this process has open.
fn open_files() -> io::Result<u64> {
    // Linux has the number in the folder's size since 6.2.
    match fs::metadata(OWN_FILES)?.len() {
        0 => Ok(u64::try_from(fs::read_dir(OWN_FILES)?.count()).unwrap_or(u64::MAX)),
        count => Ok(count),
    }
}

fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Descriptors that are kept back, and lent to those whose work makes room.
#[derive(Debug, Default)]
pub(super) struct Reserve {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    kept: Vec<File>,
    lent: usize,
}

/// Room for some descriptors, as long as it lives.
#[derive(Debug)]
pub(super) struct Loan {
    reserve: Arc<Reserve>,
    count: usize,
}

impl Reserve {
    /// A full one, or as full as it can be.
    pub(super) fn new() -> Arc<Self> {
        let reserve = Self::default();
        reserve.fill(0);
        Arc::new(reserve)
    }

    /// Makes room for up to `count` descriptors; `None` where there is nothing left to lend.
    pub(super) fn lend(self: &Arc<Self>, count: usize) -> Option<Loan> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let left = state.kept.len().saturating_sub(count);
        let count = state.kept.drain(left..).count();
        state.lent += count;
        (count > 0).then(|| Loan { reserve: Arc::clone(self), count })
    }

    /// Lends all that is left.
    pub(super) fn lend_all(self: &Arc<Self>) -> Option<Loan> {
        self.lend(KEPT)
    }

    /// Makes sure that there is room for another device besides what comes and goes.
    ///
    /// # Errors
    /// Where there is none, which names the limit.
    pub(super) fn check_room(&self) -> Result<(), Failure> {
        let limit = limit();
        let margin = (limit / MARGIN_PART).min(MARGIN_LIMIT);
        // What is lent counts as if it were kept: it will be again.
        let lent = self.state.lock().unwrap_or_else(PoisonError::into_inner).lent;
        let used = open_files().map(|count| count.saturating_add(u64::try_from(lent).unwrap_or(0)));
        match used {
            Ok(used) if used < limit - margin => Ok(()),
            Err(error) if !is_exhausted(&error) => Ok(()),
            _ => {
                let text = format!(
                    "no room for another device: of {limit} files that may be open, {margin} are kept for requests ({ADVICE})"
                );
                Err(Failure::new(FailureClass::Internal, text))
            }
        }
    }

    /// Takes back `returned` descriptors, and what could not be had before.
    fn fill(&self, returned: usize) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.lent -= returned;
        while state.kept.len() + state.lent < KEPT
            && let Ok(file) = File::open("/dev/null")
        {
            state.kept.push(file);
        }
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.reserve.fill(self.count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lent_is_not_taken_back_by_another_and_comes_back_at_the_end() {
        let reserve = Reserve::new();
        let kept = || reserve.state.lock().unwrap().kept.len();
        assert_eq!(kept(), KEPT);
        let first = reserve.lend(FOR_AN_OPERATION).unwrap();
        let second = reserve.lend(1).unwrap();
        drop(second);
        assert_eq!(kept(), KEPT - FOR_AN_OPERATION);
        let rest = reserve.lend_all().unwrap();
        assert_eq!((rest.count, kept()), (KEPT - FOR_AN_OPERATION, 0));
        assert!(reserve.lend(1).is_none());
        drop(first);
        drop(rest);
        assert_eq!(kept(), KEPT);
    }

    #[test]
    fn a_failure_for_want_of_a_descriptor_names_the_limit() {
        let class = FailureClass::Image;
        let full = Failure::with_source(class, "cannot open it", io::Error::from(Errno::MFILE));
        assert!(explained(full).full_text().contains("RLIMIT_NOFILE"));
        let other = Failure::with_source(class, "cannot open it", io::Error::from(Errno::NOENT));
        assert!(!explained(other).full_text().contains("RLIMIT_NOFILE"));
    }
}
