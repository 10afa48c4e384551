//! Which boot of the machine this is: what lies in the kernel's memory is gone with the next one.

use std::{fs, io};

/// Where the kernel says it.
pub const BOOT_ID_PATH: &str = "/proc/sys/kernel/random/boot_id";

/// The id of this boot.
///
/// # Errors
/// Where the file cannot be read, or holds none.
pub fn boot_id() -> io::Result<[u8; 16]> {
    let text = fs::read_to_string(BOOT_ID_PATH)?;
    let digits: String = text.trim().chars().filter(|digit| *digit != '-').collect();
    match u128::from_str_radix(&digits, 16) {
        Ok(id) if digits.len() == 32 => Ok(id.to_be_bytes()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "not a boot id")),
    }
}
