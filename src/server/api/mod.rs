//! The control API and its client: HTTP/1 and JSON over a unix socket, versioned under `/v1`, and metrics as Prometheus text.

mod client;
mod exchange;
mod listen;
mod refusal;
mod route;
pub mod types;
mod upstream;

pub use client::{Client, PATIENCE};
pub use exchange::AnswerHead;
pub use listen::{ApiLimits, ApiListener, ListenError};
