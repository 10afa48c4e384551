//! The commands that make layers, by running the program.
#![expect(clippy::unwrap_used, reason = "a test panics where something is not as expected")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

#[path = "../../tests/support/fixtures.rs"]
#[expect(dead_code, clippy::indexing_slicing, reason = "each test binary uses a part of the support")]
mod fixtures;

use fixtures::Fixture;
use serde_json::Value;

struct Ended {
    code: i32,
    out: String,
    err: String,
}

fn run(arguments: &[&str]) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ublk-ctl"));
    let output = command.args(arguments).env_remove("RUST_LOG").stdin(Stdio::null()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ended { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

/// Runs it, and takes what it says as JSON.
fn json(arguments: &[&str]) -> Value {
    let ended = run(&[arguments, &["--json"]].concat());
    assert_eq!(ended.code, 0, "{arguments:?}: {}", ended.err);
    serde_json::from_str(&ended.out).unwrap()
}

/// A folder with the files of some fixtures, and their paths.
fn folder(files: &[&str]) -> (tempfile::TempDir, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let paths = files.iter().map(|file| {
        let path = dir.path().join(file.replace('/', "-").trim_end_matches(".xz"));
        fs::write(&path, Fixture::named(file).read()).unwrap();
        path.to_str().unwrap().to_owned()
    });
    let paths = paths.collect();
    (dir, paths)
}

fn beside(dir: &tempfile::TempDir, name: &str) -> String {
    dir.path().join(name).to_str().unwrap().to_owned()
}

fn same(path: &str, fixture: &str) -> bool {
    fs::File::open(path).unwrap();
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut fs::File::open(Path::new(path)).unwrap(), &mut bytes).unwrap();
    bytes == Fixture::named(fixture).read()
}

#[test]
fn a_pair_becomes_a_layer_as_upstream_makes_it_or_a_smaller_one() {
    let (dir, files) = folder(&["ext4/rw1.d.xz", "ext4/rw1.i"]);
    let [data, index] = files.as_slice() else { panic!() };
    let [upstreams, ours] = ["upstreams", "ours"].map(|name| beside(&dir, name));
    let named = [
        "--uuid=abc00001-1111-2222-3333-000000000001",
        "--parent-uuid=abc00000-1111-2222-3333-000000000000",
        "--message=layer 1",
    ];
    let commit =
        |to: &str, form: &[&str]| run(&[&["layer", "commit", data, index, to][..], &named, form].concat());
    let ended = commit(&upstreams, &["--as-upstream", "--tar", "--threads=2"]);
    assert_eq!((ended.code, ended.err.as_str()), (0, ""));
    assert!(ended.out.starts_with(&upstreams), "{}", ended.out);
    assert!(same(&upstreams, "ext4/L1.zt4k"));
    assert_eq!(commit(&ours, &["--tar"]).code, 0);
    let [theirs_bytes, ours_bytes] = [&upstreams, &ours].map(|path| fs::metadata(path).unwrap().len());
    assert!(ours_bytes < theirs_bytes, "{ours_bytes} of {theirs_bytes}");
    let report = json(&["layer", "inspect", &ours]);
    assert_eq!(report["uuid"], "ABC00001-1111-2222-3333-000000000001");
    assert_eq!(report["user_tag"], "layer 1");
    assert_eq!(commit(&ours, &["--tar"]).code, 7);
    assert_eq!(commit(&ours, &["--algorithm=none", "--force"]).code, 0);
    assert_eq!(run(&["layer", "verify", &ours]).code, 0);
}

#[test]
fn a_wrong_use_of_commit_is_told_and_makes_nothing() {
    let (dir, files) = folder(&["ext4/rw1.d.xz", "ext4/rw1.i"]);
    let [data, index] = files.as_slice() else { panic!() };
    let out = beside(&dir, "out");
    let long = "m".repeat(257);
    for (arguments, code, text) in [
        (&["layer", "commit", data, &out][..], 2, "index file is needed"),
        (&["layer", "commit", data], 2, "OUTPUT"),
        (&["layer", "commit", data, index, &out, "--message", &long], 2, "256 bytes"),
        (&["layer", "commit", data, index, &out, "--uuid", "12"], 2, "36 characters"),
        (&["layer", "commit", data, index, &out, "--block-size=4097"], 2, "--block-size"),
        (&["layer", "commit", data, index, &out, "--seal"], 2, "no output"),
        (&["layer", "commit", data, index, "--seal", "--tar"], 2, "cannot be used with"),
        (&["layer", "commit", data, data, &out], 5, "index file"),
        (&["layer", "commit", &out, index, &out], 3, "cannot open"),
    ] {
        let ended = run(arguments);
        assert_eq!(ended.code, code, "{arguments:?}: {}", ended.err);
        assert!(ended.err.contains(text), "{arguments:?}: {}", ended.err);
        assert!(!PathBuf::from(&out).exists(), "{arguments:?}");
    }
}

#[test]
fn a_pair_is_sealed_once_and_a_torn_one_says_so() {
    let (dir, files) = folder(&["ext4/rw1.d.xz", "ext4/rw1.i"]);
    let [data, index] = files.as_slice() else { panic!() };
    let whole = fs::metadata(data).unwrap().len();
    fs::File::options().write(true).open(data).unwrap().set_len(whole - 512).unwrap();
    let refused = run(&["layer", "commit", data, index, &beside(&dir, "out")]);
    assert!(refused.code == 5 && refused.err.contains("--allow-torn"), "{} {}", refused.code, refused.err);
    let ended = run(&["layer", "commit", "--allow-torn", data, index, &beside(&dir, "out")]);
    assert_eq!(ended.code, 0);
    assert!(ended.err.contains("have lost their data and are left out"), "{}", ended.err);
    assert_eq!(run(&["layer", "commit", "--seal", data, index]).code, 5);
    let sealed = json(&["layer", "commit", "--seal", "--allow-torn", data, index]);
    assert!(sealed["torn_entries"].as_u64().unwrap() > 0);
    assert_eq!(run(&["layer", "verify", data]).code, 0);
    let again = run(&["layer", "commit", "--seal", data, index]);
    assert_eq!(again.code, 7, "{}", again.err);
}

#[test]
fn a_stack_becomes_one_layer_by_its_files_or_its_configuration() {
    let (dir, files) = folder(&["lsmt/g0.lsmt.xz", "lsmt/g1.rw.d.xz", "lsmt/g1.rw.i.xz", "lsmt/g1.lsmt"]);
    let [lower, data, index, committed] = files.as_slice() else { panic!() };
    let [config, empty, remote, out] = ["c.json", "e.json", "r.json", "out"].map(|name| beside(&dir, name));
    let text =
        format!(r#"{{"lowers":[{{"file":"{lower}"}}],"upper":{{"data":"{data}","index":"{index}"}}}}"#);
    fs::write(&config, text).unwrap();
    fs::write(&empty, r#"{"lowers":[]}"#).unwrap();
    let digest = format!("sha256:{}", "a".repeat(64));
    let text = format!(r#"{{"repoBlobUrl":"https://r/v2/a/blobs","lowers":[{{"digest":"{digest}"}}]}}"#);
    fs::write(&remote, text).unwrap();
    let sha = |path: &str| {
        let export = json(&["image", "export", "--layer", path, "--sha256"]);
        export["sha256"].as_str().unwrap().to_owned()
    };
    let both = "13202a5a7e9cf0d3ddcf694bea46f45987cef1f650c4562b8846ebf3a18bce01";
    for arguments in [
        &["layer", "flatten", "--config", &config, &out][..],
        &["layer", "flatten", "--layer", lower, "--upper", data, "--upper-index", index, &out],
        &["layer", "merge", "--layer", lower, "--layer", committed, &out, "--tar"],
    ] {
        json(&[arguments, &["--force"]].concat());
        assert_eq!(sha(&out), both, "{arguments:?}");
    }
    // To merge is to leave the upper alone.
    json(&["layer", "merge", "--config", &config, &out, "--force"]);
    assert_eq!(sha(&out), sha(lower));
    for (arguments, code) in [
        (&["layer", "merge", "--config", &config, &out][..], 7),
        (&["layer", "merge", "--config", &empty, &out, "--force"], 5),
        (&["layer", "merge", "--config", &remote, &out, "--force"], 3),
        (&["layer", "flatten", "--layer", lower, "--upper", data, &out, "--force"], 2),
        (&["layer", "merge", &out], 2),
    ] {
        let ended = run(arguments);
        assert_eq!(ended.code, code, "{arguments:?}: {}", ended.err);
    }
}

#[test]
fn a_writable_layer_is_created_once_and_resized() {
    let dir = tempfile::tempdir().unwrap();
    let [data, index, sparse, out] = ["data", "index", "sparse", "out"].map(|name| beside(&dir, name));
    let made = json(&["layer", "create", &data, &index, "--size=64MiB"]);
    assert_eq!(made["uuid"].as_str().unwrap().len(), 36);
    assert_eq!(run(&["layer", "create", &data, &index, "--size=64MiB"]).code, 7);
    let resized = json(&["layer", "resize", &data, &index, "--size=1GiB"]);
    assert_eq!(resized["before_bytes"], 64 << 20);
    assert_eq!(run(&["layer", "resize", &data, &index, "--size=1MiB"]).code, 2);
    json(&["layer", "resize", &data, &index, "--size=1MiB", "--shrink"]);
    json(&["layer", "commit", &data, &index, &out]);
    assert_eq!(json(&["layer", "inspect", &out])["virtual_size_bytes"], 1 << 20);
    json(&["layer", "create", &sparse, "--sparse", "--size=1GiB"]);
    json(&["layer", "commit", &sparse, &out, "--force"]);
    assert_eq!(run(&["layer", "create", &data, "--size=1GiB"]).code, 2);
    assert_eq!(run(&["layer", "create", &data, &index, "--size=1GB"]).code, 2);
}

#[test]
fn two_devices_are_compared_by_their_layers_or_configurations() {
    let (dir, files) = folder(&["lsmt/g0.lsmt.xz", "lsmt/g1.rw.d.xz", "lsmt/g1.rw.i.xz", "lsmt/g1.lsmt"]);
    let [lower, data, index, committed] = files.as_slice() else { panic!() };
    let [config, merged] = ["c.json", "merged"].map(|name| beside(&dir, name));
    let text = format!(
        "\n {{\"lowers\":[{{\"file\":\"{lower}\"}}],\"upper\":{{\"data\":\"{data}\",\"index\":\"{index}\"}}}}"
    );
    fs::write(&config, text).unwrap();
    json(&["layer", "merge", "--layer", lower, "--layer", committed, &merged]);
    assert_eq!(json(&["layer", "diff", &config, &merged])["equal"], true);
    let differing = json(&["layer", "diff", lower, &merged]);
    assert_eq!(differing["equal"], false);
    let ended = run(&["layer", "diff", lower, &merged]);
    let first = &differing["ranges"][0];
    let line = format!("{} {}\n", first["offset_bytes"], first["len_bytes"]);
    assert!(ended.out.starts_with(&line) && ended.out.contains("differ in"), "{}", ended.out);
    assert_eq!(run(&["layer", "diff", lower, "/nowhere"]).code, 3);
    assert_eq!(run(&["layer", "diff", lower, index]).code, 5);
}

/// A layer of some data in a folder.
fn layer(form: &[&str]) -> (tempfile::TempDir, String) {
    let (dir, files) = folder(&["ext4/rw1.d.xz", "ext4/rw1.i"]);
    let path = beside(&dir, "layer");
    let [data, index] = [0, 1].map(|number| files.get(number).unwrap().as_str());
    let ended = run(&[&["layer", "commit", data, index, &path][..], form].concat());
    assert_eq!(ended.code, 0, "{}", ended.err);
    (dir, path)
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the layer is small")]
fn a_layer_whose_end_was_cut_off_is_not_verified() {
    // An envelope is padded to 512 bytes, and ends with two records of zeroes.
    for (form, all_missing) in [(&[][..], [1, 256, 511, 512]), (&["--tar"], [1536, 1600, 1700, 2048])] {
        let (dir, whole) = layer(form);
        assert_eq!(run(&["layer", "verify", &whole]).code, 0);
        let bytes = fs::read(&whole).unwrap();
        for missing in all_missing {
            let cut = beside(&dir, "cut");
            fs::write(&cut, bytes.get(..bytes.len() - missing).unwrap()).unwrap();
            let ended = run(&["layer", "verify", &cut]);
            assert_eq!(ended.code, 5, "{form:?} {missing}: {} {}", ended.out, ended.err);
            assert!(!ended.out.contains("right"), "{missing}: {}", ended.out);
        }
    }
}

#[test]
fn a_file_that_is_no_layer_is_named_for_what_it_is_wherever_one_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut tar = vec![0; 10240];
    tar[..4].copy_from_slice(b"file");
    tar[257..263].copy_from_slice(b"ustar\0");
    let long = |mark: &[u8]| [mark, &[b'x'; 20_000]].concat();
    for (bytes, word) in [
        (long(b"\x1f\x8b\x08"), "gzip"),
        (long(b"\x28\xb5\x2f\xfd"), "zstd"),
        (long(b"QFI\xfb"), "qcow2"),
        (long(b"\x7fELF"), "ELF"),
        (tar, "tar archive of files"),
        (b"\x1f\x8b\x08".to_vec(), "gzip"),
        (b"{\"lowers\":[]}".to_vec(), "--config"),
        (vec![0; 20_000], "zeroes"),
    ] {
        let (file, out) = (beside(&dir, "input"), beside(&dir, "output"));
        fs::write(&file, &bytes).unwrap();
        for command in [
            &["layer", "verify", &file][..],
            &["layer", "inspect", &file],
            &["layer", "extract", &file, &out],
            &["layer", "compress", &file, &out],
            &["layer", "commit", &file, &out],
            &["layer", "merge", "--layer", &file, "--layer", &file, &out],
            &["layer", "flatten", "--layer", &file, &out],
            &["layer", "diff", &file, &file],
            &["image", "export", "--no-cache", "--sha256", "--layer", &file],
            &["image", "push", "--no-cache", "--base", "r.invalid/a:b", "--layer", &file, "r.invalid/a:c"],
        ] {
            if word == "--config" && command.contains(&"diff") {
                // It takes one.
                continue;
            }
            let ended = run(command);
            assert!(
                ended.code == 5 && ended.err.contains(word),
                "{command:?} {word}: {} {}",
                ended.code,
                ended.err
            );
            assert!(!Path::new(&out).exists(), "{command:?}");
        }
    }
}

#[test]
fn standard_output_is_refused_where_it_cannot_be_had_and_no_file_gets_its_name() {
    let (dir, path) = layer(&[]);
    for command in [
        &["layer", "extract", &path, "-"][..],
        &["layer", "compress", &path, "-"],
        &["layer", "commit", &path, "-"],
        &["layer", "merge", "--layer", &path, "--layer", &path, "-"],
        &["layer", "flatten", "--layer", &path, "-"],
        &["layer", "create", "-", "index", "--size", "1MiB"],
        &["layer", "create", "--sparse", "-", "--size", "1MiB"],
        &["snapshot", "0", "--to", "-"],
        &["fork", "0", "--name", "x", "--to", "-"],
        &["add", "r.invalid/a:b", "--upper", "-"],
    ] {
        let mut program = Command::new(env!("CARGO_BIN_EXE_ublk-ctl"));
        let output = program.args(command).current_dir(&dir).stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && said.contains("\"-\""), "{command:?}: {said}");
        assert!(!dir.path().join("-").exists(), "{command:?}");
    }
}

#[test]
fn a_relative_path_in_a_configuration_is_said_with_what_it_is_relative_to() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().canonicalize().unwrap();
    for (name, text) in [
        ("lower.json", r#"{"lowers":[{"file":"layers/a.obd"}]}"#),
        ("upper.json", r#"{"upper":{"data":"layers/a.obd","index":"layers/i"}}"#),
    ] {
        fs::write(home.join(name), text).unwrap();
        for command in [
            &["image", "export", "--no-cache", "--sha256", "--config"][..],
            &["layer", "resize", "--size", "1GiB", "--config"],
        ] {
            let mut program = Command::new(env!("CARGO_BIN_EXE_ublk-ctl"));
            let output =
                program.args(command).arg(name).current_dir(&home).stdin(Stdio::null()).output().unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            let whole = home.join("layers/a.obd");
            assert!(
                output.status.code() == Some(3) && said.contains(whole.to_str().unwrap()),
                "{name} {command:?}: {said}"
            );
        }
    }
}
