//! Where logins and certificates are kept where the settings name no place: as docker has them, and the tools of containers-auth.json(5)
//! and containers-certs.d(5).

use std::{ffi::OsString, fs, path::PathBuf};

use rustix::process::getuid;

/// Names the users of this system, one a line.
const PASSWD: &str = "/etc/passwd";

/// Fields of such a line that have the number and the home of a user.
const UID_FIELD: usize = 2;
const HOME_FIELD: usize = 5;

/// All files that may have a login, the one that goes first first.
pub(super) fn login_files() -> Vec<PathBuf> {
    let uid = getuid().as_raw();
    files(|name| std::env::var_os(name), uid, || fs::read_to_string(PASSWD).unwrap_or_default())
}

fn files(variable: impl Fn(&str) -> Option<OsString>, uid: u32, passwd: impl Fn() -> String) -> Vec<PathBuf> {
    let set = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(file) = set("REGISTRY_AUTH_FILE") {
        return vec![file];
    }
    // A service of the system has no HOME.
    let home = set("HOME").or_else(|| home_of(uid, &passwd()));
    let in_home = |path| home.as_ref().map(|home| home.join(path));
    let runtime = match set("XDG_RUNTIME_DIR") {
        Some(dir) => dir.join("containers"),
        None => format!("/run/containers/{uid}").into(),
    };
    let containers = set("XDG_CONFIG_HOME").or_else(|| in_home(".config")).map(|dir| dir.join("containers"));
    let docker = set("DOCKER_CONFIG").or_else(|| in_home(".docker"));
    [
        Some(runtime.join("auth.json")),
        containers.map(|dir| dir.join("auth.json")),
        docker.map(|dir| dir.join("config.json")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Where certificates for single registries lie by containers-certs.d(5) and docker: a folder for each host, of which the first that is
/// there counts.
pub(super) fn certs_dirs() -> Vec<PathBuf> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    let own = home.map(|home| home.join(".config/containers/certs.d"));
    own.into_iter().chain(["/etc/containers/certs.d", "/etc/docker/certs.d"].map(PathBuf::from)).collect()
}

fn home_of(uid: u32, passwd: &str) -> Option<PathBuf> {
    let fields = |line: &'_ str| -> Option<PathBuf> {
        let mut fields = line.split(':').skip(UID_FIELD);
        let is_it = fields.next()?.parse() == Ok(uid);
        let home = fields.nth(HOME_FIELD - UID_FIELD - 1)?;
        (is_it && !home.is_empty()).then(|| home.into())
    };
    passwd.lines().find_map(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(variables: &[(&str, &str)], uid: u32) -> Vec<String> {
        let variable = |name: &str| {
            variables.iter().find(|(other, _)| *other == name).map(|(_, value)| OsString::from(value))
        };
        let passwd = || "odd\nx:x:7:7::/home/x:/bin/sh\nroot:x:0:0:root:/root:/bin/bash\n".to_owned();
        files(variable, uid, passwd).into_iter().map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn the_order_is_that_of_skopeo_and_docker() {
        assert_eq!(
            found(&[("HOME", "/h"), ("XDG_RUNTIME_DIR", "/run/user/7")], 7),
            ["/run/user/7/containers/auth.json", "/h/.config/containers/auth.json", "/h/.docker/config.json"]
        );
        assert_eq!(
            found(&[("HOME", "/h"), ("XDG_CONFIG_HOME", "/c"), ("DOCKER_CONFIG", "/d")], 7),
            ["/run/containers/7/auth.json", "/c/containers/auth.json", "/d/config.json"]
        );
        assert_eq!(found(&[("HOME", "/h"), ("REGISTRY_AUTH_FILE", "/a")], 7), ["/a"]);
    }

    #[test]
    fn a_service_without_a_home_has_that_of_its_user() {
        assert_eq!(
            found(&[("HOME", "")], 0),
            [
                "/run/containers/0/auth.json",
                "/root/.config/containers/auth.json",
                "/root/.docker/config.json"
            ]
        );
        assert_eq!(found(&[], 9), ["/run/containers/9/auth.json"]);
    }
}
