//! What is to be done with a device that another process has left: it follows from its record and from what the kernel has.

use crate::{
    frontend::FrontendError,
    server::{
        failure::{Failure, FailureClass},
        port::KnownDevice,
        state::{Phase, Record, RecordError},
    },
};

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server) enum Fate {
    /// It waits for its next server, and was there, or was started at least: it is taken over, and is there from then on.
    TakeOver,
    /// It was there, and the kernel has nothing of it that could be served: what is left of it goes, and it is made again.
    Remake,
    /// It was half made, so that nobody was told of it, or is to go: the kernel's device goes, what was being made for it, and then
    /// its record.
    Remove,
    /// It is another process's, or its record is another version's or says nothing: device and record stay as they are.
    LeaveAlone,
}

/// What the kernel has of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    Nothing,
    /// Made and not started, or stopped and not deleted.
    Unstarted,
    /// A device that waits for its next server.
    Waiting,
    /// A device that has lost its server, and goes.
    Abandoned,
    Served,
}

impl Kept {
    fn of(known: Option<&KnownDevice>) -> Self {
        match known {
            None => Self::Nothing,
            Some(KnownDevice { server_pid: Some(_), .. }) => Self::Served,
            Some(KnownDevice { waits: true, .. }) => Self::Waiting,
            Some(KnownDevice { is_unstarted: true, .. }) => Self::Unstarted,
            Some(_) => Self::Abandoned,
        }
    }
}

/// What is to be done with the device that has this record, where the kernel has `known` of its number.
pub(in crate::server) fn fate(record: &Result<Record, RecordError>, known: Option<&KnownDevice>) -> Fate {
    let Ok(record) = record else { return Fate::LeaveAlone };
    match (record.phase, Kept::of(of_record(record, known))) {
        (_, Kept::Served) => Fate::LeaveAlone,
        // A removal that has begun wins, over a recovery too.
        (Phase::Leaving, _) => Fate::Remove,
        // Once it was started, programs may have written to it.
        (Phase::Making | Phase::Live, Kept::Waiting) => Fate::TakeOver,
        (Phase::Making, Kept::Nothing | Kept::Unstarted | Kept::Abandoned) => Fate::Remove,
        (Phase::Live, Kept::Nothing | Kept::Unstarted | Kept::Abandoned) => Fate::Remake,
    }
}

/// What the kernel has of the device of `record`, which is nothing where `known` is another device of the same number.
pub(super) fn of_record<'a>(record: &Record, known: Option<&'a KnownDevice>) -> Option<&'a KnownDevice> {
    known.filter(|known| known.mark == record.mark)
}

/// Refuses what the kernel has of the number of `record` where that is another device.
///
/// # Errors
/// [`FailureClass::Conflict`] with the marks of both.
pub(in crate::server) fn check_same(record: &Record, known: Option<&KnownDevice>) -> Result<(), Failure> {
    let Some(other) = known.filter(|known| known.mark != record.mark) else { return Ok(()) };
    let (id, expected) = (other.id, record.mark);
    let server = match other.server_pid {
        Some(pid) => format!("process {pid} serves it"),
        None => "no process serves it".to_owned(),
    };
    let source = FrontendError::AnotherMark { id, found: other.mark, expected };
    let text = format!("its number is taken, and {server}");
    Err(Failure::with_source(FailureClass::Conflict, text, source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::api::types::{AddDevice, ImageSpec};

    fn known(server_pid: Option<i32>, waits: bool, is_unstarted: bool) -> KnownDevice {
        KnownDevice {
            id: 3,
            path: "/dev/ublkb3".into(),
            size_bytes: 4096,
            logical_block_bytes: 512,
            read_only: true,
            queues: 1,
            depth: 1,
            server_pid,
            is_unstarted,
            recoverable: waits,
            waits,
            mark: None,
        }
    }

    #[test]
    fn every_phase_and_state_has_its_fate() {
        use Fate::{LeaveAlone, Remake, Remove, TakeOver};
        let kernel = [
            None,
            Some(known(None, false, true)),
            Some(known(None, true, false)),
            Some(known(None, false, false)),
            Some(known(Some(1), false, false)),
        ];
        let table = [
            // nothing, unstarted, waiting, abandoned, served
            (Phase::Making, [Remove, Remove, TakeOver, Remove, LeaveAlone]),
            (Phase::Live, [Remake, Remake, TakeOver, Remake, LeaveAlone]),
            (Phase::Leaving, [Remove, Remove, Remove, Remove, LeaveAlone]),
        ];
        for (phase, fates) in table {
            let record = Record::new(3, AddDevice::of(ImageSpec::Reference("r/a:b".into()))).in_phase(phase);
            for (known, expected) in kernel.iter().zip(fates) {
                assert_eq!(fate(&Ok(record.clone()), known.as_ref()), expected, "{phase:?} {known:?}");
            }
        }
        let marked = Record::new(3, AddDevice::of(ImageSpec::Reference("r/a:b".into()))).marked();
        for known in kernel.iter().flatten() {
            let live = marked.clone().in_phase(Phase::Live);
            assert_eq!(
                fate(&Ok(live.clone()), Some(known)),
                Remake,
                "another device has its number: {known:?}"
            );
            assert!(check_same(&live, Some(known)).is_err() && check_same(&live, None).is_ok());
            let same = KnownDevice { mark: live.mark, ..known.clone() };
            assert!(check_same(&live, Some(&same)).is_ok());
            let mut unmarked = live;
            unmarked.mark = None;
            assert_eq!(fate(&Ok(unmarked), Some(&same)), Remake, "it was made by a later version: {same:?}");
        }
        for known in &kernel {
            for unknown in [RecordError::Newer { version: 3, readable_by: 3 }, RecordError::Misplaced(4)] {
                assert_eq!(fate(&Err(unknown), known.as_ref()), LeaveAlone, "{known:?}");
            }
        }
    }
}
