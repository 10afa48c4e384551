//! `image export` of what upstream's tools wrote: sound stacks give the manifest's bytes, damaged layers are refused.
#![expect(clippy::unwrap_used, reason = "a test panics where something is not as expected")]

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

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
fn a_damaged_layer_is_refused_with_file_offset_and_rule_and_leaves_no_file() {
    let cases = [
        ("lsmt-header-magic", "offset 0"),
        ("lsmt-index-disorder", "offset 42512"),
        ("lsmt-index-moffset-oob", "offset 42496"),
        ("lsmt-index-size-huge", "offset 46592"),
        ("lsmt-trailer-magic", "offset 46592"),
        ("lsmt-trailer-unsealed", "sealed"),
        ("lsmt-trunc-trailer", "offset 42496"),
        ("lsmt-version9", "version 9"),
        ("tar-magic-flip", "magic"),
        ("zfile-data-flip", "offset 636"),
        ("zfile-header-digest", "offset 0"),
        ("zfile-jumptable-flip", "checksum"),
        ("zfile2-crc-flip", "offset 512"),
        ("zfile2-trailer-flip", "magic"),
    ];
    for (name, rule) in cases {
        let dir = tempfile::tempdir().unwrap();
        let path = config(dir.path(), &[&format!("corrupt/{name}")]);
        let output = export(&path, &["--output", dir.path().join("disk.img").to_str().unwrap()]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(5), "{name}: {said}");
        let failure: Value = serde_json::from_str(&said).unwrap();
        let message = failure["error"]["message"].as_str().unwrap();
        assert!(message.contains(name) && message.contains(rule), "{name}: {message}");
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
