//! Manifests by tag and digest: verified, bounded, and chosen by platform.

use sha2::{Digest as _, Sha256};
use stratabd::{
    format::oci::{Digest, OciError, Platform},
    registry::{ImageReference, Reason},
};

use crate::script::{Server, client, config, reply};

const MANIFEST: &[u8] =
    br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","layers":[]}"#;
const TYPE: &str = "Content-Type: application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "Content-Type: application/vnd.oci.image.index.v1+json; charset=utf-8";

fn digest(bytes: &[u8]) -> Digest {
    Digest::from_hash(Sha256::digest(bytes).into())
}

fn reference(server: &Server, name: &str) -> ImageReference {
    format!("{}/team/app{name}", server.address).parse().unwrap()
}

fn amd64() -> Platform {
    Platform { os: "linux".into(), architecture: "amd64".into(), variant: None }
}

#[tokio::test]
async fn a_tag_leads_through_an_index_to_the_platforms_manifest() {
    let entry = |digest: Digest, arch: &str| {
        format!(r#"{{"digest":"{digest}","size":1,"platform":{{"os":"linux","architecture":"{arch}"}}}}"#)
    };
    let entries = [entry(digest(b"other"), "arm64"), entry(digest(MANIFEST), "amd64")].join(",");
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{entries}]}}"#);
    let by_digest = format!("/v2/team/app/manifests/{}", digest(MANIFEST));
    let server = Server::start(move |seen, _| match seen.target.as_str() {
        "/v2/team/app/manifests/v1" => reply("200 OK", &[INDEX_TYPE], index.as_bytes()),
        target if target == by_digest => reply("200 OK", &[TYPE], MANIFEST),
        _ => reply("404 Not Found", &[], b""),
    })
    .await;
    let client = client(&config(&[server.address]));
    let found = client.manifest(&reference(&server, ":v1"), &amd64()).await.unwrap();
    assert_eq!((found.digest, found.bytes.as_ref()), (digest(MANIFEST), MANIFEST));
    let accept = server.requests()[0].header("accept").unwrap().to_owned();
    assert!(accept.contains("docker.distribution.manifest.list.v2") && accept.contains("oci.image.index"));
    assert_eq!(server.count(), 2);

    let riscv = Platform { architecture: "riscv64".into(), ..amd64() };
    let error = client.manifest(&reference(&server, ":v1"), &riscv).await.unwrap_err();
    assert!(matches!(error.reason(), Reason::Manifest(OciError::NoPlatform { .. })), "{error:?}");
    let error = client.manifest(&reference(&server, ":v2"), &amd64()).await.unwrap_err();
    assert!(matches!(error.reason(), Reason::NotFound), "{error:?}");
}

#[tokio::test]
async fn a_manifest_that_is_not_its_digest_is_refused() {
    let wrong = digest(b"something else");
    for (name, header) in [
        (format!("@{wrong}"), "X-Nothing: x".into()),
        (":v1".into(), format!("Docker-Content-Digest: {wrong}")),
    ] {
        let server = Server::start(move |_, _| reply("200 OK", &[TYPE, &header], MANIFEST)).await;
        let client = client(&config(&[server.address]));
        let error = client.manifest(&reference(&server, &name), &amd64()).await.unwrap_err();
        let Reason::DigestMismatch { expected, got } = error.reason() else { panic!("{error:?}") };
        assert_eq!((*expected, *got), (wrong, digest(MANIFEST)));
    }
}

#[tokio::test]
async fn documents_that_are_too_large_or_not_what_they_say_are_refused() {
    type Check = fn(&Reason) -> bool;
    let large = vec![b' '; (4 << 20) + 1];
    let cases: [(Vec<u8>, &'static str, Check); 3] = [
        (large, TYPE, |reason| matches!(reason, Reason::ManifestTooLarge { .. })),
        (MANIFEST.to_vec(), INDEX_TYPE, |reason| matches!(reason, Reason::MediaType)),
        (b"<html>".to_vec(), "Content-Type: text/html", |r| matches!(r, Reason::Manifest(_))),
    ];
    for (body, kind, check) in cases {
        let server = Server::start(move |_, _| reply("200 OK", &[kind], &body)).await;
        let client = client(&config(&[server.address]));
        let error = client.manifest(&reference(&server, ":v1"), &amd64()).await.unwrap_err();
        assert!(check(error.reason()), "{error:?}");
        assert_eq!(server.count(), 1);
    }
}
