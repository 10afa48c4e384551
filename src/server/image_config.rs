//! Upstream's image configuration, `config.v1.json`: which layers make the image and where they lie.
//!
//! Reading it is a function of bytes; [`crate::server::factory`] looks for the files. Keys of functions that this
//! version does not have are refused by name, since serving the image without them would serve other bytes.

use std::{path::PathBuf, sync::Arc};

use super::document::{self, DocumentError, ObjectNode};
pub use crate::format::lsmt::LAYER_COUNT_LIMIT as MAX_LAYERS;
use crate::format::{
    oci::{Digest, DigestError},
    verity::{Verity, VerityError},
};

/// Keys that the top of the document may have.
const KEYS: [&str; 7] =
    ["repoBlobUrl", "lowers", "upper", "resultFile", "download", "accelerationLayer", "recordTracePath"];

/// Keys that one of `lowers` may have.
const LOWER_KEYS: [&str; 9] =
    ["file", "dir", "digest", "size", "targetFile", "targetDigest", "gzipIndex", SNAPSHOT_KEY, VERITY_KEY];

/// The key by which the daemon knows the layers again that snapshots of the device have made. Upstream passes over it.
pub const SNAPSHOT_KEY: &str = "snapshot";

/// The key of what the annotation of the same name says of the Merkle tree in a blob. Upstream passes over it.
pub const VERITY_KEY: &str = "verity";

/// An image configuration that this version can serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageConfig {
    /// What it is called in messages.
    pub file: Arc<str>,
    /// `scheme://host/v2/<repository>/blobs`, for layers that are not on this machine.
    pub repo_blob_url: Option<String>,
    /// The layers, lowest first; at least one where there is no upper.
    pub lowers: Vec<Lower>,
    /// The writable layer over them.
    pub upper: Option<UpperFiles>,
    /// What was read and has no effect, for the log.
    pub notes: Vec<String>,
}

/// One layer. At least one of `file`, `dir` and `digest` is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lower {
    /// A local file, taken where it exists.
    pub file: Option<PathBuf>,
    /// A directory that may hold a local copy.
    pub dir: Option<PathBuf>,
    /// Digest of the blob.
    pub digest: Option<Digest>,
    /// Size of the blob in bytes.
    pub size_bytes: Option<u64>,
    /// What proves parts of the blob, where it has a Merkle tree.
    pub verity: Option<Verity>,
    /// Whether a snapshot of the device has made it, so that others of its kind may be merged with it.
    pub snapshot: bool,
}

/// The files of the layer that is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpperFiles {
    /// Its data file.
    pub data: PathBuf,
    /// Its index file. A sparse layer names one too.
    pub index: PathBuf,
}

/// Where a layer's bytes are, in the order in which upstream looks.
const LOCAL_NAMES: [&str; 3] = ["overlaybd.commit", ".commit", "overlaybd.sealed"];

impl Lower {
    /// Local paths that may hold the layer, first choice first. An empty `dir` names no directory: the root of the
    /// file system is not searched.
    pub fn local_candidates(&self) -> impl Iterator<Item = PathBuf> {
        let in_dir = self.dir.iter().flat_map(|dir| LOCAL_NAMES.iter().map(|name| dir.join(name)));
        self.file.iter().cloned().chain(in_dir)
    }
}

impl ImageConfig {
    /// Reads `bytes` of the file called `file` in messages.
    ///
    /// # Errors
    /// The first key that has a wrong type, a value of no use, or asks for what this version does not have.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self, DocumentError> {
        let file: Arc<str> = file.into();
        let value = document::parse(&file, bytes)?;
        let root = ObjectNode::new(&file, String::new(), &value)?;
        let mut notes: Vec<String> = root
            .others(&KEYS)
            .into_iter()
            .map(|pointer| format!("{pointer} is unknown and ignored"))
            .collect();
        refuse_functions(&root)?;
        let upper = read_upper(&root, &mut notes)?;
        let repo_blob_url = root.text("repoBlobUrl")?.map(str::to_owned);
        let lowers = root.objects("lowers")?;
        if lowers.is_empty() && upper.is_none() {
            return Err(root.invalid("lowers", "the image has no layer"));
        }
        // The writable layer over them is none of them, as upstream counts.
        let count = lowers.len();
        if count > MAX_LAYERS {
            let rule = format!("{count} layers are more than the format's {MAX_LAYERS}");
            return Err(root.invalid("lowers", rule));
        }
        let lowers = lowers.iter().map(|node| read_lower(node, &mut notes)).collect::<Result<Vec<_>, _>>()?;
        root.path("resultFile")?;
        Ok(Self { repo_blob_url, lowers, upper, notes, file: Arc::clone(&file) })
    }

    /// All paths of layers.
    pub fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let lowers =
            self.lowers.iter_mut().flat_map(|lower| lower.file.iter_mut().chain(lower.dir.iter_mut()));
        lowers.chain(self.upper.iter_mut().flat_map(|upper| [&mut upper.data, &mut upper.index]))
    }

    /// Where upstream's snapshotter wants to read how it went, also in a configuration that is refused otherwise.
    #[must_use]
    pub fn result_file(bytes: &[u8]) -> Option<PathBuf> {
        let file: Arc<str> = "".into();
        let value = document::parse(&file, bytes).ok()?;
        ObjectNode::new(&file, String::new(), &value).ok()?.path("resultFile").ok()?
    }
}

fn refuse_functions(root: &ObjectNode<'_>) -> Result<(), DocumentError> {
    if root.flag("accelerationLayer")? == Some(true) {
        return Err(root.unsupported("accelerationLayer", "acceleration layers"));
    }
    if root.text("recordTracePath")?.is_some() {
        return Err(root.unsupported("recordTracePath", "recording a trace"));
    }
    if let Some(download) = root.object("download")? {
        for key in ["delay", "delayExtra", "maxMBps", "tryCnt", "blockSize"] {
            download.number(key)?;
        }
        if download.flag("enable")? == Some(true) {
            return Err(download.unsupported("enable", "background download"));
        }
    }
    Ok(())
}

/// An image is writable upstream when both `data` and `index` are there, and read-only when one is missing.
fn read_upper(root: &ObjectNode<'_>, notes: &mut Vec<String>) -> Result<Option<UpperFiles>, DocumentError> {
    let Some(upper) = root.object("upper")? else { return Ok(None) };
    for key in ["target", "gzipIndex"] {
        if upper.text(key)?.is_some() {
            return Err(upper.unsupported(key, "writable TurboOCI layers"));
        }
    }
    // Upstream's snapshotter writes vsize, and nobody reads it: the files have the size.
    notes.extend(
        upper
            .others(&["data", "index", "target", "gzipIndex", "vsize"])
            .into_iter()
            .map(|key| format!("{key} is unknown and ignored")),
    );
    match (upper.path("data")?, upper.path("index")?) {
        (Some(data), Some(index)) => Ok(Some(UpperFiles { data, index })),
        (None, None) => Ok(None),
        _ => {
            notes.push("/upper needs both data and index: the image is read-only".to_owned());
            Ok(None)
        }
    }
}

fn read_lower(node: &ObjectNode<'_>, notes: &mut Vec<String>) -> Result<Lower, DocumentError> {
    notes.extend(node.others(&LOWER_KEYS).into_iter().map(|key| format!("{key} is unknown and ignored")));
    for key in ["targetFile", "targetDigest", "gzipIndex"] {
        if node.text(key)?.is_some() {
            return Err(node.unsupported(key, "TurboOCI layers"));
        }
    }
    let parse =
        |text: &str| text.parse().map_err(|error: DigestError| node.invalid("digest", error.to_string()));
    let digest = node.text("digest")?.map(parse).transpose()?;
    let proof =
        |text: &str| text.parse().map_err(|error: VerityError| node.invalid(VERITY_KEY, error.to_string()));
    let lower = Lower {
        file: node.path("file")?,
        dir: node.path("dir")?,
        digest,
        size_bytes: node.count("size")?,
        verity: node.text(VERITY_KEY)?.map(proof).transpose()?,
        snapshot: node.flag(SNAPSHOT_KEY)? == Some(true),
    };
    if lower.file.is_none() && lower.dir.is_none() && lower.digest.is_none() {
        return Err(node.invalid("file", "a layer needs a file, a dir or a digest"));
    }
    Ok(lower)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ImageConfig, String> {
        ImageConfig::parse("c.json", text.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn what_the_snapshotter_writes_is_read() {
        let digest = format!("sha256:{}", "a1".repeat(32));
        let text = format!(
            r#"{{"repoBlobUrl":"https://r/v2/app/blobs","lowers":[{{"digest":"{digest}","size":7,"dir":"/s/1/fs"}},
                {{"file":"/s/2/layer"}}],"upper":{{}},"resultFile":"/s/3/init-debug.log","download":{{"enable":false}}}}"#
        );
        let config = parse(&text).unwrap();
        assert_eq!(config.repo_blob_url.as_deref(), Some("https://r/v2/app/blobs"));
        assert_eq!(config.lowers[0].digest.unwrap().to_string(), digest);
        assert_eq!(config.lowers[0].size_bytes, Some(7));
        assert_eq!(ImageConfig::result_file(text.as_bytes()), Some("/s/3/init-debug.log".into()));
        let found: Vec<_> = config.lowers[0].local_candidates().collect();
        let expected =
            ["overlaybd.commit", ".commit", "overlaybd.sealed"].map(|n| PathBuf::from("/s/1/fs").join(n));
        assert_eq!(found, expected);
        assert!(config.notes.is_empty());
    }

    #[test]
    fn what_proves_a_layer_is_read_and_never_passed_over() {
        let digest = format!("sha256:{}", "a1".repeat(32));
        let lower = |verity: &str| {
            parse(&format!(
                r#"{{"repoBlobUrl":"https://r/v2/a/blobs","lowers":[{{"digest":"{digest}","verity":{verity}}}]}}"#
            ))
        };
        let text = format!("{digest};4096;8192");
        let config = lower(&format!("{text:?}")).unwrap();
        assert_eq!((config.lowers[0].verity.unwrap().to_string(), config.notes.len()), (text, 0));
        for wrong in ["\"none\"", "7", "true"] {
            let refused = lower(wrong).unwrap_err();
            assert!(refused.contains("/lowers/0/verity"), "{refused}");
        }
    }

    #[test]
    fn an_empty_dir_searches_no_directory() {
        let config = parse(r#"{"lowers":[{"file":"/a","dir":""}]}"#).unwrap();
        assert_eq!(config.lowers[0].local_candidates().collect::<Vec<_>>(), [PathBuf::from("/a")]);
    }

    #[test]
    fn half_an_upper_is_read_only_and_said_so() {
        let config = parse(r#"{"lowers":[{"file":"/a"}],"upper":{"data":"/d","vsize":64},"x":1}"#).unwrap();
        assert_eq!(config.notes.len(), 2, "{:?}", config.notes);
    }

    #[test]
    fn an_upper_may_lie_over_layers_or_alone() {
        let upper = UpperFiles { data: "/d".into(), index: "/i".into() };
        for lowers in ["", r#""lowers":[],"#, r#""lowers":[{"file":"/a"}],"#] {
            let config =
                parse(&format!(r#"{{{lowers}"upper":{{"data":"/d","index":"/i","vsize":64}}}}"#)).unwrap();
            assert_eq!((config.upper.as_ref(), config.notes.len()), (Some(&upper), 0), "{lowers}");
        }
        let over = |count| {
            let lowers = vec![r#"{"file":"/a"}"#; count].join(",");
            parse(&format!(r#"{{"lowers":[{lowers}],"upper":{{"data":"/d","index":"/i"}}}}"#))
        };
        assert_eq!(over(255).unwrap().lowers.len(), 255);
        assert!(over(256).unwrap_err().contains("256 layers"));
    }

    #[test]
    fn what_is_wrong_or_missing_is_named_by_its_pointer() {
        let ok = r#""lowers":[{"file":"/a"}]"#;
        for (text, part) in [
            ("".to_owned(), "c.json: not JSON"),
            ("[]".to_owned(), "c.json: /: expected an object, found an array"),
            ("{}".to_owned(), "/lowers: the image has no layer"),
            (r#"{"lowers":[]}"#.to_owned(), "/lowers: the image has no layer"),
            (r#"{"lowers":{}}"#.to_owned(), "/lowers: expected an array, found an object"),
            (r#"{"lowers":[1]}"#.to_owned(), "/lowers/0: expected an object"),
            (r#"{"lowers":[{"file":"/a"},{}]}"#.to_owned(), "/lowers/1/file: a layer needs"),
            (
                r#"{"lowers":[{"file":true}]}"#.to_owned(),
                "/lowers/0/file: expected a string, found a boolean",
            ),
            (r#"{"lowers":[{"file":"a\u0000b"}]}"#.to_owned(), "/lowers/0/file: holds a NUL"),
            (r#"{"lowers":[{"digest":"sha256:XY"}]}"#.to_owned(), "/lowers/0/digest: a digest is `sha256:`"),
            (
                r#"{"lowers":[{"file":"a","size":-1}]}"#.to_owned(),
                "/lowers/0/size: expected a whole number of at least 0, found a negative",
            ),
            (r#"{"lowers":[{"file":"a","size":1.5}]}"#.to_owned(), "found a fraction"),
            (
                r#"{"lowers":[{"file":"a","targetFile":"t"}]}"#.to_owned(),
                "/lowers/0/targetFile: not yet supported",
            ),
            (
                r#"{"lowers":[{"file":"a","targetDigest":"t"}]}"#.to_owned(),
                "/lowers/0/targetDigest: not yet supported",
            ),
            (
                r#"{"lowers":[{"file":"a","gzipIndex":"t"}]}"#.to_owned(),
                "/lowers/0/gzipIndex: not yet supported",
            ),
            (format!(r#"{{{ok},"upper":{{"target":"t"}}}}"#), "/upper/target: not yet supported"),
            (format!(r#"{{{ok},"upper":[]}}"#), "/upper: expected an object"),
            (format!(r#"{{{ok},"accelerationLayer":true}}"#), "/accelerationLayer: not yet supported"),
            (format!(r#"{{{ok},"accelerationLayer":"yes"}}"#), "/accelerationLayer: expected true or false"),
            (format!(r#"{{{ok},"recordTracePath":"/t"}}"#), "/recordTracePath: not yet supported"),
            (format!(r#"{{{ok},"download":{{"enable":true}}}}"#), "/download/enable: not yet supported"),
            (
                format!(r#"{{{ok},"download":{{"delay":"1"}}}}"#),
                "/download/delay: expected a whole number, found a string",
            ),
            (format!(r#"{{{ok},"resultFile":null}}"#), "/resultFile: expected a string, found null"),
        ] {
            let error = parse(&text).expect_err(&text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_layer_past_the_limit_is_refused() {
        let lowers = |count| format!(r#"{{"lowers":[{}]}}"#, vec![r#"{"file":"/a"}"#; count].join(","));
        assert_eq!(parse(&lowers(255)).unwrap().lowers.len(), 255);
        assert!(parse(&lowers(256)).unwrap_err().contains("256 layers"));
    }

    #[test]
    fn a_document_of_any_size_or_depth_is_refused_without_harm() {
        assert!(parse(&" ".repeat(document::MAX_DOCUMENT_BYTES + 1)).unwrap_err().contains("more than"));
        assert!(parse(&"[".repeat(100_000)).unwrap_err().contains("not JSON"));
    }
}
