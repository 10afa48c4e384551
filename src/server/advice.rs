//! What a person can do where this system lacks the driver, or forbids what serving devices takes.

use std::{io, path::Path};

use rustix::system::uname;

use super::settings::read_regular_document;

/// What io_uring takes, which the driver is spoken to by as well.
pub(super) const IO_URING: &str = "io_uring is needed: Linux 6.1 or newer, \"sysctl kernel.io_uring_disabled=0\", and in a container a seccomp \
     profile that allows it";

/// What the driver's commands take.
pub(super) const PRIVILEGE: &str = "run as root with CAP_SYS_ADMIN, in a container with --privileged";

/// Where the driver is on systems whose kernel's package may lack it, by the ID and the VERSION_ID of os-release, which may be any.
const PACKAGES: [(&str, &str, &str); 5] = [
    (
        "debian",
        "12",
        "Debian 12's own kernel has no ublk_drv, that of backports has: \"apt-get install -t bookworm-backports linux-image-amd64\", \
         and boot it",
    ),
    (
        "debian",
        "",
        "Debian has ublk_drv in its kernel's package from 13 on: \"apt-get install linux-image-amd64\", and boot it",
    ),
    (
        "ubuntu",
        "",
        "Ubuntu has ublk_drv in another package: \"apt-get install linux-modules-extra-$(uname -r)\"",
    ),
    ("fedora", "", "Fedora has ublk_drv in another package: \"dnf install kernel-modules-$(uname -r)\""),
    (
        "",
        "",
        "this kernel has no module ublk_drv: it takes one of Linux 6.1 or newer with CONFIG_BLK_DEV_UBLK",
    ),
];

/// The file in which a distribution says its name.
const OS_RELEASE: &str = "/etc/os-release";

/// Has a folder for each kernel that is installed.
const KERNELS: &str = "/lib/modules";

/// The driver's name in modules.dep, with what stands before and after it.
const NAME: &[u8] = b"/ublk_drv.ko";

/// What is known of the system that the driver is missing on.
struct System {
    /// The driver runs: it is the node that is missing.
    is_loaded: bool,
    /// Whether kernels are installed here: in a container there are none, and its distribution is not the kernel's.
    has_kernels: bool,
    /// modules.dep of the running kernel, where this process may read it, as a hardened service may not.
    modules: Option<Vec<u8>>,
    os_release: String,
}

/// What to do where the driver's node cannot be opened for this reason.
pub(super) fn no_driver(source: &io::Error) -> String {
    if source.kind() == io::ErrorKind::PermissionDenied {
        return PRIVILEGE.to_owned();
    }
    let release = uname().release().to_string_lossy().into_owned();
    let read = |path: &str| read_regular_document(Path::new(path)).ok();
    System {
        is_loaded: Path::new("/sys/class/misc/ublk-control").exists(),
        has_kernels: Path::new(KERNELS).exists(),
        modules: read(&format!("{KERNELS}/{release}/modules.dep")),
        os_release: String::from_utf8_lossy(&read(OS_RELEASE).unwrap_or_default()).into_owned(),
    }
    .advice()
}

impl System {
    fn advice(&self) -> String {
        const LOAD: &str = "\"modprobe ublk_drv\"";
        if self.is_loaded {
            return "the driver is loaded, and /dev here lacks its node, as in a container: mount the host's /dev into it"
                .to_owned();
        }
        let Some(modules) = &self.modules else {
            if self.has_kernels {
                return format!(
                    "load the driver with {LOAD}; where there is no such module: {}",
                    self.package()
                );
            }
            return format!("load the driver on the host with {LOAD} (Linux 6.1 or newer)");
        };
        if modules.windows(NAME.len()).any(|window| window == NAME) {
            return format!("load the driver with {LOAD}");
        }
        format!("{}; then {LOAD}", self.package())
    }

    /// Where a kernel with the driver is to be had.
    fn package(&self) -> &'static str {
        let version = self.value("VERSION_ID").unwrap_or_default();
        let of = |id: &str| {
            PACKAGES.iter().find(|(name, number, _)| *name == id && (number.is_empty() || *number == version))
        };
        let found = self.ids().find_map(of).or_else(|| of(""));
        found.map_or("", |(.., text)| text)
    }

    /// What the distribution calls itself, and those that it is like.
    fn ids(&self) -> impl Iterator<Item = &str> {
        ["ID", "ID_LIKE"].into_iter().filter_map(|key| self.value(key)).flat_map(str::split_whitespace)
    }

    fn value(&self, key: &str) -> Option<&str> {
        let mut lines = self.os_release.lines().filter_map(|line| line.split_once('='));
        let (_, value) = lines.find(|(name, _)| *name == key)?;
        Some(value.trim().trim_matches(['"', '\'']))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTAINER: &str = "ID=alpine\n";

    fn advice(modules: Option<&str>, os_release: &str) -> String {
        System {
            is_loaded: false,
            has_kernels: os_release != CONTAINER,
            modules: modules.map(|text| text.as_bytes().to_vec()),
            os_release: os_release.to_owned(),
        }
        .advice()
    }

    #[test]
    fn the_driver_is_where_the_distribution_has_it() {
        let none = Some("kernel/drivers/block/nbd.ko.xz:\n");
        for (os_release, word) in [
            (
                "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\nID=debian\n",
                "bookworm-backports",
            ),
            ("ID=debian\nVERSION_ID=\"13\"\n", "from 13 on"),
            ("ID=debian\n", "from 13 on"),
            (
                "NAME=\"Ubuntu\"\nVERSION_ID=\"24.04\"\nID=ubuntu\nID_LIKE=debian\n",
                "linux-modules-extra-$(uname -r)",
            ),
            ("ID=linuxmint\nVERSION_ID=\"12\"\nID_LIKE=\"ubuntu debian\"\n", "linux-modules-extra"),
            ("ID=fedora\nVERSION_ID=40\n", "kernel-modules-$(uname -r)"),
            ("ID=nixos\n", "CONFIG_BLK_DEV_UBLK"),
            ("", "CONFIG_BLK_DEV_UBLK"),
            ("ID", "CONFIG_BLK_DEV_UBLK"),
        ] {
            let said = advice(none, os_release);
            assert!(said.contains(word) && said.ends_with("\"modprobe ublk_drv\""), "{os_release}: {said}");
        }
        let there = Some("kernel/drivers/block/ublk_drv.ko.xz:\n");
        assert_eq!(advice(there, "ID=ubuntu\n"), "load the driver with \"modprobe ublk_drv\"");
        assert!(advice(None, CONTAINER).contains("on the host"));
        let hidden = advice(None, "ID=debian\nVERSION_ID=12\n");
        assert!(hidden.contains("modprobe ublk_drv") && hidden.contains("backports"), "{hidden}");
    }
}
