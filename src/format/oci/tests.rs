//! Tests of the OCI documents: what is recognised, chosen and refused.

use serde_json::{Value, json};

use super::*;

const PREFIX: &str = "containerd.io/snapshot/overlaybd/";

fn digest(digit: char) -> String {
    format!("sha256:{}", digit.to_string().repeat(64))
}

fn native(digit: char) -> Value {
    json!({
        "mediaType": "application/vnd.docker.image.rootfs.diff.tar",
        "digest": digest(digit),
        "size": 1000,
        "annotations": {
            "containerd.io/snapshot/overlaybd/version": "0.1.0",
            "containerd.io/snapshot/overlaybd/blob-digest": digest(digit),
            "containerd.io/snapshot/overlaybd/blob-size": "1000",
        },
    })
}

fn ordinary(digit: char) -> Value {
    json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest(digit), "size": 5})
}

fn annotated(key: &str, value: &str) -> Value {
    let mut layer = native('a');
    layer["annotations"][format!("{PREFIX}{key}")] = json!(value);
    layer
}

fn manifest(layers: Vec<Value>) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest('c'), "size": 2},
        "layers": layers,
    })
}

fn decode(document: &Value) -> Result<Document, OciError> {
    Document::decode(document.to_string().as_bytes())
}

fn layers(entries: Vec<Value>) -> Result<Vec<Layer>, OciError> {
    match decode(&manifest(entries)).unwrap() {
        Document::Manifest(manifest) => manifest.layers(),
        Document::Index(index) => panic!("not an index: {index}"),
    }
}

fn rule(entries: Vec<Value>) -> (usize, LayerRule) {
    match layers(entries) {
        Err(OciError::Layer { number, rule }) => (number, rule),
        other => panic!("a layer should be refused: {other:?}"),
    }
}

#[test]
fn the_layers_of_an_overlaybd_image_are_listed_bottom_first() {
    let found = layers(vec![native('a'), native('b')]).unwrap();
    let names: Vec<_> = found.iter().map(|layer| (layer.digest.to_string(), layer.size_bytes)).collect();
    assert_eq!(names, [(digest('a'), 1000), (digest('b'), 1000)]);
}

#[test]
fn an_ordinary_image_is_refused_with_the_way_to_convert_it() {
    let error = layers(vec![ordinary('a'), ordinary('b')]).unwrap_err();
    assert!(matches!(error, OciError::Ordinary));
    assert!(error.to_string().contains("ublk-ctl convert"), "{error}");
}

#[test]
fn an_ordinary_layer_among_others_is_refused_by_number() {
    assert_eq!(rule(vec![native('a'), ordinary('b')]), (1, LayerRule::Ordinary));
}

#[test]
fn what_is_not_served_yet_is_refused_by_name() {
    let turbo = |error| matches!(error, Err(OciError::Unsupported(Unsupported::TurboOci)));
    assert!(turbo(layers(vec![annotated("version", "0.1.0-turbo.ociv1")])));
    assert!(turbo(layers(vec![annotated("version", "0.1.0-fastoci")])));
    assert!(turbo(layers(vec![annotated("turbo-oci/target-digest", &digest('d'))])));
    assert!(turbo(layers(vec![annotated("fastoci/target-digest", &digest('d'))])));
    let mut document = manifest(vec![native('a')]);
    document["artifactType"] = json!("application/vnd.containerd.overlaybd.turbo.v1+json");
    let Document::Manifest(manifest) = decode(&document).unwrap() else { panic!("a manifest") };
    assert!(turbo(manifest.layers()));
    let accelerated = layers(vec![native('b'), annotated("acceleration-layer", "yes")]);
    assert!(matches!(accelerated, Err(OciError::Unsupported(Unsupported::Acceleration))));
    assert!(accelerated.unwrap_err().to_string().contains("not yet supported"));
}

#[test]
fn annotations_that_contradict_the_descriptor_are_refused() {
    let digest_key = "containerd.io/snapshot/overlaybd/blob-digest";
    let size_key = "containerd.io/snapshot/overlaybd/blob-size";
    let broken = |key, value: &str| rule(vec![native('b'), annotated(key, value)]);
    assert_eq!(broken("blob-digest", &digest('b')), (1, LayerRule::Contradiction { annotation: digest_key }));
    assert_eq!(broken("blob-digest", "sha256:../.."), (1, LayerRule::NotDigest { annotation: digest_key }));
    assert_eq!(broken("blob-size", "999"), (1, LayerRule::Contradiction { annotation: size_key }));
    assert_eq!(broken("blob-size", "1e3"), (1, LayerRule::NotSize { annotation: size_key }));
    assert_eq!(broken("version", "9.0"), (1, LayerRule::Version("9.0".to_owned())));
    let mut foreign = native('a');
    foreign["mediaType"] = json!("application/octet-stream");
    assert_eq!(rule(vec![foreign]), (0, LayerRule::MediaType("application/octet-stream".to_owned())));
}

#[test]
fn a_digest_in_upper_case_is_the_same_digest() {
    let upper = digest('a').to_uppercase().replace("SHA256", "sha256");
    assert_eq!(layers(vec![annotated("blob-digest", &upper)]).unwrap()[0].digest.to_string(), digest('a'));
}

#[test]
fn the_number_of_layers_has_a_limit() {
    assert!(matches!(layers(vec![]), Err(OciError::NoLayers)));
    assert_eq!(layers(vec![native('a'); 255]).unwrap().len(), 255);
    assert!(matches!(layers(vec![native('a'); 256]), Err(OciError::TooManyLayers(256))));
}

fn index(entries: &[(char, Option<&str>, Option<&str>)]) -> Index {
    let describe = |(digit, platform, artifact): &(char, Option<&str>, Option<&str>)| {
        let mut entry =
            json!({"digest": digest(*digit), "size": 5, "annotations": null, "artifactType": artifact});
        if let Some((os, architecture)) = platform.and_then(|name| name.split_once('/')) {
            entry["platform"] = json!({"os": os, "architecture": architecture});
        }
        entry
    };
    let manifests: Vec<Value> = entries.iter().map(describe).collect();
    match decode(&json!({"schemaVersion": 2, "manifests": manifests})).unwrap() {
        Document::Index(index) => index,
        Document::Manifest(_) => panic!("an index"),
    }
}

fn platform(name: &str) -> Platform {
    let mut parts = name.split('/').map(str::to_owned);
    let [os, architecture] = [parts.next().unwrap(), parts.next().unwrap()];
    Platform { os, architecture, variant: parts.next() }
}

#[test]
fn an_index_yields_the_manifest_of_the_platform() {
    let several = index(&[
        ('1', Some("unknown/unknown"), None),
        ('2', Some("linux/arm64"), None),
        ('3', Some("linux/amd64"), None),
    ]);
    let chosen = |name| several.select(&platform(name)).unwrap().digest.to_string();
    assert_eq!(chosen("linux/amd64"), digest('3'));
    assert_eq!(chosen("linux/arm64/v8"), digest('2'));
    let error = several.select(&platform("linux/s390x")).unwrap_err().to_string();
    assert!(error.contains("linux/s390x") && error.contains("linux/arm64, linux/amd64"), "{error}");
}

#[test]
fn of_several_manifests_of_a_platform_overlaybds_own_is_taken() {
    let artifact = Some("application/vnd.containerd.overlaybd.native.v1+json");
    let both = index(&[('1', Some("linux/amd64"), None), ('2', Some("linux/amd64"), artifact)]);
    assert_eq!(both.select(&platform("linux/amd64")).unwrap().digest.to_string(), digest('2'));
}

#[test]
fn a_lone_manifest_without_platform_is_taken() {
    let chosen = index(&[('1', None, None)]).select(&platform("linux/amd64")).unwrap().digest.to_string();
    assert_eq!(chosen, digest('1'));
    assert!(index(&[('1', None, None), ('2', None, None)]).select(&platform("linux/amd64")).is_err());
    assert!(index(&[]).select(&platform("linux/amd64")).is_err());
}

#[test]
fn a_variant_counts_only_where_both_name_one() {
    let [v7, v8, any] = ["linux/arm/v7", "linux/arm/v8", "linux/arm"].map(platform);
    assert!(v7.accepts(&any) && any.accepts(&v7) && v7.accepts(&v7) && !v7.accepts(&v8));
    assert_eq!(v7.to_string(), "linux/arm/v7");
    assert_eq!(Platform::host().os, "linux");
}

#[test]
fn a_document_of_another_kind_is_refused() {
    assert!(matches!(Document::decode(b"{"), Err(OciError::Malformed(_))));
    assert!(matches!(Document::decode(b"[]"), Err(OciError::Malformed(_))));
    assert!(matches!(decode(&json!({"schemaVersion": 1})), Err(OciError::SchemaVersion(1))));
    assert!(matches!(
        decode(&json!({"schemaVersion": 2, "mediaType": "text/plain"})),
        Err(OciError::Kind(_))
    ));
    assert!(matches!(decode(&json!({"schemaVersion": 2})), Err(OciError::Malformed(_))));
    let mut document = manifest(vec![native('a')]);
    document["layers"][0]["digest"] = json!("sha256:../../etc/passwd");
    assert!(matches!(decode(&document), Err(OciError::Malformed(_))));
    document["layers"][0] = json!({"digest": digest('a'), "size": -1});
    assert!(matches!(decode(&document), Err(OciError::Malformed(_))));
    let long = vec![b' '; DOCUMENT_LIMIT_BYTES + 1];
    assert!(matches!(Document::decode(&long), Err(OciError::TooLong(_))));
}

#[test]
fn nesting_cannot_exhaust_the_stack() {
    let deep = format!(r#"{{"schemaVersion": 2, "deep": {}"#, "[".repeat(1 << 20));
    assert!(matches!(Document::decode(deep.as_bytes()), Err(OciError::Malformed(_))));
}
