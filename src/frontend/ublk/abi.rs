//! The driver's interface: the structs and numbers that we use of it, and how they become bytes.
//!
//! They come from `libublk::sys`, which is generated from the kernel's header. Nothing else of libublk is used: its
//! queue registers the file table of a thread-local ring, so that a second queue on one thread fails or serves
//! another's device; its control side deletes an existing device when an ADD with that device's id fails, panics on
//! any thread but its creator's, takes a foreign completion after EINTR, and refuses flags before asking the kernel.
#![expect(unsafe_code, reason = "the driver's structs are passed as bytes")]

use std::mem::size_of;

pub(super) use libublk::sys::{
    UBLK_ATTR_FUA, UBLK_ATTR_READ_ONLY, UBLK_ATTR_VOLATILE_CACHE, UBLK_AUTO_BUF_REG_FALLBACK,
    UBLK_F_AUTO_BUF_REG, UBLK_F_BATCH_IO, UBLK_F_BUF_REG_OFF_DAEMON, UBLK_F_CMD_IOCTL_ENCODE,
    UBLK_F_INTEGRITY, UBLK_F_NEED_GET_DATA, UBLK_F_NO_AUTO_PART_SCAN, UBLK_F_PER_IO_DAEMON, UBLK_F_QUIESCE,
    UBLK_F_SAFE_STOP_DEV, UBLK_F_SHMEM_ZC, UBLK_F_SUPPORT_ZERO_COPY, UBLK_F_UNPRIVILEGED_DEV,
    UBLK_F_UPDATE_SIZE, UBLK_F_URING_CMD_COMP_IN_TASK, UBLK_F_USER_COPY, UBLK_F_USER_RECOVERY,
    UBLK_F_USER_RECOVERY_FAIL_IO, UBLK_F_USER_RECOVERY_REISSUE, UBLK_F_ZONED, UBLK_IO_BUF_BITS,
    UBLK_IO_F_FUA, UBLK_IO_F_INTEGRITY, UBLK_IO_F_NEED_REG_BUF, UBLK_IO_F_SHMEM_ZC, UBLK_IO_OP_DISCARD,
    UBLK_IO_OP_FLUSH, UBLK_IO_OP_READ, UBLK_IO_OP_WRITE, UBLK_IO_OP_WRITE_ZEROES, UBLK_MAX_NR_QUEUES,
    UBLK_MAX_QUEUE_DEPTH, UBLK_PARAM_TYPE_BASIC, UBLK_PARAM_TYPE_DEVT, UBLK_PARAM_TYPE_DISCARD, UBLK_QID_OFF,
    UBLK_S_DEV_DEAD, UBLK_S_DEV_FAIL_IO, UBLK_S_DEV_LIVE, UBLK_S_DEV_QUIESCED, UBLK_TAG_OFF,
    UBLK_U_CMD_ADD_DEV, UBLK_U_CMD_DEL_DEV, UBLK_U_CMD_DEL_DEV_ASYNC, UBLK_U_CMD_END_USER_RECOVERY,
    UBLK_U_CMD_GET_DEV_INFO, UBLK_U_CMD_GET_DEV_INFO2, UBLK_U_CMD_GET_FEATURES, UBLK_U_CMD_GET_PARAMS,
    UBLK_U_CMD_QUIESCE_DEV, UBLK_U_CMD_SET_PARAMS, UBLK_U_CMD_START_DEV, UBLK_U_CMD_START_USER_RECOVERY,
    UBLK_U_CMD_STOP_DEV, UBLK_U_CMD_UPDATE_SIZE, UBLK_U_IO_COMMIT_AND_FETCH_REQ, UBLK_U_IO_FETCH_REQ,
    UBLKSRV_IO_BUF_OFFSET, ublk_auto_buf_reg, ublk_param_basic, ublk_param_devt, ublk_param_discard,
    ublk_params, ublksrv_ctrl_cmd, ublksrv_ctrl_dev_info, ublksrv_io_cmd, ublksrv_io_desc,
};

/// Bytes between the starts of two queues' descriptors in the character device's mapping: room for the most tags.
pub(super) const DESCRIPTORS_STRIDE_BYTES: u64 =
    UBLK_MAX_QUEUE_DEPTH as u64 * size_of::<ublksrv_io_desc>() as u64;

/// Largest request in bytes for which a position in the character device can be written down.
pub(super) const LARGEST_IO_BYTES: u32 = 1 << UBLK_IO_BUF_BITS;

/// Where in the character device the data of a request begins, for user copy.
pub(super) fn data_position(queue: u16, tag: u16) -> u64 {
    u64::from(UBLKSRV_IO_BUF_OFFSET) + (u64::from(queue) << UBLK_QID_OFF) + (u64::from(tag) << UBLK_TAG_OFF)
}

/// The number by which a command for a tag asks that the pages of its next request be put into the ring's table at `index`: a
/// `struct ublk_auto_buf_reg`. Where that is impossible the request comes all the same, with UBLK_IO_F_NEED_REG_BUF.
pub(super) fn registration(index: u16) -> u64 {
    let registration = ublk_auto_buf_reg {
        index,
        flags: u8::try_from(UBLK_AUTO_BUF_REG_FALLBACK).expect("a flag of eight"),
        ..ublk_auto_buf_reg::default()
    };
    u64::from_ne_bytes(bytes_of(&registration).try_into().expect("the struct has 8 bytes"))
}

/// A struct of the driver's interface that can be taken for its bytes.
///
/// # Safety
/// Integers only, in C's layout, without padding, so that every pattern of bytes is a value and the other way round.
pub(super) unsafe trait Plain: Copy + Default {}

// SAFETY: 4 + 2 + 2 + 8 + 8 + 2 + 2 + 4 = 32 bytes of integers at their natural places.
unsafe impl Plain for ublksrv_ctrl_cmd {}
// SAFETY: 64 bytes of integers at their natural places; what would be padding is named as fields.
unsafe impl Plain for ublksrv_ctrl_dev_info {}
// SAFETY: 2 + 2 + 4 + 8 = 16 bytes of integers at their natural places.
unsafe impl Plain for ublksrv_io_cmd {}
// SAFETY: 4 + 4 * 1 + 4 + 4 + 8 + 8 = 32 bytes of integers at their natural places.
unsafe impl Plain for ublk_param_basic {}
// SAFETY: 4 * 4 + 2 + 2 = 20 bytes of integers at their natural places.
unsafe impl Plain for ublk_param_discard {}
// SAFETY: 4 * 4 = 16 bytes of integers.
unsafe impl Plain for ublk_param_devt {}
// SAFETY: 2 + 1 + 1 + 4 = 8 bytes of integers at their natural places.
unsafe impl Plain for ublk_auto_buf_reg {}
// SAFETY: an integer.
unsafe impl Plain for u32 {}
// SAFETY: an integer.
unsafe impl Plain for u64 {}

/// The bytes of a value.
pub(super) fn bytes_of<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: the value is readable for its size, has no padding by the trait's promise, and is borrowed as long.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// The value whose bytes begin at `at`; None where there are too few.
pub(super) fn value_at<T: Plain>(bytes: &[u8], at: usize) -> Option<T> {
    let source = bytes.get(at..)?.get(..size_of::<T>())?;
    // SAFETY: as many bytes as the type has are readable, alignment is not asked for, and any pattern is a value.
    Some(unsafe { std::ptr::read_unaligned(source.as_ptr().cast()) })
}
