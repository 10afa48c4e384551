//! A conversion that the user ends leaves nothing.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::{
    blob, digest_of, failure, ordinary,
    registry::{Registry, Serving},
    ublk_ctl,
};

/// Waits until something is so, for as long as a busy machine may take.
fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(60), "{what}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

/// The blob of the upper layer never ends: when it is opened, the conversion is under way.
#[test]
fn a_conversion_that_is_ended_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::start(root.path(), &Serving::default());
    let [from, spool, to] = ["from", "spool", "new/to"].map(|name| dir.path().join(name));
    fs::create_dir(&spool).unwrap();
    let image = ordinary(dir.path());
    image.lay_out(&from);
    let upper = blob(&from, &digest_of(&image.blobs[1]));
    fs::remove_file(&upper).unwrap();
    assert!(Command::new("mkfifo").arg(&upper).status().unwrap().success());

    let source = format!("oci:{}:app", from.display());
    let tag = format!("{}/team/obd:v1", registry.address());
    let archive = dir.path().join("made.tar");
    for (target, signal) in [
        (format!("oci:{}:obd", to.display()), "-INT"),
        (format!("oci-archive:{}", archive.display()), "-TERM"),
        (tag.clone(), "-INT"),
    ] {
        let converting = Command::new(env!("CARGO_BIN_EXE_ublk-ctl"))
            .args(["--json", "convert", "--no-cache", "--vsize", "256MiB", &source, &target, "--plain-http"])
            .arg(registry.address().to_string())
            .arg("--spool")
            .arg(&spool)
            .env_remove("RUST_LOG")
            .env("DOCKER_CONFIG", "/nonexistent")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Somebody reads it from now on.
        let writer = File::options().write(true).open(&upper).unwrap();
        if target.starts_with("oci:") {
            wait_for("the lower layer is in the layout", || !names(&to.join("blobs/sha256")).is_empty());
        }
        let killed = Command::new("kill").args([signal, &converting.id().to_string()]).status();
        assert!(killed.unwrap().success());
        let ended = converting.wait_with_output().unwrap();
        drop(writer);
        assert_eq!(failure(&ended).0, Some(130), "{target}: {ended:?}");
        assert!(names(&spool).is_empty() && !dir.path().join("new").exists() && !archive.exists());
        assert!(names(dir.path()).iter().all(|name| !name.contains("part")), "{:?}", names(dir.path()));
    }
    let plain = registry.address().to_string();
    let looked = ublk_ctl(&["image", "export", "--no-cache", "--plain-http", &plain, &tag, "--sha256"]);
    assert_eq!(failure(&looked).0, Some(3), "a tag was made");
}
