//! One thread, one io_uring, one local executor.
//!
//! A [`Reactor`] drives futures that never leave its thread. Work from other threads arrives through a
//! [`ReactorHandle`]; wakers may be called from any thread and cost a system call only when the reactor sleeps.
//! An operation in flight owns its buffer and its file until the kernel has answered, so a future may be dropped at
//! any time. SQEs that the ready tasks produce are submitted together, once per turn of the loop.
//!
//! A reactor ends with its owner: all tasks are dropped, everything in flight is cancelled, and the kernel is waited for.
//! What it will not give back is leaked, never freed. A task that panics is dropped and logged, and the others go on (see
//! `contain`): whoever must answer for a task's end, such as a frontend for a request, keeps a guard in it.
//!
//! Ring flags and the wake-up were chosen by measurement: SINGLE_ISSUER with DEFER_TASKRUN avoids interrupting
//! the thread, and an eventfd written only while the reactor sleeps costs a burst of wake-ups 10-20 ns each.

mod blocking;
mod buffer;
mod config;
mod contain;
mod executor;
mod inbox;
mod mapped_words;
mod operation;
mod pace;
mod ring;
mod running;
mod share;
mod slots;
#[cfg(test)]
mod tests;
mod thread;
mod wait_list;
mod waits;
mod watched;
mod whole;

pub use blocking::blocking;
pub use buffer::{Buffer, BufferError, BufferPool};
pub use config::ReactorConfig;
pub use inbox::ReactorHandle;
pub use mapped_words::MappedWords;
pub use running::Reactor;
pub use slots::BufferSlot;
pub use thread::ReactorThread;
use wait_list::WaitList;
pub use waits::{WaitingFor, WaitsFor, waiting_for};
pub use watched::Watched;
