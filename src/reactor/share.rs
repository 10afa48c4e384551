//! What the queues of one reactor have shares of, so that none keeps the others from being served.

use std::rc::Rc;

use super::{BufferPool, ReactorConfig, pace::Pace};

/// The share of one queue.
#[derive(Debug)]
pub(super) struct Share {
    pub(super) request_buffers: BufferPool,
    pub(super) block_buffers: BufferPool,
    pub(super) io_buffers: BufferPool,
    pub(super) pace: Pace,
}

impl Share {
    /// The first share of a reactor.
    pub(super) fn new(config: &ReactorConfig) -> Rc<Self> {
        Rc::new(Self {
            request_buffers: BufferPool::new(config.request_buffer_bytes),
            block_buffers: BufferPool::new(config.io_buffer_bytes),
            io_buffers: BufferPool::new(config.io_buffer_bytes),
            pace: Pace::default(),
        })
    }

    /// Another one of the same reactor.
    pub(super) fn another(&self) -> Rc<Self> {
        Rc::new(Self {
            request_buffers: self.request_buffers.share(),
            block_buffers: self.block_buffers.share(),
            io_buffers: self.io_buffers.share(),
            pace: Pace::default(),
        })
    }
}
