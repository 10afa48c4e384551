//! Proxies, connections that are reused, and hosts that cannot be reached.

use std::{
    process::{Child, Command},
    time::{Duration, Instant},
};

use stratabd::{
    format::oci::Platform,
    registry::{Client, Fault, HostConfig, Priority, ProxyConfig, Reason, Repository},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
};

use crate::{
    script::{Server, blob, client, config, digest, partial, pattern, range, reply},
    site::{REPOSITORY, Site},
    support::port::{reserved_address, wait_for_server},
};

const SIZE: usize = 10_000;

#[tokio::test]
async fn a_plain_request_goes_through_the_proxy_in_full_with_the_proxys_login() {
    let data = pattern(SIZE);
    let proxy = Server::start(move |seen, _| partial(&data, seen)).await;
    let mut config = config(&[]);
    let plain = HostConfig { plain_http: true, ..HostConfig::default() };
    config.hosts.insert("registry.invalid".parse().unwrap(), plain);
    let http = format!("http://pu:pp@{}", proxy.address);
    config.proxy = ProxyConfig::Explicit { http, https: String::new(), no_proxy: "127.0.0.1".into() };
    let client = client(&config);
    let repository = Repository::new("registry.invalid", "team/app", true).unwrap();
    let blob = client.blob(&repository, digest(), SIZE as u64);
    blob.read_range(range(0, 1), Priority::Demand).await.unwrap();
    let seen = proxy.requests().remove(0);
    assert_eq!(seen.target, format!("http://registry.invalid/v2/team/app/blobs/{}", digest()));
    // pu:pp
    assert_eq!(seen.header("proxy-authorization"), Some("Basic cHU6cHA="));
    assert_eq!(seen.header("host"), Some("registry.invalid"));
}

#[tokio::test]
async fn a_host_in_no_proxy_is_reached_directly() {
    let data = pattern(SIZE);
    let registry = Server::start(move |seen, _| partial(&data, seen)).await;
    let mut config = config(&[registry.address]);
    let http = "http://proxy.invalid:1".to_owned();
    config.proxy = ProxyConfig::Explicit { http, https: String::new(), no_proxy: "127.0.0.1".into() };
    let client = client(&config);
    blob(&client, &registry, SIZE).read_range(range(0, 1), Priority::Demand).await.unwrap();
    assert_eq!(registry.requests()[0].header("proxy-authorization"), None);
}

/// Answers one CONNECT after the other by leading to `target`, whatever name is asked for; sends the heads back.
async fn tunnel(target: std::net::SocketAddr) -> (std::net::SocketAddr, tokio::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (heads, received) = tokio::sync::mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let heads = heads.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(client.read_u8().await.unwrap());
                }
                heads.send(String::from_utf8(head).unwrap()).await.unwrap();
                client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.unwrap();
                let mut server = TcpStream::connect(target).await.unwrap();
                let _ = copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    (address, received)
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_goes_through_a_tunnel_that_sees_only_the_name() {
    let site = Site::start();
    let data = pattern(SIZE);
    let digest = site.push(&data);
    let (proxy, mut heads) = tunnel(site.storage).await;
    let mut config = site.config();
    let trusted = HostConfig { ca_file: Some(site.path("ca.pem")), ..HostConfig::default() };
    // Storage answers without a login; its name is known to the certificate and to no resolver.
    config.hosts.insert("registry.test".parse().unwrap(), trusted);
    let https = format!("http://pu:pp@{proxy}");
    config.proxy = ProxyConfig::Explicit { http: String::new(), https, no_proxy: "127.0.0.1".into() };
    let client = client(&config);
    let repository = Repository::new("registry.test", REPOSITORY, false).unwrap();
    let error = client
        .blob(&repository, digest, SIZE as u64)
        .read_range(range(0, 1), Priority::Demand)
        .await
        .unwrap_err();
    // Storage has no such path, which shows that the request came through.
    assert!(matches!(error.reason(), Reason::NotFound), "{error:?}");
    let head = heads.recv().await.unwrap();
    assert!(head.starts_with("CONNECT registry.test:443 HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("Proxy-Authorization: Basic cHU6cHA="), "{head}");
}

/// A SOCKS5 proxy that leads its first client to `target`, whatever is asked for; sends back what was.
async fn socks(
    target: std::net::SocketAddr,
) -> (std::net::SocketAddr, tokio::sync::oneshot::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (asked, received) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut greeting = [0; 3];
        client.read_exact(&mut greeting).await.unwrap();
        assert_eq!(greeting, [5, 1, 0], "version 5, no login");
        client.write_all(&[5, 0]).await.unwrap();
        let mut head = [0; 5];
        client.read_exact(&mut head).await.unwrap();
        assert_eq!(head[..4], [5, 1, 0, 3], "connect to a name");
        let mut name = vec![0; usize::from(head[4])];
        client.read_exact(&mut name).await.unwrap();
        let port = client.read_u16().await.unwrap();
        asked.send(format!("{}:{port}", String::from_utf8(name).unwrap())).unwrap();
        client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await.unwrap();
        let mut server = TcpStream::connect(target).await.unwrap();
        let _ = copy_bidirectional(&mut client, &mut server).await;
    });
    (address, received)
}

#[tokio::test]
async fn a_socks_proxy_is_asked_for_the_port_of_the_scheme() {
    let data = pattern(SIZE);
    let registry = Server::start(move |seen, _| partial(&data, seen)).await;
    for (host, asked) in
        [("registry.invalid", "registry.invalid:80"), ("registry.invalid:5000", "registry.invalid:5000")]
    {
        let (proxy, received) = socks(registry.address).await;
        let mut config = config(&[]);
        config.hosts.insert(host.parse().unwrap(), HostConfig { plain_http: true, ..HostConfig::default() });
        let http = format!("socks5h://{proxy}");
        config.proxy = ProxyConfig::Explicit { http, https: String::new(), no_proxy: String::new() };
        let client = client(&config);
        let repository = Repository::new(host, "team/app", true).unwrap();
        let blob = client.blob(&repository, digest(), SIZE as u64);
        assert_eq!(blob.read_range(range(5, 9), Priority::Demand).await.unwrap(), pattern(SIZE)[5..9]);
        assert_eq!(received.await.unwrap(), asked);
    }
}

/// Debian's microsocks with a login, `pu` and `pp`.
struct MicroSocks {
    process: Child,
    address: std::net::SocketAddr,
    log: tempfile::NamedTempFile,
}

impl MicroSocks {
    fn start() -> Self {
        let (address, log) = (reserved_address(), tempfile::NamedTempFile::new().unwrap());
        let mut process = Command::new("microsocks")
            .args(["-i", "127.0.0.1", "-p", &address.port().to_string(), "-u", "pu", "-P", "pp"])
            .stderr(log.reopen().unwrap())
            .spawn()
            .expect("microsocks is installed");
        wait_for_server(&mut process, address);
        Self { process, address, log }
    }

    /// Whether it was told to connect to `target`.
    fn was_asked_for(&self, target: &str) -> bool {
        std::fs::read_to_string(self.log.path()).unwrap().contains(&format!("connected to {target}\n"))
    }
}

impl Drop for MicroSocks {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_socks_proxy_wants_its_login_and_resolves_the_names_that_it_is_to() {
    let (site, socks, data) = (Site::start(), MicroSocks::start(), pattern(SIZE));
    let digest = site.push(&data);
    // Where that name leads first, be it IPv6.
    let plain = Server::start_at("localhost:0", move |seen, _| partial(&data, seen)).await;
    let (ip, port) = (plain.address.ip(), plain.address.port());
    let name = format!("localhost:{port}");
    let client_by = |scheme: &str, login: &str| {
        let mut config = site.config();
        config.limits.max_tries = 1;
        config.hosts.insert(name.parse().unwrap(), HostConfig { plain_http: true, ..HostConfig::default() });
        let proxy = format!("{scheme}://{login}@{}", socks.address);
        config.proxy = ProxyConfig::Explicit { http: proxy.clone(), https: proxy, no_proxy: String::new() };
        client(&config)
    };
    let read = async |client: &Client, host: &str, is_plain| {
        let repository = Repository::new(host, REPOSITORY, is_plain).unwrap();
        let blob = client.blob(&repository, digest, SIZE as u64);
        blob.read_range(range(5, 9), Priority::Demand).await
    };
    let registry = site.registry.to_string();
    for (scheme, asked) in [("socks5h", &name), ("socks5", &format!("{ip}:{port}"))] {
        assert!(!socks.was_asked_for(asked), "{scheme}");
        let client = client_by(scheme, "pu:pp");
        assert_eq!(read(&client, &registry, false).await.unwrap(), pattern(SIZE)[5..9], "{scheme}");
        assert_eq!(read(&client, &name, true).await.unwrap(), pattern(SIZE)[5..9], "{scheme}");
        assert!(socks.was_asked_for(&registry) && socks.was_asked_for(asked), "{scheme}");
        let error = read(&client_by(scheme, "pu:no"), &registry, false).await.unwrap_err();
        assert!(matches!(error.reason(), Reason::Connect { .. }), "{error:?}");
        assert!(!format!("{error} {error:?}").contains("pu:no"), "{error:?}");
    }
}

#[tokio::test]
async fn a_proxy_that_refuses_is_named_with_its_answer() {
    for (status, tries) in [(407, 1), (403, 1), (502, 2)] {
        let proxy = Server::start(move |_, _| reply(&format!("{status} No"), &[], b"<p>No</p>")).await;
        let name = proxy.address.to_string();
        let url = format!("http://pu:pp@{name}");
        for plain_http in [false, true] {
            let mut config = config(&[]);
            config.proxy =
                ProxyConfig::Explicit { http: url.clone(), https: url.clone(), no_proxy: String::new() };
            config.limits.max_tries = 2;
            let host = HostConfig { plain_http, ..HostConfig::default() };
            config.hosts.insert("registry.invalid".parse().unwrap(), host);
            let client = client(&config);
            let repository = Repository::new("registry.invalid", "team/app", plain_http).unwrap();
            let before = proxy.count();
            let read = client.blob(&repository, digest(), 10).read_range(range(0, 1), Priority::Demand);
            let error = read.await.unwrap_err();
            let text = error.to_string();
            assert!(text.contains(&name) && text.contains(&status.to_string()), "{text}");
            assert!(!format!("{text} {error:?}").contains("pu:pp"), "{error:?}");
            assert_eq!(proxy.count() - before, tries, "{text}");
        }
    }
}

#[tokio::test]
async fn nobody_listening_is_retried_and_then_a_connection_error() {
    let address = reserved_address();
    let client = client(&config(&[address]));
    let repository = Repository::new(&address.to_string(), "team/app", true).unwrap();
    let blob = client.blob(&repository, digest(), 10);
    let error = blob.read_range(range(0, 1), Priority::Demand).await.unwrap_err();
    assert!(matches!(error.reason(), Reason::Connect { .. }), "{error:?}");
    assert_eq!(client.metrics().retries.get(), 3);
    let counted = blob.metrics();
    assert_eq!((counted.fetches.get(), counted.retries.get(), counted.failures.get()), (1, 3, 1));
}

#[tokio::test]
async fn a_peer_that_accepts_and_never_speaks_tls_is_a_connect_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepting = tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            kept.push(stream);
        }
    });
    let mut config = config(&[]);
    config.limits.connect_timeout_ms = 200;
    config.limits.max_tries = 1;
    let client = client(&config);
    let repository = Repository::new(&address.to_string(), "team/app", false).unwrap();
    let read = client.blob(&repository, digest(), 10).read_range(range(0, 1), Priority::Demand).await;
    let error = read.unwrap_err();
    let limit = Duration::from_millis(200);
    assert!(
        matches!(error.reason(), Reason::Timeout { what: "connection", limit: l } if *l == limit),
        "{error:?}"
    );
    assert!(error.is_timeout());
    accepting.abort();
}

#[tokio::test]
async fn plain_http_is_spoken_only_where_it_is_allowed_and_the_error_says_so() {
    let server = Server::start(|_, _| reply("500 No", &[], b"")).await;
    let client = client(&config(&[]));
    let address = server.address;
    let error = blob(&client, &server, SIZE).read_range(range(0, 1), Priority::Demand).await.unwrap_err();
    assert!(matches!(error.reason(), Reason::PlainHttp { .. }), "{error:?}");
    for form in
        [format!("{address}/v2/a/blobs"), "registry.example/v2/a/blobs".to_owned(), "https://h/a".to_owned()]
    {
        let error = client.repository_of_blob_url(&form).unwrap_err();
        assert_eq!(error.fault(), Fault::Configuration, "{form}: {error:?}");
        assert!(error.to_string().contains("scheme://host/v2/"), "{form}: {error}");
    }
    let error = client.repository_of_blob_url(&format!("http://{address}/v2/a/blobs")).unwrap_err();
    assert!(matches!(error.reason(), Reason::PlainHttp { .. }), "{error:?}");
    assert_eq!(server.count(), 0);
}

#[tokio::test]
async fn a_plain_server_that_is_taken_for_tls_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answering = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
            let _ = stream.read_u8().await;
        }
    });
    let client = client(&config(&[]));
    let reference = format!("{address}/team/app:v1").parse().unwrap();
    let error = client.manifest(&reference, &Platform::host()).await.unwrap_err();
    assert!(matches!(error.reason(), Reason::NotTls { .. }), "{error:?}");
    assert!(error.to_string().contains(&format!("set plain_http for host {address}")), "{error}");
    answering.abort();
}

/// Whoever has just named it waits three seconds; a device that is in use goes on until the deadline.
#[tokio::test]
async fn a_registry_that_cannot_be_reached_is_told_soon_to_who_has_named_it() {
    let nobody = reserved_address();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let hangs_up = listener.local_addr().unwrap();
    let answering = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            // As a server of TLS that reads something else.
            let _ = stream.read(&mut [0; 1024]).await;
        }
    });
    for address in [nobody, hangs_up] {
        let mut config = config(&[address]);
        config.limits.max_tries = u32::MAX;
        config.limits.request_deadline_ms = 60_000;
        config.limits.backoff_max_ms = 100;
        let client = client(&config);
        let reference = format!("{address}/team/app:v1").parse().unwrap();
        let begun = Instant::now();
        let error = client.manifest(&reference, &Platform::host()).await.unwrap_err();
        let is_told = match error.reason() {
            Reason::Connect { .. } => address == nobody,
            Reason::Exchange { .. } => address == hangs_up,
            _ => false,
        };
        assert!(is_told, "{error:?}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        let tries = client.metrics().retries.get();
        assert!(tries > 1, "{tries}");
    }
    answering.abort();
}

#[tokio::test]
async fn one_connection_serves_reads_one_after_the_other() {
    let data = pattern(SIZE);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let upstream = Server::start(move |seen, _| partial(&data, seen)).await;
    let target = upstream.address;
    let (count, mut counted) = tokio::sync::mpsc::unbounded_channel();
    let relaying = tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            count.send(()).unwrap();
            tokio::spawn(async move {
                let mut server = TcpStream::connect(target).await.unwrap();
                let _ = copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    let client = client(&config(&[address]));
    let repository = Repository::new(&address.to_string(), "team/app", true).unwrap();
    let blob = client.blob(&repository, digest(), SIZE as u64);
    for i in 0..10 {
        blob.read_range(range(i, i + 1000), Priority::Demand).await.unwrap();
    }
    assert_eq!(upstream.count(), 10);
    counted.recv().await.unwrap();
    assert!(counted.try_recv().is_err(), "a second connection was made");
    relaying.abort();
}
