//! The control API: HTTP/1 and JSON over a unix socket, versioned under `/v1`, and metrics as Prometheus text.

mod listen;
mod route;
pub mod types;
mod upstream;

pub use listen::{ApiLimits, ApiListener, ListenError};
