//! What the driver can do, by name, and which of it a device asks for.

use std::fmt;

use super::abi;

/// A set of the driver's feature flags (`UBLK_F_*`): what a driver offers, or what a device has.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Features(u64);

/// Every flag that we know, with its name in the kernel's header less `UBLK_F_`.
const NAMES: [(u32, &str); 20] = [
    (abi::UBLK_F_SUPPORT_ZERO_COPY, "SUPPORT_ZERO_COPY"),
    (abi::UBLK_F_URING_CMD_COMP_IN_TASK, "URING_CMD_COMP_IN_TASK"),
    (abi::UBLK_F_NEED_GET_DATA, "NEED_GET_DATA"),
    (abi::UBLK_F_USER_RECOVERY, "USER_RECOVERY"),
    (abi::UBLK_F_USER_RECOVERY_REISSUE, "USER_RECOVERY_REISSUE"),
    (abi::UBLK_F_UNPRIVILEGED_DEV, "UNPRIVILEGED_DEV"),
    (abi::UBLK_F_CMD_IOCTL_ENCODE, "CMD_IOCTL_ENCODE"),
    (abi::UBLK_F_USER_COPY, "USER_COPY"),
    (abi::UBLK_F_ZONED, "ZONED"),
    (abi::UBLK_F_USER_RECOVERY_FAIL_IO, "USER_RECOVERY_FAIL_IO"),
    (abi::UBLK_F_UPDATE_SIZE, "UPDATE_SIZE"),
    (abi::UBLK_F_AUTO_BUF_REG, "AUTO_BUF_REG"),
    (abi::UBLK_F_QUIESCE, "QUIESCE"),
    (abi::UBLK_F_PER_IO_DAEMON, "PER_IO_DAEMON"),
    (abi::UBLK_F_BUF_REG_OFF_DAEMON, "BUF_REG_OFF_DAEMON"),
    (abi::UBLK_F_BATCH_IO, "BATCH_IO"),
    (abi::UBLK_F_INTEGRITY, "INTEGRITY"),
    (abi::UBLK_F_SAFE_STOP_DEV, "SAFE_STOP_DEV"),
    (abi::UBLK_F_NO_AUTO_PART_SCAN, "NO_AUTO_PART_SCAN"),
    (abi::UBLK_F_SHMEM_ZC, "SHMEM_ZC"),
];

/// How the data of a request gets from and to the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyMode {
    /// By a plain read or write of the character device, from and to pooled buffers: no memory for an idle tag, and one
    /// copy less where the bytes already lie in memory. Linux 6.5 and newer.
    User,
    /// By the driver, from and to a buffer that each tag keeps for as long as the device lives.
    TagBuffer,
}

impl Features {
    pub(super) const fn new(bits: u64) -> Self {
        Self(bits)
    }

    /// The flags as the driver's number.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    pub(super) fn has(self, flag: u32) -> bool {
        self.0 & u64::from(flag) != 0
    }

    /// The names of the flags that are set, as in the kernel's header less `UBLK_F_`; a flag that this program does
    /// not know is called by its bit, as `BIT_20`.
    #[must_use]
    pub fn names(self) -> Vec<String> {
        let known = NAMES.iter().fold(0, |bits, (flag, _)| bits | u64::from(*flag));
        let named = NAMES.iter().filter(|(flag, _)| self.has(*flag)).map(|(_, name)| (*name).to_owned());
        let nameless = self.0 & !known;
        let numbered =
            (0..u64::BITS).filter(|bit| nameless & (1 << bit) != 0).map(|bit| format!("BIT_{bit}"));
        named.chain(numbered).collect()
    }

    /// What to ask for at ADD: what the device is for, and what makes it safer, where this driver offers it. `to_slots` says
    /// that some requests may be read into by the kernel alone; `recovery`, that the device is to outlive its server.
    pub(super) fn to_ask_for(self, copy: CopyMode, to_slots: bool, recovery: bool) -> Self {
        let mut wanted = u64::from(abi::UBLK_F_NO_AUTO_PART_SCAN | abi::UBLK_F_UPDATE_SIZE);
        if copy == CopyMode::User {
            wanted |= u64::from(abi::UBLK_F_USER_COPY);
            if to_slots {
                wanted |= u64::from(abi::UBLK_F_AUTO_BUF_REG);
            }
        }
        // Without the second, what was at the server when it died would fail.
        if recovery && self.has(abi::UBLK_F_USER_RECOVERY) && self.has(abi::UBLK_F_USER_RECOVERY_REISSUE) {
            let all = abi::UBLK_F_USER_RECOVERY | abi::UBLK_F_USER_RECOVERY_REISSUE | abi::UBLK_F_QUIESCE;
            wanted |= u64::from(all);
        }
        Self(wanted & self.0)
    }

    /// Whether a device outlives its server.
    pub(super) fn recovers(self) -> bool {
        self.has(abi::UBLK_F_USER_RECOVERY)
    }

    /// Whether a device may be taken over again after a server that died while some of its queues were ready and others not: the
    /// kernel's fault, which it does not survive, was mended in Linux 6.16, which brought QUIESCE. So was that START_USER_RECOVERY
    /// refuses a device for which it had been sent before.
    pub(super) fn recovers_half_taken(self) -> bool {
        self.has(abi::UBLK_F_QUIESCE)
    }

    /// Whether requests of a device come in a way in which we never ask for them.
    pub(super) fn are_foreign(self) -> bool {
        let foreign = abi::UBLK_F_SUPPORT_ZERO_COPY
            | abi::UBLK_F_NEED_GET_DATA
            | abi::UBLK_F_UNPRIVILEGED_DEV
            | abi::UBLK_F_ZONED
            | abi::UBLK_F_BATCH_IO
            | abi::UBLK_F_INTEGRITY;
        self.0 & u64::from(foreign) != 0 || self.registers_without_copy()
    }

    /// Requests that cannot be read into directly could not be served.
    pub(super) fn registers_without_copy(self) -> bool {
        self.has(abi::UBLK_F_AUTO_BUF_REG) && !self.has(abi::UBLK_F_USER_COPY)
    }

    /// Whether a device whose server dies while it holds *every* tag stays for ever, and with it whoever waits for it.
    /// Fixed in Linux 6.16, which brought QUIESCE.
    pub(super) fn needs_a_spare_tag(self) -> bool {
        !self.has(abi::UBLK_F_QUIESCE)
    }
}

impl fmt::Debug for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Features({self})")
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names().join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_has_its_name_and_an_unknown_one_its_bit() {
        assert_eq!(Features::new(0xf_ffff).names().len(), 20);
        assert_eq!(Features::new(1 << 7 | 1 << 40).to_string(), "USER_COPY BIT_40");
    }

    #[test]
    fn only_what_the_driver_offers_is_asked_for() {
        let old = Features::new(0x1fe);
        assert_eq!(old.to_ask_for(CopyMode::User, true, false).names(), ["USER_COPY"]);
        assert_eq!(old.to_ask_for(CopyMode::TagBuffer, true, false).bits(), 0);
        let recovery = ["USER_RECOVERY", "USER_RECOVERY_REISSUE"];
        assert_eq!(old.to_ask_for(CopyMode::TagBuffer, true, true).names(), recovery);
        let half = Features::new(0x1fe & !u64::from(abi::UBLK_F_USER_RECOVERY_REISSUE));
        assert_eq!(half.to_ask_for(CopyMode::TagBuffer, true, true).bits(), 0, "it would fail requests");
        let new = Features::new(0x3fff);
        assert_eq!(
            new.to_ask_for(CopyMode::User, true, false).names(),
            ["USER_COPY", "UPDATE_SIZE", "AUTO_BUF_REG"]
        );
        assert_eq!(new.to_ask_for(CopyMode::User, false, false).names(), ["USER_COPY", "UPDATE_SIZE"]);
        assert!(new.to_ask_for(CopyMode::User, false, true).has(abi::UBLK_F_QUIESCE));
        assert!(Features::new(1 << 2).are_foreign() && Features::new(1 << 11).are_foreign());
        assert!(!new.to_ask_for(CopyMode::User, true, true).are_foreign());
        assert!(old.needs_a_spare_tag() && !Features::new(0x3fff).needs_a_spare_tag());
    }
}
