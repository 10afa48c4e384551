//! What the kernel says of this process, under the names that all programs have for it.

use procfs::{
    ProcResult, boot_time_secs, page_size,
    process::{LimitValue, Process},
    ticks_per_second,
};

use super::text::Family;

/// The families of the process; 0 where the kernel does not say.
pub(super) fn of_this_process() -> Vec<Family> {
    let Figures { cpu_seconds, resident_bytes, virtual_bytes, open_fds, max_fds, start_seconds, threads } =
        Figures::read().unwrap_or_else(|error| {
            tracing::debug!(%error, "the kernel does not say what this process takes");
            Figures::default()
        });
    vec![
        Family::of_process("cpu_seconds", "User and system CPU time of the process, in seconds", cpu_seconds)
            .growing(),
        Family::of_process(
            "resident_memory_bytes",
            "Resident memory of the process, in bytes",
            resident_bytes,
        ),
        Family::of_process("virtual_memory_bytes", "Virtual memory of the process, in bytes", virtual_bytes),
        Family::of_process("open_fds", "File descriptors that the process has open", open_fds),
        Family::of_process("max_fds", "File descriptors that the process may have open", max_fds),
        Family::of_process(
            "start_time_seconds",
            "When the process began, in seconds since the beginning of 1970",
            start_seconds,
        ),
        Family::of_process("threads", "Threads of the process", threads),
    ]
}

#[derive(Debug, Default)]
struct Figures {
    cpu_seconds: f64,
    resident_bytes: f64,
    virtual_bytes: f64,
    open_fds: f64,
    max_fds: f64,
    start_seconds: f64,
    threads: f64,
}

impl Figures {
    #[expect(clippy::cast_precision_loss, reason = "these are rounded figures for people")]
    fn read() -> ProcResult<Self> {
        let process = Process::myself()?;
        let stat = process.stat()?;
        let seconds = |ticks: u64| ticks as f64 / ticks_per_second() as f64;
        Ok(Self {
            cpu_seconds: seconds(stat.utime.saturating_add(stat.stime)),
            resident_bytes: stat.rss as f64 * page_size() as f64,
            virtual_bytes: stat.vsize as f64,
            open_fds: process.fd_count()? as f64,
            max_fds: match process.limits()?.max_open_files.soft_limit {
                LimitValue::Value(most) => most as f64,
                LimitValue::Unlimited => f64::INFINITY,
            },
            start_seconds: boot_time_secs()? as f64 + seconds(stat.starttime),
            threads: stat.num_threads as f64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_something_of_every_figure() {
        let Figures { cpu_seconds, resident_bytes, virtual_bytes, open_fds, max_fds, start_seconds, threads } =
            Figures::read().unwrap();
        assert!(cpu_seconds >= 0.0 && resident_bytes > 4096.0 && virtual_bytes >= resident_bytes);
        assert!(open_fds >= 3.0 && max_fds >= open_fds && threads >= 1.0);
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
        // A boot time is one of whole seconds, and clocks may have been set since.
        assert!((now - start_seconds).abs() < 86_400.0, "{start_seconds} and {now}");
    }
}
