//! The index of the overlaybd forms of several images: that of the images themselves, with other manifests.

use serde_json::{Value, json};

use super::{NewDocument, NextImageError, next_image};

const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

impl NewDocument {
    /// The index `source` with `manifests` in place of its own, each beside the entry of `source` for what it was made of, which keeps
    /// what it says of the platform, and its annotations. With `oci` the media type is OCI's, and otherwise the source's.
    ///
    /// # Errors
    /// [`NextImageError`], where the source or an entry is no JSON object.
    pub fn index(source: &[u8], manifests: &[(Value, Self)], oci: bool) -> Result<Self, NextImageError> {
        let mut index: Value = serde_json::from_slice(source).map_err(NextImageError::Config)?;
        let is_docker = index.get("mediaType").and_then(Value::as_str) == Some(DOCKER_INDEX);
        let media_type = if is_docker && !oci { DOCKER_INDEX } else { OCI_INDEX };
        let members = index.as_object_mut().ok_or(NextImageError::Entry)?;
        let entries: Result<Vec<Value>, _> =
            manifests.iter().map(|(entry, manifest)| replaced(entry, manifest)).collect();
        members.insert("schemaVersion".to_owned(), json!(2));
        members.insert("mediaType".to_owned(), Value::from(media_type));
        members.insert("manifests".to_owned(), Value::Array(entries?));
        // It is another one's.
        members.remove("subject");
        let bytes = next_image::json(&index)?;
        Ok(Self { media_type: media_type.to_owned(), digest: next_image::digest_of(&bytes), bytes })
    }
}

/// The entry `source` of an index, for `manifest`.
fn replaced(source: &Value, manifest: &NewDocument) -> Result<Value, NextImageError> {
    let mut entry = source.as_object().cloned().ok_or(NextImageError::Entry)?;
    // Both are about the bytes that it had.
    entry.remove("data");
    entry.remove("urls");
    entry.insert("mediaType".to_owned(), Value::from(manifest.media_type.as_str()));
    entry.insert("digest".to_owned(), Value::from(manifest.digest.to_string()));
    entry.insert("size".to_owned(), Value::from(manifest.bytes.len()));
    Ok(Value::Object(entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_but_the_manifests_stays() {
        let bytes = bytes::Bytes::from_static(b"{}");
        let manifest =
            NewDocument { media_type: "application/x".into(), digest: next_image::digest_of(&bytes), bytes };
        let entry = json!({
            "mediaType": "application/y", "digest": "sha256:0", "size": 9, "data": "e30=",
            "platform": {"os": "linux", "architecture": "arm", "variant": "v7", "os.version": "6", "features": ["x"]},
            "annotations": {"a": "b"},
        });
        let source = json!({
            "schemaVersion": 2, "mediaType": DOCKER_INDEX, "manifests": [entry, entry], "annotations": {"c": "d"},
            "subject": entry,
        });
        let source = source.to_string();
        let index =
            NewDocument::index(source.as_bytes(), &[(entry.clone(), manifest.clone())], false).unwrap();
        let found: Value = serde_json::from_slice(&index.bytes).unwrap();
        let expected = json!({
            "mediaType": "application/x", "digest": manifest.digest.to_string(), "size": 2,
            "platform": entry["platform"], "annotations": {"a": "b"},
        });
        assert_eq!((&found["manifests"], &found["annotations"]), (&json!([expected]), &json!({"c": "d"})));
        assert_eq!((found.get("subject"), index.media_type.as_str()), (None, DOCKER_INDEX));
        let oci = NewDocument::index(source.as_bytes(), &[], true).unwrap();
        assert_eq!(oci.media_type, OCI_INDEX);
        assert!(matches!(NewDocument::index(b"[]", &[], true), Err(NextImageError::Entry)));
    }
}
