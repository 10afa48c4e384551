//! Ordinary images in a registry: archives of files as layers.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::registry::{digest_of, push_blob, push_document};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const BLOCK: usize = 512;

/// A tar archive of regular files.
pub fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, content) in files {
        let mut header = [0; BLOCK];
        let mut put =
            |offset: usize, text: &str| header[offset..offset + text.len()].copy_from_slice(text.as_bytes());
        put(0, name);
        put(100, "0000644");
        put(108, "0000000");
        put(116, "0000000");
        put(124, &format!("{:011o}", content.len()));
        put(136, "14524530400");
        put(148, "        ");
        put(156, "0");
        put(257, "ustar");
        put(263, "00");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        archive.extend_from_slice(&header);
        archive.extend_from_slice(content);
        archive.resize(archive.len().next_multiple_of(BLOCK), 0);
    }
    archive.resize(archive.len() + 2 * BLOCK, 0);
    archive
}

/// Pushes an image of these archives, not compressed, the lowest first; returns the digest of its manifest.
pub fn push_ordinary(registry: SocketAddr, repository: &str, tag: &str, archives: &[Vec<u8>]) -> String {
    let entry = |bytes: &[u8], media_type: &str| json!({"mediaType": media_type, "digest": push_blob(registry, repository, bytes), "size": bytes.len()});
    let layers: Vec<Value> = archives.iter().map(|archive| entry(archive, TAR)).collect();
    let diff_ids: Vec<String> = archives.iter().map(|archive| digest_of(archive)).collect();
    let config = json!({
        "os": "linux", "architecture": "amd64", "config": {"Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = entry(config.to_string().as_bytes(), CONFIG);
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
    push_document(registry, repository, tag, MANIFEST, &manifest.to_string())
}
