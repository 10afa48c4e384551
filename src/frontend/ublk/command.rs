//! The commands of the driver's control file: name, number, arguments.

use super::abi;

/// A command and all that goes with it. Its constructors are the list of those we use.
#[derive(Debug, Clone)]
pub(super) struct Command {
    /// As in the kernel's header.
    pub(super) name: &'static str,
    pub(super) operation: u32,
    /// None lets the driver choose, at ADD, and means no device elsewhere.
    pub(super) id: Option<u32>,
    /// The argument that is passed by value.
    pub(super) data: u64,
    /// The argument that is passed by address, in and out.
    pub(super) payload: Vec<u8>,
    /// The character device's path and a zero byte, for commands that must show that the caller may open it.
    pub(super) path: Option<Vec<u8>>,
}

impl Command {
    fn new(name: &'static str, operation: u32, id: Option<u32>) -> Self {
        Self { name, operation, id, data: 0, payload: Vec::new(), path: None }
    }

    /// What the driver can do.
    pub(super) fn get_features() -> Self {
        let command = Self::new("GET_FEATURES", abi::UBLK_U_CMD_GET_FEATURES, None);
        Self { payload: vec![0; size_of::<u64>()], ..command }
    }

    /// Makes a device; the answer is what was granted.
    pub(super) fn add(id: Option<u32>, info: &abi::ublksrv_ctrl_dev_info) -> Self {
        let command = Self::new("ADD_DEV", abi::UBLK_U_CMD_ADD_DEV, id);
        Self { payload: abi::bytes_of(info).to_vec(), ..command }
    }

    pub(super) fn is_add(&self) -> bool {
        self.operation == abi::UBLK_U_CMD_ADD_DEV
    }

    /// Tells the device's shape.
    pub(super) fn set_params(id: u32, parameters: Vec<u8>) -> Self {
        Self { payload: parameters, ..Self::new("SET_PARAMS", abi::UBLK_U_CMD_SET_PARAMS, Some(id)) }
    }

    /// Asks for the device's shape.
    pub(super) fn get_params(id: u32, room: Vec<u8>) -> Self {
        Self { payload: room, ..Self::new("GET_PARAMS", abi::UBLK_U_CMD_GET_PARAMS, Some(id)) }
    }

    /// Makes the block device, which the process `server_pid` serves; blocks until all its tags have been fetched.
    pub(super) fn start(id: u32, server_pid: u64) -> Self {
        Self { data: server_pid, ..Self::new("START_DEV", abi::UBLK_U_CMD_START_DEV, Some(id)) }
    }

    /// Takes a device without a server from its former one, which must have closed it.
    pub(super) fn start_recovery(id: u32) -> Self {
        Self::new("START_USER_RECOVERY", abi::UBLK_U_CMD_START_USER_RECOVERY, Some(id))
    }

    /// Lets the requests of a device come to the process `server_pid`; blocks until all its tags have been fetched.
    pub(super) fn end_recovery(id: u32, server_pid: u64) -> Self {
        let command = Self::new("END_USER_RECOVERY", abi::UBLK_U_CMD_END_USER_RECOVERY, Some(id));
        Self { data: server_pid, ..command }
    }

    /// Keeps back what is not yet at the server, and ends the commands of idle tags. Since Linux 6.16.
    pub(super) fn quiesce(id: u32, timeout_ms: u64) -> Self {
        Self { data: timeout_ms, ..Self::new("QUIESCE_DEV", abi::UBLK_U_CMD_QUIESCE_DEV, Some(id)) }
    }

    /// Gives the block device another size, in sectors. Since Linux 6.16.
    pub(super) fn update_size(id: u32, sectors: u64) -> Self {
        Self { data: sectors, ..Self::new("UPDATE_SIZE", abi::UBLK_U_CMD_UPDATE_SIZE, Some(id)) }
    }

    /// Removes the block device; blocks until its requests have been answered.
    pub(super) fn stop(id: u32) -> Self {
        Self::new("STOP_DEV", abi::UBLK_U_CMD_STOP_DEV, Some(id))
    }

    /// Removes what is left; blocks until nobody uses it.
    pub(super) fn delete(id: u32) -> Self {
        Self::new("DEL_DEV", abi::UBLK_U_CMD_DEL_DEV, Some(id))
    }

    /// As [`Command::delete`], without waiting. Since Linux 6.9.
    pub(super) fn delete_async(id: u32) -> Self {
        Self::new("DEL_DEV_ASYNC", abi::UBLK_U_CMD_DEL_DEV_ASYNC, Some(id))
    }

    /// Asks for what was granted, of a device of the same owner.
    pub(super) fn get_info(id: u32) -> Self {
        let command = Self::new("GET_DEV_INFO", abi::UBLK_U_CMD_GET_DEV_INFO, Some(id));
        Self { payload: vec![0; size_of::<abi::ublksrv_ctrl_dev_info>()], ..command }
    }

    /// Asks for what was granted, of a device of any owner. Since Linux 6.3.
    pub(super) fn get_info_of_any_owner(id: u32) -> Self {
        let command = Self::get_info(id);
        Self { name: "GET_DEV_INFO2", operation: abi::UBLK_U_CMD_GET_DEV_INFO2, ..command }.showing_path()
    }

    /// Adds the path by which the driver checks that the caller may use an unprivileged device.
    pub(super) fn showing_path(self) -> Self {
        let path = self.id.map(|id| format!("/dev/ublkc{id}\0").into_bytes());
        Self { path, ..self }
    }
}
