//! The program under the names of upstream's tools, with the commands that made the fixtures.
#![expect(clippy::unwrap_used, reason = "a test panics where something is not as expected")]

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, symlink},
    process::Command,
};

mod bench;
mod command_line;
#[path = "../../../tests/support/fixtures.rs"]
#[expect(dead_code, clippy::indexing_slicing, reason = "each test binary uses a part of the support")]
mod fixtures;

use bench::Bench;
use fixtures::Fixture;

const L1: &str = "--uuid abc00001-1111-2222-3333-000000000001 -p abc00000-1111-2222-3333-000000000000";
const COMMITTED: &str = "overlaybd-commit has committed files SUCCESSFULLY\n";

#[test]
fn a_layer_that_a_device_writes_to_is_refused_by_every_tool() {
    let bench = Bench::new(&[("ext4/rw1.d.xz", "d1"), ("ext4/rw1.i", "i1")]);
    fs::write(bench.path("config"), r#"{"lowers":[],"upper":{"data":"d1","index":"i1"}}"#).unwrap();
    let device = File::open(bench.path("d1")).unwrap();
    device.lock().unwrap();
    for (line, code) in [
        ("commit d1 i1 out", 255),
        ("commit --seal d1 i1", 255),
        ("merge config out", 255),
        ("resize --device_only --config config --size 2", 1),
        ("resize --config config --size 2", 1),
    ] {
        let ended = bench.run(line);
        assert!(ended.code == code && ended.err.contains("d1: in use by a device"), "{line}: {}", ended.err);
    }
    assert!(!bench.path("out").exists());
    drop(device);
    bench.well("commit d1 i1 out");
}

#[test]
fn overlaybd_commit_makes_the_fixtures() {
    let bench = Bench::new(&[("ext4/rw1.d.xz", "d1"), ("ext4/rw1.i", "i1")]);
    for (flags, fixture) in [
        ("", "ext4/L1.lsmt.xz"),
        ("-t --verbose", "ext4/L1.lsmt.xz"),
        ("-z", "ext4/L1.z4k"),
        ("-z -t --compress_threads 2", "ext4/L1.zt4k"),
        ("-zt --bs 32 --algorithm lz4", "ext4/L1.z32kt"),
    ] {
        // The message has a space, which no line of these tests can have.
        let mut command = Command::new(bench.path("overlaybd-commit"));
        let line = format!("{flags} {L1} -f d1 i1 out -m");
        command.args(line.split_whitespace()).arg("layer 1").current_dir(bench.0.path());
        let output = command.output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), COMMITTED, "{flags}");
        assert!(output.status.success(), "{flags}");
        bench.holds("out", fixture);
    }
    let zstd = format!("commit -z --algorithm zstd --bs 8 {L1} -f d1 i1 out");
    assert_eq!(bench.well(&zstd), COMMITTED);
    assert_eq!(Some(bench.flat_sha256(&["out"])), Fixture::named("ext4/L1.zstd8k").flat_sha256);
}

#[test]
fn overlaybd_commit_seals_and_commits_what_is_sealed() {
    let bench =
        Bench::new(&[("ext4/L2.sealed.xz", "L2.sealed"), ("lsmt/g1.rw.d.xz", "d"), ("lsmt/g1.rw.i.xz", "i")]);
    assert_eq!(bench.well("commit --commit_sealed L2.sealed out"), COMMITTED);
    bench.holds("out", "ext4/L2.recommit.xz");
    bench.well("commit --seal=false --commit_sealed=false -z -zf --verbose --verbose d i out");
    assert_eq!(bench.well("commit --seal --seal d i"), "");
    assert_eq!(Some(bench.flat_sha256(&["d"])), Fixture::named("lsmt/g1.lsmt").flat_sha256);
    assert_eq!(bench.run("commit --seal d i").code, 255);
}

#[test]
fn a_data_file_that_is_not_whole_is_neither_committed_nor_sealed() {
    let bench = Bench::new(&[("lsmt/g1.rw.d.xz", "d"), ("lsmt/g1.rw.i.xz", "i")]);
    let half = bench.bytes("d").len() as u64 / 2;
    File::options().write(true).open(bench.path("d")).unwrap().set_len(half).unwrap();
    fs::write(bench.path("config"), r#"{"lowers":[],"upper":{"data":"d","index":"i"}}"#).unwrap();
    for line in ["commit d i out", "commit --seal d i", "merge config out"] {
        let ended = bench.run(line);
        assert!(ended.code == 255 && ended.err.contains("missing"), "{line}: {} {}", ended.code, ended.err);
        assert!(!ended.out.contains("SUCCESSFULLY") && !bench.path("out").exists(), "{line}");
    }
    assert_eq!(bench.bytes("d").len() as u64, half);
}

#[test]
fn overlaybd_zfile_makes_the_fixtures_and_takes_them_apart() {
    let bench = Bench::new(&[
        ("zfile/text300000.lz4.4k", "t.z"),
        ("zfile/zeros1m.lz4.4k", "0.z"),
        ("zfile/empty.lz4.4k", "e.z"),
    ]);
    for (packed, plain) in [("t.z", "text"), ("0.z", "zeros"), ("e.z", "empty")] {
        let said = bench.well(&format!("zfile -x {packed} {plain}"));
        assert_eq!(said, format!("decompress file {packed} as {plain}\ndecompress file done.\n"));
        assert_eq!(
            bench.well(&format!("zfile --verify {packed}")),
            format!("{packed} is a valid zfile blob.\n")
        );
    }
    for (line, fixture) in [
        ("text out", "zfile/text300000.lz4.4k"),
        ("--algorithm lz4 --bs 8 text out", "zfile/text300000.lz4.8k"),
        ("--algorithm lz4 --bs 64 text out", "zfile/text300000.lz4.64k"),
        ("-t text out", "zfile/text300000.lz4.4k.tar"),
        ("zeros out", "zfile/zeros1m.lz4.4k"),
        ("--bs 64 zeros out", "zfile/zeros1m.lz4.64k"),
        ("empty out", "zfile/empty.lz4.4k"),
        ("--algorithm zstd empty out", "zfile/empty.zstd.4k"),
    ] {
        let said = bench.well(&format!("zfile -f {line}"));
        assert!(
            said.starts_with("compress file ") && said.ends_with(" as out\ncompress file done.\n"),
            "{said}"
        );
        bench.holds("out", fixture);
    }
    let piped = bench.run_with("zfile -f out", &bench.bytes("text"));
    assert_eq!((piped.code, piped.out.as_str()), (0, "compress file  as out\ncompress file done.\n"));
    bench.holds("out", "zfile/text300000.lz4.4k");
    bench.well("zfile -tf text out");
    bench.well("zfile -x -t out back");
    assert!(bench.bytes("back") == bench.bytes("text"));
}

#[test]
fn a_tool_that_waits_for_its_input_or_for_mke2fs_can_be_interrupted() {
    let bench = Bench::new(&[]);
    for signal in ["-INT", "-TERM", "-HUP"] {
        // Whoever runs the tests may have SIGHUP ignored, as nohup does, and then it stays so.
        let mut idle = Command::new("env");
        idle.arg("--default-signal=HUP").arg(bench.path("overlaybd-zfile"));
        let (input, _writer) = std::io::pipe().unwrap();
        idle.arg("out").stdin(input);
        assert_eq!(bench.interrupted(idle, signal).code(), Some(255));
    }
    assert!(Command::new("mkfifo").arg(bench.path("fifo")).status().unwrap().success());
    let mut idle = Command::new(bench.path("overlaybd-zfile"));
    idle.args(["fifo", "out"]);
    assert_eq!(bench.interrupted(idle, "-INT").code(), Some(255));
    let refused = bench.run("commit --commit_sealed fifo out");
    assert!(refused.code != 0, "a pipe is no layer");
    for line in [["compress", "fifo", "out"], ["diff", "fifo", "fifo"]] {
        let mut tool = Command::new(env!("CARGO_BIN_EXE_ublk-ctl"));
        let refused = tool.arg("layer").args(line).current_dir(bench.path("")).output().unwrap();
        assert!(String::from_utf8(refused.stderr).unwrap().contains("not a regular file"), "{line:?}");
    }
    let mut create = Command::new(bench.path("overlaybd-create"));
    create.args(["--mkfs", "d", "i", "1"]).env("PATH", bench.mke2fs("exec sleep 100"));
    assert_eq!(bench.interrupted(create, "-TERM").code(), Some(255));
    assert!(!["out", "d", "i"].iter().any(|name| bench.path(name).exists()));
}

#[test]
fn a_file_that_a_pipe_gives_is_compressed_until_the_pipe_ends() {
    let bench = Bench::new(&[("zfile/text300000.lz4.4k", "t.z")]);
    bench.well("zfile -x t.z text");
    assert!(Command::new("mkfifo").arg(bench.path("fifo")).status().unwrap().success());
    let mut child = Command::new(bench.path("overlaybd-zfile"))
        .args(["fifo", "out"])
        .current_dir(bench.0.path())
        .spawn()
        .unwrap();
    fs::copy(bench.path("text"), bench.path("fifo")).unwrap();
    assert!(child.wait().unwrap().success());
    bench.holds("out", "zfile/text300000.lz4.4k");
}

#[test]
fn an_index_file_is_not_replaced_where_its_data_file_cannot_be() {
    let bench = Bench::new(&[]);
    bench.well("create d i 1");
    let before = bench.bytes("i");
    // In the place of the old data file there is something that cannot be replaced when the new one is ready.
    let mke2fs = bench.mke2fs("rm d && mkdir d && touch d/in-the-way");
    let mut create = Command::new(env!("CARGO_BIN_EXE_ublk-ctl"));
    create.args(["layer", "create", "--force", "--ext4", "--size", "1MiB", "d", "i"]).env("PATH", mke2fs);
    let ended = create.current_dir(bench.0.path()).output().unwrap();
    assert!(!ended.status.success());
    assert!(bench.bytes("i") == before);
    let hidden = |name: &str| name.starts_with('.');
    let names =
        fs::read_dir(bench.0.path()).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap());
    assert_eq!(names.filter(|name| hidden(name)).count(), 0);
}

#[test]
fn overlaybd_create_makes_pairs_and_sparse_layers_and_files_of_zeroes() {
    let bench = Bench::new(&[("ext4/rw1.d.xz", "d1"), ("ext4/rw1.i", "i1")]);
    for (flags, data_bytes, index_bytes) in
        [("", 4096, 4096), ("-s", (1 << 30) + 4096, 0), ("--raw", 1 << 30, 0)]
    {
        let said = bench.well(&format!("create {flags} d i 1"));
        assert_eq!(said, "overlaybd-create has created files SUCCESSFULLY\n");
        let size = |name: &str| fs::metadata(bench.path(name)).unwrap().len();
        assert_eq!((size("d"), size("i")), (data_bytes, index_bytes), "{flags}");
        let again = bench.run(&format!("create {flags} d i 1"));
        assert_eq!(again.code, 255);
        if flags != "--raw" {
            bench.well("commit -f d i out");
        }
        for name in ["d", "i"] {
            fs::remove_file(bench.path(name)).unwrap();
        }
    }
    // As the snapshotter does for a layer over others, which give it its size.
    bench.well("create -s d i 0");
    assert_eq!((bench.bytes("d").len(), bench.bytes("i").len()), (4096, 0));
    for name in ["d", "i"] {
        fs::remove_file(bench.path(name)).unwrap();
    }
    assert_eq!(bench.run("create -s --mkfs d i 0").code, 255);
    bench.well("create -s --mkfs d i 1");
    let mut magic = [0; 2];
    File::open(bench.path("d")).unwrap().read_exact_at(&mut magic, 4096 + 1024 + 56).unwrap();
    assert_eq!(magic, [0x53, 0xef], "ext4 has this");
    for name in ["d", "i"] {
        fs::remove_file(bench.path(name)).unwrap();
    }
    bench.well("create -u abc00000-1111-2222-3333-000000000000 d i 1");
    let parent = bench.bytes("d").get(93..129).unwrap().to_vec();
    assert_eq!(parent, b"ABC00000-1111-2222-3333-000000000000");
}

#[test]
fn overlaybd_merge_and_resize_work_on_an_image() {
    let bench = Bench::new(&[
        ("ext4/L0.z4k", "L0"),
        ("ext4/rw1.d.xz", "d1"),
        ("ext4/rw1.i", "i1"),
        ("lsmt/tiny.lsmt", "tiny"),
        ("merge/middle.lsmt", "middle"),
        ("merge/top.d", "top.d"),
        ("merge/top.i", "top.i"),
    ]);
    let [rw, ro] = [r#","upper":{"data":"d1","index":"i1"}"#, ""];
    for (name, upper) in [("rw.json", rw), ("ro.json", ro)] {
        fs::write(bench.path(name), format!(r#"{{"lowers":[{{"file":"L0"}}]{upper}}}"#)).unwrap();
    }
    assert_eq!(bench.well("merge rw.json out"), "");
    let both = "a2cbed8b08692468295794111ded9df4b453bb25fb41c9c5f0c155f5bba1ccbf";
    assert_eq!(bench.flat_sha256(&["out"]), both);
    assert_eq!(bench.bytes("out").get(32), Some(&0x13), "upstream leaves the first header as it was");
    // It replaces what is there, and takes nothing but a false for a false.
    for no in ["0", "off", "no", "false"] {
        bench.well(&format!("merge -t --compress={no} rw.json out"));
        assert_eq!(bench.bytes("out").get(..4), Some(&b"LSMT"[..]), "{no}");
    }
    assert_eq!(bench.flat_sha256(&["out"]), both);
    // Upstream writes to what a link means, whether that is there or not.
    for _ in 0..2 {
        let _ = symlink("far", bench.path("link"));
        bench.well("merge rw.json link");
        assert!(fs::symlink_metadata(bench.path("link")).unwrap().is_symlink());
        assert_eq!(bench.flat_sha256(&["far"]), both);
    }

    for (name, upper, made) in
        [("2", "", "merged"), ("3", r#","upper":{"data":"top.d","index":"top.i"}"#, "flattened")]
    {
        let lowers = r#"[{"file":"tiny"},{"file":"middle"}]"#;
        fs::write(bench.path(name), format!(r#"{{"lowers":{lowers}{upper}}}"#)).unwrap();
        bench.well(&format!("merge --compress=false {name} out"));
        bench.holds("out", &format!("merge/{made}.lsmt"));
    }

    let said = bench.well("resize --config rw.json --size 2");
    assert!(said.starts_with("Success: filesystem resized to 2 GB ("), "{said}");
    let said = bench.well("resize --device_only --config rw.json --size 3");
    assert!(said.starts_with("Success: device resized to 3 GB ("), "{said}");
    let before = bench.bytes("top.d");
    let refused = bench.run("resize --config 3 --size 1");
    assert!(refused.code == 1 && refused.err.contains("no ext4"), "{}", refused.err);
    assert!(bench.bytes("top.d") == before);
    for name in ["d1", "i1"] {
        let size = bench.bytes(name).get(48..56).unwrap().to_vec();
        assert_eq!(size, (3_u64 << 30).to_le_bytes());
    }
    // The file system is made smaller first, and a device is not made smaller alone.
    for (line, code) in [
        ("resize --device_only --config ro.json --size 3", 1),
        ("resize --device_only --config rw.json --size 1", 1),
        ("resize --device_only --config rw.json --size 0", 1),
        ("resize --config rw.json --size 1", 0),
        ("resize --config rw.json --size -1", 1),
        ("resize --config rw.json --size 1GB", 1),
        ("resize --config rw.json", 106),
    ] {
        assert_eq!(bench.run(line).code, code, "{line}");
    }
}
