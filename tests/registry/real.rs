//! The client against docker's registry and nginx: TLS, logins, redirects to storage, HTTP/2, client certificates.

use std::sync::Arc;

use futures_util::future::join_all;
use stratabd::{
    format::oci::{Digest, Platform},
    registry::{
        BlobContent, BlobOrigin, Client, Fault, HostConfig, ImageReference, LocationError, NewBlob, Priority,
        Reason, RegistryConfig, RegistryError, RemoteBlob, Repository,
    },
};

use crate::{
    script::{Seen, Server, client, partial, pattern, range, reply},
    site::{REPOSITORY, Site},
};

const SIZE: usize = 3 << 20;

fn at(client: &Client, host: impl ToString, digest: Digest) -> RemoteBlob {
    client.blob(&Repository::new(&host.to_string(), REPOSITORY, false).unwrap(), digest, SIZE as u64)
}

async fn read_all(blob: &RemoteBlob) -> Result<Vec<u8>, RegistryError> {
    let unit = 256 << 10;
    let starts = (0..SIZE as u64).step_by(unit);
    let reads = starts.map(|start| blob.read_range(range(start, start + unit as u64), Priority::Demand));
    Ok(join_all(reads).await.into_iter().collect::<Result<Vec<_>, _>>()?.concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_registry_and_its_storage_are_read() {
    let site = Site::start();
    let data = pattern(SIZE);
    let digest = site.push(&data);
    let client = client(&site.config());

    let direct = at(&client, site.registry, digest);
    assert!(read_all(&direct).await.unwrap() == data);
    let found = client.blob_of_unknown_size(
        &Repository::new(&site.registry.to_string(), REPOSITORY, false).unwrap(),
        digest,
    );
    assert_eq!(found.await.unwrap().size_bytes(), SIZE as u64);

    let redirected = at(&client, site.front, digest);
    assert!(read_all(&redirected).await.unwrap() == data);
    let log = site.nginx_log();
    let at_port =
        |port: u16| log.iter().filter(|line| line.starts_with(&port.to_string())).collect::<Vec<_>>();
    // One stranger is refused, one is redirected with the login, and storage sees none of it, by HTTP/2.
    let front = at_port(site.front.port());
    assert_eq!(front.len(), 2, "{front:?}");
    assert!(front[0].contains(" 401 auth=- ") && front[1].contains(" 307 auth=Basic "), "{front:?}");
    let storage = at_port(site.storage.port());
    assert_eq!(storage.len(), 12);
    assert!(storage.iter().all(|line| line.contains("HTTP/2.0 206 auth=- ")), "{storage:?}");

    a_tag_is_resolved(&site, &client).await;
    what_ends_an_upload_is_said_by_http2_too(&site).await;
    trust_is_by_configuration_only(&site, digest).await;
    certificates_of_clients_are_shown(&site, digest).await;
    a_downgrade_is_refused_unless_configured(&site, digest).await;
    a_wrong_password_is_refused(&site, digest).await;
}

async fn what_ends_an_upload_is_said_by_http2_too(site: &Site) {
    let wrong = vec![b'x'; SIZE];
    let source = Server::start(move |seen, _| partial(&wrong, seen)).await;
    let mut config = site.config();
    let plain = HostConfig { plain_http: true, ..HostConfig::default() };
    config.hosts.insert(source.address.to_string().parse().unwrap(), plain);
    let client = client(&config);
    let base = Repository::new(&source.address.to_string(), "team/base", true).unwrap();
    let digest = Digest::from_hash([7; 32]);
    let content = BlobContent::new(client.blob(&base, digest, SIZE as u64), Arc::default());
    let blob = NewBlob { digest, size_bytes: SIZE as u64, origin: BlobOrigin::Blob(content) };
    let target = Repository::new(&site.registry.to_string(), REPOSITORY, false).unwrap();
    let error = client.ensure_blob(&target, blob).await.unwrap_err();
    let Reason::Origin { source: cause } = error.reason() else { panic!("{error:?}") };
    assert!(matches!(cause.reason(), Reason::DigestMismatch { .. }), "{cause:?}");
    let firsts = source.requests().iter().filter_map(Seen::range).filter(|(from, _)| *from == 0).count();
    assert_eq!(firsts, 1, "it was sent once");
}

async fn a_tag_is_resolved(site: &Site, client: &Client) {
    let config = site.push(b"{}");
    let descriptor =
        format!(r#"{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config}","size":2}}"#);
    let document = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{descriptor},"layers":[]}}"#
    );
    site.push_manifest("v1", &document);
    let reference: ImageReference = format!("{}/{REPOSITORY}:v1", site.registry).parse().unwrap();
    let found = client.manifest(&reference, &Platform::host()).await.unwrap();
    assert_eq!(found.bytes, document.as_bytes());
    let pinned: ImageReference = format!("{}/{REPOSITORY}@{}", site.registry, found.digest).parse().unwrap();
    assert_eq!(client.manifest(&pinned, &Platform::host()).await.unwrap().digest, found.digest);
    let missing: ImageReference = format!("{}/{REPOSITORY}:v2", site.registry).parse().unwrap();
    let error = client.manifest(&missing, &Platform::host()).await.unwrap_err();
    assert!(matches!(error.reason(), Reason::NotFound), "{error:?}");
}

async fn first_byte(client: &Client, host: impl ToString, digest: Digest) -> Result<(), RegistryError> {
    at(client, host, digest).read_range(range(0, 1), Priority::Demand).await.map(drop)
}

async fn trust_is_by_configuration_only(site: &Site, digest: Digest) {
    let mut config = site.config();
    let host = site.registry.to_string();
    config.hosts.remove(host.as_str());
    let error = first_byte(&client(&config), &host, digest).await.unwrap_err();
    assert!(matches!(error.reason(), Reason::UnknownAuthority { .. }), "{error:?}");
    assert_eq!(error.fault(), Fault::Configuration);
    assert!(error.to_string().contains("set ca_file for host"), "{error}");

    // `localhost` is not in the certificate.
    let name = format!("localhost:{}", site.registry.port());
    let trusted = HostConfig { ca_file: Some(site.path("ca.pem")), ..HostConfig::default() };
    config.hosts.insert(name.parse().unwrap(), trusted);
    let error = first_byte(&client(&config), &name, digest).await.unwrap_err();
    assert!(matches!(error.reason(), Reason::Certificate { .. }), "{error:?}");

    config.hosts.insert(host.parse().unwrap(), HostConfig { skip_verify: true, ..HostConfig::default() });
    first_byte(&client(&config), &host, digest).await.unwrap();

    config.hosts.insert(
        host.parse().unwrap(),
        HostConfig { ca_file: Some(site.path("missing.pem")), ..HostConfig::default() },
    );
    let refused = Client::new(&config, tokio::runtime::Handle::current()).unwrap_err();
    assert!(refused.to_string().contains("missing.pem"), "{refused}");
}

async fn certificates_of_clients_are_shown(site: &Site, digest: Digest) {
    let mut config = site.config();
    config.limits.max_tries = 2;
    let error = first_byte(&client(&config), site.mutual, digest).await.unwrap_err();
    assert!(matches!(error.reason(), Reason::Status { status: 400, .. }), "{error:?}");
    config.client_identity = Some(site.client_identity());
    first_byte(&client(&config), site.mutual, digest).await.unwrap();

    // A host that a registry has led to gets its own certificate and not the one for registries.
    let target = format!("https://{}/v2/{REPOSITORY}/blobs/{digest}", site.mutual);
    let location = format!("Location: {target}");
    let leading = Server::start(move |_, _| reply("307 Temporary Redirect", &[&location], b"")).await;
    let plain = HostConfig { plain_http: true, ..HostConfig::default() };
    config.hosts.insert(leading.address.to_string().parse().unwrap(), plain);
    let read = |config: &RegistryConfig| {
        let repository = Repository::new(&leading.address.to_string(), REPOSITORY, true).unwrap();
        client(config).blob(&repository, digest, SIZE as u64).read_range(range(0, 1), Priority::Demand)
    };
    let error = read(&config).await.unwrap_err();
    assert!(matches!(error.reason(), Reason::Status { status: 400, .. }), "{error:?}");
    config.hosts.get_mut(site.mutual.to_string().as_str()).unwrap().client_identity =
        Some(site.client_identity());
    read(&config).await.unwrap();
}

async fn a_downgrade_is_refused_unless_configured(site: &Site, digest: Digest) {
    let mut config = site.config();
    let error = first_byte(&client(&config), site.downgrade, digest).await.unwrap_err();
    assert!(matches!(error.reason(), Reason::Location(LocationError::Downgrade { .. })), "{error:?}");
    assert!(!format!("{error:?}").contains("sig="), "{error:?}");
    let plain = HostConfig { plain_http: true, ..HostConfig::default() };
    config.hosts.insert(site.plain.to_string().parse().unwrap(), plain);
    first_byte(&client(&config), site.downgrade, digest).await.unwrap();
}

async fn a_wrong_password_is_refused(site: &Site, digest: Digest) {
    let config = site.config();
    let login = format!(r#"{{"auths":{{"{}":{{"username":"user","password":"hunter2"}}}}}}"#, site.registry);
    std::fs::write(site.path("config.json"), login).unwrap();
    let error = first_byte(&client(&config), site.registry, digest).await.unwrap_err();
    assert!(matches!(error.reason(), Reason::Unauthorized { .. }), "{error:?}");
    assert!(!format!("{error} {error:?}").contains("hunter2"));
}
