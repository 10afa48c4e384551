//! Who else may see what the daemon keeps: nobody.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;
use crate::server::api::types::ForkDevice;

/// Set for a child: the folder in which it works.
const CHILD_DIR: &str = "STRATABD_TEST_PRIVATE_DIR";

/// Not a test by itself: the body of a child process, whose umask takes nothing away.
#[tokio::test(flavor = "multi_thread")]
async fn child_makes_writable_devices_without_a_umask() {
    let Some(dir) = std::env::var_os(CHILD_DIR).map(PathBuf::from) else { return };
    rustix::process::umask(rustix::fs::Mode::empty());
    let daemon = daemon(&dir.join("state"), NullFrontend::new(), Vec::new());
    daemon.add(AddDevice { upper: Some(dir.join("upper/a")), ..request(None) }).await.unwrap();
    daemon.snapshot(0, SnapshotTarget::Folder(dir.join("snapshots/b"))).await.unwrap();
    let fork = ForkDevice { name: "c".to_owned(), to: Some(dir.join("forks")), id: None };
    std::fs::create_dir(dir.join("forks")).unwrap();
    std::fs::set_permissions(dir.join("forks"), std::fs::Permissions::from_mode(0o700)).unwrap();
    daemon.fork(0, fork).await.unwrap();
    let manifests = crate::server::manifests::ManifestStore::new(dir.join("cache"));
    manifests.put(b"a manifest").unwrap();
    manifests.remember("a name", "sha256:0").unwrap();
}

/// All below a folder.
fn walk(path: &Path) -> Vec<PathBuf> {
    let below = std::fs::read_dir(path).into_iter().flatten().flatten();
    below.flat_map(|entry| walk(&entry.path()).into_iter().chain([entry.path()])).collect()
}

#[test]
fn nothing_that_the_daemon_makes_is_open_to_others_whatever_the_umask() {
    let dir = tempfile::tempdir().unwrap();
    let name = "server::daemon::tests::private::child_makes_writable_devices_without_a_umask";
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name])
        .env(CHILD_DIR, dir.path())
        .output()
        .unwrap();
    let told = [child.stdout, child.stderr].concat();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&told));
    let made = walk(dir.path());
    for wanted in
        ["state/devices/0.json", "upper/a/config.v1.json", "snapshots/b/upper.data", "forks/c/config.v1.json"]
    {
        assert!(made.contains(&dir.path().join(wanted)), "{wanted}: {made:?}");
    }
    for path in made {
        let mode = std::fs::metadata(&path).unwrap().mode() & 0o7777;
        assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", path.display());
    }
}
