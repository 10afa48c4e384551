//! A real process dies while a log of real files is compacted: nothing that has completed is missing.

use std::{
    env,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process,
    time::{Duration, Instant},
};

use super::{
    BELOW_SECTORS, LIMITS, SECTORS,
    content::{self, bytes_of},
    crash_image::SECTOR,
    identity,
    patchwork::Patchwork,
    reactor,
};
use crate::{
    block::{BlockDevice, BlockQueue},
    reactor::Reactor,
    upper::{LayerFile, LayerFiles, LogLimits, Overlay, UpperError, log::Pieces},
};

/// Set for a child: where the layer is.
const CHILD_DIR: &str = "STRATABD_TEST_COMPACTION_DIR";

const PATIENCE: Duration = Duration::from_secs(20);

/// All that is written is in one piece then.
const ONE: Pieces = Pieces { aim: 4, limit: 30 };

/// Nothing is flushed, and the journal has room for all.
const PATIENT: LogLimits = LogLimits { pending_entries: 1000, journal_entries: 1000, ..LIMITS };

async fn open(reactor: &Reactor, dir: &Path) -> Overlay<Patchwork, LayerFile> {
    let began = Instant::now();
    let files = loop {
        // What a process had begun ends after it, and its locks with that.
        match LayerFiles::open(&dir.join("data"), &dir.join("index")) {
            Err(UpperError::Busy(_)) if began.elapsed() < PATIENCE => {
                reactor.sleep(Duration::from_millis(1)).await
            }
            files => break files.unwrap(),
        }
    };
    let below = content::below(BELOW_SECTORS, 512);
    Overlay::open(reactor, files.with_journal(&dir.join("journals")), Some(below), PATIENT).await.unwrap()
}

/// Not a test by itself: the body of a child process.
#[test]
fn child_compacts_a_log() {
    let Some(dir) = env::var_os(CHILD_DIR).map(PathBuf::from) else { return };
    let reactor = reactor();
    let work = async {
        let files = LayerFiles::create(&dir.join("data"), &dir.join("index")).unwrap();
        files.format(&reactor, &identity(SECTORS * SECTOR)).await.unwrap();
        let device = open(&reactor, &dir).await;
        let queue = device.open_queue(&reactor).unwrap();
        for sector in (0..SECTORS).rev() {
            queue.write(sector * SECTOR, &bytes_of(9, sector..sector + 1)).await.unwrap();
        }
        device.compact_to(&reactor, ONE).await.unwrap();
    };
    reactor.block_on(work).unwrap();
}

#[test]
fn a_compaction_that_the_death_of_the_process_cuts_off_loses_nothing_and_is_done_by_the_next_one() {
    for point in ["CompactionWritten", "CompactionCounted"] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("journals")).unwrap();
        let mut child = process::Command::new(env::current_exe().unwrap());
        child.args(["--exact", "upper::tests::killed::child_compacts_a_log"]);
        child.env(CHILD_DIR, dir.path()).env("STRATABD_DIE_AT", point);
        let child = child.stdout(process::Stdio::null()).stderr(process::Stdio::null()).status().unwrap();
        assert_eq!(child.signal(), Some(9), "{point} is not reached");
        let reactor = reactor();
        let work = async {
            let expected = bytes_of(9, 0..SECTORS);
            for _ in 0..2 {
                let device = open(&reactor, dir.path()).await;
                let queue = device.open_queue(&reactor).unwrap();
                let mut found = vec![0; expected.len()];
                queue.read(0, &mut found).await.unwrap();
                assert!(found == expected, "{point}: other bytes");
                device.compact_to(&reactor, ONE).await.unwrap();
                assert_eq!(device.piece_count(), 1, "{point}");
                queue.flush().await.unwrap();
            }
        };
        reactor.block_on(work).unwrap();
    }
}
