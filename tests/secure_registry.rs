//! The test support itself: a login, TLS and redirects that refuse what they should.
#[expect(dead_code, reason = "each test binary uses a part of the support")]
mod support;

use std::process::Command;

use support::{
    registry::{Registry, Serving, digest_of, push_image},
    secure::{Certificates, Nginx, PASSWORD, USER, htpasswd},
};

#[test]
fn blobs_behind_nginx_need_the_login_and_then_the_signature_alone() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path();
    let registry = Registry::start(dir, &Serving::default());
    let layer = vec![3; 5000];
    push_image(registry.address(), "a/b", "t", std::slice::from_ref(&layer));
    let certificates = Certificates::make(dir);
    let nginx = Nginx::start(dir, registry.address(), &certificates, &htpasswd(dir));
    let url = format!("https://{}/v2/a/b/blobs/{}", nginx.address(), digest_of(&layer));
    let curl = |extra: &[&str]| {
        let output = Command::new("curl")
            .args(["-s", "-o", "/dev/null", "-w", "%{http_code} %{size_download}", "-r", "0-99", "--cacert"])
            .arg(&certificates.authority)
            .args(extra)
            .arg(&url)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let user = format!("{USER}:{PASSWORD}");
    assert!(curl(&[]).starts_with("401"));
    assert!(curl(&["-u", &user]).starts_with("307"));
    assert_eq!(curl(&["-u", &user, "-L"]), "206 100");
    assert!(curl(&["-u", &user, "-L", "--location-trusted"]).starts_with("400"));
}
