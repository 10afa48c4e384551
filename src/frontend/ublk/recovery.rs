//! The way from a device whose server has died or left it to its requests being served again.
//!
//! START_USER_RECOVERY, queues, their descriptors, END_USER_RECOVERY. What was at the former server then comes again, on any tag. The file of the
//! device must not be open when it begins, and whoever else has it open, as a process that is still ending has, holds it up.
//! The node is not looked at: its disk has never gone, and whoever reads it would wait for this process.

use std::{io, sync::Arc, time::Duration};

use rustix::io::Errno;

use super::{
    abi,
    attachment::UblkAttachment,
    command::Command,
    control::{Control, Pending},
    deadline::Deadline,
    features::Features,
    inventory::{self, DeviceState},
    node,
    params::{self, Shape},
};
use crate::{
    block::{BlockDevice, Geometry, SECTOR_BYTES},
    crash_point::CrashPoint,
    frontend::{Attachment, FrontendError, Mark},
    reactor::ReactorHandle,
};

/// How long a former server that has been killed may take to end.
const SERVER_PATIENCE: Duration = Duration::from_secs(5);

/// Takes device `id` for `device`; see [`crate::frontend::Frontend::take_over`].
pub(super) fn take_over<D: BlockDevice>(
    device: &Arc<D>,
    id: u32,
    mark: Option<Mark>,
    reactors: &[ReactorHandle],
    limit: Duration,
) -> Result<Box<dyn Attachment>, FrontendError> {
    let geometry = device.geometry();
    geometry.validate()?;
    params::check(&geometry)?;
    if reactors.is_empty() {
        return Err(FrontendError::NoReactor { queue: 0 });
    }
    let deadline = Deadline::after(limit);
    let (control, driver) = inventory::connect(&deadline)?;
    let granted = inventory::information(&control, id)?;
    check_granted(id, mark, &granted)?;
    let room = Command::get_params(id, params::room());
    let shape = params::decode(&control.run(room, deadline.remaining())?.payload);
    let shape = shape.ok_or(FrontendError::NotWaiting(id))?;
    let features = Features::new(granted.flags);
    check_shape(id, &geometry, &shape, features)?;
    begin(&control, id, driver, &deadline)?;
    CrashPoint::TakeOverBegun.reach();
    let mut attachment = UblkAttachment::of_former_server(control, &granted, geometry.size_bytes);
    if shape.size_bytes < geometry.size_bytes {
        // A resize ended with the former server after its layer had grown.
        attachment.run(Command::update_size(id, geometry.size_bytes / SECTOR_BYTES), &deadline)?;
    }
    attachment.open_queues(device, geometry, reactors, &deadline)?;
    Ok(Box::new(attachment))
}

/// The last step, which is tried until the driver has done it: what has fetched cannot be given back.
#[derive(Default)]
pub(super) struct Resumption {
    /// The command, if it was sent and its answer has not come in time.
    unanswered: Option<Pending>,
}

impl Resumption {
    /// Has the requests of device `id` come, of which all tags are fetched.
    pub(super) fn end(
        &mut self,
        control: &Control,
        id: u32,
        deadline: &Deadline,
    ) -> Result<(), FrontendError> {
        let pid = std::process::id();
        let command = match self.unanswered.take() {
            Some(command) => command,
            None => control.start(Command::end_recovery(id, pid.into()))?,
        };
        match command.wait(deadline.remaining()) {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                // The answer to one that was sent before may have been lost.
                let info = inventory::information(control, id)?;
                let is_ours = i32::try_from(pid) == Ok(info.ublksrv_pid);
                if inventory::state(info.state) != DeviceState::Live || !is_ours {
                    return Err(error);
                }
            }
            Err(command) => {
                self.unanswered = Some(command);
                return Err(FrontendError::Deadline { step: "END_USER_RECOVERY", after: deadline.limit() });
            }
        }
        CrashPoint::TakeOverEnded.reach();
        Ok(())
    }
}

/// Checks what the device was granted when it was made, maybe by another program.
fn check_granted(
    id: u32,
    mark: Option<Mark>,
    granted: &abi::ublksrv_ctrl_dev_info,
) -> Result<(), FrontendError> {
    let features = Features::new(granted.flags);
    let wrong = |what| Err(FrontendError::Answer { command: "GET_DEV_INFO", what });
    let found = Mark::of_bits(granted.ublksrv_flags);
    if found != mark {
        return Err(FrontendError::AnotherMark { id, found, expected: mark });
    }
    if !features.recovers() {
        return Err(FrontendError::NotRecoverable(id));
    }
    if inventory::state(granted.state) == DeviceState::Dead {
        return Err(FrontendError::NotWaiting(id));
    }
    if features.are_foreign() {
        return wrong("features that this program never asks for");
    }
    if !(1..=abi::UBLK_MAX_NR_QUEUES).contains(&granted.nr_hw_queues.into()) {
        return wrong("the number of queues");
    }
    if !(1..=abi::UBLK_MAX_QUEUE_DEPTH).contains(&granted.queue_depth.into()) {
        return wrong("the depth");
    }
    if !(1..=abi::LARGEST_IO_BYTES).contains(&granted.max_io_buf_bytes) {
        return wrong("the largest request");
    }
    Ok(())
}

/// Checks that programs go on to see what they saw. The kernel's side may be smaller, where it can grow.
fn check_shape(id: u32, geometry: &Geometry, shape: &Shape, features: Features) -> Result<(), FrontendError> {
    let check = |what, expected: u64, found: u64, good: bool| match good {
        true => Ok(()),
        false => Err(FrontendError::Mismatch { what, path: node::block_path(id), expected, found }),
    };
    let (engine, kernel) = (geometry.size_bytes, shape.size_bytes);
    let may_grow = kernel < engine && features.has(abi::UBLK_F_UPDATE_SIZE);
    check("the size in bytes", engine, kernel, kernel == engine || may_grow)?;
    let (engine, kernel) = (geometry.read_only, shape.read_only);
    check("the read-only flag", engine.into(), kernel.into(), engine == kernel)?;
    let (engine, kernel) = (geometry.logical_block_bytes.into(), shape.logical_block_bytes);
    check("the logical block in bytes", engine, kernel, engine == kernel)?;
    let (engine, kernel) = (geometry.physical_block_bytes.into(), shape.physical_block_bytes);
    check("the physical block in bytes", engine, kernel, engine == kernel)
}

/// Takes the device from its former server, which may be about to end.
fn begin(control: &Control, id: u32, driver: Features, deadline: &Deadline) -> Result<(), FrontendError> {
    let patience = Deadline::after(SERVER_PATIENCE);
    loop {
        let refused = match control.run(Command::start_recovery(id), deadline.remaining()) {
            Ok(_) => return Ok(()),
            Err(FrontendError::Command { source, command }) => (source, command),
            Err(error) => return Err(error),
        };
        let (source, command) = refused;
        // The answer of a device that will never wait is the same as that of one whose server is about to end.
        let info = inventory::information(control, id)?;
        let state = inventory::state(info.state);
        match state {
            DeviceState::Dead | DeviceState::Unknown(_) => return Err(FrontendError::NotWaiting(id)),
            DeviceState::Live if patience.has_passed() && inventory::is_alive(info.ublksrv_pid) => {
                return Err(FrontendError::StillServed { id, pid: info.ublksrv_pid });
            }
            DeviceState::Quiesced if is(&source, Errno::INVAL) && !driver.recovers_half_taken() => {
                // A process that has died since then had begun.
                return Ok(());
            }
            _ if is(&source, Errno::BUSY) || is(&source, Errno::INTR) => {}
            _ => return Err(FrontendError::Command { command, source }),
        }
        if deadline.has_passed() {
            return Err(FrontendError::Deadline { step: command, after: deadline.limit() });
        }
        deadline.pause(patience.step());
    }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Shape {
        params::decode(&params::encode(&Geometry::read_only(1 << 20, 4096), 4096)).unwrap()
    }

    #[test]
    fn a_device_is_taken_over_only_by_what_shows_the_same() {
        let good = Geometry::read_only(1 << 20, 4096);
        let (fixed, growing) = (Features::default(), Features::new(u64::from(abi::UBLK_F_UPDATE_SIZE)));
        check_shape(3, &good, &shape(), fixed).unwrap();
        let larger = Geometry { size_bytes: 2 << 20, ..good };
        check_shape(3, &larger, &shape(), growing).unwrap();
        for (geometry, features, differs) in [
            (larger, fixed, "the size"),
            (Geometry { size_bytes: 1 << 19, ..good }, growing, "the size"),
            (Geometry { read_only: false, ..good }, growing, "the read-only flag"),
            (Geometry { logical_block_bytes: 512, ..good }, growing, "the logical block"),
            (Geometry { physical_block_bytes: 8192, ..good }, growing, "the physical block"),
        ] {
            let error = check_shape(3, &geometry, &shape(), features).unwrap_err();
            assert!(matches!(error, FrontendError::Mismatch { what, .. } if what.starts_with(differs)));
        }
    }

    #[test]
    fn what_the_kernel_says_of_another_programs_device_is_checked() {
        let recovery = u64::from(abi::UBLK_F_USER_RECOVERY | abi::UBLK_F_USER_COPY);
        let live = u16::try_from(abi::UBLK_S_DEV_QUIESCED).unwrap();
        let good = abi::ublksrv_ctrl_dev_info {
            nr_hw_queues: 1,
            queue_depth: 8,
            max_io_buf_bytes: 4096,
            flags: recovery,
            state: live,
            ..abi::ublksrv_ctrl_dev_info::default()
        };
        check_granted(1, None, &good).unwrap();
        let mortal = abi::ublksrv_ctrl_dev_info { flags: 0, ..good };
        assert!(matches!(check_granted(1, None, &mortal), Err(FrontendError::NotRecoverable(1))));
        let mark = Mark::draw();
        let marked = abi::ublksrv_ctrl_dev_info { ublksrv_flags: Mark::bits(Some(mark)), ..good };
        check_granted(1, Some(mark), &marked).unwrap();
        for (expected, found) in [(None, &marked), (Some(Mark::draw()), &marked), (Some(mark), &good)] {
            let error = check_granted(1, expected, found).unwrap_err();
            assert!(matches!(error, FrontendError::AnotherMark { .. }), "{error}");
        }
        let dead = abi::ublksrv_ctrl_dev_info { state: 0, ..good };
        assert!(matches!(check_granted(1, None, &dead), Err(FrontendError::NotWaiting(1))));
        for wrong in [
            abi::ublksrv_ctrl_dev_info { flags: recovery | u64::from(abi::UBLK_F_ZONED), ..good },
            abi::ublksrv_ctrl_dev_info { nr_hw_queues: 0, ..good },
            abi::ublksrv_ctrl_dev_info { nr_hw_queues: 5000, ..good },
            abi::ublksrv_ctrl_dev_info { queue_depth: 0, ..good },
            abi::ublksrv_ctrl_dev_info { queue_depth: 5000, ..good },
            abi::ublksrv_ctrl_dev_info { max_io_buf_bytes: 0, ..good },
            abi::ublksrv_ctrl_dev_info { max_io_buf_bytes: 1 << 30, ..good },
        ] {
            assert!(matches!(check_granted(1, None, &wrong), Err(FrontendError::Answer { .. })));
        }
    }
}
