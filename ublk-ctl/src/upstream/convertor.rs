//! `convertor`: upstream's tool that makes overlaybd images of ordinary ones in a repository, all platforms of each.

use std::{path::PathBuf, sync::Arc};

use clap::Parser;
use convertor::{ConvertOptions, ConvertProgress, Platforms, convert};
use stratabd::{
    format::zfile::BlockFormat,
    offline::default_threads,
    registry::{HostName, ImageReference},
    server::{
        failure::{Failure, FailureClass},
        settings,
    },
};

use super::{refuse, say, truth};
use crate::{cmd::follow_conversion, engine::Engine};

/// Makes the overlaybd form of an ordinary image of a repository, under another tag of it
#[derive(Debug, Parser)]
#[command(name = "convertor")]
pub(super) struct ConvertorTool {
    /// Repository of both images
    #[arg(short, long)]
    repository: String,
    /// Not supported: log in by docker, podman or skopeo
    #[arg(short, long)]
    username: Option<String>,
    /// Speak HTTP without TLS
    #[arg(long)]
    plain: bool,
    /// Without effect
    #[arg(long)]
    verbose: bool,
    /// Tag of the ordinary image
    #[arg(short, long)]
    input_tag: Option<String>,
    /// Digest of the ordinary image
    #[arg(short = 'g', long)]
    input_digest: Option<String>,
    /// Tag of what is made
    #[arg(short, long)]
    output_tag: Option<String>,
    /// Folder for what is made until it is sent; it is made where it is not there
    #[arg(short, long, default_value = "tmp_conv")]
    dir: PathBuf,
    /// Use OCI's media types
    #[arg(long)]
    oci: bool,
    /// File system: ext4
    #[arg(long, default_value = "ext4")]
    fstype: String,
    /// Whether the lowest layer has an empty file system of its own: yes
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true", value_parser = truth)]
    mkfs: bool,
    /// Size of the device in GB
    #[arg(long, default_value_t = 64)]
    vsize: u64,
    /// Not supported
    #[arg(long = "turboOCI", alias = "fastoci")]
    turbo_oci: Option<String>,
    /// Tag of what is made
    #[arg(long)]
    overlaybd: Option<String>,
    /// Not supported
    #[arg(long)]
    db_str: Option<String>,
    /// Not supported
    #[arg(long)]
    db_type: Option<String>,
    /// Without effect: images are made one after another, each with all processors
    #[arg(long)]
    concurrency_limit: Option<i64>,
    /// Without effect
    #[arg(long)]
    disable_sparse: bool,
    /// Not supported
    #[arg(long)]
    referrer: bool,
    /// Not supported: certs.d is read
    #[arg(long)]
    cert_dir: Vec<PathBuf>,
    /// Authority, PEM, that is trusted besides the system's
    #[arg(long)]
    root_ca: Option<PathBuf>,
    /// Not supported: certs.d is read
    #[arg(long)]
    client_cert: Vec<String>,
    /// Not supported
    #[arg(long)]
    insecure: bool,
    /// Not supported
    #[arg(long)]
    reserve: bool,
    /// Not supported
    #[arg(long)]
    no_upload: bool,
    /// Not supported
    #[arg(long)]
    dump_manifest: bool,
}

impl ConvertorTool {
    /// Refuses what would be done otherwise than asked for, and says what to do instead.
    fn check(&self) -> Result<(), Failure> {
        let certs = "the folders of certs.d, or registry.hosts of the settings, name certificates";
        for (is_given, what) in [
            (self.turbo_oci.is_some(), "--turboOCI, --fastoci: use --overlaybd".to_owned()),
            (!self.mkfs, "--mkfs=false: the lowest layer has a file system of its own".to_owned()),
            (self.fstype != "ext4", format!("--fstype {}: use ext4", self.fstype)),
            (
                self.db_str.is_some() || self.db_type.as_ref().is_some_and(|it| !it.is_empty()),
                "--db-str, --db-type: leave them out".to_owned(),
            ),
            (self.referrer, "--referrer: leave it out, and give a tag".to_owned()),
            (self.username.is_some(), "--username: docker login keeps what is asked for".to_owned()),
            (!self.cert_dir.is_empty(), format!("--cert-dir: {certs}")),
            (!self.client_cert.is_empty(), format!("--client-cert: {certs}")),
            (self.insecure, "--insecure: --root-ca names the authority of the registry".to_owned()),
            (self.reserve, "--reserve: what is made has no names".to_owned()),
            (self.no_upload, "--no-upload: ublk-ctl convert writes layouts and archives".to_owned()),
            (self.dump_manifest, "--dump-manifest: ublk-ctl convert writes layouts and archives".to_owned()),
        ] {
            refuse(is_given, &what)?;
        }
        Ok(())
    }

    fn reference(&self, name: &str) -> Result<ImageReference, Failure> {
        let text = format!("{}{name}", self.repository);
        text.parse().map_err(|source| {
            Failure::with_source(FailureClass::Usage, format!("{text:?} is not an image reference"), source)
        })
    }
}

pub(super) fn run(tool: ConvertorTool) -> Result<(), Failure> {
    tool.check()?;
    let missing = |what: &str| Failure::new(FailureClass::Usage, what.to_owned());
    let source = match (&tool.input_tag, &tool.input_digest) {
        (Some(tag), _) => format!(":{tag}"),
        (None, Some(digest)) => format!("@{digest}"),
        (None, None) => return Err(missing("one of input-tag [-i] or input-digest [-g] is required")),
    };
    let tag = tool.overlaybd.as_ref().or(tool.output_tag.as_ref());
    let tag = tag.ok_or_else(|| missing("output-tag is required, you can specify it by [-o|--overlaybd]"))?;
    let (source, target) = (tool.reference(&source)?, tool.reference(&format!(":{tag}"))?);
    let mut config = settings::load(None, None, &[])?;
    if tool.plain {
        let host: HostName = source.registry().parse().map_err(|error| {
            Failure::with_source(FailureClass::Usage, format!("{source}: its host cannot be used"), error)
        })?;
        config.registry.hosts.entry(host).or_default().plain_http = true;
    }
    if let Some(file) = &tool.root_ca {
        config.registry.ca_file.clone_from(file);
    }
    config.cache.enabled = false;
    std::fs::create_dir_all(&tool.dir).map_err(|error| {
        Failure::with_source(FailureClass::Internal, format!("{}: cannot make it", tool.dir.display()), error)
    })?;
    let options = ConvertOptions {
        source: convertor::Place::Registry(source.clone()),
        target: convertor::Place::Registry(target),
        platforms: Platforms::All,
        oci: tool.oci,
        virtual_size_bytes: tool.vsize.saturating_mul(1 << 30),
        format: BlockFormat::default(),
        verity: true,
        threads: default_threads(),
        spool: tool.dir,
    };
    let converted = Engine::for_reading(config)?.run(|service| async move {
        let client = service.factory().client().clone();
        let progress = Arc::new(ConvertProgress::default());
        let converting = convert(&client, &options, &progress);
        follow_conversion("converting", &progress, converting, format!("reading {source}")).await
    })?;
    say(&format!("converted to {}", converted.reference))
}
