//! The way from a device to its node: ADD, parameters, queues, START.

use std::{path::Path, sync::Arc, time::Duration};

use super::{
    Ublk, abi,
    attachment::UblkAttachment,
    command::Command,
    control::Control,
    deadline::Deadline,
    features::{CopyMode, Features},
    node, params, recovery,
};
use crate::{
    block::{BlockDevice, Geometry},
    crash_point::CrashPoint,
    frontend::{AttachRequest, Attachment, Frontend, FrontendError, Mark},
    reactor::ReactorHandle,
};

/// The kernel's smallest request queue, and so the fewest tags that leave one to spare.
const LEAST_DEPTH_WITH_SPARE: u16 = 5;

/// Tags of a queue that a driver must see fetched all or none: by one system call, which a killed process ends. Half of what a
/// ring submits at once by default, since other devices may share it.
const MOST_TAGS_AT_ONCE: u16 = 128;

/// Requests and the driver's buffers are made of whole pages.
const PAGE_BYTES: u32 = 4096;

/// Device numbers end where the driver's minor numbers do.
const LARGEST_ID: u32 = (1 << 20) - 1;

impl Frontend for Ublk {
    fn attach<D: BlockDevice>(
        &self,
        device: &Arc<D>,
        request: &AttachRequest,
        reactors: &[ReactorHandle],
    ) -> Result<Box<dyn Attachment>, FrontendError> {
        let geometry = device.geometry();
        geometry.validate()?;
        params::check(&geometry)?;
        check_request(request)?;
        if reactors.is_empty() {
            return Err(FrontendError::NoReactor { queue: 0 });
        }
        let deadline = Deadline::after(request.deadline);
        let (control, features) = super::inventory::connect(&deadline)?;
        let copy = self.copy.unwrap_or(CopyMode::User);
        let wanted = features.to_ask_for(copy, device.reads_to_slots(), request.recovery);
        let mut attachment = Self::add(control, features, wanted, request, geometry.size_bytes, &deadline)?;
        // From here on, dropping the attachment removes what has been made.
        CrashPoint::AddMade.reach();
        // It would be met only when the device has been started.
        node::refuse_strays(attachment.id)?;
        attachment.run(
            Command::set_params(attachment.id, params::encode(&geometry, attachment.info.max_io_bytes)),
            &deadline,
        )?;
        CrashPoint::AddShaped.reach();
        attachment.open_queues(device, geometry, reactors, &deadline)?;
        attachment.fetch(&deadline)?;
        attachment.start(&deadline)?;
        CrashPoint::AddStarted.reach();
        finish(&attachment, &geometry, features, &deadline)?;
        Ok(Box::new(attachment))
    }

    fn take_over<D: BlockDevice>(
        &self,
        device: &Arc<D>,
        id: u32,
        mark: Option<Mark>,
        reactors: &[ReactorHandle],
        deadline: Duration,
    ) -> Result<Box<dyn Attachment>, FrontendError> {
        recovery::take_over(device, id, mark, reactors, deadline)
    }
}

impl Ublk {
    /// Makes the device, and takes what was granted for what it is.
    fn add(
        control: Control,
        features: Features,
        wanted: Features,
        request: &AttachRequest,
        size_bytes: u64,
        deadline: &Deadline,
    ) -> Result<UblkAttachment, FrontendError> {
        let depth = if features.needs_a_spare_tag() {
            request.depth.max(LEAST_DEPTH_WITH_SPARE)
        } else {
            request.depth
        };
        let (queues, depth) = match wanted.recovers() && !features.recovers_half_taken() {
            true => (1, depth.min(MOST_TAGS_AT_ONCE)),
            false => (request.queues, depth),
        };
        let wanted = abi::ublksrv_ctrl_dev_info {
            nr_hw_queues: queues,
            queue_depth: depth,
            max_io_buf_bytes: request.max_io_bytes,
            dev_id: request.id.unwrap_or(u32::MAX),
            ublksrv_pid: i32::try_from(std::process::id()).expect("process ids are positive ints"),
            flags: wanted.bits(),
            // The driver's own are above; it keeps these for its user.
            ublksrv_flags: Mark::bits(request.mark),
            ..abi::ublksrv_ctrl_dev_info::default()
        };
        let reply = control.run(Command::add(request.id, &wanted), deadline.remaining())?;
        let wrong = |what| FrontendError::Answer { command: "ADD_DEV", what };
        let granted: abi::ublksrv_ctrl_dev_info =
            abi::value_at(&reply.payload, 0).ok_or_else(|| wrong("too short"))?;
        if request.id.is_some_and(|id| id != granted.dev_id) {
            // Whose device that is cannot be known, so it is left alone.
            return Err(wrong("another number than was asked for"));
        }
        let attachment = UblkAttachment::new(control, &granted, size_bytes);
        let flags = Features::new(granted.flags);
        if flags.registers_without_copy() {
            return Err(wrong("registration of pages without user copy"));
        }
        if !(1..=queues).contains(&granted.nr_hw_queues) {
            return Err(wrong("the number of queues"));
        }
        if !(1..=depth).contains(&granted.queue_depth) {
            return Err(wrong("the depth"));
        }
        if !(PAGE_BYTES..=request.max_io_bytes).contains(&granted.max_io_buf_bytes) {
            return Err(wrong("the largest request"));
        }
        Ok(attachment)
    }
}

fn check_request(request: &AttachRequest) -> Result<(), FrontendError> {
    let check = |field, value: u64, good: bool, rule| {
        if good { Ok(()) } else { Err(FrontendError::Request { field, value, rule }) }
    };
    let id = request.id.unwrap_or(0);
    check("the device number", id.into(), id <= LARGEST_ID, "below 1048576")?;
    let queues = request.queues;
    let most = u32::from(queues) <= abi::UBLK_MAX_NR_QUEUES;
    check("the number of queues", queues.into(), queues > 0 && most, "1 to 4096")?;
    let depth = request.depth;
    let most = u32::from(depth) <= abi::UBLK_MAX_QUEUE_DEPTH;
    check("the depth", depth.into(), depth > 0 && most, "1 to 4096")?;
    let bytes = request.max_io_bytes;
    let whole = bytes.is_multiple_of(PAGE_BYTES) && (PAGE_BYTES..=abi::LARGEST_IO_BYTES).contains(&bytes);
    check("the largest request in bytes", bytes.into(), whole, "a multiple of 4096 up to 33554432")
}

/// Waits for the node and makes sure of it.
fn finish(
    attachment: &UblkAttachment,
    geometry: &Geometry,
    features: Features,
    deadline: &Deadline,
) -> Result<(), FrontendError> {
    let id = attachment.id;
    if features.needs_a_spare_tag()
        && let Err(error) = node::spare_a_tag(id, attachment.info.depth)
    {
        let cause = std::error::Error::source(&error);
        tracing::warn!(id, %error, cause, "if this process is killed under full load, the device may stay for ever");
    }
    let reply = attachment.run(Command::get_params(id, params::room()), deadline)?;
    let wrong = FrontendError::Answer { command: "GET_PARAMS", what: "no basic parameters" };
    let shape = params::decode(&reply.payload).ok_or(wrong)?;
    let file = node::open_block(id, shape.device_number, deadline)?;
    let path: &Path = attachment.path();
    node::check(&file, path, geometry.size_bytes, geometry.read_only)
}
