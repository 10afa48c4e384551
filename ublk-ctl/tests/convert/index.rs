//! Images for several platforms: those that are chosen become an index, and no index is lost.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::{
    MANIFEST, Ordinary, SMALL, TAR, convert, digest_of, failure, image_for, push_document, raw,
    registry::{Registry, Serving},
    result, skopeo, tar,
};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Images for three architectures, the first two of which have their lower layer in common.
fn images(dir: &std::path::Path) -> [Ordinary; 3] {
    let archive = |name: &str| {
        let folder = dir.join(name);
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join(name), name).unwrap();
        tar(&folder)
    };
    let [shared, one, two, three] = ["shared", "one", "two", "three"].map(archive);
    let image = |architecture, archives: &[&Vec<u8>]| {
        let archives: Vec<Vec<u8>> = archives.iter().map(|archive| (*archive).clone()).collect();
        let layers: Vec<_> = archives.iter().map(|archive| (archive.clone(), TAR.to_owned())).collect();
        image_for(architecture, &layers, &archives)
    };
    // What is the same and lies over something else is not the same layer.
    [image("amd64", &[&shared, &one]), image("arm64", &[&shared, &two]), image("arm", &[&three, &one])]
}

/// Puts them into `repository` as the index `all`, with an attestation and an image for another system; returns its digest.
fn push_index(host: SocketAddr, repository: &str, images: &[Ordinary; 3]) -> String {
    let platforms = [
        json!({"os": "linux", "architecture": "amd64"}),
        json!({"os": "linux", "architecture": "arm64", "variant": "v8", "os.version": "6.1"}),
        json!({"os": "linux", "architecture": "arm", "variant": "v7"}),
    ];
    let entry = |image: &Ordinary, platform: &Value, annotations: Value| {
        json!({
            "mediaType": MANIFEST, "digest": digest_of(&image.manifest), "size": image.manifest.len(), "platform": platform,
            "annotations": annotations,
        })
    };
    let mut entries = Vec::new();
    for (image, platform) in images.iter().zip(&platforms) {
        image.push(host, repository, platform["architecture"].as_str().unwrap());
        entries.push(entry(image, platform, json!({"org.example.note": platform["architecture"]})));
    }
    let unknown = json!({"os": "unknown", "architecture": "unknown"});
    entries
        .insert(1, entry(&images[0], &unknown, json!({"vnd.docker.reference.type": "attestation-manifest"})));
    entries.push(entry(&images[0], &json!({"os": "windows", "architecture": "amd64"}), json!({})));
    let index = json!({
        "schemaVersion": 2, "mediaType": INDEX, "manifests": entries, "annotations": {"org.example.index": "kept"},
    });
    push_document(host, repository, "all", INDEX, &index.to_string())
}

/// Options for a registry at `host`, and more.
fn with<'a>(host: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&SMALL, &["--plain-http", host][..], more].concat()
}

#[test]
fn an_index_becomes_an_index_of_the_same_platforms() {
    let dir = tempfile::tempdir().unwrap();
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::start(root.path(), &Serving::default());
    let host = registry.address();
    let images = images(dir.path());
    let source_digest = push_index(host, "team/plain", &images);
    let [source, target] = ["team/plain:all", "team/obd:all"].map(|name| format!("{host}/{name}"));
    let plain = host.to_string();
    let made = result(&convert(&source, &target, &with(&plain, &["--all-platforms"])));
    assert_eq!(made["source_digest"], source_digest);
    // Six layers in the images, one of which is the same twice.
    assert_eq!((&made["layers"], &made["present"]), (&json!(5), &json!(0)));
    let left_out = made["left_out"].to_string();
    assert!(left_out.contains("attestation-manifest") && left_out.contains("windows/amd64"), "{left_out}");

    let index = raw(&format!("docker://{target}"));
    assert_eq!(index["annotations"], json!({"org.example.index": "kept"}));
    let before = raw(&format!("docker://{source}"));
    let kept = |index: &Value, at: usize| {
        ["platform", "annotations", "mediaType"].map(|key| index["manifests"][at][key].clone())
    };
    assert_eq!(index["manifests"].as_array().unwrap().len(), 3);
    for (now, then) in [(0, 0), (1, 2), (2, 3)] {
        assert_eq!(kept(&index, now), kept(&before, then));
    }
    let manifest = |at: usize| {
        raw(&format!("docker://{host}/team/obd@{}", index["manifests"][at]["digest"].as_str().unwrap()))
    };
    let layer = |image: usize, layer: usize| manifest(image)["layers"][layer]["digest"].clone();
    assert_eq!(layer(0, 0), layer(1, 0), "what is the same is made once");
    assert_ne!(layer(0, 1), layer(2, 1), "what lies over another layer is another one");

    // Each is what it is alone, the platform of the machine is chosen by itself, and a layout has the same.
    let alone = result(&convert(
        &source,
        &format!("{host}/team/obd:one"),
        &with(&plain, &["--platform", "linux/arm64"]),
    ));
    assert_eq!(alone["digest"], index["manifests"][1]["digest"]);
    let folder = dir.path().join("layout");
    let laid_out = format!("oci:{}:plain", folder.display());
    skopeo(&["copy", "--all", "--src-tls-verify=false", &format!("docker://{source}"), &laid_out]);
    let to = format!("oci:{}:obd", dir.path().join("to").display());
    let again = result(&convert(&laid_out, &to, &[&SMALL[..], &["--all-platforms"]].concat()));
    assert_eq!(again["digest"], made["digest"]);
    assert_eq!(raw(&to), index);

    // Some of them.
    let two = ["--platform", "linux/arm64", "--platform", "linux/arm/v7", "--platform", "linux/arm"];
    let some = result(&convert(&source, &format!("{host}/team/obd:some"), &with(&plain, &two)));
    let platforms: Vec<&Value> =
        some["images"].as_array().unwrap().iter().map(|it| &it["platform"]).collect();
    assert_eq!(platforms, ["linux/arm64/v8", "linux/arm/v7"]);
    // All of one are one.
    let one = format!("{host}/team/plain:arm");
    let single = result(&convert(&one, &format!("{host}/team/obd:arm"), &with(&plain, &["--all-platforms"])));
    assert_eq!(single["digest"], index["manifests"][2]["digest"]);
    let (code, said) = failure(&convert(&one, &target, &with(&plain, &two)));
    assert!(code == Some(2) && said.contains("one image"), "{code:?} {said}");
    let (code, said) = failure(&convert(&one, &target, &with(&plain, &["--platform", "linux/amd64"])));
    assert!(code == Some(2) && said.contains("is for linux/arm, and not for linux/amd64"), "{code:?} {said}");
    assert_eq!(failure(&convert(&source, &target, &with(&plain, &["--platform", "linux/mips"]))).0, Some(2));
}

#[test]
fn images_for_other_platforms_are_not_lost() {
    let dir = tempfile::tempdir().unwrap();
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::start(root.path(), &Serving::default());
    let host = registry.address();
    push_index(host, "team/plain", &images(dir.path()));
    let source = format!("{host}/team/plain:all");
    let plain = host.to_string();
    let layout = format!("oci:{}:obd", dir.path().join("to").display());
    for target in [format!("{host}/team/obd:all"), layout] {
        let made = result(&convert(&source, &target, &with(&plain, &["--all-platforms"])));
        let two = ["--platform", "linux/arm64", "--platform", "linux/arm"];
        for fewer in [&[][..], &two[..2], &two] {
            let (code, said) = failure(&convert(&source, &target, &with(&plain, fewer)));
            assert!(code == Some(7) && said.contains("images for other platforms"), "{code:?} {said}");
        }
        let again = result(&convert(&source, &target, &with(&plain, &["--all-platforms"])));
        assert_eq!((&again["digest"], &again["present"]), (&made["digest"], &json!(5)));
    }
}

/// The program under the name of upstream's tool, which converts within a repository.
#[test]
fn upstreams_convertor_makes_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::start(root.path(), &Serving::default());
    let host = registry.address();
    push_index(host, "team/plain", &images(dir.path()));
    let (plain, name) = (host.to_string(), format!("{host}/team/plain"));
    let tool = dir.path().join("convertor");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_ublk-ctl"), &tool).unwrap();
    let run = |more: &[&str]| {
        let mut command = std::process::Command::new(&tool);
        command.args(["-r", &name, "-i", "all", "--plain=true", "--vsize", "1"]).args(more);
        command
            .env_remove("RUST_LOG")
            .env("DOCKER_CONFIG", "/nonexistent")
            .current_dir(dir.path())
            .output()
            .unwrap()
    };
    let made = run(&["-o", "theirs"]);
    assert!(made.status.success(), "{made:?}");
    let ours = ["--vsize", "1GiB", "--plain-http", &plain, "--all-platforms"];
    result(&convert(&format!("{name}:all"), &format!("{name}:ours"), &ours));
    assert_eq!(raw(&format!("docker://{name}:theirs")), raw(&format!("docker://{name}:ours")));
    assert_eq!(std::fs::read_dir(dir.path().join("tmp_conv")).unwrap().count(), 0);
    for refused in ["--turboOCI=x", "--fastoci=x", "--mkfs=false", "--db-str=x", "--referrer", "--no-upload"]
    {
        let said = run(&["-o", "never", refused]);
        let text = String::from_utf8_lossy(&said.stderr).into_owned();
        let flag = refused.split('=').next().unwrap();
        assert!(said.status.code() == Some(1) && text.contains(flag), "{refused}: {said:?}");
    }
}
