//! The cache on the file systems that it promises to work on.
//!
//! Those that the machine has no folder on are made in files and mounted, which needs root and the kernel's modules; what
//! cannot be had is named on stderr.

#[path = "support/cache_exercise.rs"]
mod cache_exercise;

use std::{io::Write, path::Path, process::Command};

use cache_exercise::exercise_cache;

/// Runs a program; whether it succeeded, and what it complained of.
fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    match Command::new(program).args(arguments).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(format!("{program}: {error}")),
    }
}

/// A mounted file system, unmounted at the end.
struct Mount(tempfile::TempDir);

impl Mount {
    /// Mounts with `arguments`, the last of which is followed by the mount point.
    fn new(arguments: &[&str]) -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let place = dir.path().to_string_lossy().into_owned();
        run("mount", &[arguments, &[&place]].concat())?;
        Ok(Self(dir))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = run("umount", &["-l", &self.0.path().to_string_lossy()]);
    }
}

/// Says what was not tested, past the capture of a test's output: a skip that nobody sees is taken for a success.
fn skipped(reason: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {reason}");
}

/// Exercises a cache on a new file system of this kind.
fn on_a_new(kind: &str, size_bytes: u64) {
    match image_of(kind, size_bytes) {
        Ok((_image, mount)) => exercise_cache(&mount.path().join("cache")),
        Err(reason) => skipped(&format!("{kind} cannot be had here: {reason}")),
    }
}

fn image_of(kind: &str, size_bytes: u64) -> Result<(tempfile::NamedTempFile, Mount), String> {
    let image = tempfile::NamedTempFile::new().map_err(|error| error.to_string())?;
    image.as_file().set_len(size_bytes).map_err(|error| error.to_string())?;
    let path = image.path().to_string_lossy().into_owned();
    run(&format!("mkfs.{kind}"), &["-q", &path])?;
    let mount = Mount::new(&["-o", "loop", &path])?;
    Ok((image, mount))
}

#[test]
fn the_cache_works_where_temporary_files_lie() {
    let dir = tempfile::tempdir().unwrap();
    exercise_cache(&dir.path().join("cache"));
}

#[test]
fn the_cache_works_on_tmpfs() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    exercise_cache(&dir.path().join("cache"));
}

#[test]
fn the_cache_works_on_ext4() {
    on_a_new("ext4", 128 << 20);
}

#[test]
fn the_cache_works_on_xfs() {
    on_a_new("xfs", 320 << 20);
}

#[test]
fn the_cache_works_on_btrfs() {
    on_a_new("btrfs", 256 << 20);
}

#[test]
fn the_cache_works_on_overlayfs() {
    // Layers on tmpfs, since an overlay cannot lie on an overlay, as the root of a container does.
    let layers = tempfile::tempdir_in("/dev/shm").unwrap();
    let [lower, upper, work] = ["lower", "upper", "work"].map(|name| {
        let path = layers.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path.to_string_lossy().into_owned()
    });
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    match Mount::new(&["-t", "overlay", "overlay", "-o", &options]) {
        Ok(mount) => exercise_cache(&mount.path().join("cache")),
        Err(reason) => skipped(&format!("overlayfs cannot be had here: {reason}")),
    }
}
