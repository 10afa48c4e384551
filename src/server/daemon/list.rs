//! What is shown of devices, and of those that nobody serves what becomes of them.

use std::collections::BTreeMap;

use super::{
    Daemon,
    fate::{Fate, check_same, fate, of_record},
    waiting::WaitingDevice,
};
use crate::server::{
    api::types::{DeviceInfo, DeviceState, Unserved, Way},
    descriptors::FOR_AN_OPERATION,
    failure::{Failure, full_text},
    port::KnownDevice,
    state::{ForegroundRecords, Phase, Record, RecordError, Stored, on_disk},
};

impl Daemon {
    /// All devices: this process's, those of others that the kernel lists, and records without a device.
    ///
    /// # Errors
    /// When the driver is there and cannot be asked, or the records cannot be listed.
    pub async fn list(&self) -> Result<Vec<DeviceInfo>, Failure> {
        let _room = self.reserve.lend(FOR_AN_OPERATION);
        let (stored, alone) = (self.stored().await?, self.stored_alone().await?);
        let known: BTreeMap<u32, KnownDevice> =
            self.known().await?.into_iter().map(|known| (known.id, known)).collect();
        let waiting: BTreeMap<u32, WaitingDevice> =
            self.waiting.all().into_iter().map(|waiting| (waiting.id, waiting)).collect();
        let mut infos: BTreeMap<u32, DeviceInfo> = BTreeMap::new();
        infos.extend(known.values().map(|known| {
            let info = of_kernel(known.clone(), None);
            let unserved = (info.state != DeviceState::Foreign).then(unknown);
            (known.id, DeviceInfo { unserved, ..info })
        }));
        for (stored, is_own) in alone.iter().map(|it| (it, false)).chain(stored.iter().map(|it| (it, true))) {
            let known = known.get(&stored.id);
            let own = match &stored.record {
                Ok(record) => of_record(record, known),
                Err(_) => known,
            };
            let info = match own {
                Some(known) => of_kernel(known.clone(), Some(stored)),
                None => recorded(stored),
            };
            let unserved = match info.state {
                // Of a process that lives.
                DeviceState::Foreign => None,
                _ => Some(unserved(&stored.record, known, is_own, waiting.get(&stored.id))),
            };
            let state = match &unserved {
                // Nobody brings it back by himself.
                Some(Unserved { way: Way::Recover | Way::Delete, .. }) => DeviceState::Orphan,
                _ => info.state,
            };
            infos.insert(stored.id, DeviceInfo { unserved, state, ..info });
        }
        for (id, shown) in self.table.infos() {
            let shown = match infos.remove(&id) {
                // Of one that comes back the kernel and its record know more than what was asked for.
                Some(known) if shown.state == DeviceState::Attaching => {
                    DeviceInfo { state: shown.state, unserved: None, ..known }
                }
                _ => shown,
            };
            infos.insert(id, shown);
        }
        Ok(infos.into_values().collect())
    }

    /// Records of devices that a process of its own serves, or has served.
    async fn stored_alone(&self) -> Result<Vec<Stored>, Failure> {
        let dir = self.state.path().to_owned();
        on_disk(move || match dir.join("foreground").is_dir() {
            true => ForegroundRecords::open(&dir)?.all(),
            false => Ok(Vec::new()),
        })
        .await
    }
}

/// A device that only a record knows.
pub(super) fn recorded(stored: &Stored) -> DeviceInfo {
    let info = DeviceInfo::without_server(stored.id, state_of(Some(stored), false));
    let Ok(record) = &stored.record else { return info };
    let granted = record.granted.as_ref();
    DeviceInfo {
        image: Some(record.request.image.clone()),
        queues: granted.map(|granted| granted.queues).or(record.request.queues).unwrap_or_default(),
        depth: granted.map(|granted| granted.depth).or(record.request.depth).unwrap_or_default(),
        size_bytes: granted.map_or(0, |granted| granted.size_bytes),
        read_only: granted.is_none_or(|granted| granted.read_only),
        ..info
    }
}

/// A device of the kernel that this process does not serve, with its record.
pub(super) fn of_kernel(known: KnownDevice, stored: Option<&Stored>) -> DeviceInfo {
    // What this process serves is in its table; what is not, and still has its number, was left behind by a removal
    // that has failed.
    let state = match known.server_pid {
        Some(pid) if Some(pid) != i32::try_from(std::process::id()).ok() => DeviceState::Foreign,
        _ => state_of(stored, known.waits),
    };
    let image = stored.and_then(|stored| Some(stored.record.as_ref().ok()?.request.image.clone()));
    DeviceInfo {
        path: known.path,
        image,
        size_bytes: known.size_bytes,
        logical_block_bytes: known.logical_block_bytes,
        read_only: known.read_only,
        queues: known.queues,
        depth: known.depth,
        server_pid: known.server_pid,
        ..DeviceInfo::without_server(known.id, state)
    }
}

/// The state of a device that nobody serves, which waits for its next server or not.
fn state_of(stored: Option<&Stored>, waits: bool) -> DeviceState {
    match stored.map(|stored| &stored.record) {
        Some(Err(error)) if error.is_of_another() => DeviceState::Waiting,
        Some(Ok(record)) if waits && record.phase != Phase::Leaving => DeviceState::Waiting,
        Some(Err(_)) if waits => DeviceState::Waiting,
        _ => DeviceState::Orphan,
    }
}

/// What becomes of a device without a record here.
fn unknown() -> Unserved {
    let why = "it has no record here; where another state directory has it, \"recover --from\" serves it on";
    Unserved { way: Way::Delete, why: why.to_owned() }
}

/// What becomes of a device with this record, which is this daemon's own or that of a process that served it alone.
fn unserved(
    record: &Result<Record, RecordError>,
    known: Option<&KnownDevice>,
    is_own: bool,
    tried: Option<&WaitingDevice>,
) -> Unserved {
    let said = |way, why: &str| Unserved { way, why: why.to_owned() };
    let phase = match record {
        Ok(record) => {
            if let Err(another) = check_same(record, known) {
                let way = if is_own { Way::Daemon } else { Way::Delete };
                return said(way, &another.full_text());
            }
            record.phase
        }
        Err(error) if error.is_of_another() => return said(Way::Other, &full_text(error)),
        Err(error) if is_own && known.is_some_and(|known| known.waits) => {
            let why = format!(
                "its record says nothing: {}; it is read again when it is tried again",
                full_text(error)
            );
            return said(Way::Daemon, &why);
        }
        Err(error) => return said(Way::Delete, &format!("its record says nothing: {}", full_text(error))),
    };
    match (fate(record, known), tried) {
        (Fate::TakeOver | Fate::Remake, Some(tried)) if is_own => {
            let seconds = tried.next_try.as_secs();
            said(Way::Daemon, &format!("{}; it is tried again in {seconds} s", tried.reason))
        }
        (Fate::TakeOver | Fate::Remake, _) if is_own => said(Way::Daemon, "its turn has not come yet"),
        (Fate::TakeOver, _) => said(Way::Recover, "the process that served it alone has died"),
        (Fate::Remake, _) => said(Way::Delete, "the kernel has nothing of it that could be served on"),
        (Fate::Remove | Fate::LeaveAlone, _) if phase == Phase::Leaving => {
            said(Way::Delete, "its removal was cut off")
        }
        (Fate::Remove | Fate::LeaveAlone, _) => said(Way::Delete, "it was cut off while it was made"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::server::api::types::{AddDevice, ImageSpec};

    #[test]
    fn each_device_without_a_server_has_a_way_and_a_reason() {
        let record =
            Record::new(3, AddDevice::of(ImageSpec::Reference("r/a:b".into()))).in_phase(Phase::Live);
        let leaving: Result<_, RecordError> = Ok(record.clone().in_phase(Phase::Leaving));
        let live = Ok(record.clone());
        let waits = KnownDevice {
            id: 3,
            path: "/dev/ublkb3".into(),
            size_bytes: 4096,
            logical_block_bytes: 512,
            read_only: true,
            queues: 1,
            depth: 1,
            server_pid: None,
            is_unstarted: false,
            recoverable: true,
            waits: true,
            mark: None,
        };
        let marked: Result<_, RecordError> = Ok(record.clone().marked());
        let tried = WaitingDevice { id: 3, reason: "no image".to_owned(), next_try: Duration::from_secs(4) };
        let newer = Err(RecordError::Newer { version: 9, readable_by: 9 });
        let torn = Err(RecordError::Misplaced(4));
        for (record, known, is_own, tried, way, words) in [
            (&live, Some(&waits), true, Some(&tried), Way::Daemon, "no image; it is tried again in 4 s"),
            (&live, None, true, None, Way::Daemon, "its turn"),
            (&live, Some(&waits), false, None, Way::Recover, "has died"),
            (&live, None, false, None, Way::Delete, "nothing of it"),
            (&marked, Some(&waits), true, None, Way::Daemon, "has it with no mark, its record with mark"),
            (&marked, Some(&waits), false, None, Way::Delete, "has it with no mark, its record with mark"),
            (&leaving, Some(&waits), true, None, Way::Delete, "removal was cut off"),
            (&newer, Some(&waits), true, None, Way::Other, "version 9"),
            (&torn, Some(&waits), true, None, Way::Daemon, "damaged"),
            (&torn, None, true, None, Way::Delete, "damaged"),
            (&torn, Some(&waits), false, None, Way::Delete, "damaged"),
        ] {
            let said = unserved(record, known, is_own, tried);
            assert!(said.way == way && said.why.contains(words), "{said:?}");
        }
    }
}
