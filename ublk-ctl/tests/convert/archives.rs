//! Images in archives, as skopeo and docker write them: each is the image that it was of, and a hostile one is a clear error.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use super::{
    MANIFEST, SMALL, convert, digest_of, exported, failure, gzip, ordinary, push_blob, push_document, raw,
    registry::{Registry, Serving},
    result, skopeo,
};

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// Packs what is in `folder` as an archive, its members in this order.
fn pack(folder: &Path, members: &[&str], archive: &Path) {
    let packed = Command::new("tar").arg("-C").arg(folder).arg("-cf").arg(archive).args(members).output();
    assert!(packed.as_ref().unwrap().status.success(), "{packed:?}");
}

#[test]
fn an_image_is_the_same_in_every_form_that_skopeo_writes() {
    let dir = tempfile::tempdir().unwrap();
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::start(root.path(), &Serving::default());
    let (host, plain) = (registry.address(), registry.address().to_string());
    let image = ordinary(dir.path());
    image.push(host, "team/plain", "v1");
    let source = format!("docker://{host}/team/plain:v1");
    let options = [&SMALL[..], &["--plain-http", &plain, "--oci"]].concat();
    let made = result(&convert(&source, &format!("{host}/team/obd:v1"), &options));
    let layers = |manifest: &Value| manifest["layers"].clone();
    let expected = raw(&format!("docker://{host}/team/obd:v1"));

    let path = |name: &str| dir.path().join(name).display().to_string();
    let saved = format!("docker-archive:{}:team/plain:v1", path("docker.tar"));
    let laid_out = format!("oci-archive:{}:app:v1", path("oci.tar"));
    let folder = format!("oci:{}:app", path("layout"));
    for place in [&saved, &laid_out, &folder] {
        skopeo(&["copy", "--src-tls-verify=false", &source, place]);
    }
    let unnamed =
        [format!("docker-archive:{}", path("docker.tar")), format!("oci-archive:{}", path("oci.tar"))];
    for (number, place) in [&saved, &laid_out, &folder].into_iter().chain(&unnamed).enumerate() {
        let target = format!("oci-archive:{}:made:v1", path(&format!("made-{number}.tar")));
        let again = result(&convert(place, &target, &options));
        assert_eq!(layers(&raw(&target)), layers(&expected), "{place}");
        // Docker's archives have another manifest, and the same configuration here.
        assert_eq!(again["digest"], made["digest"], "{place}");
        let (code, said) = failure(&convert(place, &target, &options));
        assert!(code == Some(7), "{code:?} {said}");
    }
    // The same image is the same archive, and others take it.
    let [one, two] = ["made-0.tar", "made-1.tar"].map(|name| fs::read(dir.path().join(name)).unwrap());
    assert!(one == two);
    let copied = format!("oci:{}:copy", path("copied"));
    skopeo(&["copy", "--preserve-digests", &format!("oci-archive:{}", path("made-0.tar")), &copied]);
    let device = dir.path().join("device");
    exported(&dir.path().join("copied"), &made["digest"], &device);
    for (place, code) in [
        (format!("docker-archive:{}:team/other:v1", path("docker.tar")), 3),
        (format!("oci-archive:{}:other", path("oci.tar")), 3),
        (format!("oci-archive:{}", path("docker.tar")), 3),
        (format!("docker-archive:{}", path("none.tar")), 3),
        (format!("docker-archive:{}", dir.path().display()), 2),
    ] {
        let target = format!("oci-archive:{}", path("never.tar"));
        let (found, said) = failure(&convert(&place, &target, &options));
        assert_eq!(found, Some(code), "{place}: {said}");
        assert!(!dir.path().join("never.tar").exists());
    }
}

/// What `docker save` wrote before it had layouts, with a layer that is a link to another image's, and one that is compressed as other tools
/// have them.
#[test]
fn links_and_compressed_layers_of_dockers_archives_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::start(root.path(), &Serving::default());
    let host = registry.address();
    let image = ordinary(dir.path());
    // Docker's types, so that the archive's manifest is the registry's.
    let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
    manifest["mediaType"] = json!(DOCKER_MANIFEST);
    manifest["config"]["mediaType"] = json!("application/vnd.docker.container.image.v1+json");
    for layer in manifest["layers"].as_array_mut().unwrap() {
        layer["mediaType"] = json!("application/vnd.docker.image.rootfs.diff.tar.gzip");
    }
    for blob in &image.blobs {
        push_blob(host, "team/plain", blob);
    }
    push_document(host, "team/plain", "v1", DOCKER_MANIFEST, &manifest.to_string());
    let plain = host.to_string();
    let options = [&SMALL[..], &["--plain-http", &plain]].concat();
    let to = |name: &str| format!("oci:{}:{name}", dir.path().join("to").display());
    let made = result(&convert(&format!("{host}/team/plain:v1"), &to("registry"), &options));

    let folder = dir.path().join("saved");
    let [lower, upper, config] = &image.blobs[..] else { panic!("two layers and a configuration") };
    for name in ["one", "two"] {
        fs::create_dir_all(folder.join(name)).unwrap();
    }
    fs::write(folder.join("one/real.tar"), gzip(upper, dir.path())).unwrap();
    std::os::unix::fs::symlink("../one/real.tar", folder.join("two/layer.tar")).unwrap();
    fs::write(folder.join("lower.tar.gz"), lower).unwrap();
    fs::write(folder.join("config.json"), config).unwrap();
    let list = json!([
        {"Config": "none.json", "RepoTags": ["other:v1"], "Layers": null},
        {"Config": "config.json", "RepoTags": ["plain:v0", "plain:v1"], "Layers": ["lower.tar.gz", "two/layer.tar"]},
    ]);
    fs::write(folder.join("manifest.json"), list.to_string()).unwrap();
    let archive = dir.path().join("saved.tar");
    pack(&folder, &["two", "lower.tar.gz", "one", "manifest.json", "config.json"], &archive);
    let place = format!("docker-archive:{}", archive.display());
    let again = result(&convert(&format!("{place}:docker.io/library/plain:v1"), &to("saved"), &SMALL));
    assert_eq!((&again["digest"], &again["present"]), (&made["digest"], &json!(2)));
    let (code, said) = failure(&convert(&place, &to("saved"), &SMALL));
    assert!(code == Some(2) && said.contains("other:v1") && said.contains("plain:v1"), "{code:?} {said}");

    // One that is a layout too is taken for that: there the digests are.
    image.lay_out(&folder);
    fs::write(folder.join("manifest.json"), "no list").unwrap();
    let index = fs::read_to_string(folder.join("index.json")).unwrap();
    let named = index.replace(
        "org.opencontainers.image.ref.name\":\"app",
        "io.containerd.image.name\":\"docker.io/library/plain:v1",
    );
    assert_ne!(named, index);
    fs::write(folder.join("index.json"), named).unwrap();
    pack(&folder, &["manifest.json", "blobs", "oci-layout", "index.json"], &archive);
    let both = result(&convert(&format!("{place}:plain:v1"), &to("both"), &SMALL));
    assert_eq!(both["source_digest"], digest_of(&image.manifest));
    assert_eq!(failure(&convert(&format!("{place}:plain:v2"), &to("both"), &SMALL)).0, Some(3));
    assert_eq!(raw(&to("both"))["mediaType"], MANIFEST);
}

/// A header, and a content that may be shorter than it says.
fn member(name: &str, kind: u8, link: &str, size: u64, content: &[u8]) -> Vec<u8> {
    let mut block = vec![0; 512];
    for (at, bytes) in [
        (0, name.as_bytes()),
        (100, b"0000644\0"),
        (124, format!("{size:011o}\0").as_bytes()),
        (148, b"        "),
        (156, &[kind]),
        (157, link.as_bytes()),
        (257, b"ustar\x0000"),
    ] {
        block[at..at + bytes.len()].copy_from_slice(bytes);
    }
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block.extend(content);
    block.resize(block.len().next_multiple_of(512), 0);
    block
}

fn file(name: &str, content: &[u8]) -> Vec<u8> {
    member(name, b'0', "", content.len() as u64, content)
}

#[test]
fn hostile_archives_are_clear_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("hostile.tar");
    let config =
        json!({"os": "linux", "rootfs": {"type": "layers", "diff_ids": [digest_of(b"")]}}).to_string();
    let config = file("config.json", config.as_bytes());
    let list = |layer: &str| {
        let list = json!([{"Config": "config.json", "RepoTags": null, "Layers": [layer]}]);
        file("manifest.json", list.to_string().as_bytes())
    };
    let huge = |name: &str| member(name, b'0', "", 8 << 30, b"[");
    let long = file("manifest.json", &vec![b' '; (4 << 20) + 1]);
    for (parts, said) in [
        (
            vec![list("layer.tar"), config.clone(), member("layer.tar", b'2', "layer.tar", 0, b"")],
            "layer.tar",
        ),
        (vec![list("../layer.tar"), config.clone()], "../layer.tar leads out"),
        (
            vec![list("a/layer.tar"), config.clone(), file("../../etc/passwd", b"")],
            "../../etc/passwd leads out",
        ),
        (vec![list("/etc/passwd"), config.clone()], "/etc/passwd leads out"),
        (vec![list("l"), config.clone(), member("l", b'2', "../../etc/passwd", 0, b"")], "../../etc/passwd"),
        (vec![list("l"), config.clone(), config.clone()], "two members called config.json"),
        (vec![config.clone(), huge("manifest.json")], "manifest.json would end at"),
        (vec![long], "manifest.json: longer than"),
        (vec![list("config.json"), config.clone()], "cannot convert layer 0"),
        (vec![file("manifest.json", b"[]")], "no image"),
        (vec![file("manifest.json", b"{"), config], "manifest.json: malformed"),
    ] {
        fs::write(&path, [parts.concat(), vec![0; 1024]].concat()).unwrap();
        let target = format!("oci-archive:{}", dir.path().join("made.tar").display());
        let (code, message) =
            failure(&convert(&format!("docker-archive:{}", path.display()), &target, &SMALL));
        assert!(matches!(code, Some(3 | 5)), "{code:?} {message}");
        assert!(message.contains(said) && message.contains("hostile.tar"), "{said}: {message}");
        assert!(!dir.path().join("made.tar").exists());
    }
    let packed = gzip(&file("manifest.json", b"[]"), dir.path());
    fs::write(&path, packed).unwrap();
    let (code, message) =
        failure(&convert(&format!("docker-archive:{}", path.display()), "oci:never", &SMALL));
    assert!(code == Some(2) && message.contains("gzip"), "{code:?} {message}");
}
