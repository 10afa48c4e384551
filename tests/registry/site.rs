//! The real thing: docker's registry with TLS and htpasswd, and nginx in front of it and as object storage.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use sha2::{Digest as _, Sha256};
use stratabd::{
    format::oci::Digest,
    registry::{ClientIdentity, CredentialConfig, HostConfig, RegistryConfig},
};

use crate::support::{
    port::{reserved_address, wait_for_server},
    registry::{Registry, Serving},
};

/// The repository that everything is pushed to.
pub(crate) const REPOSITORY: &str = "team/app";

/// A registry at `registry`, and nginx: `front` redirects blobs to `storage`, `mutual` wants a client certificate, `plain`
/// is storage without TLS, `downgrade` redirects there. All on 127.0.0.1.
pub(crate) struct Site {
    home: tempfile::TempDir,
    pub(crate) registry: SocketAddr,
    pub(crate) front: SocketAddr,
    pub(crate) storage: SocketAddr,
    pub(crate) mutual: SocketAddr,
    pub(crate) downgrade: SocketAddr,
    pub(crate) plain: SocketAddr,
    processes: Option<(Registry, Child)>,
}

impl Site {
    pub(crate) fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let [registry, front, storage, mutual, downgrade, plain] =
            std::array::from_fn(|_| reserved_address());
        let mut site = Self { home, registry, front, storage, mutual, downgrade, plain, processes: None };
        site.make_certificates();
        run(Command::new("htpasswd").args(["-Bbc", &site.file("htpasswd"), "user", "pass:word"]));
        let tls = Some((site.path("server.pem"), site.path("server.key")));
        let serving = Serving { tls, htpasswd: Some(site.path("htpasswd")) };
        let served = Registry::start_at(site.home.path(), &serving, registry);
        let mut nginx = site.start_nginx();
        for address in [front, storage, mutual, downgrade, plain] {
            wait_for_server(&mut nginx, address);
        }
        site.processes = Some((served, nginx));
        site
    }

    /// Trusts the site's authority at all its addresses and logs in at those of the registry.
    pub(crate) fn config(&self) -> RegistryConfig {
        let trusted = HostConfig { ca_file: Some(self.path("ca.pem")), ..HostConfig::default() };
        let mut config = crate::script::config(&[]);
        for address in [self.registry, self.front, self.storage, self.mutual, self.downgrade] {
            config.hosts.insert(address.to_string().parse().unwrap(), trusted.clone());
        }
        let login = |address| format!(r#""{address}":{{"username":"user","password":"pass:word"}}"#);
        let logins = [self.registry, self.front, self.downgrade].map(login).join(",");
        fs::write(self.path("config.json"), format!(r#"{{"auths":{{{logins}}}}}"#)).unwrap();
        let path = self.path("config.json");
        config.credentials = CredentialConfig::Files { paths: vec![path], helper_dirs: Vec::new() };
        config.limits.stall_timeout_ms = 5_000;
        config.limits.connect_timeout_ms = 5_000;
        config
    }

    pub(crate) fn client_identity(&self) -> ClientIdentity {
        ClientIdentity { cert_file: self.path("client.pem"), key_file: self.path("client.key") }
    }

    /// Pushes a blob by curl, which knows nothing of this project.
    pub(crate) fn push(&self, content: &[u8]) -> Digest {
        let digest = Digest::from_hash(Sha256::digest(content).into());
        let file = self.path("upload");
        fs::write(&file, content).unwrap();
        let url = format!("https://{}/v2/{REPOSITORY}/blobs/uploads/", self.registry);
        let head = run(self.curl().args(["-D", "-", "-X", "POST", &url]));
        let location = head
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find_map(|(name, value)| name.eq_ignore_ascii_case("location").then_some(value.trim()))
            .unwrap();
        let put = format!("{location}&digest={digest}");
        run(self.curl().args(["-T", file.to_str().unwrap(), &put]));
        digest
    }

    pub(crate) fn push_manifest(&self, tag: &str, document: &str) {
        let url = format!("https://{}/v2/{REPOSITORY}/manifests/{tag}", self.registry);
        let kind = "Content-Type: application/vnd.oci.image.manifest.v1+json";
        run(self.curl().args(["-X", "PUT", "-H", kind, "--data-binary", document, &url]));
    }

    /// Lines of nginx's log: port, protocol, status, whether an Authorization header came, request.
    pub(crate) fn nginx_log(&self) -> Vec<String> {
        fs::read_to_string(self.path("access.log")).unwrap().lines().map(str::to_owned).collect()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn file(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn curl(&self) -> Command {
        let mut curl = Command::new("curl");
        curl.args(["-sSf", "--noproxy", "*", "--cacert", &self.file("ca.pem"), "-u", "user:pass:word"]);
        curl
    }

    fn make_certificates(&self) {
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
        let (ca, ca_key) = (self.file("ca.pem"), self.file("ca.key"));
        run(Command::new("openssl")
            .args(["req", "-x509", "-days", "2", "-subj", "/CN=test authority"])
            .args(key)
            .args(["-keyout", &ca_key, "-out", &ca]));
        let names = "subjectAltName=DNS:registry.test,IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth";
        fs::write(self.path("names"), names).unwrap();
        for name in ["server", "client"] {
            let (key_file, request) = (self.file(&format!("{name}.key")), self.file("request"));
            run(Command::new("openssl")
                .args(["req", "-subj", &format!("/CN={name}")])
                .args(key)
                .args(["-keyout", &key_file, "-out", &request]));
            run(Command::new("openssl")
                .args(["x509", "-req", "-days", "2", "-in", &request, "-CA", &ca, "-CAkey", &ca_key])
                .args(["-CAcreateserial", "-extfile", &self.file("names")])
                .args(["-out", &self.file(&format!("{name}.pem"))]));
        }
    }

    fn start_nginx(&self) -> Child {
        let Self { registry, front, storage, mutual, downgrade, plain, .. } = self;
        let home = self.home.path().display();
        let blob = r#""^/v2/.+/blobs/sha256:((..).+)$""#;
        // Storage refuses any credential of the registry, so that a leak fails the test.
        let serve = format!(
            "location ~ \"^/blob/((..).+)$\" {{ if ($http_authorization) {{ return 400; }}\n\
             if ($arg_sig != secret) {{ return 403; }}\n\
             alias {home}/storage/docker/registry/v2/blobs/sha256/$2/$1/data; }}"
        );
        let pass = format!(
            "auth_basic test; auth_basic_user_file {home}/nginx-htpasswd;\n\
             location / {{ proxy_pass https://{registry}; proxy_set_header Host $http_host; }}"
        );
        // What upstream's credential service would answer.
        let auths = format!(
            r#"{{"success":true,"data":{{"auths":{{"{registry}":{{"username":"user","password":"pass:word"}}}}}}}}"#
        );
        // A bare `return` would come before the login is checked; `try_files` comes after it.
        let login = format!("location ~ {blob} {{ set $hex $1; try_files /nothing @go; }}");
        let config = format!(
            "daemon off; master_process off; pid {home}/nginx.pid; error_log {home}/error.log;\n\
             events {{}}\nhttp {{\n\
             log_format test '$server_port $server_protocol $status auth=$http_authorization $request';\n\
             access_log {home}/access.log test;\n\
             client_body_temp_path {home}/t1; proxy_temp_path {home}/t2; fastcgi_temp_path {home}/t3;\n\
             uwsgi_temp_path {home}/t4; scgi_temp_path {home}/t5;\n\
             ssl_certificate {home}/server.pem; ssl_certificate_key {home}/server.key;\n\
             server {{ listen {front} ssl http2; {pass}\n\
               {login} location @go {{ return 307 https://{storage}/blob/$hex?sig=secret; }} }}\n\
             server {{ listen {downgrade} ssl; {pass}\n\
               {login} location @go {{ return 307 http://{plain}/blob/$hex?sig=secret; }} }}\n\
             server {{ listen {storage} ssl http2; {serve} }}\n\
             server {{ listen {plain}; {serve} }}\n\
             server {{ listen {mutual} ssl; ssl_client_certificate {home}/ca.pem; ssl_verify_client on;\n\
               location = /auth {{ default_type application/json; return 200 '{auths}'; }}\n\
               location ~ {blob} {{ alias {home}/storage/docker/registry/v2/blobs/sha256/$2/$1/data; }} }}\n}}\n"
        );
        fs::write(self.path("nginx.conf"), config).unwrap();
        // nginx knows fewer hashes than the registry.
        run(Command::new("htpasswd").args(["-mbc", &self.file("nginx-htpasswd"), "user", "pass:word"]));
        Command::new("nginx")
            .args(["-p", &self.file(""), "-c", &self.file("nginx.conf"), "-e", &self.file("error.log")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some((_, nginx)) = &mut self.processes {
            let _ = nginx.kill();
            let _ = nginx.wait();
        }
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let shown = || format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}", shown());
    String::from_utf8(output.stdout).unwrap()
}
