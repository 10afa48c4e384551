//! What upstream's parser of the command line takes and refuses, and how the tools end.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt, fs::symlink},
    process::Command,
};

use crate::{COMMITTED, bench::Bench};

#[test]
fn what_upstreams_parser_takes_is_taken() {
    let bench = Bench::new(&[("ext4/rw1.d.xz", "d1"), ("ext4/rw1.i", "i1")]);
    bench.well("commit d1 i1 plain");
    for line in [
        "--verbose=true --commit_sealed=false --fastoci=off --seal=0",
        "--verbose=1 --turboOCI=no",
        "--commit_sealed=No --verbose=ON",
    ] {
        bench.well(&format!("commit {line} -f d1 i1 out"));
        assert!(bench.bytes("out") == bench.bytes("plain"), "{line}");
    }
    // The value of an option is whatever follows it.
    let message = |name: &str| bench.bytes(name).get(134..142).unwrap().to_vec();
    bench.well("commit -m -first -f d1 i1 out");
    assert!(message("out").starts_with(b"-first"), "{:?}", message("out"));
    let mut command = Command::new(bench.path("overlaybd-commit"));
    let odd = OsStr::from_bytes(b"d\xff");
    fs::copy(bench.path("d1"), bench.path("").join(odd)).unwrap();
    command.args(["-f", "-m"]).arg(OsStr::from_bytes(b"caf\xe9")).arg(odd).args(["i1", "out"]);
    assert!(command.current_dir(bench.path("")).status().unwrap().success());
    assert!(message("out").starts_with(b"caf\xe9"));
}

#[test]
fn numbers_have_the_base_that_they_begin_with() {
    let bench = Bench::new(&[("ext4/rw1.d.xz", "d1"), ("ext4/rw1.i", "i1")]);
    for (text, gib) in [("010", 8), ("0x10", 16), ("0X1f", 31), ("+7", 7), ("0", 0), ("9", 9)] {
        bench.well(&format!("create -s d i {text}"));
        let size = u64::from_le_bytes(bench.bytes_at("d", 48));
        assert_eq!(size, gib << 30, "{text}");
        ["d", "i"].iter().for_each(|name| fs::remove_file(bench.path(name)).unwrap());
    }
    for (text, code) in [("08", 104), ("0x", 105), ("0xg", 105), ("0+5", 105), ("1e1", 104)] {
        assert_eq!(bench.run(&format!("create d i {text}")).code, code, "{text}");
        assert!(!bench.path("d").exists());
    }
    bench.well("commit -z --bs 8 d1 i1 eight");
    for text in ["010", "0x8"] {
        bench.well(&format!("commit -z --bs {text} -f d1 i1 out"));
        assert!(bench.bytes("out") == bench.bytes("eight"), "{text}");
        bench.well(&format!("zfile --bs {text} -f i1 packed"));
    }
    assert_eq!(bench.run("commit -z --bs 08 -f d1 i1 out").code, 104);
}

#[test]
fn what_has_no_effect_is_taken_and_what_has_no_meaning_is_not() {
    let bench = Bench::new(&[("ext4/L0.z4k", "L0"), ("ext4/rw1.d.xz", "d1"), ("ext4/rw1.i", "i1")]);
    fs::write(bench.path("c"), r#"{"lowers":[{"file":"L0"}],"upper":{"data":"d1","index":"i1"}}"#).unwrap();
    let is_zfile = |name: &str| bench.bytes(name).starts_with(b"ZFile");
    for (value, is_packed) in [("2", true), ("1", true), ("on", true), ("-2", false), ("disable", false)] {
        bench.well(&format!("merge --compress={value} c out"));
        assert_eq!(is_zfile("out"), is_packed, "{value}");
    }
    assert_eq!(bench.run("merge --compress=maybe c out").code, 104);
    bench.well("commit --compress_threads 0 d1 i1 plain");
    assert_eq!(bench.run("commit -z --compress_threads 0 d1 i1 none").code, 255);
    bench.well("commit -z --compress_threads 0x2 d1 i1 packed");
    // A UUID that is none is neither left out nor made up.
    for line in ["create -u 12 d i 1", "commit -p 12 d1 i1 none", "commit --uuid x d1 i1 none"] {
        let ended = bench.run(line);
        assert!(ended.code == 255 && ended.err.contains("36 characters"), "{line}: {}", ended.err);
    }
    // An index that does not belong to the data would be left out.
    for data in ["plain", "packed", "L0"] {
        let ended = bench.run(&format!("commit {data} i1 none"));
        assert!(ended.code == 255 && ended.err.contains("sealed layer already"), "{data}: {}", ended.err);
    }
    assert!(!bench.path("none").exists());
}

#[test]
fn what_is_in_the_place_of_an_output_goes_before_it_is_made_anew() {
    let bench = Bench::new(&[("ext4/rw1.d.xz", "d1"), ("ext4/rw1.i", "i1")]);
    bench.well("commit d1 i1 plain");
    fs::write(bench.path("target"), "precious").unwrap();
    symlink("target", bench.path("link")).unwrap();
    assert!(Command::new("mkfifo").arg(bench.path("fifo")).status().unwrap().success());
    for name in ["link", "fifo"] {
        assert_eq!(bench.run(&format!("commit d1 i1 {name}")).code, 255);
        assert_eq!(bench.well(&format!("commit -f d1 i1 {name}")), COMMITTED);
        assert!(bench.path(name).symlink_metadata().unwrap().is_file(), "{name}");
        assert!(bench.bytes(name) == bench.bytes("plain"));
    }
    assert_eq!(bench.bytes("target"), b"precious");
    assert_eq!(bench.run("commit -f d1 i1 /dev/null").code, 255);
    // A file that its name cannot be read from is there all the same.
    assert_eq!(bench.run("merge /dev/null out").code, 255);
}

#[test]
fn a_limit_of_a_files_size_is_an_error_and_no_part_stays() {
    let bench = Bench::new(&[("ext4/rw1.d.xz", "d1"), ("ext4/rw1.i", "i1")]);
    for line in ["commit d1 i1 out", "create -s out out.i 1", "zfile d1 out"] {
        let script = format!("ulimit -f 100; exec ./overlaybd-{line}");
        let output = Command::new("sh").args(["-c", &script]).current_dir(bench.path("")).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(255), "{line}: {said}");
        assert!(said.contains("File too large"), "{line}: {said}");
        let mut left = fs::read_dir(bench.path("")).unwrap().map(|entry| entry.unwrap().file_name());
        assert!(!left.any(|name| name.to_string_lossy().contains("out")), "{line}");
    }
}

#[test]
fn a_wrong_use_exits_as_upstreams_does_and_makes_nothing() {
    let bench = Bench::new(&[
        ("ext4/rw1.d.xz", "d1"),
        ("ext4/rw1.i", "i1"),
        ("zfile/random140000.lz4.4k", "noise.z"),
        ("corrupt/zfile2-crc-flip", "bad.z"),
        ("corrupt/lsmt-trailer-magic", "bad"),
    ]);
    bench.well("zfile -x noise.z noise");
    fs::write(bench.path("there"), "precious").unwrap();
    bench.well("create -s sparse sparse.i 1");
    let long = format!("commit -m {} d1 i1 out", "m".repeat(257));
    for (line, code, text) in [
        ("commit --help", 0, ""),
        ("commit", 106, "required"),
        ("commit nowhere i1 out", 105, "does not exist"),
        ("commit d1 i1 out more", 109, "more"),
        ("commit --bogus d1 i1 out", 109, "--bogus"),
        ("commit --bs x d1 i1 out", 104, "--bs"),
        ("commit --bs 4 --bs 8 d1 i1 out", 114, "--bs"),
        ("commit -z --bs 5 d1 i1 out", 255, "invalid '--bs' parameters."),
        ("commit -z --bs 128 d1 i1 out", 255, "invalid '--bs' parameters."),
        ("commit -z --algorithm gzip d1 i1 out", 255, "invalid '--algorithm' parameters."),
        ("commit d1 i1", 255, "output file"),
        ("commit d1", 255, "index file"),
        ("commit d1 i1 there", 255, "exists already"),
        ("commit d1 nowhere out", 255, "nowhere"),
        ("commit d1 d1 out", 255, "d1"),
        ("commit --uuid 12 d1 i1 out", 255, "36 characters"),
        ("commit --turboOCI d1 i1 out", 255, "not yet supported"),
        ("commit --upload http://x d1 i1 out", 255, "--upload is for a compressed layer"),
        ("commit -zt --upload http://x d1 i1 out", 255, "unsupport option with '-t' and '--upload'"),
        ("commit -z --cred_file_path nowhere d1 i1 out", 105, "does not exist"),
        ("merge --compress=false --upload http://x i1 out", 255, "--upload is for a compressed layer"),
        ("commit --commit_sealed bad out", 255, "not a sealed overlaybd layer"),
        ("commit --commit_sealed sparse out", 255, "not sealed"),
        ("commit --compress_threads -1 d1 i1 out", 104, "-1"),
        (&long, 255, "256 bytes"),
        ("create out i 1.5", 104, "1.5"),
        ("create out i x", 105, "x"),
        ("create out i -1", 105, "-1"),
        ("create out i", 106, "required"),
        ("create out i 99999999999999", 255, "too many"),
        ("create --mkfs --raw out i 1", 255, "not yet supported"),
        ("zfile there out -x", 255, "not a ZFile"),
        ("zfile noise there", 255, "exists already"),
        ("zfile --bs 64 noise out", 255, "use blocks of 32 KiB or less"),
        ("zfile nowhere out", 255, "nowhere"),
        ("zfile -x bad.z out", 255, "checksum"),
        ("zfile --verify bad.z", 255, "checksum"),
        ("zfile --verify there", 255, "not a ZFile"),
        ("merge nowhere out", 105, "does not exist"),
        ("merge --service_config_path nowhere there out", 105, "does not exist"),
        ("merge there out", 255, "not JSON"),
    ] {
        let ended = bench.run(line);
        assert_eq!(ended.code, code, "{line}: {}", ended.err);
        assert!(ended.err.contains(text), "{line}: {}", ended.err);
        assert!(!ended.out.contains("SUCCESSFULLY") && !ended.out.contains("done."), "{line}: {}", ended.out);
        assert!(!bench.path("out").exists(), "{line}");
    }
    assert_eq!(bench.bytes("there"), b"precious");
}
