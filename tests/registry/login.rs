//! Challenges and tokens: asked for once, kept until they expire, renewed when refused, and never for too long.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use stratabd::registry::{CredentialConfig, Fault, Priority, Reason, RegistryConfig};

use crate::script::{Seen, Server, Step, blob, client, config, partial, pattern, range, reply};

const SIZE: usize = 100_000;

/// A registry that wants the token that its token server, at the same address, gave out last.
struct TokenRegistry {
    server: Server,
    /// Number of the token that is valid now.
    valid: Arc<AtomicUsize>,
    _home: tempfile::TempDir,
    config: RegistryConfig,
    config_file: PathBuf,
}

async fn token_registry(expires_in: u64, user: &'static str) -> TokenRegistry {
    let data = pattern(SIZE);
    let valid = Arc::new(AtomicUsize::new(0));
    let current = valid.clone();
    let server = Server::start(move |seen, _| {
        if seen.target.starts_with("/token") {
            return token(seen, expires_in, &current);
        }
        let wanted = format!("Bearer t{}", current.load(Ordering::SeqCst));
        if seen.header("authorization") == Some(&wanted) {
            return partial(&data, seen);
        }
        let host = seen.header("host").unwrap();
        let challenge = format!(
            r#"WWW-Authenticate: Bearer realm="http://{host}/token",service="reg, the",scope="repository:team/app:pull""#
        );
        reply("401 Unauthorized", &[&challenge], b"")
    })
    .await;
    let home = tempfile::tempdir().unwrap();
    let config_file = home.path().join("config.json");
    write_login(&config_file, &server, user);
    let mut config = config(&[server.address]);
    config.credentials =
        CredentialConfig::Files { paths: vec![config_file.clone()], helper_dirs: Vec::new() };
    TokenRegistry { server, valid, _home: home, config, config_file }
}

fn write_login(path: &PathBuf, server: &Server, user: &str) {
    let login = format!(r#"{{"auths":{{"{}":{{"username":"{user}","password":"p"}}}}}}"#, server.address);
    std::fs::write(path, login).unwrap();
}

fn token(seen: &Seen, expires_in: u64, current: &AtomicUsize) -> Step {
    assert_eq!(seen.target, "/token?service=reg%2C+the&scope=repository%3Ateam%2Fapp%3Apull");
    // u:p
    if seen.header("authorization") != Some("Basic dTpw") {
        return reply("401 Unauthorized", &[], b"");
    }
    let number = current.fetch_add(1, Ordering::SeqCst) + 1;
    let body = format!(r#"{{"token":"t{number}","expires_in":{expires_in}}}"#);
    Step { delay: Duration::from_millis(30), ..reply("200 OK", &[], body.as_bytes()) }
}

fn tokens_asked_for(server: &Server) -> usize {
    server.requests().iter().filter(|seen| seen.target.starts_with("/token")).count()
}

#[tokio::test]
async fn one_token_serves_all_readers_of_a_repository() {
    let registry = token_registry(300, "u").await;
    let client = client(&registry.config);
    let blobs: Vec<_> = (0..10).map(|_| blob(&client, &registry.server, SIZE)).collect();
    let reads = blobs
        .iter()
        .flat_map(|blob| (0..5u64).map(|i| blob.read_range(range(i * 10, i * 10 + 10), Priority::Demand)));
    for read in join_all(reads).await {
        read.unwrap();
    }
    // One challenge, one token, and each of the 50 reads.
    assert_eq!((tokens_asked_for(&registry.server), registry.server.count()), (1, 52));
    assert_eq!(client.metrics().token_fetches.get(), 1);
}

#[tokio::test]
async fn a_login_needs_no_second_place_in_the_budget() {
    let mut registry = token_registry(300, "u").await;
    registry.config.limits.concurrent_requests = 1;
    let client = client(&registry.config);
    let blob = blob(&client, &registry.server, SIZE);
    let reads = join_all((0..5u64).map(|i| blob.read_range(range(i, i + 1), Priority::Prefetch))).await;
    reads.into_iter().for_each(|read| {
        read.unwrap();
    });
    registry.valid.store(100, Ordering::SeqCst);
    blob.read_range(range(0, 1), Priority::Demand).await.unwrap();
    assert_eq!(registry.server.peak(), 1);
}

#[tokio::test]
async fn a_token_that_ends_is_replaced_before_it_is_refused() {
    let registry = token_registry(1, "u").await;
    let client = client(&registry.config);
    let blob = blob(&client, &registry.server, SIZE);
    blob.read_range(range(0, 1), Priority::Demand).await.unwrap();
    tokio::time::sleep(Duration::from_millis(900)).await;
    blob.read_range(range(0, 1), Priority::Demand).await.unwrap();
    // Challenge, token, read; token, read: the second token needs no second challenge.
    assert_eq!((tokens_asked_for(&registry.server), registry.server.count()), (2, 5));
}

#[tokio::test]
async fn a_revoked_token_is_replaced_once_for_all_readers() {
    let registry = token_registry(300, "u").await;
    let client = client(&registry.config);
    let blob = blob(&client, &registry.server, SIZE);
    blob.read_range(range(0, 1), Priority::Demand).await.unwrap();
    registry.valid.store(100, Ordering::SeqCst);
    let reads = join_all((0..8u64).map(|i| blob.read_range(range(i, i + 1), Priority::Demand))).await;
    reads.into_iter().for_each(|read| {
        read.unwrap();
    });
    assert_eq!(tokens_asked_for(&registry.server), 2);
}

#[tokio::test]
async fn a_refused_login_is_final_says_what_to_do_and_shows_no_password() {
    let registry = token_registry(300, "wrong").await;
    let client = client(&registry.config);
    let blob = blob(&client, &registry.server, SIZE);
    let error = blob.read_range(range(0, 1), Priority::Demand).await.unwrap_err();
    assert_eq!(error.fault(), Fault::Credentials);
    let text = error.to_string();
    assert!(text.contains(&format!("docker login {}", registry.server.address)), "{text}");
    // "wrong:p" in base64.
    assert!(!format!("{error} {error:?}").contains("d3Jvbmc6cA"), "{error:?}");
    assert_eq!(registry.server.count(), 2, "one challenge and one refused login");
    // The file is read again: a login that is mended works at once.
    write_login(&registry.config_file, &registry.server, "u");
    blob.read_range(range(0, 1), Priority::Demand).await.unwrap();
}

#[tokio::test]
async fn wrong_basic_credentials_are_shown_once() {
    let server =
        Server::start(|_, _| reply("401 Unauthorized", &["WWW-Authenticate: Basic realm=\"x\""], b"")).await;
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("config.json");
    write_login(&path, &server, "u");
    let mut config = config(&[server.address]);
    config.credentials = CredentialConfig::Files { paths: vec![path], helper_dirs: Vec::new() };
    let client = client(&config);
    let error = blob(&client, &server, SIZE).read_range(range(0, 1), Priority::Demand).await.unwrap_err();
    assert!(matches!(error.reason(), Reason::Unauthorized { .. }), "{error:?}");
    assert_eq!(server.count(), 2);
}

#[tokio::test]
async fn an_anonymous_token_is_asked_for_without_a_login() {
    let data = pattern(SIZE);
    let server = Server::start(move |seen, _| match seen.header("authorization") {
        _ if seen.target.starts_with("/token") => {
            assert_eq!(seen.header("authorization"), None);
            assert_eq!(seen.target, "/token?scope=repository%3Ateam%2Fapp%3Apull");
            reply("200 OK", &[], br#"{"access_token":"anon"}"#)
        }
        Some("Bearer anon") => partial(&data, seen),
        _ => {
            let host = seen.header("host").unwrap();
            let challenge = format!(r#"www-authenticate: bearer Realm="http://{host}/token""#);
            reply("401 Unauthorized", &[&challenge], b"")
        }
    })
    .await;
    let client = client(&config(&[server.address]));
    blob(&client, &server, SIZE).read_range(range(0, 1), Priority::Demand).await.unwrap();
    assert_eq!(server.count(), 3);
}

#[tokio::test]
async fn an_identity_token_is_exchanged_by_a_form_and_never_in_a_url() {
    let data = pattern(SIZE);
    let server = Server::start(move |seen, _| match seen.header("authorization") {
        _ if seen.target == "/token" => {
            assert_eq!((seen.method.as_str(), seen.header("authorization")), ("POST", None));
            assert!(seen.body.contains("grant_type=refresh_token"), "{}", seen.body);
            assert!(seen.body.contains("refresh_token=secret%2Bidentity"), "{}", seen.body);
            reply("200 OK", &[], br#"{"access_token":"exchanged"}"#)
        }
        Some("Bearer exchanged") => partial(&data, seen),
        _ => {
            let host = seen.header("host").unwrap();
            let challenge = format!(r#"WWW-Authenticate: Bearer realm="http://{host}/token",service="s""#);
            reply("401 Unauthorized", &[&challenge], b"")
        }
    })
    .await;
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("config.json");
    let login = format!(r#"{{"auths":{{"{}":{{"identitytoken":"secret+identity"}}}}}}"#, server.address);
    std::fs::write(&path, login).unwrap();
    let mut config = config(&[server.address]);
    config.credentials = CredentialConfig::Files { paths: vec![path], helper_dirs: Vec::new() };
    blob(&client(&config), &server, SIZE).read_range(range(0, 1), Priority::Demand).await.unwrap();
}

#[tokio::test]
async fn hostile_challenges_and_token_servers_end_in_an_error() {
    type Check = fn(&Reason) -> bool;
    let cases: [(&str, &str, Check); 6] = [
        ("X-Nothing: x", "", |reason| matches!(reason, Reason::Challenge(_))),
        ("WWW-Authenticate: Bearer realm", "", |reason| matches!(reason, Reason::Challenge(_))),
        ("WWW-Authenticate: Bearer realm=\"ftp://x\"", "", |reason| matches!(reason, Reason::Location(_))),
        // A password must not go by plain HTTP to a host that nobody allowed.
        (
            "WWW-Authenticate: Bearer realm=\"http://127.0.0.2:9/token\"",
            "",
            |reason| matches!(reason, Reason::PlainHttp { host } if host == "127.0.0.2:9"),
        ),
        ("OWN", "not json", |reason| matches!(reason, Reason::Token(_))),
        ("OWN", "{\"token\":\"a\\u0000b\"}", |reason| matches!(reason, Reason::Token(_))),
    ];
    for (challenge, body, check) in cases {
        let server = Server::start(move |seen, _| {
            if seen.target.starts_with("/token") {
                return reply("200 OK", &[], body.as_bytes());
            }
            let host = seen.header("host").unwrap();
            let own = format!("WWW-Authenticate: Bearer realm=\"http://{host}/token\"");
            reply("401 Unauthorized", &[if challenge == "OWN" { &own } else { challenge }], b"")
        })
        .await;
        let client = client(&config(&[server.address]));
        let begun = Instant::now();
        let error = blob(&client, &server, SIZE).read_range(range(0, 1), Priority::Demand).await.unwrap_err();
        assert!(check(error.reason()), "{challenge}: {error:?}");
        assert!(begun.elapsed() < Duration::from_secs(2));
    }
}

/// As ECR after 12 hours: no challenge, and the file has another password by then.
#[tokio::test]
async fn a_login_that_has_run_out_is_looked_up_again_after_a_403() {
    let data = pattern(SIZE);
    let valid = Arc::new(AtomicUsize::new(0));
    let current = valid.clone();
    let server = Server::start(move |seen, _| {
        let password = current.load(Ordering::SeqCst);
        let wanted = format!("Basic {}", ["dXNlcjow", "dXNlcjox"][password.min(1)]);
        match seen.header("authorization") {
            None => reply("401 Unauthorized", &["WWW-Authenticate: Basic realm=\"r\""], b""),
            Some(given) if given == wanted && password < 2 => partial(&data, seen),
            Some(_) => reply("403 Forbidden", &[], b""),
        }
    })
    .await;
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("config.json");
    let login = |password: usize| {
        let login =
            format!(r#"{{"auths":{{"{}":{{"username":"user","password":"{password}"}}}}}}"#, server.address);
        std::fs::write(&path, login).unwrap();
    };
    login(0);
    let mut config = config(&[server.address]);
    config.credentials = CredentialConfig::Files { paths: vec![path.clone()], helper_dirs: Vec::new() };
    let blob = blob(&client(&config), &server, SIZE);
    blob.read_range(range(0, 1), Priority::Demand).await.unwrap();
    valid.store(1, Ordering::SeqCst);
    login(1);
    blob.read_range(range(1, 2), Priority::Demand).await.unwrap();
    let asked = server.count();
    // And where that helps nothing, once for each request.
    valid.store(2, Ordering::SeqCst);
    let error = blob.read_range(range(2, 3), Priority::Demand).await.unwrap_err();
    assert!(matches!(error.reason(), Reason::Forbidden { .. }), "{error:?}");
    assert_eq!(server.count(), asked + 2);
}

#[tokio::test]
async fn a_token_for_the_registry_is_shown_as_it_is() {
    let data = pattern(SIZE);
    let server = Server::start(move |seen, _| match seen.header("authorization") {
        Some("Bearer long-lived") => partial(&data, seen),
        _ => {
            let challenge = "WWW-Authenticate: Bearer realm=\"https://nowhere.invalid/token\"";
            reply("401 Unauthorized", &[challenge], b"")
        }
    })
    .await;
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("config.json");
    let login = format!(r#"{{"auths":{{"{}":{{"registrytoken":"long-lived"}}}}}}"#, server.address);
    std::fs::write(&path, login).unwrap();
    let mut config = config(&[server.address]);
    config.credentials = CredentialConfig::Files { paths: vec![path], helper_dirs: Vec::new() };
    blob(&client(&config), &server, SIZE).read_range(range(0, 1), Priority::Demand).await.unwrap();
}

#[tokio::test]
async fn a_token_server_may_lead_on_within_its_host_and_nowhere_else() {
    for (location, is_followed) in [("/token/v2", true), ("http://127.0.0.2:9/token", false)] {
        let data = pattern(SIZE);
        let server = Server::start(move |seen, _| {
            if seen.target.starts_with("/token?") {
                return reply("307 Temporary Redirect", &[&format!("Location: {location}")], b"");
            }
            if seen.target.starts_with("/token/v2") {
                return reply("200 OK", &[], br#"{"token":"t","expires_in":"300"}"#);
            }
            let host = seen.header("host").unwrap();
            let challenge = format!(r#"WWW-Authenticate: Bearer realm="http://{host}/token""#);
            match seen.header("authorization") {
                Some("Bearer t") => partial(&data, seen),
                _ => reply("401 Unauthorized", &[&challenge], b""),
            }
        })
        .await;
        let client = client(&config(&[server.address]));
        let read = blob(&client, &server, SIZE).read_range(range(0, 1), Priority::Demand).await;
        match read {
            Ok(_) => assert!(is_followed),
            Err(error) => {
                assert!(!is_followed, "{error:?}");
                assert!(error.to_string().contains("127.0.0.2:9/token"), "{error}");
                assert_eq!(client.metrics().retries.get(), 0);
            }
        }
    }
}
