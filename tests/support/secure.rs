//! TLS, a login and redirects in front of a registry, made of openssl, htpasswd and nginx.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use super::port::{reserved_address, wait_for_server};

/// The user that [`htpasswd`] knows.
pub const USER: &str = "reader";
/// And its password.
pub const PASSWORD: &str = "correct horse";

/// Files of an authority and of a server at 127.0.0.1 that it vouches for.
pub struct Certificates {
    /// The authority, PEM.
    pub authority: PathBuf,
    /// The server's certificate, PEM.
    pub certificate: PathBuf,
    /// The server's key, PEM.
    pub key: PathBuf,
}

impl Certificates {
    /// Makes them in `dir`.
    pub fn make(dir: &Path) -> Self {
        let [authority, authority_key, certificate, key, request, extensions] =
            ["ca.pem", "ca.key", "server.pem", "server.key", "server.csr", "server.ext"]
                .map(|name| dir.join(name));
        fs::write(&extensions, "subjectAltName=IP:127.0.0.1,DNS:localhost\n").unwrap();
        openssl(
            &[
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
                "-days",
                "30",
            ],
            &[
                ("-subj", Path::new("/CN=test authority")),
                ("-addext", Path::new("basicConstraints=critical,CA:TRUE")),
                ("-keyout", &authority_key),
                ("-out", &authority),
            ],
        );
        openssl(
            &["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"],
            &[("-subj", Path::new("/CN=registry")), ("-keyout", &key), ("-out", &request)],
        );
        openssl(
            &["x509", "-req", "-days", "30", "-CAcreateserial"],
            &[
                ("-in", &request),
                ("-CA", &authority),
                ("-CAkey", &authority_key),
                ("-extfile", &extensions),
                ("-out", &certificate),
            ],
        );
        Self { authority, certificate, key }
    }
}

fn openssl(words: &[&str], files: &[(&str, &Path)]) {
    let mut command = Command::new("openssl");
    command.args(words).stdout(Stdio::null()).stderr(Stdio::null());
    for (option, file) in files {
        command.arg(option).arg(file);
    }
    assert!(command.status().expect("openssl is installed").success(), "{command:?}");
}

/// A password file with [`USER`] in `dir`.
pub fn htpasswd(dir: &Path) -> PathBuf {
    let file = dir.join("htpasswd");
    let status = Command::new("htpasswd")
        .args(["-Bbc", "-C", "4"])
        .arg(&file)
        .args([USER, PASSWORD])
        .stderr(Stdio::null())
        .status();
    assert!(status.expect("htpasswd is installed").success());
    file
}

/// A docker `config.json` in `dir` that logs [`USER`] in at `host`.
pub fn authfile(dir: &Path, host: &str) -> PathBuf {
    let file = dir.join("auth.json");
    let json = serde_json::json!({"auths": {host: {"username": USER, "password": PASSWORD}}});
    fs::write(&file, json.to_string()).unwrap();
    file
}

/// nginx with TLS and a login in front of a registry; blobs are redirected to a second port, where a signature in the query
/// stands for the login, and a credential in the header is refused.
pub struct Nginx {
    process: Child,
    address: SocketAddr,
    log: PathBuf,
}

impl Nginx {
    /// Starts it in `dir`, in front of the plain registry at `upstream`.
    pub fn start(dir: &Path, upstream: SocketAddr, certificates: &Certificates, htpasswd: &Path) -> Self {
        let [front, storage, redirector] = std::array::from_fn(|_| reserved_address());
        let (log, dir_shown) = (dir.join("access.log"), dir.display());
        let config = format!(
            r#"daemon off; master_process off; pid {dir_shown}/nginx.pid; error_log {dir_shown}/error.log;
events {{}}
http {{
  log_format lines '$server_port $request_method $status $http_range'; access_log {log} lines;
  client_body_temp_path {dir_shown}/body; proxy_temp_path {dir_shown}/proxy; fastcgi_temp_path {dir_shown}/f;
  uwsgi_temp_path {dir_shown}/u; scgi_temp_path {dir_shown}/s;
  server {{
    listen {front} ssl; ssl_certificate {certificate}; ssl_certificate_key {key};
    auth_basic registry; auth_basic_user_file {htpasswd};
    location /v2/ {{ proxy_pass http://{upstream}; proxy_set_header Host $http_host; proxy_set_header Authorization ""; }}
    location ~ ^/v2/.*/blobs/ {{ proxy_pass http://{redirector}; proxy_redirect off; }}
  }}
  # nginx would redirect before it asks for the login, so that another server has to do it.
  server {{
    listen {redirector}; access_log off;
    location / {{ return 307 https://{storage}$uri?signature=s3cr3t%2Bsig&expires=600; }}
  }}
  server {{
    listen {storage} ssl; ssl_certificate {certificate}; ssl_certificate_key {key};
    location / {{
      if ($http_authorization) {{ return 400; }}
      if ($arg_signature != "s3cr3t%2Bsig") {{ return 403; }}
      proxy_pass http://{upstream};
    }}
  }}
}}
"#,
            log = log.display(),
            certificate = certificates.certificate.display(),
            key = certificates.key.display(),
            htpasswd = htpasswd.display(),
        );
        let path = dir.join("nginx.conf");
        fs::write(&path, config).unwrap();
        let mut process = Command::new("nginx")
            .args(["-e", dir.join("error.log").to_str().unwrap(), "-c"])
            .arg(&path)
            .stdin(Stdio::null())
            .spawn()
            .expect("nginx is installed");
        wait_for_server(&mut process, front);
        Self { process, address: front, log }
    }

    /// Where the registry seems to be.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A line for each request: port, method, status, range.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
