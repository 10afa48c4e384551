//! How a daemon gives its devices to another program, without one failed request, and goes on if that one cannot.
//!
//! The old process starts the new one with a socket between them. What may go wrong mostly goes wrong before anything has changed: the new
//! one reads its configuration and the records of all devices, asks the driver, starts its threads, and says that it is prepared, unless
//! one of the records is of a later version and not for it.
//! Only then does the old one leave its devices and execute itself anew, which makes the kernel let go of them, as its end would. It is
//! still the same process, with the program that ran all the time, and stands by: when the new one has all devices it
//! ends; when the new one dies, says that it has failed or says nothing in time, it ends that one and serves again. Requests wait
//! meanwhile, for as long as it takes to execute a program.
//!
//! The two may be of different versions. A record says who can read it: an upgrade to a program that cannot read that of a device is
//! refused, and where one begins all the same, as after a crash, the device waits for a program that can.

mod channel;
mod predecessor;
mod standby;
mod successor;

pub use channel::Channel;
pub(super) use predecessor::{Succession, prepare};
pub use standby::{Ended, Standby, stand_by};
pub use successor::Successor;

/// The hidden option of `stratabd` that makes it the new process. The socket to the old one is its standard input.
pub const SUCCESSOR_OPTION: &str = "--successor";

/// The hidden option that makes it the old one, which stands by; its value is the number of the new process.
pub const STANDBY_OPTION: &str = "--standby";
