//! Work on files that users have named, bounded for each file system: one that hangs is asked again and again, and must leave
//! threads to the others.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::Semaphore;

use super::{blocking::blocking, failure::Failure, settings::read_regular_document};

/// Calls that are made at once to the files of one file system: an eighth of the threads that there are.
const WORK_AT_ONCE: usize = 8;

/// The mounts of this process, one a line; the kernel has them without asking any file system.
const MOUNTS: &str = "/proc/self/mountinfo";

/// Field of a line that has the mount's place.
const PLACE_FIELD: usize = 4;

/// What names the block devices that a process of this program may serve.
const OUR_DEVICES: &[u8] = b"/dev/ublkb";

/// By the place of the mount; those that nobody has work for are forgotten.
static SLOTS: Mutex<BTreeMap<PathBuf, Arc<Semaphore>>> = Mutex::new(BTreeMap::new());

/// As [`blocking`], for `work` on files that lie where `path` does. It waits while as much as there may be is under way there.
///
/// # Errors
/// As [`blocking`].
pub(super) async fn file_system_work<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let path = path.to_owned();
    // A file of the kernel's own, which may be long.
    let slots = blocking(move || Ok(slots_of(mount_of(&mounts(), &path)))).await?;
    let slot = slots.acquire_owned().await.expect("it is never closed");
    blocking(move || {
        let _slot = slot;
        work()
    })
    .await
}

/// Where this process sees file systems of ublk devices mounted, later ones after those that they may lie on.
pub(super) fn places_of_devices() -> Vec<PathBuf> {
    places_of_devices_in(&mounts())
}

fn places_of_devices_in(mounts: &[u8]) -> Vec<PathBuf> {
    let place = |line: &[u8]| {
        let mut words = line.split(|byte| *byte == b' ');
        let place = words.nth(PLACE_FIELD)?;
        // A word of its own ends the fields of which there may be any number.
        let source = words.skip_while(|word| *word != b"-").nth(2)?;
        source.starts_with(OUR_DEVICES).then(|| unescaped(place))
    };
    mounts.split(|byte| *byte == b'\n').filter_map(place).collect()
}

/// What cannot be read of them makes one file system of several.
fn mounts() -> Vec<u8> {
    read_regular_document(Path::new(MOUNTS)).unwrap_or_default()
}

fn slots_of(mount: PathBuf) -> Arc<Semaphore> {
    let mut slots = SLOTS.lock().unwrap_or_else(PoisonError::into_inner);
    slots.retain(|_, slots| Arc::strong_count(slots) > 1);
    Arc::clone(slots.entry(mount).or_insert_with(|| Arc::new(Semaphore::new(WORK_AT_ONCE))))
}

/// Where the file system is mounted that `path` lies on, as its words say; links are not followed, since that would ask it.
fn mount_of(mounts: &[u8], path: &Path) -> PathBuf {
    let lines = mounts.split(|byte| *byte == b'\n');
    let places = lines.filter_map(|line| line.split(|byte| *byte == b' ').nth(PLACE_FIELD)).map(unescaped);
    let over = places.filter(|place| path.starts_with(place));
    over.max_by_key(|place| place.components().count()).unwrap_or_default()
}

/// The kernel writes blanks and the like as a backslash and three octal digits.
fn unescaped(field: &[u8]) -> PathBuf {
    let (mut bytes, mut rest) = (Vec::with_capacity(field.len()), field);
    while let [first, after @ ..] = rest {
        let escaped = after.get(..3).filter(|_| *first == b'\\');
        let octal = escaped.and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(octal.unwrap_or(*first));
        rest = if octal.is_some() { after.get(3..).unwrap_or_default() } else { after };
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn file_systems_of_devices_are_told_by_what_is_mounted() {
        let mounts = b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
            30 22 259:3 / /mnt/a\\040b ro - ext4 /dev/ublkb3 ro\n\
            31 22 0:9 /dev/ublkb4 /mnt/c rw shared:2 master:1 - devtmpfs dev rw\n\
            32 30 259:4 / /mnt/a\\040b/c rw master:4 - xfs /dev/ublkb12 rw\nbroken - a /dev/ublkb1\n";
        let expected = ["/mnt/a b", "/mnt/a b/c"].map(PathBuf::from);
        assert_eq!(places_of_devices_in(mounts), expected);
    }

    #[test]
    fn the_mount_of_a_path_is_the_nearest_above_it() {
        let mounts = br"21 1 8:1 / / rw - ext4 /dev/vda rw
22 21 0:5 / /data rw - xfs /dev/vdb rw
23 22 0:6 / /data/a\040b rw - nfs host:/x rw
odd
24 21 0:7 / /data/a\04 rw - ext4 x rw";
        for (path, mount) in [
            ("/etc/x", "/"),
            ("/database/x", "/"),
            ("/data/x", "/data"),
            ("/data/a b/c/x", "/data/a b"),
            (r"/data/a\04/x", r"/data/a\04"),
            ("relative", ""),
        ] {
            assert_eq!(mount_of(mounts, Path::new(path)), Path::new(mount), "{path}");
        }
        assert_eq!(mount_of(b"", Path::new("/x")), Path::new(""));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_file_system_that_hangs_leaves_threads_to_the_others() {
        const ASKED: usize = 3 * WORK_AT_ONCE;
        let (hangs, hung) = mpsc::channel::<()>();
        let hung = Arc::new(Mutex::new(hung));
        let (began, begun) = mpsc::channel();
        let asked: Vec<_> = (0..ASKED)
            .map(|_| {
                let (hung, began) = (Arc::clone(&hung), began.clone());
                tokio::spawn(file_system_work(Path::new("/proc/hung"), move || {
                    began.send(()).unwrap();
                    let _ = hung.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    Ok(())
                }))
            })
            .collect();
        let begun = tokio::task::spawn_blocking(move || {
            (0..WORK_AT_ONCE).for_each(|_| begun.recv().unwrap());
            begun
        });
        let begun = begun.await.unwrap();
        for _ in 0..ASKED {
            file_system_work(Path::new("/elsewhere"), || Ok(())).await.unwrap();
        }
        assert!(begun.try_recv().is_err(), "more than its share");
        drop(hangs);
        for work in asked {
            work.await.unwrap().unwrap();
        }
        assert_eq!(begun.try_iter().count(), ASKED - WORK_AT_ONCE);
    }
}
