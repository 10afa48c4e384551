//! Certificates of servers: what cannot pass is told at the first try, and what the operator names is trusted.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use stratabd::{
    format::oci::Platform,
    registry::{Reason, RegistryError},
};

use crate::{
    script::{client, config},
    support::registry::{Registry, Serving},
};

/// One certificate that is an authority's and the server's at `host`, an IP address, as `openssl req -x509` makes it by
/// itself; `days` may be negative. Returns the certificate and its key.
fn self_signed(dir: &Path, host: &str, days: i32) -> (PathBuf, PathBuf) {
    let [certificate, key, request, extensions] =
        ["pem", "key", "csr", "ext"].map(|end| dir.join(format!("self-{host}-{days}.{end}")));
    fs::write(&extensions, format!("subjectAltName=IP:{host}\nbasicConstraints=critical,CA:TRUE\n")).unwrap();
    let lines = [
        format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=registry -keyout {key} -out {request}",
            key = key.display(),
            request = request.display()
        ),
        format!(
            "x509 -req -days {days} -in {} -signkey {} -extfile {} -out {}",
            request.display(),
            key.display(),
            extensions.display(),
            certificate.display()
        ),
    ];
    for line in lines {
        let made = Command::new("openssl").args(line.split(' ')).output().expect("openssl is installed");
        assert!(made.status.success(), "{line}: {made:?}");
    }
    (certificate, key)
}

/// Asks a registry with the certificate and key `shown` for a manifest that it has not; `trusted` is the `ca_file`. Returns why that
/// failed and how many requests were made again.
async fn refusal(dir: &Path, shown: (PathBuf, PathBuf), trusted: &Path) -> (RegistryError, u64) {
    let root = tempfile::tempdir_in(dir).unwrap();
    let registry = Registry::start(root.path(), &Serving { tls: Some(shown), ..Serving::default() });
    let mut config = config(&[]);
    config.ca_file = Some(trusted.to_owned());
    let client = client(&config);
    let reference = format!("{}/team/app:v1", registry.address()).parse().unwrap();
    let error = client.manifest(&reference, &Platform::host()).await.unwrap_err();
    (error, client.metrics().retries.get())
}

#[tokio::test]
async fn a_servers_own_certificate_is_trusted_where_it_is_named_for_its_time_and_name_alone() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path();
    let good = self_signed(dir, "127.0.0.1", 2);
    let (error, _) = refusal(dir, good.clone(), &good.0).await;
    assert!(matches!(error.reason(), Reason::NotFound), "past the handshake: {error:?}");

    let elsewhere = self_signed(dir, "127.0.0.2", 2);
    let old = self_signed(dir, "127.0.0.1", -1);
    for (shown, trusted, what) in [
        (&elsewhere, &elsewhere, "another name"),
        (&old, &old, "expired"),
        (&good, &elsewhere, "not the one that is named"),
    ] {
        let (error, retries) = refusal(dir, shown.clone(), &trusted.0).await;
        assert!(
            matches!(error.reason(), Reason::Certificate { .. } | Reason::UnknownAuthority { .. }),
            "{what}: {error:?}"
        );
        assert_eq!(retries, 0, "{what}: {error:?}");
    }
}

#[tokio::test]
async fn a_folder_of_the_host_is_trusted_also_one_that_is_made_later() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path();
    let (certificate, key) = self_signed(dir, "127.0.0.1", 2);
    let serving = Serving { tls: Some((certificate.clone(), key)), ..Serving::default() };
    let registry = Registry::start(dir, &serving);
    let mut config = config(&[]);
    config.certs_dirs = ["none", "certs.d"].map(|name| dir.join(name)).to_vec();
    let client = client(&config);
    let reference = format!("{}/team/app:v1", registry.address()).parse().unwrap();
    let error = client.manifest(&reference, &Platform::host()).await.unwrap_err();
    assert!(
        matches!(error.reason(), Reason::UnknownAuthority { .. } | Reason::Certificate { .. }),
        "{error:?}"
    );

    let folder = dir.join("certs.d").join(registry.address().to_string());
    fs::create_dir_all(&folder).unwrap();
    fs::copy(&certificate, folder.join("ca.crt")).unwrap();
    let error = client.manifest(&reference, &Platform::host()).await.unwrap_err();
    assert!(matches!(error.reason(), Reason::NotFound), "past the handshake: {error:?}");
}

#[tokio::test]
async fn what_a_folder_cannot_be_used_for_is_named() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path();
    let registry =
        Registry::start(dir, &Serving { tls: Some(self_signed(dir, "127.0.0.1", 2)), ..Serving::default() });
    let folder = dir.join("certs.d").join(registry.address().to_string());
    fs::create_dir_all(&folder).unwrap();
    let mut config = config(&[]);
    config.certs_dirs = vec![dir.join("certs.d")];
    let reference = format!("{}/team/app:v1", registry.address()).parse().unwrap();
    for name in ["ca.crt", "client.cert"] {
        fs::write(folder.join(name), "no certificate").unwrap();
        let error = client(&config).manifest(&reference, &Platform::host()).await.unwrap_err();
        assert!(
            matches!(error.reason(), Reason::Configuration { .. }) && error.to_string().contains(name),
            "{error:?}"
        );
        fs::remove_file(folder.join(name)).unwrap();
    }
}
