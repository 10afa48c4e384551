//! The unit of `examples/` under a real service manager: it starts the next daemon when one has died or hangs, and follows an upgrade.
//!
//! The manager is the first process of a namespace of its own, as in a container.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use crate::{
    devices::{Direct, pattern},
    frame::{in_guest, output_of, wait_until},
    support::process,
    writable::{MIB, config_with_upper, text},
};

const UNITS: &str = "/run/systemd/system";
const BYTES: usize = 64 << 10;

/// What the manager, or the unit, asks for, and none of which the guest has to do.
const TARGETS: [&str; 6] = ["sysinit", "basic", "shutdown", "multi-user", "network-online", "local-fs"];

struct Manager {
    child: Child,
    /// Its number, by which programs come into its namespaces.
    pid: String,
}

impl Manager {
    /// Starts one whose only service is the daemon.
    fn start(dir: &Path) -> Self {
        let units = Path::new(UNITS);
        fs::create_dir_all(units.join("stratabd.service.d")).unwrap();
        for target in TARGETS {
            fs::write(units.join(format!("{target}.target")), "[Unit]\nDefaultDependencies=no\n").unwrap();
        }
        fs::write(units.join("stratabd.service"), include_str!("../../examples/stratabd.service")).unwrap();
        // Not so long that a test cannot wait for it.
        let log = dir.join("log");
        let settings = format!("[Service]\nWatchdogSec=15\nStandardError=append:{}\n", log.display());
        fs::write(units.join("stratabd.service.d/guest.conf"), settings).unwrap();
        fs::create_dir_all("/usr/local/bin").unwrap();
        let _ = std::os::unix::fs::symlink("/usr/bin/stratabd", "/usr/local/bin/stratabd");
        let child = Command::new("unshare")
            .args(["--pid", "--fork", "--mount", "--mount-proc", "--cgroup", "--kill-child"])
            .args(["systemd", "--system", "--unit=multi-user.target"])
            .args(["--log-target=console", "--log-level=info"])
            .envs([("container", "guest"), ("SYSTEMD_PROC_CMDLINE", "")])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        wait_until("the service manager listens", || Path::new("/run/systemd/private").exists());
        let pid = output_of("pgrep", &["-P", &child.id().to_string()]).trim().to_owned();
        Self { child, pid }
    }

    /// What `systemctl` says, which talks to a manager of its own namespaces.
    fn ctl(&self, arguments: &[&str]) -> String {
        let inside = ["--target", &self.pid, "--mount", "--pid", "--cgroup", "systemctl"];
        output_of("nsenter", &[&inside, arguments, &["stratabd.service"]].concat()).trim().to_owned()
    }

    /// A property of the unit.
    fn show(&self, property: &str) -> String {
        self.ctl(&["show", "--value", "--property", property])
    }

    fn restarts(&self) -> u64 {
        self.show("NRestarts").parse().unwrap()
    }

    /// Has the manager send the daemon a signal, which ends it, and waits for the next one.
    fn restarts_after(&self, signal: &str) {
        let (before, restarts) = (self.show("MainPID"), self.restarts());
        self.ctl(&["kill", "--kill-who=main", "--signal", signal]);
        wait_until("the next daemon is ready", || {
            self.restarts() == restarts + 1 && self.show("ActiveState") == "active"
        });
        assert_ne!(self.show("MainPID"), before);
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        process::signal(&self.child, "-KILL");
        process::ended(&mut self.child);
        // The next program that asks is not to find a manager.
        let _ = fs::remove_dir_all("/run/systemd");
    }
}

/// The only device is served, and has what was written to it.
fn check(device: &Path) {
    let list = output_of("ublk-ctl", &["list"]);
    assert!(list.contains("live"), "{list}");
    assert!(Direct::open(device, false).read(0, BYTES).unwrap() == pattern(BYTES, 1));
}

#[test]
fn a_service_manager_restarts_a_daemon_that_dies_or_hangs_and_follows_an_upgrade() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir_in("/var").unwrap();
    let manager = Manager::start(dir.path());
    manager.ctl(&["start"]);
    // What the unit takes from the daemon is taken.
    let status =
        fs::read_to_string(format!("/proc/{}/status", output_of("pgrep", &["-x", "stratabd"]).trim()))
            .unwrap();
    for line in ["NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line} is not in {status}");
    }
    let config = config_with_upper(dir.path(), None, MIB);
    let device = output_of("ublk-ctl", &["add", "--config", &config]);
    let device = Path::new(device.trim()).to_owned();
    Direct::open(&device, true).write(0, &pattern(BYTES, 1)).unwrap();
    let completed = ["COMPLETE=fish", "ublk-ctl", "--", "ublk-ctl", "del", ""];
    let number = text(&device).strip_prefix("/dev/ublkb").unwrap();
    assert!(output_of("env", &completed).contains(&format!("{number}\t")), "a shell knows the devices");
    // And no more than that: before Linux 6.16 it sets the queues of its devices, which lie there.
    let daemon = manager.show("MainPID");
    let inside = ["--target", &manager.pid, "--pid", "--mount", "nsenter", "--target", &daemon, "--mount"];
    for (place, is) in [("/sys/devices/virtual/block", "rw,"), ("/proc/sys/vm", "ro,"), ("/usr/bin", "ro,")] {
        let find = [&inside[..], &["findmnt", "-n", "-o", "OPTIONS", "--target", place]].concat();
        let options = output_of("nsenter", &find);
        assert!(options.trim().starts_with(is), "{place}: {options}");
    }
    // One that hangs is ended by the watchdog.
    for signal in ["SIGKILL", "SIGSTOP"] {
        manager.restarts_after(signal);
        check(&device);
    }
    let (before, restarts) = (manager.show("MainPID"), manager.restarts());
    output_of("ublk-ctl", &["upgrade", "--timeout", "50"]);
    wait_until("the new daemon is the main process", || manager.show("MainPID") != before);
    check(&device);
    // The old one ends, and that is no reason for a restart.
    wait_until("the old daemon has ended", || output_of("pgrep", &["-cx", "stratabd"]).trim() == "1");
    assert_eq!((manager.show("ActiveState"), manager.restarts()), ("active".to_owned(), restarts));
    manager.ctl(&["restart"]);
    check(&device);
    output_of("ublk-ctl", &["del", text(&device)]);
    manager.ctl(&["stop"]);
}
