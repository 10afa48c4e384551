//! `image export` of what upstream's tools wrote: sound stacks give the manifest's bytes, damaged layers are refused.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test panics where something is not as expected"
)]

#[path = "../../tests/support/fixtures.rs"]
mod fixtures;

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use fixtures::{Fixture, tar_members};
use serde_json::{Value, json};

/// Sums of the whole device, from MANIFEST.md.
const EXT4: [&str; 3] = [
    "cb74813c2a7e47c35ad640c24d2bb83c960342989188e89440e6e9ad14d13fa9",
    "a2cbed8b08692468295794111ded9df4b453bb25fb41c9c5f0c155f5bba1ccbf",
    "c05be42ddd17d380d411757a8a44d21dd0a95a73e90b46587550e58b12779fd9",
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

fn export(config: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ublk-ctl"));
    command.args(["image", "export", "--json", "--config"]).arg(config).args(arguments);
    command.env_remove("RUST_LOG").output().unwrap()
}

fn config(dir: &Path, layers: &[&str]) -> PathBuf {
    let lowers: Vec<Value> = layers.iter().map(|layer| json!({"file": fixture(layer)})).collect();
    let path = dir.join("config.v1.json");
    let result = dir.join("result");
    fs::write(&path, json!({"lowers": lowers, "upper": {}, "resultFile": result}).to_string()).unwrap();
    path
}

#[test]
fn every_variant_of_a_stack_has_the_manifests_sum() {
    let dir = tempfile::tempdir().unwrap();
    let stacks: &[(&[&str], &str)] = &[
        (&["ext4/L0.z4k"], EXT4[0]),
        (&["ext4/L0.zstd64kt"], EXT4[0]),
        (&["ext4/L0.z64k", "ext4/L1.z32kt"], EXT4[1]),
        (&["ext4/L0.zt4k", "ext4/L1.zstd8k", "ext4/L2.zt4k"], EXT4[2]),
    ];
    for (layers, sum) in stacks {
        let output = export(&config(dir.path(), layers), &["--sha256"]);
        assert!(output.status.success(), "{layers:?}: {output:?}");
        let done: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(done["sha256"], *sum, "{layers:?}");
        assert_eq!(done["size_bytes"], 1 << 30);
        assert_eq!(fs::read_to_string(dir.path().join("result")).unwrap(), "success");
    }
}

/// Writes the files of `folder`, decompressed, and returns their paths.
fn unpack(folder: &Path, files: &[(String, Vec<u8>)]) -> Vec<String> {
    let write = |(name, bytes): &(String, Vec<u8>)| {
        let path = folder.join(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    files.iter().map(write).collect()
}

fn sum(dir: &Path, layers: &[String]) -> Result<String, Output> {
    let layers: Vec<&str> = layers.iter().map(String::as_str).collect();
    let output = export(&config(dir, &layers), &["--sha256"]);
    if !output.status.success() {
        return Err(output);
    }
    let done: Value = serde_json::from_slice(&output.stdout).unwrap();
    Ok(done["sha256"].as_str().unwrap().to_owned())
}

#[test]
fn layers_without_compression_have_the_manifests_sums_too() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["lsmt/tiny.lsmt", "lsmt/empty.lsmt"] {
        assert_eq!(sum(dir.path(), &[name.to_owned()]).ok(), Fixture::named(name).flat_sha256, "{name}");
    }
    // Its tag means nothing in a plain layer.
    let tagged = sum(dir.path(), &["corrupt/lsmt-tag-nonzero".to_owned()]).ok();
    assert_eq!(tagged, Fixture::named("lsmt/tiny.lsmt").flat_sha256);
    let names = ["lsmt/g0.lsmt.xz", "lsmt/g1.lsmt", "lsmt/g2.lsmt"];
    let files = names.map(|name| (name.replace('/', "-"), Fixture::named(name).read()));
    let layers = unpack(dir.path(), &files);
    let sums = ["be875a5a075c0666", "13202a5a7e9cf0d3", "d3ef24f010a5fbbe"];
    for (count, start) in (1..).zip(sums) {
        let sum = sum(dir.path(), &layers[..count]).unwrap();
        assert!(sum.starts_with(start), "{count} layers: {sum}");
    }
}

#[test]
fn a_stack_may_have_255_layers_and_not_one_more() {
    let dir = tempfile::tempdir().unwrap();
    let stack = Fixture::named("lsmt/stack256.tar.xz");
    let archive = stack.read();
    let files = (0..).zip(tar_members(&archive)).map(|(index, file)| (format!("l{index}"), file.to_vec()));
    let layers = unpack(dir.path(), &files.collect::<Vec<_>>());
    assert_eq!(sum(dir.path(), &layers[..255]).ok(), stack.flat_sha256);
    let refused = sum(dir.path(), &layers).unwrap_err();
    assert_eq!(refused.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("256 layers"), "{refused:?}");
}

#[test]
fn the_file_is_sparse_and_is_replaced_only_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), &["ext4/L0.z4k", "ext4/L1.z4k", "ext4/L2.z4k"]);
    let image = dir.path().join("disk.img");
    let name = image.to_str().unwrap();
    let output = export(&config, &["--output", name, "--sha256"]);
    assert!(output.status.success(), "{output:?}");
    let found = fs::metadata(&image).unwrap();
    assert_eq!(found.size(), 1 << 30);
    assert!(found.blocks() * 512 < 64 << 20, "{} bytes are allocated", found.blocks() * 512);
    let summed = Command::new("sha256sum").arg(&image).output().unwrap();
    assert!(summed.stdout.starts_with(EXT4[2].as_bytes()), "{summed:?}");
    let again = export(&config, &["--output", name]);
    assert_eq!(again.status.code(), Some(7), "{again:?}");
    assert!(export(&config, &["--output", name, "--force"]).status.success());
}

#[test]
fn a_dash_is_standard_output_and_nothing_else_goes_there() {
    let dir = tempfile::tempdir().unwrap();
    let layer = fixture("lsmt/tiny.lsmt");
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ublk-ctl"));
        command.args(["image", "export", "--layer"]).arg(&layer).args(["--output", "-"]).args(arguments);
        command.current_dir(dir.path()).env_remove("RUST_LOG").output().unwrap()
    };
    let sum = Fixture::named("lsmt/tiny.lsmt").flat_sha256.unwrap();
    for arguments in [&[][..], &["--sha256"], &["--sha256", "--json"]] {
        let output = run(arguments);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(fixtures::sha256(&output.stdout), sum, "{arguments:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said.contains(&sum), !arguments.is_empty(), "{arguments:?}: {said}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "no file of that name");
}

#[test]
fn a_damaged_layer_is_refused_with_file_offset_and_rule_and_leaves_no_file() {
    let cases = [
        ("lsmt-header-magic", 0, "the magic numbers are not those of LSMT"),
        ("lsmt-index-disorder", 42512, "before sector 1705 where the one before it ends"),
        ("lsmt-index-moffset-oob", 42496, "is not between sector 8 and the index at sector 83"),
        ("lsmt-index-size-huge", 46592, "1000001 segments are more than the 1000000 allowed"),
        ("lsmt-index-size-zero", 46592, "do not fill the space before the trailer"),
        ("lsmt-trailer-magic", 46592, "the magic numbers are not those of LSMT"),
        ("lsmt-trailer-unsealed", 46592, "its flags say that it was never sealed"),
        ("lsmt-trunc-trailer", 42496, "the magic numbers are not those of LSMT"),
        ("lsmt-version9", 46592, "its major version 9 is not known"),
        ("tar-magic-flip", 0, "the magic numbers are not those of LSMT"),
        ("tar-name-flip", 0, "this is no overlaybd layer but a tar archive of files"),
        ("zfile-data-flip", 636, "its checksum is 0xfc6d19b2"),
        ("zfile-header-digest", 0, "its digest is 0x0b1eaf53"),
        ("zfile-header-magic", 0, "the magic numbers are not those of LSMT"),
        ("zfile-jumptable-flip", 341725, "its checksum is 0x3d7ac9d2"),
        ("zfile2-crc-flip", 512, "its checksum is 0x90bc069e"),
        ("zfile2-trailer-flip", 116743, "the magic numbers are not those of ZFile"),
    ];
    for (name, offset, rule) in cases {
        let dir = tempfile::tempdir().unwrap();
        let path = config(dir.path(), &[&format!("corrupt/{name}")]);
        let output = export(&path, &["--output", dir.path().join("disk.img").to_str().unwrap()]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(5), "{name}: {said}");
        let failure: Value = serde_json::from_str(&said).unwrap();
        let message = failure["error"]["message"].as_str().unwrap();
        assert!(message.contains(name), "{name}: {message}");
        let place = message.split_once(&format!("at offset {offset}: "));
        assert!(place.is_some_and(|(_, said)| said.contains(rule)), "{name}: {message}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "{name}: configuration and result alone");
    }
}

#[test]
fn the_result_file_tells_the_snapshotter_why() {
    let dir = tempfile::tempdir().unwrap();
    let digest = format!("sha256:{}", "a".repeat(64));
    let result = dir.path().join("result");
    let path = dir.path().join("c.json");
    let text =
        json!({"lowers": [{"digest": digest, "size": 1, "dir": ""}], "resultFile": result}).to_string();
    fs::write(&path, text).unwrap();
    assert_eq!(export(&path, &["--sha256"]).status.code(), Some(5));
    assert_eq!(fs::read_to_string(&result).unwrap(), "failed:empty repoBlobUrl");
}
