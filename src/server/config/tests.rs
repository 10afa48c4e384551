//! Tables of configurations that are read, refused and overridden.

use super::*;

fn parse(text: &str, sets: &[&str]) -> Result<Config, String> {
    let mut overrides = Overrides::default();
    for set in sets {
        overrides.set(set).map_err(|error| error.to_string())?;
    }
    Config::parse("s.toml", text, &overrides).map_err(|error| error.to_string())
}

#[test]
fn nothing_written_is_the_defaults() {
    assert_eq!(parse("", &[]).unwrap(), Config::default());
}

#[test]
fn the_sample_shows_every_key_with_its_default_and_parses() {
    // Keys are commented out in the sample, since each shows what holds anyway.
    let uncommented: String = SAMPLE
        .lines()
        .map(|line| line.strip_prefix("#").filter(|rest| !rest.starts_with(' ')).unwrap_or(line))
        .map(|line| format!("{line}\n"))
        .collect();
    let mut config = parse(&uncommented, &[]).expect(&uncommented);
    let host = config.registry.hosts.remove("registry.example:5000").expect("the sample has a host");
    assert_eq!(config, Config { ..Config::default() });
    assert_ne!(host, HostSection::default());
    let table: toml::Table = uncommented.parse().unwrap();
    for key in Config::keys() {
        let mut value = Some(&toml::Value::Table(table.clone())).cloned();
        for name in key.split('.').map(|name| if name == "HOST" { "registry.example:5000" } else { name }) {
            value = value.and_then(|value| value.get(name).cloned());
        }
        assert!(value.is_some(), "{key} is not in the sample");
    }
    assert!(parse(SAMPLE, &[]).is_ok(), "the sample as shipped");
}

#[test]
fn what_is_wrong_is_named_by_its_key() {
    for (text, part) in [
        ("[cache]\nsize_mb = 1", "s.toml: unknown key cache.size_mb (did you mean cache.size_mib?)"),
        ("[cahce]\ndir = '/x'", "unknown key cahce (did you mean cache?)"),
        ("zzzzzzzzzzzzz = 1", "unknown key zzzzzzzzzzzzz"),
        ("[registry.hosts.\"a:1\"]\nplain_htp = true", "registry.hosts.a:1.plain_htp (did you mean"),
        ("[cache]\nsize_mib = 'x'", "line 2"),
        ("[cache]\nsize_mib = -1", "line 2"),
        ("[cache\n", "line 1"),
        ("[daemon]\nsocket_mode = '9'", "daemon.socket_mode: \"9\" is not permission bits"),
        ("[daemon]\nmetrics_listen = 'x'", "daemon.metrics_listen: \"x\" is not ADDRESS:PORT"),
        ("[daemon]\nlog_format = 'xml'", "line 2"),
        ("[device]\nqueues = 0", "device.queues: 0 is not 1 to 64"),
        ("[device]\nqueues = 65", "device.queues: 65 is not 1 to 64"),
        ("[device]\ndepth = 4097", "device.depth: 4097 is not 1 to 4096"),
        ("[device]\nattach_timeout_ms = 0", "device.attach_timeout_ms: must be at least 1"),
        ("[device]\ndetach_timeout_ms = 0", "device.detach_timeout_ms: must be at least 1"),
        ("[daemon]\ndrain_timeout_ms = 0", "daemon.drain_timeout_ms: must be at least 1"),
        (
            "[registry.credential_service]\ntimeout_ms = 0",
            "credential_service.timeout_ms: must be at least 1",
        ),
        ("[registry]\nclient_cert = '/c'", "registry.client_cert: client_cert and client_key must be set"),
        ("[registry]\nclient_key = '/k'", "registry.client_cert: client_cert and client_key must be set"),
        (
            "[registry.credential_service]\nclient_key = '/k'",
            "credential_service.client_cert: client_cert and",
        ),
        ("[registry.hosts.a]\nclient_cert = '/c'", "must be set together"),
        ("[registry.hosts.a]\nplain_http = true\ninsecure_tls = true", "exclude each other"),
        (
            "[registry.hosts.\"a/v2/\"]\nplain_http = true",
            "registry.hosts.\"a/v2/\": a host is named as HOST or HOST:PORT",
        ),
        ("[registry.hosts.a]\n[registry.hosts.\"https://A/\"]", "is the same host as another key"),
    ] {
        let error = parse(text, &[]).expect_err(text);
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn a_single_override_wins_over_the_file() {
    let sets = [
        "cache.size_mib=7",
        "cache.dir=/tmp/x",
        "registry.hosts.\"http://A.b:5000\".plain_http=true",
        "registry.credential_helper_dirs=[\"/a\"]",
    ];
    let config = parse("[cache]\nsize_mib = 5\nenabled = false", &sets).unwrap();
    assert_eq!(config.cache, CacheSection { enabled: false, dir: "/tmp/x".into(), size_mib: 7 });
    assert!(config.registry.hosts["a.b:5000"].plain_http);
    assert_eq!(config.registry.credential_helper_dirs, [PathBuf::from("/a")]);
    for (set, part) in [
        ("cache.size_mib", "not KEY=VALUE"),
        ("cache.sice_mib=1", "--set: unknown key cache.sice_mib (did you mean cache.size_mib?)"),
        ("cache.size_mib=x", "--set: "),
    ] {
        let error = parse("", &[set]).expect_err(set);
        assert!(error.contains(part), "{set}: {error}");
    }
    assert!(parse("", &["a=1", "a.b=2"]).unwrap_err().contains("a is a value"));
}

fn overlaybd(text: &str) -> Result<(Config, Vec<String>), String> {
    let read = OverlaybdConfig::parse("o.json", text.as_bytes()).map_err(|error| error.to_string())?;
    let mut config = Config::default();
    read.apply(&mut config);
    Ok((config, read.unmapped.into_iter().map(|unmapped| unmapped.pointer).collect()))
}

#[test]
fn the_configuration_that_upstream_ships_is_taken_over() {
    let (config, unmapped) = overlaybd(
        r#"{"logConfig":{"logLevel":1,"logPath":"/var/log/overlaybd.log","logSizeMB":10,"logRotateNum":3},
            "cacheConfig":{"cacheType":"file","cacheDir":"/opt/overlaybd/registry_cache","cacheSizeGB":4},
            "gzipCacheConfig":{"enable":true,"cacheDir":"/opt/overlaybd/gzip_cache","cacheSizeGB":4},
            "credentialConfig":{"mode":"file","path":"/opt/overlaybd/cred.json"},"ioEngine":0,
            "download":{"enable":true,"delay":600,"delayExtra":30,"maxMBps":100},
            "p2pConfig":{"enable":false,"address":"localhost:19145/dadip2p"},
            "exporterConfig":{"enable":false,"uriPrefix":"/metrics","port":9863,"updateInterval":60000000},
            "enableAudit":true,"auditPath":"/var/log/overlaybd-audit.log","registryFsVersion":"v2","certConfig":{"certFile":"","keyFile":""}}"#,
    )
    .unwrap();
    assert_eq!(config.cache.dir, PathBuf::from("/opt/overlaybd/registry_cache/stratabd"));
    assert_eq!(config.cache.size_mib, 4096);
    assert_eq!(config.registry.authfile, PathBuf::from("/opt/overlaybd/cred.json"));
    assert_eq!((config.daemon.log_filter.as_str(), config.daemon.metrics_listen.as_str()), ("info", ""));
    for pointer in ["/download", "/gzipCacheConfig", "/logConfig/logPath", "/ioEngine", "/auditPath"] {
        assert!(unmapped.iter().any(|found| found == pointer), "{pointer} is not listed in {unmapped:?}");
    }
}

#[test]
fn the_older_keys_and_the_credential_services_of_upstream_have_a_meaning() {
    let (config, unmapped) = overlaybd(
        r#"{"registryCacheDir":"/c","registryCacheSizeGB":2,"credentialFilePath":"/cred","logLevel":3,
            "exporterConfig":{"enable":true,"port":1},"userAgent":"me","surprise":1}"#,
    )
    .unwrap();
    assert_eq!((config.cache.dir, config.cache.size_mib), (PathBuf::from("/c/stratabd"), 2048));
    assert_eq!(config.registry.authfile, PathBuf::from("/cred"));
    assert_eq!(config.daemon.log_filter, "error");
    assert_eq!(config.daemon.metrics_listen, "0.0.0.0:1");
    assert_eq!(config.registry.user_agent, "me");
    assert_eq!(unmapped, ["/surprise"]);
    let (config, _) = overlaybd(r#"{"credentialConfig":{"mode":"uds","path":"/s","timeout":3}}"#).unwrap();
    let service = &config.registry.credential_service;
    assert_eq!((service.address.as_str(), service.timeout_ms), ("/s", 3000));
}

#[test]
fn what_is_wrong_in_upstreams_file_is_named_by_its_pointer() {
    for (text, part) in [
        ("{", "o.json: not JSON"),
        (r#"{"cacheConfig":1}"#, "/cacheConfig: expected an object, found a number"),
        (r#"{"cacheConfig":{"cacheType":"file","cacheSizeGB":"4"}}"#, "/cacheConfig/cacheSizeGB: expected"),
        (r#"{"credentialConfig":{"mode":"x","path":"/"}}"#, "/credentialConfig/mode: \"x\" is none of"),
        (r#"{"credentialConfig":{"mode":"http"}}"#, "/credentialConfig/path: must be set"),
        (r#"{"exporterConfig":{"enable":true,"port":99999}}"#, "/exporterConfig/port: 99999 is not a port"),
    ] {
        let error = overlaybd(text).expect_err(text);
        assert!(error.contains(part), "{text}: {error}");
    }
}
