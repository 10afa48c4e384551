//! The daemon as a process: its socket, its limits, one at a time, and its end.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test panics where something is not as expected"
)]

#[path = "support/port.rs"]
#[expect(dead_code, reason = "one of several users of the support code")]
mod port;

use std::{
    io::{Read, Write},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixDatagram, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// Long enough for a machine under load.
const PATIENCE: Duration = Duration::from_secs(60);

struct Daemon {
    process: Child,
    socket: PathBuf,
}

impl Daemon {
    fn command(dir: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stratabd"));
        command.arg("--state-dir").arg(dir.join("state")).arg("--cache-dir").arg(dir.join("cache"));
        command.env_remove("RUST_LOG").stdin(Stdio::null());
        command
    }

    /// Starts it and waits until it says, as to systemd, that it is ready.
    fn start(dir: &Path, arguments: &[&str]) -> Self {
        Self::start_with(dir, arguments, Stdio::null())
    }

    fn start_with(dir: &Path, arguments: &[&str], stderr: Stdio) -> Self {
        let notify = dir.join("notify");
        let _ = std::fs::remove_file(&notify);
        let supervisor = UnixDatagram::bind(&notify).unwrap();
        supervisor.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut command = Self::command(dir);
        command.args(arguments).env("NOTIFY_SOCKET", &notify).stderr(stderr);
        let daemon = Self { process: command.spawn().unwrap(), socket: dir.join("state/stratabd.sock") };
        let mut message = [0; 256];
        let len = supervisor.recv(&mut message).expect("the daemon says when it is ready");
        assert!(String::from_utf8_lossy(&message[..len]).contains("READY=1"));
        daemon
    }

    fn ask(&self, request: &str) -> (u16, String) {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // The daemon may answer, and close, before it has read all of a request that it refuses.
        let _ = stream.write_all(request.as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8(answer).unwrap();
        let status = answer.split(' ').nth(1).expect(&answer).parse().unwrap();
        (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
    }

    fn get(&self, path: &str) -> (u16, String) {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
    }

    fn post(&self, body: &str) -> (u16, Value) {
        let len = body.len();
        let (status, answer) = self.ask(&format!(
            "POST /v1/devices HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len}\r\n\r\n{body}"
        ));
        (status, serde_json::from_str(&answer).unwrap())
    }

    fn terminate(mut self) -> ExitStatus {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the daemon does not end");
            #[expect(clippy::disallowed_methods, reason = "a test waits for a child process")]
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn fixture(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name).display().to_string()
}

#[test]
fn every_answer_has_a_status_and_a_body_that_programs_can_read() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path(), &[]);
    let (status, list) = daemon.get("/v1/devices");
    assert_eq!((status, list.as_str()), (200, r#"{"devices":[]}"#));
    let (status, metrics) = daemon.get("/metrics");
    assert_eq!(status, 200);
    assert!(metrics.contains("stratabd_devices 0\n") && !metrics.contains("EOF"), "{metrics}");
    let (_, metrics) =
        daemon.ask("GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: application/openmetrics-text\r\n\r\n");
    assert!(metrics.contains("stratabd_devices 0\n") && metrics.ends_with("# EOF\n"), "{metrics}");
    for (path, code) in [("/", 404), ("/v2/devices", 404), ("/v1/devices/7", 404), ("/v1/devices/x", 404)] {
        let (status, body) = daemon.get(path);
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, body["error"]["class"].as_str()), (code, Some("not_found")), "{path}");
    }
    assert_eq!(daemon.ask("PUT /v1/devices HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").0, 405);
    for (body, code, part) in [
        ("{", 400, "not as expected"),
        (r#"{"image":{"config":"/nowhere/c.json"}}"#, 404, "/nowhere/c.json"),
        (r#"{"image":{"config":"c.json"}}"#, 400, "absolute"),
        (r#"{"image":{"config":"/c"},"idd":1}"#, 400, "idd"),
        (r#"{"image":{"config":"/c"},"queues":0}"#, 400, "0 queues"),
        (&format!(r#"{{"image":{{"layers":["{}"]}}}}"#, fixture("corrupt/lsmt-version9")), 422, "version 9"),
    ] {
        let (status, answer) = daemon.post(body);
        assert_eq!(status, code, "{body}: {answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(part), "{body}: {answer}");
    }
    assert!(daemon.terminate().success());
}

#[test]
fn what_a_client_may_send_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path(), &[]);
    let (status, _) = daemon.post(&format!("\"{}\"", "x".repeat(3 << 20)));
    assert_eq!(status, 400, "a body past the limit");
    let mut stream = UnixStream::connect(&daemon.socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let _ = stream.write_all(format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(64 << 10)).as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(
        !answer.starts_with(b"HTTP/1.1 200") && !answer.starts_with(b"HTTP/1.1 404"),
        "headers past the limit"
    );
    let mut silent = UnixStream::connect(&daemon.socket).unwrap();
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    silent.write_all(b"GET /v1/dev").unwrap();
    let began = Instant::now();
    let _ = silent.read_to_end(&mut answer);
    assert!(began.elapsed() < PATIENCE, "a client that stops in the middle is cut off");
    assert_eq!(daemon.get("/v1/devices").0, 200, "and others are still served");
}

#[test]
fn a_log_that_nobody_reads_stops_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_with(dir.path(), &[], Stdio::piped());
    // Each is logged with its path; together they are more than a pipe holds.
    for _ in 0..40 {
        assert_eq!(daemon.get(&format!("/{}", "x".repeat(8 << 10))).0, 404);
    }
    assert_eq!(daemon.get("/v1/devices").0, 200);
}

#[test]
fn the_socket_is_the_owners_alone_and_one_daemon_has_the_state() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path(), &["--log-format", "json"]);
    let mode = std::fs::metadata(&daemon.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let second: Output = Daemon::command(dir.path()).output().unwrap();
    assert_eq!(second.status.code(), Some(7), "{second:?}");
    assert!(String::from_utf8_lossy(&second.stderr).contains("another stratabd"), "{second:?}");
    assert_eq!(daemon.get("/v1/devices").0, 200, "the first one is not disturbed");
    let socket = daemon.socket.clone();
    assert!(daemon.terminate().success());
    assert!(!socket.exists());
    let after = Daemon::start(dir.path(), &[]);
    drop(after);
    let again = Daemon::start(dir.path(), &[]);
    assert_eq!(again.get("/v1/devices").0, 200, "a socket that a killed daemon left is replaced");
}

#[test]
fn tcp_shows_metrics_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let address = port::reserved_address();
    let set = format!("daemon.metrics_listen={address}");
    let _daemon = Daemon::start(dir.path(), &["--set", &set]);
    for (path, status) in
        [("/metrics", "200"), ("/healthz", "200"), ("/readyz", "200"), ("/v1/devices", "404")]
    {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer.split(' ').nth(1), Some(status), "{path}");
    }
}

#[test]
fn a_device_that_cannot_be_attached_is_one_warning_whatever_its_image_is_called() {
    let hostile = "/nowhere/a\n2026-01-01T00:00:00Z ERROR stratabd: forged\u{1b}[2J\u{9b}2J";
    let long = format!("/nowhere/{}", "x".repeat(100_000));
    for format in ["text", "json"] {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let stderr = Stdio::from(std::fs::File::create(&log).unwrap());
        let daemon = Daemon::start_with(dir.path(), &["--log-format", format], stderr);
        let images = [json!({"config": hostile}), json!({"reference": hostile}), json!({"layers": [long]})];
        for image in &images {
            let (status, answer) = daemon.post(&json!({"image": image}).to_string());
            assert!(status >= 400, "{answer}");
        }
        assert!(daemon.terminate().success());
        let said = std::fs::read_to_string(&log).unwrap();
        let warnings =
            said.lines().filter(|line| line.contains("WARN") && line.contains("could not be attached"));
        assert_eq!(warnings.count(), images.len(), "{said}");
        assert!(!said.chars().any(|char| char.is_control() && char != '\n'), "{said:?}");
        for line in said.lines() {
            assert!(line.starts_with(if format == "text" { "20" } else { "{\"timestamp\":\"20" }), "{line}");
            assert!(!line.starts_with("2026-01-01") && line.len() < 20_000, "{line}");
            let fields = serde_json::from_str::<Value>(line).map(|line| line["fields"].clone());
            assert!(format == "text" || fields.unwrap()["message"].is_string(), "{line}");
        }
    }
}

#[test]
fn upstreams_configuration_is_taken_and_what_has_no_effect_is_logged_once() {
    let dir = tempfile::tempdir().unwrap();
    let theirs = dir.path().join("overlaybd.json");
    std::fs::write(&theirs, r#"{"ioEngine":0,"download":{"enable":true}}"#).unwrap();
    let mut command = Daemon::command(dir.path());
    command.arg("--overlaybd-config").arg(&theirs).args(["--set", "daemon.socket_mode=8"]);
    let refused = command.output().unwrap();
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    let log = dir.path().join("log");
    let mut process = Daemon::command(dir.path())
        .arg("--overlaybd-config")
        .arg(&theirs)
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let said = std::fs::read_to_string(&log).unwrap();
        if said.contains("ready") {
            let lines: Vec<_> = said.lines().filter(|line| line.contains("without effect")).collect();
            assert_eq!(lines.len(), 1, "{said}");
            assert!(lines[0].contains("/ioEngine") && lines[0].contains("/download"), "{said}");
            break;
        }
        assert!(Instant::now() < deadline, "{said}");
        #[expect(clippy::disallowed_methods, reason = "a test waits for a child process")]
        std::thread::sleep(Duration::from_millis(20));
    }
    process.kill().unwrap();
    process.wait().unwrap();
}

/// What the daemon of a user who may have so many processes and threads comes to: its exit status and what it has said. It is killed
/// once it is ready.
fn under_thread_limit(program: &Path, dir: &Path, limit: u32) -> (Option<i32>, String) {
    // A user of its own for each, since the limit counts all that a user has, and others may run the same test.
    let user = 10_000 + std::process::id() % 700 * 64 + limit;
    let own = dir.join(limit.to_string());
    std::fs::create_dir(&own).unwrap();
    std::os::unix::fs::chown(&own, Some(user), Some(user)).unwrap();
    let log = own.join("log");
    let mut process = Command::new("prlimit")
        .arg(format!("--nproc={limit}"))
        .args(["setpriv", "--clear-groups"])
        .args([format!("--reuid={user}"), format!("--regid={user}")])
        .arg(program)
        .args(["--state-dir".as_ref(), own.join("state").as_path()])
        .args(["--cache-dir".as_ref(), own.join("cache").as_path()])
        .stdin(Stdio::null())
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let said = std::fs::read_to_string(&log).unwrap();
        if let Some(status) = process.try_wait().unwrap() {
            return (status.code(), std::fs::read_to_string(&log).unwrap());
        }
        let is_late = Instant::now() > deadline;
        if is_late || said.contains("ready") {
            process.kill().unwrap();
            process.wait().unwrap();
            assert!(!is_late, "with {limit} threads it does not end: {said}");
            return (Some(0), said);
        }
        #[expect(clippy::disallowed_methods, reason = "a test waits for a child process")]
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_daemon_that_may_not_have_its_threads_ends_and_says_so() {
    if !rustix::process::getuid().is_root() {
        eprintln!("skipped: only root can be another user, and only another user has a limit");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = dir.path().join("stratabd");
    std::fs::copy(env!("CARGO_BIN_EXE_stratabd"), &program).unwrap();
    let next = std::sync::atomic::AtomicU32::new(1);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let limit = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if limit > 24 {
                        break;
                    }
                    let (code, said) = under_thread_limit(&program, dir.path(), limit);
                    match code {
                        Some(0) => assert!(limit > 3, "{said}"),
                        Some(1 | 4) => assert!(limit < 24 && !said.contains("panicked"), "{limit}: {said}"),
                        _ => panic!("{limit}: {code:?}: {said}"),
                    }
                    assert!(said.contains("RLIMIT_NPROC") || limit > 3, "{limit}: {said}");
                }
            });
        }
    });
}

#[test]
fn a_daemon_without_descriptors_still_lists_and_removes_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path(), &[]);
    let pid = rustix::process::Pid::from_raw(i32::try_from(daemon.process.id()).unwrap());
    // No number is given out any more past those that it keeps back.
    let folder = std::fs::read_dir(format!("/proc/{}/fd", daemon.process.id())).unwrap();
    let open = folder.filter_map(|entry| {
        let path = entry.unwrap().path();
        let shown = std::fs::read_link(&path).ok()?;
        Some((path.file_name()?.to_str()?.parse().ok()?, shown))
    });
    let open: Vec<(u64, PathBuf)> = open.collect();
    let kept = open.iter().filter(|(_, shown)| shown == Path::new("/dev/null"));
    let limit = kept.map(|(number, _)| number + 1).max().unwrap();
    let limits = rustix::process::Rlimit { current: Some(limit), maximum: Some(limit) };
    let before = rustix::process::prlimit(pid, rustix::process::Resource::Nofile, limits).unwrap();
    assert_eq!(before.current, before.maximum, "the soft limit was not raised");
    // Clients that say nothing take what is left, and some more: what has been closed since it was counted.
    let left = usize::try_from(limit).unwrap() - open.iter().filter(|(number, _)| *number < limit).count();
    let silent: Vec<_> = (0..left + 8).map(|_| UnixStream::connect(&daemon.socket).unwrap()).collect();
    for _ in 0..3 {
        assert_eq!(daemon.get("/v1/devices"), (200, r#"{"devices":[]}"#.to_owned()));
        assert_eq!(daemon.ask("DELETE /v1/devices/7 HTTP/1.1\r\nHost: x\r\n\r\n").0, 404);
        let (status, refused) = daemon.post(r#"{"image":{"layers":["/nowhere"]}}"#);
        assert_eq!(status, 500, "{refused}");
        assert!(refused.to_string().contains("RLIMIT_NOFILE"), "{refused}");
    }
    assert_eq!(daemon.terminate().code(), Some(0));
    drop(silent);
}

/// The records of daemons before and after this one, as they come to it by an upgrade or by the way back, of devices whose image is
/// not to be had at the moment. The first three have the form that builds of their days wrote.
#[test]
fn records_of_other_versions_are_understood_or_left_alone_and_never_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let records = dir.path().join("state/devices");
    std::fs::create_dir_all(&records).unwrap();
    let record = |head: &str| format!(r#"{{{head},"request":{{"image":{{"config":"/none/config.json"}}}}}}"#);
    let understood = [
        record(r#""version":1,"id":0"#),
        record(r#""version":2,"readable_by":2,"id":1,"phase":"live""#),
        record(r#""version":2,"readable_by":2,"id":2,"mark":81985529216486895,"phase":"live""#),
        record(r#""version":3,"readable_by":2,"id":3,"phase":"live""#),
    ];
    let of_another = [
        record(r#""version":3,"readable_by":3,"id":4,"phase":"live""#),
        record(r#""version":2,"readable_by":2,"id":5,"phase":"live","zones":4"#),
        record(r#""version":3,"readable_by":2,"id":6,"phase":"moving""#),
    ];
    let all: Vec<&String> = understood.iter().chain(&of_another).collect();
    let path = |id: usize| records.join(format!("{id}.json"));
    for (id, record) in all.iter().enumerate() {
        std::fs::write(path(id), record).unwrap();
    }
    for life in 0..2 {
        let daemon = Daemon::start(dir.path(), &[]);
        let (_, list) = daemon.get("/v1/devices");
        let list: Value = serde_json::from_str(&list).unwrap();
        for (id, listed) in list["devices"].as_array().unwrap().iter().enumerate() {
            let way = if id < understood.len() { "daemon" } else { "other" };
            assert_eq!(
                (&listed["id"], &listed["unserved"]["way"]),
                (&id.into(), &way.into()),
                "{life}: {listed}"
            );
        }
        assert_eq!(list["devices"].as_array().unwrap().len(), all.len());
        let (status, answer) =
            daemon.ask("DELETE /v1/devices/4 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        assert!(status >= 400, "what another version knows is not for this one to remove: {answer}");
        assert!(daemon.terminate().success());
        for (id, record) in all.iter().enumerate() {
            assert_eq!(&std::fs::read_to_string(path(id)).unwrap(), *record, "{life}");
        }
    }
}
