//! Limits of one reactor.

use super::slots::MOST_SLOTS;

/// Sizes that bound a reactor's memory. The defaults serve a laptop and a server with dozens of devices.
#[derive(Debug, Clone)]
pub struct ReactorConfig {
    /// Submission entries of the ring; a full ring is submitted at once and costs an extra system call.
    pub submission_entries: u32,
    /// Completion entries: at least the sum of all queue depths served here, or the kernel keeps an overflow list.
    pub completion_entries: u32,
    /// Bytes of request buffers that may be out at once, and for each queue one more where others hold them all.
    pub request_buffer_bytes: usize,
    /// The same of buffers for operations below a request: so many for compressed blocks, and as
    /// many again for disk reads.
    pub io_buffer_bytes: usize,
    /// Requests whose pages drivers may register at once for reads by the kernel alone; at most 16384.
    pub buffer_slots: u16,
}

impl Default for ReactorConfig {
    fn default() -> Self {
        Self {
            submission_entries: 256,
            completion_entries: 4096,
            request_buffer_bytes: 32 << 20,
            io_buffer_bytes: 32 << 20,
            buffer_slots: MOST_SLOTS,
        }
    }
}
