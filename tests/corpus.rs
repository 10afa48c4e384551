//! Replays the corpus of every fuzz target, and keeps targets, their wrappers and their corpora together.

use std::{
    collections::BTreeSet,
    fs,
    io::Read,
    panic,
    path::{Path, PathBuf},
};

#[path = "../fuzz/targets.rs"]
pub mod targets;

/// More than any corpus needs: a limit that a forgotten large file would pass.
const INPUT_LIMIT_BYTES: u64 = 1 << 20;

fn fuzz(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(name)
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
fn every_target_has_a_wrapper_a_binary_and_a_corpus_and_nothing_is_left_over() {
    let named = |text: &Path| text.file_stem().and_then(|name| name.to_str()).map(str::to_owned);
    let targets: BTreeSet<String> = targets::TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let wrappers: BTreeSet<String> =
        files(&fuzz("fuzz_targets")).iter().filter_map(|path| named(path)).collect();
    let corpora: BTreeSet<String> = files(&fuzz("corpus")).iter().filter_map(|path| named(path)).collect();
    let manifest = String::from_utf8(read(&fuzz("Cargo.toml"))).expect("the manifest is text");
    let binaries = manifest.split("[[bin]]").skip(1).filter_map(|section| section.split('"').nth(1));
    assert_eq!(wrappers, targets);
    assert_eq!(corpora, targets);
    assert_eq!(binaries.map(str::to_owned).collect::<BTreeSet<_>>(), targets);
    for name in &targets {
        let wrapper = String::from_utf8(read(&fuzz("fuzz_targets").join(name).with_extension("rs")));
        let calls = wrapper.expect("the wrapper is text").contains(&format!("targets::{name}(input)"));
        assert!(calls, "the wrapper of {name} calls something else");
    }
}
