//! Where credentials come from: upstream's services and docker's helper programs.

use std::{os::unix::fs::PermissionsExt, path::PathBuf};

use stratabd::registry::{CredentialConfig, Priority, Reason, RegistryConfig, Repository};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixListener,
};

use crate::{
    script::{Server, blob, client, config, partial, pattern, range, reply},
    site::{REPOSITORY, Site},
};

const SIZE: usize = 1000;

/// Wants `u:p`.
async fn registry() -> Server {
    let data = pattern(SIZE);
    Server::start(move |seen, _| match seen.header("authorization") {
        Some("Basic dTpw") => partial(&data, seen),
        _ => reply("401 Unauthorized", &["WWW-Authenticate: Basic realm=\"x\""], b""),
    })
    .await
}

fn auths(server: &Server) -> String {
    let auths = format!(r#"{{"auths":{{"{}/team":{{"auth":"dTpw"}}}}}}"#, server.address);
    format!(r#"{{"traceId":"1","success":true,"data":{auths}}}"#)
}

fn with(server: &Server, credentials: CredentialConfig) -> RegistryConfig {
    RegistryConfig { credentials, ..config(&[server.address]) }
}

async fn read(config: &RegistryConfig, server: &Server) -> Result<(), stratabd::registry::RegistryError> {
    blob(&client(config), server, SIZE).read_range(range(0, 9), Priority::Demand).await.map(drop)
}

#[tokio::test]
async fn the_http_service_is_asked_for_the_blobs_url() {
    let registry = registry().await;
    let answer = auths(&registry);
    let service = Server::start(move |_, _| reply("200 OK", &[], answer.as_bytes())).await;
    let url = format!("http://{}/auth", service.address);
    let config = with(&registry, CredentialConfig::Http { url, timeout_ms: 1000 });
    read(&config, &registry).await.unwrap();
    let asked = service.requests().remove(0).target;
    let digest = crate::script::digest();
    assert_eq!(asked, format!("/auth?remote_url=http://{}/v2/team/app/blobs/{digest}", registry.address));
}

#[tokio::test]
async fn a_service_that_fails_leaves_the_reader_anonymous_and_the_error_says_why() {
    let registry = registry().await;
    for (status, body) in [("500 No", ""), ("200 OK", "{\"success\":false}"), ("200 OK", "hunter2")] {
        let service = Server::start(move |_, _| reply(status, &[], body.as_bytes())).await;
        let url = format!("http://{}/auth", service.address);
        let config = with(&registry, CredentialConfig::Http { url, timeout_ms: 300 });
        let error = read(&config, &registry).await.unwrap_err();
        let Reason::Unauthorized { lookup: Some(lookup), .. } = error.reason() else { panic!("{error:?}") };
        assert!(lookup.to_string().contains(&service.address.to_string()), "{lookup}");
        assert!(!format!("{error:?} {lookup}").contains("hunter2"));
    }
}

#[tokio::test]
async fn the_unix_socket_service_is_asked() {
    let registry = registry().await;
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("cred.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let body = auths(&registry);
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 4096];
        let length = stream.read(&mut request).await.unwrap();
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8_lossy(&request[..length]).into_owned()
    });
    let config = with(&registry, CredentialConfig::Uds { path, timeout_ms: 1000 });
    read(&config, &registry).await.unwrap();
    let request = serving.await.unwrap();
    assert!(request.starts_with("GET /auth?remote_url=http://127.0.0.1:"), "{request}");
}

#[tokio::test]
async fn a_helper_program_is_asked_for_the_host() {
    let registry = registry().await;
    let home = tempfile::tempdir().unwrap();
    let script = home.path().join("docker-credential-fixed");
    let expected = registry.address.to_string();
    let text = format!(
        "#!/bin/sh\nread -r server\n[ \"$server\" = {expected} ] && echo '{{\"Username\":\"u\",\"Secret\":\"p\"}}'\n"
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = home.path().join("config.json");
    std::fs::write(&path, format!(r#"{{"credHelpers":{{"{expected}":"fixed"}}}}"#)).unwrap();
    let helper_dirs = vec![home.path().to_owned()];
    let config = with(&registry, CredentialConfig::Files { paths: vec![path], helper_dirs });
    read(&config, &registry).await.unwrap();
}

#[tokio::test]
async fn a_broken_credential_file_is_named_and_a_missing_one_is_anonymous() {
    let registry = registry().await;
    let home = tempfile::tempdir().unwrap();
    let path: PathBuf = home.path().join("config.json");
    let config =
        with(&registry, CredentialConfig::Files { paths: vec![path.clone()], helper_dirs: Vec::new() });
    let error = read(&config, &registry).await.unwrap_err();
    assert!(matches!(error.reason(), Reason::Unauthorized { lookup: None, .. }), "{error:?}");
    std::fs::write(&path, "{\"auths\": hunter2").unwrap();
    let error = read(&config, &registry).await.unwrap_err();
    let Reason::Unauthorized { lookup: Some(lookup), .. } = error.reason() else { panic!("{error:?}") };
    assert!(
        lookup.to_string().contains("config.json") && !lookup.to_string().contains("hunter2"),
        "{lookup}"
    );
}

#[tokio::test]
async fn the_first_file_that_has_a_login_counts_and_a_broken_one_costs_the_others_nothing() {
    let registry = registry().await;
    let home = tempfile::tempdir().unwrap();
    let host = registry.address;
    let [first, second, missing] = ["auth.json", "config.json", "none"].map(|name| home.path().join(name));
    let paths = vec![missing, first.clone(), second.clone()];
    let config = with(&registry, CredentialConfig::Files { paths, helper_dirs: Vec::new() });
    let of_host = |auth| format!(r#"{{"auths":{{"{host}":{{"auth":"{auth}"}}}}}}"#);
    // The most specific name wins within a file, as containers-auth.json(5) says.
    let of_repository =
        format!(r#"{{"auths":{{"{host}":{{"auth":"eDp5"}},"{host}/team/app":{{"auth":"dTpw"}}}}}}"#);
    for (one, other) in [
        (&of_repository, of_host("eDp5")),
        (&of_host("dTpw"), of_host("eDp5")),
        (&format!(r#"{{"auths":{{"{host}/team/other":{{"auth":"eDp5"}}}}}}"#), of_host("dTpw")),
        (&"{broken".to_owned(), of_host("dTpw")),
        (&format!(r#"{{"credsStore":"not-here",{}"#, &of_host("dTpw")[1..]), of_host("eDp5")),
    ] {
        std::fs::write(&first, one).unwrap();
        std::fs::write(&second, &other).unwrap();
        read(&config, &registry).await.unwrap_or_else(|error| panic!("{one} {other}: {error:?}"));
    }
}

#[tokio::test]
async fn a_wrong_password_is_told_from_none() {
    let registry = registry().await;
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("config.json");
    let config =
        with(&registry, CredentialConfig::Files { paths: vec![path.clone()], helper_dirs: Vec::new() });
    let host = registry.address;
    let none = format!("there is no login for it in {}", path.display());
    let wrong = format!("the login of \"x\" from {} was refused", path.display());
    for (key, words) in
        [(None, &none), (Some("other.example".to_owned()), &none), (Some(host.to_string()), &wrong)]
    {
        if let Some(key) = &key {
            std::fs::write(&path, format!(r#"{{"auths":{{"{key}":{{"auth":"eDpodW50ZXIy"}}}}}}"#)).unwrap();
        }
        let error = read(&config, &registry).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains(words.as_str()), "{key:?}: {text}");
        assert!(
            text.contains(&format!("docker login {host}")) && !format!("{error:?}").contains("hunter2"),
            "{text}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_https_service_is_asked_by_mutual_tls_and_trusts_only_its_own_authority() {
    let site = Site::start();
    let digest = site.push(&pattern(SIZE));
    let service = |identity: bool, ca: bool| CredentialConfig::Https {
        url: format!("https://{}/auth", site.mutual),
        timeout_ms: 5000,
        client_identity: identity.then(|| site.client_identity()),
        server_ca_file: ca.then(|| site.path("ca.pem")),
    };
    for (identity, ca) in [(true, true), (false, true), (true, false)] {
        let mut config = RegistryConfig { credentials: service(identity, ca), ..site.config() };
        config.limits.max_tries = 1;
        let repository = Repository::new(&site.registry.to_string(), REPOSITORY, false).unwrap();
        let blob = client(&config).blob(&repository, digest, SIZE as u64);
        let read = blob.read_range(range(0, 9), Priority::Demand).await;
        assert_eq!(read.is_ok(), identity && ca, "{read:?}");
    }
}
