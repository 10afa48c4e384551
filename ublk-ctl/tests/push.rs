//! `image push` to docker's registry: what was pushed is the stack that it should be, and a push that fails moves no tag.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    unreachable_pub,
    dead_code,
    reason = "a test panics where something is not as expected, and uses a part of the support"
)]

#[path = "../../tests/support/port.rs"]
mod port;
#[path = "../../tests/support/registry.rs"]
mod registry;
#[path = "../../tests/support/secure.rs"]
mod secure;

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
};

use registry::{Registry, Serving, digest_of, push_document};
use serde_json::Value;

/// Sums of the device of L0, of L0 and L1, and of all three, from MANIFEST.md.
const EXT4: [&str; 3] = [
    "cb74813c2a7e47c35ad640c24d2bb83c960342989188e89440e6e9ad14d13fa9",
    "a2cbed8b08692468295794111ded9df4b453bb25fb41c9c5f0c155f5bba1ccbf",
    "c05be42ddd17d380d411757a8a44d21dd0a95a73e90b46587550e58b12779fd9",
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/ext4").join(name)
}

/// Runs `image` with `arguments`, by plain HTTP to `host`, and gives up soon.
fn image(host: impl ToString, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ublk-ctl"));
    command.args(["image", "--json", "--set", "registry.limits.max_tries=2"]).args(arguments);
    command.args(["--no-cache", "--plain-http", &format!("http://{}", host.to_string())]);
    command.env_remove("RUST_LOG").env("DOCKER_CONFIG", "/nonexistent").output().unwrap()
}

fn push(host: impl ToString, layer: &str, base: Option<&str>, target: &str) -> Output {
    let layer = fixture(layer);
    let mut arguments = vec!["push", "--layer", layer.to_str().unwrap(), target];
    arguments.extend(base.into_iter().flat_map(|base| ["--base", base]));
    image(host, &arguments)
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The exit code and the message of a failure.
fn failure(output: &Output) -> (Option<i32>, String) {
    let failure: Value = serde_json::from_slice(&output.stderr).unwrap_or_else(|_| panic!("{output:?}"));
    (output.status.code(), failure["error"]["message"].as_str().unwrap().to_owned())
}

fn sum(host: impl ToString, reference: &str) -> Value {
    json(&image(host, &["export", reference, "--sha256"]))["sha256"].clone()
}

fn counts(pushed: &Value) -> [u64; 3] {
    ["uploaded", "mounted", "present"].map(|key| pushed[key].as_u64().unwrap())
}

#[test]
fn layers_that_are_pushed_one_over_the_other_are_the_manifests_stacks() {
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::start(root.path(), &Serving::default());
    let host = registry.address();
    let [v1, v2, v3] = ["base:v1", "base:v2", "app:v3"].map(|name| format!("{host}/team/{name}"));
    let first = json(&push(host, "L0.zt4k", None, &v1));
    assert_eq!(counts(&first), [2, 0, 0]);
    assert_eq!(sum(host, &v1), EXT4[0]);
    assert_eq!(counts(&json(&push(host, "L1.zt4k", Some(&v1), &v2))), [2, 0, 1]);
    assert_eq!(sum(host, &v2), EXT4[1]);

    // Into another repository: the registry takes the base's layers over.
    let third = json(&push(host, "L2.zt4k", Some(&v2), &v3));
    assert_eq!(counts(&third), [2, 2, 0]);
    assert_eq!((sum(host, &v3), third["layers"].as_u64()), (EXT4[2].into(), Some(3)));
    assert_eq!(third["reference"], format!("{v3}@{}", third["digest"].as_str().unwrap()));
    assert_eq!(sum(host, third["reference"].as_str().unwrap()), EXT4[2]);

    // Again: nothing is sent, and it is the same image.
    let again = json(&push(host, "L2.zt4k", Some(&v2), &v3));
    assert_eq!((counts(&again), &again["uploaded_bytes"]), ([0, 0, 4], &Value::from(0)));
    assert_eq!(again["digest"], third["digest"]);
}

#[test]
fn what_is_no_layer_of_a_registry_or_no_base_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::start(root.path(), &Serving::default());
    let host = registry.address();
    let target = format!("{host}/team/app:v1");
    let (code, said) = failure(&push(host, "L2.z4k", None, &target));
    assert!(code == Some(2) && said.contains("ublk-ctl layer commit --tar"), "{code:?} {said}");
    let (code, said) = failure(&push(host, "L2.zt4k", Some(&format!("{host}/team/no:v1")), &target));
    assert!(code == Some(3) && said.contains("team/no"), "{code:?} {said}");
    let pinned = format!("{host}/team/app@sha256:{}", "0".repeat(64));
    assert_eq!(failure(&push(host, "L0.zt4k", None, &pinned)).0, Some(2));
    assert_eq!(failure(&push(host, "none", None, &target)).0, Some(3));
    assert_eq!(failure(&image(host, &["export", &target, "--sha256"])).0, Some(3), "a tag was made");

    // Its layer says what it was made over.
    let bottom = format!("{host}/team/base:v1");
    json(&push(host, "L0.zt4k", None, &bottom));
    let (code, said) = failure(&push(host, "L2.zt4k", Some(&bottom), &target));
    assert!(code == Some(5) && said.contains("ABC00001-1111"), "{code:?} {said}");
    let (code, said) = failure(&push(host, "L1.zt4k", None, &target));
    assert!(code == Some(2) && said.contains("--base"), "{code:?} {said}");
    assert_eq!(failure(&image(host, &["export", &target, "--sha256"])).0, Some(3), "a tag was made");
}

/// Runs `push` of `layer` over `base`, in whatever registries these are.
fn push_between(registries: [&Registry; 2], layer: &str, more: &[&str], base: &str, target: &str) -> Output {
    let [layer, other] = [fixture(layer).display().to_string(), registries[1].address().to_string()];
    let arguments = ["push", "--plain-http", &other, "--layer", &layer, "--base", base, target];
    image(registries[0].address(), &[&arguments, more].concat())
}

#[test]
fn a_base_of_another_registry_is_copied_and_needed_no_more() {
    let roots = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let mut from = Registry::start(roots[0].path(), &Serving::default());
    let to = Registry::start(roots[1].path(), &Serving::default());
    let [v1, v2] = ["v1", "v2"].map(|tag| format!("{}/team/app:{tag}", from.address()));
    json(&push(from.address(), "L0.zt4k", None, &v1));
    json(&push(from.address(), "L1.zt4k", Some(&v1), &v2));
    let target = format!("{}/else/app:v3", to.address());
    let pushed = json(&push_between([&from, &to], "L2.zt4k", &[], &v2, &target));
    assert_eq!((counts(&pushed), pushed["copied"].as_u64()), ([2, 0, 0], Some(2)));
    let sizes = ["L0.zt4k", "L1.zt4k"].map(|name| std::fs::metadata(fixture(name)).unwrap().len());
    assert_eq!(pushed["copied_bytes"], sizes[0] + sizes[1]);
    // Again: all is there.
    let again = json(&push_between([&from, &to], "L2.zt4k", &[], &v2, &target));
    assert_eq!((counts(&again), again["copied"].as_u64()), ([0, 0, 4], Some(0)));
    assert_eq!(again["digest"], pushed["digest"]);
    from.stop();
    assert_eq!(sum(to.address(), &target), EXT4[2]);
}

#[test]
fn of_a_base_for_several_platforms_one_gets_the_layer() {
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    let roots = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let [from, to] = roots.each_ref().map(|root| Registry::start(root.path(), &Serving::default()));
    let layer = fixture("L0.zt4k");
    let manifests = ["amd64", "s390x"].map(|architecture| {
        let target = format!("{}/team/base:{architecture}", from.address());
        let platform = format!("linux/{architecture}");
        let arguments = ["push", "--layer", layer.to_str().unwrap(), "--platform", &platform, &target];
        let pushed = json(&image(from.address(), &arguments));
        let platform = serde_json::json!({"os": "linux", "architecture": architecture});
        serde_json::json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": pushed["digest"],
            "size": document(&target).len(), "platform": platform,
        })
    });
    let index = serde_json::json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
    push_document(from.address(), "team/base", "all", INDEX, &index.to_string());

    let base = format!("{}/team/base:all", from.address());
    let target = format!("{}/team/app:v1", to.address());
    let over =
        |platform: &str| push_between([&from, &to], "L1.zt4k", &["--platform", platform], &base, &target);
    let pushed = json(&over("linux/s390x"));
    assert_eq!((&pushed["platform"], pushed["copied"].as_u64()), (&Value::from("linux/s390x"), Some(1)));
    let manifest: Value = serde_json::from_slice(&document(&target)).unwrap();
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 2, "one image, and no index: {manifest}");
    let path = format!("{}/team/app/blobs/{}", to.address(), manifest["config"]["digest"].as_str().unwrap());
    let config: Value = serde_json::from_slice(&fetched(&path)).unwrap();
    assert_eq!(config["architecture"], "s390x");
    assert_eq!(sum(to.address(), &target), EXT4[1]);
    // Whatever lies below, the tag would lose the other images.
    let one = format!("{}/team/base:s390x", from.address());
    for (over, platform) in [(&base, "linux/s390x"), (&one, "linux/s390x")] {
        let onto_all = push_between([&from, &to], "L1.zt4k", &["--platform", platform], over, &base);
        let (code, said) = failure(&onto_all);
        assert!(code == Some(7) && said.contains("images for other platforms"), "{code:?} {said}");
    }
    let (code, said) = failure(&over("linux/mips"));
    assert!(code == Some(2) && said.contains("linux/amd64, linux/s390x"), "{code:?} {said}");
    assert_eq!(over("linux").status.code(), Some(2), "no platform");
    let over_one = push_between([&from, &to], "L1.zt4k", &["--platform", "linux/amd64"], &one, &target);
    let (code, said) = failure(&over_one);
    assert!(
        code == Some(2) && said.contains("is for linux/s390x, and not for linux/amd64"),
        "{code:?} {said}"
    );
}

/// The manifest that a reference names.
fn document(reference: &str) -> Vec<u8> {
    let (name, tag) = reference.rsplit_once(':').unwrap();
    let (host, repository) = name.split_once('/').unwrap();
    fetched(&format!("{host}/{repository}/manifests/{tag}"))
}

/// What a registry has at `HOST/REPOSITORY/...`.
fn fetched(path: &str) -> Vec<u8> {
    let (host, rest) = path.split_once('/').unwrap();
    let accept = "Accept: application/vnd.oci.image.manifest.v1+json";
    let arguments = ["-sSf", "-H", accept, &format!("http://{host}/v2/{rest}")];
    let output = Command::new("curl").args(arguments).output().unwrap();
    assert!(output.status.success(), "{path}: {output:?}");
    output.stdout
}

#[test]
fn a_push_that_breaks_off_leaves_the_tag_where_it_was() {
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::start(root.path(), &Serving::default());
    let host = registry.address();
    let tag = format!("{host}/team/app:latest");
    json(&push(host, "L0.zt4k", None, &tag));
    // The layer has 200 KB.
    let cut = cutting_proxy(host, 100_000);
    let through = format!("{cut}/team/app:latest");
    let (code, said) = failure(&push(cut, "L1.zt4k", Some(&through), &through));
    assert!(code == Some(6) && said.contains("cannot push the blob sha256:"), "{code:?} {said}");
    assert_eq!(sum(host, &tag), EXT4[0]);
    // What had arrived of it is no obstacle.
    json(&push(host, "L1.zt4k", Some(&tag), &tag));
    assert_eq!(sum(host, &tag), EXT4[1]);
}

#[test]
fn a_login_is_needed_and_a_wrong_one_is_said() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path();
    let certificates = secure::Certificates::make(dir);
    let serving = Serving {
        tls: Some((certificates.certificate.clone(), certificates.key.clone())),
        htpasswd: Some(secure::htpasswd(dir)),
    };
    let registry = Registry::start(dir, &serving);
    let host = registry.address().to_string();
    let target = format!("{host}/team/app:v1");
    let (layer, authfile) = (fixture("L0.zt4k"), secure::authfile(dir, &host));
    let [layer, authfile, authority] =
        [&layer, &authfile, &certificates.authority].map(|path| path.to_str().unwrap());
    let ways = ["--ca-file", authority, "--authfile", authfile];
    let push = || image("none.example", &[&["push", "--layer", layer, &target], &ways[..]].concat());
    json(&push());
    let output = image("none.example", &[&["export", &target, "--sha256"], &ways[..]].concat());
    assert_eq!(json(&output)["sha256"], EXT4[0]);

    let known = std::fs::read_to_string(authfile).unwrap();
    std::fs::write(authfile, known.replace(secure::PASSWORD, "hunter2")).unwrap();
    let (code, said) = failure(&push());
    assert!(code == Some(6) && said.contains(&format!("docker login {host}")), "{code:?} {said}");
    assert!(!said.contains("hunter2"), "{said}");
}

/// Passes connections on to `registry`, and breaks each one when the client has sent more than `limit_bytes` by it.
fn cutting_proxy(registry: SocketAddr, limit_bytes: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for client in listener.incoming() {
            let (client, server) = (client.unwrap(), TcpStream::connect(registry).unwrap());
            let (answers, answered) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            thread::spawn(move || pass(answers, answered, usize::MAX));
            thread::spawn(move || pass(client, server, limit_bytes));
        }
    });
    address
}

fn pass(mut from: TcpStream, mut to: TcpStream, limit_bytes: usize) {
    let (mut passed, mut piece) = (0, [0; 16 << 10]);
    while let Ok(count @ 1..) = from.read(&mut piece) {
        passed += count;
        if passed > limit_bytes || to.write_all(&piece[..count]).is_err() {
            break;
        }
    }
    for stream in [from, to] {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

/// Runs one of upstream's tools in `dir`; the authorities of the system are those in `authority`.
fn tool(dir: &Path, authority: Option<&Path>, line: &str) -> Output {
    let mut words = line.split_whitespace();
    let program = dir.join(format!("overlaybd-{}", words.next().unwrap()));
    if !program.exists() {
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_ublk-ctl"), &program).unwrap();
    }
    let mut command = Command::new(program);
    command.args(words).current_dir(dir).env_remove("RUST_LOG").env("DOCKER_CONFIG", "/nonexistent");
    command.envs(authority.map(|file| ("SSL_CERT_FILE", file))).output().unwrap()
}

fn bytes(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    std::fs::File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

/// The digest that a tool has printed where upstream prints it.
fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap().lines().last().unwrap().to_owned()
}

#[test]
fn upstreams_upload_makes_a_blob_of_what_was_made() {
    let root = tempfile::tempdir().unwrap();
    let (dir, registry) = (root.path(), Registry::start(root.path(), &Serving::default()));
    let host = registry.address();
    let url = format!("http://{host}/v2/team/app/blobs/uploads/");
    assert!(tool(dir, None, "create d i 1").status.success());
    let lowers = r#"{"lowers":[],"upper":{"data":"d","index":"i"}}"#;
    std::fs::write(dir.join("config.json"), lowers).unwrap();
    let uuid = "abc00001-1111-2222-3333-000000000001";
    for line in [format!("commit -z --uuid {uuid} d i out"), "merge config.json merged".to_owned()] {
        let (name, made) = (line.split(' ').next().unwrap(), dir.join(line.split(' ').next_back().unwrap()));
        let rest = line.strip_prefix(name).unwrap();
        let digest = printed(&tool(dir, None, &format!("{name} --upload {url} --upload_bs 65536 {rest}")));
        let bytes = bytes(&made);
        assert_eq!(digest, digest_of(&bytes));
        assert!(fetched(&format!("{host}/team/app/blobs/{digest}")) == bytes);
        assert_eq!(bytes[32], 0x13, "a header that was sent is not written once more");
    }
}

#[test]
fn upstreams_upload_logs_in_and_knows_whom_it_talks_to() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path();
    let certificates = secure::Certificates::make(dir);
    let serving = Serving {
        tls: Some((certificates.certificate.clone(), certificates.key.clone())),
        htpasswd: Some(secure::htpasswd(dir)),
    };
    let registry = Registry::start(dir, &serving);
    let host = registry.address().to_string();
    let authfile = secure::authfile(dir, &host);
    assert!(tool(dir, None, "create d i 1").status.success());
    let url = format!("https://{host}/v2/team/app/blobs/uploads/");
    let line = format!("commit -zf --upload {url} --cred_file_path {} d i out", authfile.display());
    let stranger = tool(dir, None, &line);
    let said = String::from_utf8(stranger.stderr).unwrap();
    assert!(stranger.status.code() == Some(255) && said.contains("unknown authority"), "{said}");
    let digest = printed(&tool(dir, Some(&certificates.authority), &line));
    assert_eq!(digest, digest_of(&bytes(&dir.join("out"))));
    let anonymous = format!("commit -zf --upload {url} d i out");
    let refused = tool(dir, Some(&certificates.authority), &anonymous);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!((refused.status.code(), refused.stdout.len()), (Some(255), 0), "{said}");
    assert!(said.contains("failed to commit or upload") && said.contains("401"), "{said}");
}
