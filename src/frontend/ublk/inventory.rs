//! All devices of the driver, whoever made them: what they are, and their removal.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rustix::{
    io::Errno,
    process::{Pid, test_kill_process},
};

use super::{
    Ublk, abi,
    command::Command,
    control::{Control, Pending, Reply},
    deadline::Deadline,
    features::Features,
    node,
    params::{self, Shape},
};
use crate::frontend::{CLOSE_PATIENCE, Detached, FrontendError, Mark};

/// How long the driver may take to answer what needs no waiting.
const QUERY_DEADLINE: Duration = Duration::from_secs(10);

/// How long a device may take to tell its shape; one that cannot is listed without.
const SHAPE_DEADLINE: Duration = Duration::from_secs(1);

/// What a device is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceState {
    /// Made and not started, or stopped and not yet deleted.
    Dead,
    /// Served.
    Live,
    /// Without a server, its requests waiting for a new one.
    Quiesced,
    /// Without a server, its requests failing.
    FailIo,
    /// A state that this program does not know.
    Unknown(u16),
}

/// What the driver knows of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Number of the device.
    pub id: u32,
    /// The node that programs open, if the device has one.
    pub path: PathBuf,
    /// What it is doing.
    pub state: DeviceState,
    /// Hardware queues.
    pub queues: u16,
    /// Requests in flight in each queue.
    pub depth: u16,
    /// Largest request in bytes.
    pub max_io_bytes: u32,
    /// What it was made with, to be known again.
    pub mark: Option<Mark>,
    /// Process that serves it, or did.
    pub server_pid: i32,
    /// User who made it.
    pub owner_uid: u32,
    /// Group of the user who made it.
    pub owner_gid: u32,
    /// What it was granted.
    pub features: Features,
    /// Its size and so on; None before it has been told, or while the device is stuck in its removal.
    pub shape: Option<Shape>,
}

impl DeviceInfo {
    /// Whether it outlives its server.
    #[must_use]
    pub fn is_recoverable(&self) -> bool {
        self.features.recovers()
    }

    /// Whether a process serves it.
    #[must_use]
    pub fn is_served(&self) -> bool {
        self.state == DeviceState::Live && is_alive(self.server_pid)
    }

    /// Whether it has no server and the next one may take it over.
    #[must_use]
    pub fn waits(&self) -> bool {
        let has_lived = matches!(self.state, DeviceState::Live | DeviceState::Quiesced | DeviceState::FailIo);
        self.is_recoverable() && has_lived && !self.is_served()
    }
}

impl Ublk {
    /// What the driver offers.
    ///
    /// # Errors
    /// [`FrontendError::Unavailable`] without a driver.
    pub fn features(&self) -> Result<Features, FrontendError> {
        connect(&Deadline::after(QUERY_DEADLINE)).map(|(_, features)| features)
    }

    /// All devices of the driver, in the order of their numbers, whoever made them.
    ///
    /// # Errors
    /// [`FrontendError::Unavailable`] without a driver. A device that goes meanwhile is left out.
    pub fn list(&self) -> Result<Vec<DeviceInfo>, FrontendError> {
        let (control, _) = connect(&Deadline::after(QUERY_DEADLINE))?;
        let mut devices = Vec::new();
        for id in ids().map_err(FrontendError::System)? {
            match device(&control, id) {
                Ok(device) => devices.push(device),
                Err(FrontendError::NoSuchDevice(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(devices)
    }

    /// One device, whoever made it.
    ///
    /// # Errors
    /// [`FrontendError::NoSuchDevice`] where there is none of this number.
    pub fn info(&self, id: u32) -> Result<DeviceInfo, FrontendError> {
        device(&connect(&Deadline::after(QUERY_DEADLINE))?.0, id)
    }

    /// Whether another process has a device open that is made and not started, and so may be about to start it. One that
    /// does not answer is not.
    #[must_use]
    pub fn is_being_made(&self, id: u32) -> bool {
        let dead = matches!(self.info(id), Ok(DeviceInfo { state: DeviceState::Dead, .. }));
        dead && node::is_open_elsewhere(id)
    }

    /// Removes a device, whoever made it and whether or not its server lives.
    ///
    /// # Errors
    /// [`FrontendError::NoSuchDevice`], or what was not done before the deadline.
    pub fn remove(&self, id: u32, limit: Duration) -> Result<Detached, FrontendError> {
        let deadline = Deadline::after(limit);
        let (control, _) = connect(&deadline)?;
        let unprivileged = device(&control, id)?.features.has(abi::UBLK_F_UNPRIVILEGED_DEV);
        let stop = Command::stop(id);
        let stop = if unprivileged { stop.showing_path() } else { stop };
        control.run(stop, deadline.remaining())?;
        delete(&control, id, unprivileged, CLOSE_PATIENCE, &deadline)
    }
}

/// Opens the driver and asks what it offers. One that does not know the question (before Linux 6.5) offers nothing, and
/// knows commands by their old numbers.
pub(super) fn connect(deadline: &Deadline) -> Result<(Control, Features), FrontendError> {
    let mut control = Control::open()?;
    match control.run(Command::get_features(), deadline.remaining()) {
        Ok(reply) => {
            let bits = abi::value_at(&reply.payload, 0);
            let wrong = FrontendError::Answer { command: "GET_FEATURES", what: "too short" };
            Ok((control, Features::new(bits.ok_or(wrong)?)))
        }
        Err(error) if is_unknown(&error) => {
            control.set_legacy();
            Ok((control, Features::default()))
        }
        Err(error) => Err(error),
    }
}

/// Whether the driver does not know a command.
fn is_unknown(error: &FrontendError) -> bool {
    let FrontendError::Command { source, .. } = error else { return false };
    let unknown = [Errno::OPNOTSUPP, Errno::INVAL, Errno::NOTTY];
    unknown.into_iter().any(|errno| source.raw_os_error() == Some(errno.raw_os_error()))
}

fn ids() -> io::Result<BTreeSet<u32>> {
    let entries = match fs::read_dir("/sys/class/ublk-char") {
        Ok(entries) => entries,
        // Without sysfs, as in some containers.
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::read_dir("/dev")?,
        Err(error) => return Err(error),
    };
    let mut ids = BTreeSet::new();
    for entry in entries {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("ublkc"));
        ids.extend(number.and_then(|number| number.parse::<u32>().ok()));
    }
    Ok(ids)
}

fn device(control: &Control, id: u32) -> Result<DeviceInfo, FrontendError> {
    let info = information(control, id)?;
    let features = Features::new(info.flags);
    let shape = shape(control, id, features)?;
    Ok(DeviceInfo {
        id,
        path: node::block_path(id),
        state: state(info.state),
        queues: info.nr_hw_queues,
        depth: info.queue_depth,
        max_io_bytes: info.max_io_buf_bytes,
        mark: Mark::of_bits(info.ublksrv_flags),
        server_pid: info.ublksrv_pid,
        owner_uid: info.owner_uid,
        owner_gid: info.owner_gid,
        features,
        shape,
    })
}

/// Asks for the shape. The driver answers under a lock that a device on its way out may hold for long, and until then the
/// question keeps a thread: it is not asked again meanwhile.
fn shape(control: &Control, id: u32, features: Features) -> Result<Option<Shape>, FrontendError> {
    static UNANSWERED: Mutex<BTreeMap<u32, Pending>> = Mutex::new(BTreeMap::new());
    let unanswered = || UNANSWERED.lock().unwrap_or_else(PoisonError::into_inner);
    // The answer may be that of an earlier device of this number, and is of no use.
    let mut earlier = unanswered();
    if let Some(Err(pending)) = earlier.remove(&id).map(|pending| pending.wait(Duration::ZERO)) {
        earlier.insert(id, pending);
        return Ok(None);
    }
    drop(earlier);
    let ask = Command::get_params(id, params::room());
    let ask = if features.has(abi::UBLK_F_UNPRIVILEGED_DEV) { ask.showing_path() } else { ask };
    let pending = control.start(ask)?;
    match pending.wait(SHAPE_DEADLINE) {
        Ok(Ok(reply)) => Ok(params::decode(&reply.payload)),
        Ok(Err(error @ FrontendError::NoSuchDevice(_))) => Err(error),
        Ok(Err(_)) => Ok(None),
        Err(pending) => {
            unanswered().insert(id, pending);
            Ok(None)
        }
    }
}

pub(super) fn information(control: &Control, id: u32) -> Result<abi::ublksrv_ctrl_dev_info, FrontendError> {
    let reply = match control.run(Command::get_info_of_any_owner(id), QUERY_DEADLINE) {
        Err(error) if is_unknown(&error) => control.run(Command::get_info(id), QUERY_DEADLINE)?,
        outcome => outcome?,
    };
    let wrong = FrontendError::Answer { command: "GET_DEV_INFO", what: "too short" };
    abi::value_at(&reply.payload, 0).ok_or(wrong)
}

pub(super) fn state(state: u16) -> DeviceState {
    match u32::from(state) {
        abi::UBLK_S_DEV_DEAD => DeviceState::Dead,
        abi::UBLK_S_DEV_LIVE => DeviceState::Live,
        abi::UBLK_S_DEV_QUIESCED => DeviceState::Quiesced,
        abi::UBLK_S_DEV_FAIL_IO => DeviceState::FailIo,
        _ => DeviceState::Unknown(state),
    }
}

/// Whether there is a process of this number that has not ended. One that has, and that its parent has not asked after, is there
/// and serves nothing.
pub(super) fn is_alive(pid: i32) -> bool {
    // The driver says -1 of a device that has no server.
    let Some(number) = (pid > 0).then(|| Pid::from_raw(pid)).flatten() else { return false };
    // One that may not be signalled lives.
    if test_kill_process(number) == Err(Errno::SRCH) {
        return false;
    }
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // After the name, which is in brackets and may have any in it.
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
    if !matches!(state, Some('Z' | 'X')) {
        return true;
    }
    // Its first thread has ended, and others may go on.
    fs::read_dir(format!("/proc/{pid}/task")).is_ok_and(|tasks| tasks.count() > 1)
}

/// Deletes a stopped device, and waits for `patience` until its number is free. The command that does not wait comes first: the
/// other waits for whoever has the block device open, and cannot be taken back.
pub(super) fn delete(
    control: &Control,
    id: u32,
    unprivileged: bool,
    patience: Duration,
    deadline: &Deadline,
) -> Result<Detached, FrontendError> {
    let address = |command: Command| if unprivileged { command.showing_path() } else { command };
    match control.run(address(Command::delete_async(id)), deadline.remaining()) {
        Ok(_) => {}
        Err(FrontendError::NoSuchDevice(_)) => return Ok(Detached::Complete),
        Err(error) if is_unknown(&error) => {
            return match control.run(address(Command::delete(id)), deadline.remaining()) {
                Ok(_) | Err(FrontendError::NoSuchDevice(_)) => Ok(Detached::Complete),
                Err(FrontendError::Deadline { .. }) => Ok(Detached::HeldOpen),
                Err(error) => Err(error),
            };
        }
        Err(error) => return Err(error),
    }
    let patience = Deadline::after(patience.min(deadline.remaining()));
    loop {
        match control.run(address(Command::get_info(id)), QUERY_DEADLINE) {
            Err(FrontendError::NoSuchDevice(_)) => return Ok(Detached::Complete),
            Ok(_) if patience.has_passed() => return Ok(Detached::HeldOpen),
            Ok(Reply { .. }) => deadline.pause(patience.step()),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_that_has_ended_serves_nothing_even_before_its_parent_has_asked() {
        let mut child = Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        while is_alive(pid) {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(!is_alive(pid) && !is_alive(-1) && !is_alive(0));
        assert!(is_alive(i32::try_from(std::process::id()).unwrap()) && is_alive(1));
    }
}
