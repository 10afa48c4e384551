//! Replays the corpus of every fuzz target, and keeps targets and their corpora together.

use std::{
    collections::BTreeSet,
    fs,
    io::Read,
    panic,
    path::{Path, PathBuf},
};

#[path = "../../fuzz/targets.rs"]
pub mod targets;

/// More than any corpus needs: a limit that a forgotten large file would pass.
const INPUT_LIMIT_BYTES: u64 = 1 << 20;

fn fuzz(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz").join(name)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries.map(|entry| entry.expect("the folder can be listed").path()).collect()
}

fn read(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path).expect("the file was listed");
    file.take(INPUT_LIMIT_BYTES + 1).read_to_end(&mut bytes).expect("the file can be read");
    assert!(bytes.len() as u64 <= INPUT_LIMIT_BYTES, "{} is too large for a corpus", path.display());
    bytes
}

#[test]
fn every_input_of_every_corpus_is_still_handled() {
    for (name, target) in targets::TARGETS {
        let inputs = files(&fuzz("corpus").join(name));
        assert!(!inputs.is_empty(), "target {name} has no corpus");
        for path in inputs {
            let input = read(&path);
            if panic::catch_unwind(|| target(&input)).is_err() {
                panic!("target {name} fails on {}", path.display());
            }
        }
    }
}

#[test]
fn every_target_has_a_corpus_and_no_corpus_is_left_over() {
    let named = |folder: &Path| folder.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    let targets: BTreeSet<String> = targets::TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let corpora: BTreeSet<String> = files(&fuzz("corpus")).iter().filter_map(|path| named(path)).collect();
    assert_eq!(targets.len(), targets::TARGETS.len(), "a name is there twice");
    assert_eq!(corpora, targets);
}
