//! Debian's docker-registry as a child process, and pushing images of overlaybd layers to it.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use sha2::{Digest, Sha256};

use super::port::{reserved_address, wait_for_server};

/// How the registry is to be served.
#[derive(Debug, Clone, Default)]
pub struct Serving {
    /// Certificate and key, PEM files.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// A file made by `htpasswd -B`.
    pub htpasswd: Option<PathBuf>,
}

/// A running registry; dropping it ends the process and keeps its storage.
pub struct Registry {
    process: Child,
    address: SocketAddr,
}

impl Registry {
    /// Serves the storage in `root`, which may hold images of an earlier one, on a loopback port of its own.
    pub fn start(root: &Path, serving: &Serving) -> Self {
        let address = reserved_address();
        Self::start_at(root, serving, address)
    }

    /// As [`Registry::start`], on a given address, as after a restart.
    pub fn start_at(root: &Path, serving: &Serving, address: SocketAddr) -> Self {
        let mut config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage:\n  filesystem: {{rootdirectory: {root}}}\n  \
             delete: {{enabled: true}}\nhttp:\n  addr: {address}\n",
            root = root.join("storage").display(),
        );
        if let Some((certificate, key)) = &serving.tls {
            config += &format!("  tls: {{certificate: {}, key: {}}}\n", certificate.display(), key.display());
        }
        if let Some(file) = &serving.htpasswd {
            config += &format!("auth:\n  htpasswd: {{realm: test, path: {}}}\n", file.display());
        }
        let path = root.join(format!("registry-{}.yml", address.port()));
        fs::write(&path, config).unwrap();
        let mut process = Command::new("docker-registry")
            .arg("serve")
            .arg(path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed");
        wait_for_server(&mut process, address);
        Self { process, address }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends it a signal, such as `-STOP`.
    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.process.id().to_string()]).status();
        assert!(status.unwrap().success(), "kill {signal}");
    }

    /// Ends the process at once.
    pub fn stop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Pushes `layers`, lowest first, as the image `repository:tag`; the registry must take plain requests without a login.
/// Returns the digest of the manifest.
pub fn push_image(registry: SocketAddr, repository: &str, tag: &str, layers: &[Vec<u8>]) -> String {
    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    let descriptors: Vec<_> = layers
        .iter()
        .map(|layer| {
            let digest = push_blob(registry, repository, layer);
            serde_json::json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": digest,
                "size": layer.len(),
                "annotations": {
                    "containerd.io/snapshot/overlaybd/version": "0.1.0",
                    "containerd.io/snapshot/overlaybd/blob-digest": digest,
                    "containerd.io/snapshot/overlaybd/blob-size": layer.len().to_string(),
                },
            })
        })
        .collect();
    let diff_ids: Vec<_> = descriptors.iter().map(|layer| layer["digest"].clone()).collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
    .to_string();
    let config_digest = push_blob(registry, repository, config.as_bytes());
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest, "size": config.len(),
        },
        "layers": descriptors,
    })
    .to_string();
    push_document(registry, repository, tag, MANIFEST, &manifest)
}

/// Puts a manifest or an index of this media type into the repository, and returns its digest.
pub fn push_document(registry: SocketAddr, repository: &str, tag: &str, kind: &str, text: &str) -> String {
    let path = format!("/v2/{repository}/manifests/{tag}");
    let (status, _) = request(registry, "PUT", &path, Some(kind), text.as_bytes());
    assert_eq!(status, 201, "manifest of {repository}:{tag}");
    digest_of(text.as_bytes())
}

/// `sha256:` and the hex digits of the digest of `bytes`.
pub fn digest_of(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Pushes a blob; returns its digest.
pub fn push_blob(registry: SocketAddr, repository: &str, content: &[u8]) -> String {
    let digest = digest_of(content);
    let (status, location) =
        request(registry, "POST", &format!("/v2/{repository}/blobs/uploads/"), None, b"");
    assert_eq!(status, 202, "upload to {repository}");
    let location = location.expect("an upload has a location");
    let path = match location.split_once("://") {
        Some((_, rest)) => rest[rest.find('/').expect("a path")..].to_owned(),
        None => location,
    };
    let separator = if path.contains('?') { '&' } else { '?' };
    let path = format!("{path}{separator}digest={digest}");
    let (status, _) = request(registry, "PUT", &path, Some("application/octet-stream"), content);
    assert_eq!(status, 201, "blob {digest}");
    digest
}

/// One request on a connection of its own; returns the status and the Location.
fn request(
    registry: SocketAddr,
    method: &str,
    path: &str,
    content_type: Option<&str>,
    body: &[u8],
) -> (u16, Option<String>) {
    let mut stream = TcpStream::connect(registry).unwrap();
    let content_type = content_type.map(|kind| format!("Content-Type: {kind}\r\n")).unwrap_or_default();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {registry}\r\n{content_type}Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    )
    .unwrap();
    stream.write_all(body).unwrap();
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line");
    let mut location = None;
    loop {
        line.clear();
        reader.read_line(&mut line).unwrap();
        if line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("location")
        {
            location = Some(value.trim().to_owned());
        }
    }
    let mut rest = Vec::new();
    let _ = reader.read_to_end(&mut rest);
    (status, location)
}
