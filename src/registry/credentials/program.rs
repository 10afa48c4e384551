//! Docker's credential helpers: programs `docker-credential-X` that are asked by `get` on their standard input.

use std::{
    env, io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, Command},
    time::timeout,
};

use super::{Credentials, CredentialsError};
use crate::registry::Secret;

/// A helper may ask a cloud's metadata service, which takes seconds; more than that is a hang.
const HELPER_TIMEOUT: Duration = Duration::from_secs(10);
/// Tokens of clouds are a few KiB.
const MAX_HELPER_OUTPUT_BYTES: u64 = 256 << 10;
/// What every helper of docker's library says where it has no entry; it is no failure.
const NOT_FOUND: &str = "credentials not found";
/// The user name by which a helper says that the secret is an identity token.
const TOKEN_USER: &str = "<token>";

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "Username")]
    username: String,
    #[serde(rename = "Secret")]
    secret: Secret,
}

/// Asks `docker-credential-<helper>` for `server`; `None` where it has no entry. The server's name goes to the
/// program's input and the secret comes from its output, so that neither shows in `ps`.
pub(super) async fn ask(
    helper: &str,
    server: &str,
    dirs: &[PathBuf],
) -> Result<Option<Credentials>, CredentialsError> {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if helper.is_empty() || !helper.bytes().all(is_word) {
        return Err(CredentialsError::HelperName);
    }
    let fail = |failure, source| CredentialsError::Helper { helper: helper.to_owned(), failure, source };
    let program = find(&format!("docker-credential-{helper}"), dirs)
        .ok_or_else(|| fail("is in none of helper_dirs and PATH", None))?;
    let child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| fail("cannot be started", Some(source)))?;
    let (success, output) = match timeout(HELPER_TIMEOUT, converse(child, server)).await {
        Ok(result) => result.map_err(|source| fail("broke off", Some(source)))?,
        Err(_) => return Err(fail("did not answer within 10 s", None)),
    };
    if !success {
        // The output is not repeated in the error: it may hold anything.
        let nothing = String::from_utf8_lossy(&output).contains(NOT_FOUND);
        return if nothing { Ok(None) } else { Err(fail("failed", None)) };
    }
    parse_helper_answer(&output).map(Some).ok_or_else(|| fail("wrote something else than its protocol", None))
}

/// Reads what a helper wrote; `None` where it is something else than its protocol.
#[must_use]
pub fn parse_helper_answer(output: &[u8]) -> Option<Credentials> {
    // Why it cannot be read is not told, since the reason may quote the secret.
    let answer: Answer = serde_json::from_slice(output).ok()?;
    Some(match answer.username.as_str() {
        TOKEN_USER => Credentials::IdentityToken(answer.secret),
        _ => Credentials::Basic { username: answer.username, password: answer.secret },
    })
}

async fn converse(mut child: Child, server: &str) -> io::Result<(bool, Vec<u8>)> {
    let mut output = Vec::new();
    if let Some(mut input) = child.stdin.take() {
        // A helper that needs no input may be gone already, which is no failure of its own.
        let _ = input.write_all(server.as_bytes()).await;
    }
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MAX_HELPER_OUTPUT_BYTES).read_to_end(&mut output).await?;
    }
    Ok((child.wait().await?.success(), output))
}

fn find(name: &str, dirs: &[PathBuf]) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let candidates = dirs.iter().cloned().chain(env::split_paths(&path));
    candidates.filter(|dir| dir.is_absolute()).map(|dir| dir.join(name)).find(|file| Path::is_file(file))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    fn helper(script: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("docker-credential-test");
        fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        dir
    }

    async fn answer(script: &str) -> Result<Option<Credentials>, CredentialsError> {
        let dir = helper(script);
        ask("test", "r.example", &[dir.path().to_owned()]).await
    }

    #[tokio::test]
    async fn the_server_goes_in_and_the_secret_comes_out() {
        let script = r#"[ "$1" = get ] && read -r s; printf '{"ServerURL":"%s","Username":"u-%s","Secret":"p"}' "$s" "$s""#;
        let expected = Credentials::Basic { username: "u-r.example".into(), password: Secret::new("p") };
        assert_eq!(answer(script).await.unwrap(), Some(expected));
        let token = answer(r#"echo '{"Username":"<token>","Secret":"t"}'"#).await.unwrap();
        assert_eq!(token, Some(Credentials::IdentityToken(Secret::new("t"))));
    }

    #[tokio::test]
    async fn no_entry_is_anonymous_and_a_failure_does_not_leak_output() {
        assert_eq!(answer("echo 'credentials not found in native keychain'; exit 1").await.unwrap(), None);
        for script in ["echo hunter2; exit 1", "echo hunter2", "yes hunter2"] {
            let error = answer(script).await.unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
        for name in ["", "../x", "a/b", "a b"] {
            assert!(matches!(ask(name, "r", &[]).await, Err(CredentialsError::HelperName)));
        }
        assert!(ask("no-such-helper", "r", &[]).await.is_err());
    }
}
