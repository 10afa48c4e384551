//! The command line: exit codes, JSON and messages, by running the program.
#![expect(clippy::unwrap_used, reason = "a test panics where something is not as expected")]

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Read, Write},
    iter,
    net::TcpListener,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::{self, JoinHandle},
};

use serde_json::Value;
use stratabd::server::config::Config;

const PROGRAM: &str = env!("CARGO_BIN_EXE_ublk-ctl");

struct Ended {
    code: i32,
    out: String,
    err: String,
}

fn run(arguments: &[&str]) -> Ended {
    let output =
        Command::new(PROGRAM).args(arguments).env_remove("RUST_LOG").stdin(Stdio::null()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ended { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

#[test]
fn each_kind_of_failure_has_its_exit_code_and_says_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let not_json = write("bad.json", "{");
    let empty = write("empty.json", "{}");
    let tracing = write("trace.json", r#"{"lowers":[{"file":"/a"}],"recordTracePath":"/t"}"#);
    let writable = write("rw.json", r#"{"upper":{"data":"/nowhere/d","index":"/nowhere/i"}}"#);
    let settings = write("s.toml", "[cache]\nsize_mb = 1\n");
    let text = write("text", "not a layer");
    let layer = fixture("ext4/L1.z32kt").to_str().unwrap().to_owned();
    let nowhere = dir.path().join("no.sock").to_str().unwrap().to_owned();
    let cases: &[(&[&str], i32, &str)] = &[
        (&["--help"], 0, ""),
        (&["--version"], 0, ""),
        (&["bogus"], 2, "unrecognized subcommand"),
        (&["add"], 2, "required"),
        (&["add", "a", "--config", "b"], 2, "cannot be used with"),
        (&["add", "a", "--queues", "0"], 2, "0 is not in"),
        (&["add", "--from", "/nowhere/list"], 3, "/nowhere/list"),
        (&["add", "a", "--from", "b"], 2, "cannot be used with"),
        (&["add", "a", "--count", "2", "--id", "3"], 2, "cannot be used with"),
        (&["recover"], 2, "required"),
        (&["recover", "3", "--foreground", "--from", "/nowhere"], 3, "no record of a device 3"),
        (&["set", "3"], 2, "required"),
        (&["image", "export", "--config", &empty], 2, "required"),
        (&["image", "export", "--config", &empty, "--sha256", "--force"], 2, "--output"),
        (&["info", "/dev/sda"], 2, "neither the number nor the path"),
        (&["list", "--settings", &settings], 2, "unknown key cache.size_mb (did you mean cache.size_mib?)"),
        (&["list", "--settings", &nowhere], 3, "cannot read it"),
        (&["list", "--set", "cache.size_mib=x"], 2, "--set"),
        (&["image", "export", "--sha256", "--config", "/nowhere/c.json"], 3, "/nowhere/c.json"),
        (&["image", "export", "--sha256", "--layer", "/nowhere/l"], 3, "/nowhere/l"),
        (&["image", "export", "--sha256", "--config", &not_json], 5, "bad.json: not JSON"),
        (
            &["image", "export", "--sha256", "--config", &empty],
            5,
            "empty.json: /lowers: the image has no layer",
        ),
        (&["image", "export", "--sha256", "--config", &tracing], 5, "/recordTracePath: not yet supported"),
        (&["image", "export", "--sha256", "--config", &writable], 3, "/nowhere/d: cannot open"),
        (&["image", "export", "--sha256", "--layer", &text], 5, "text"),
        (&["image", "export", "--sha256", "case/UPPER"], 2, "not an image reference"),
        (&["layer", "inspect", &text], 5, "text"),
        (&["layer", "verify", "/nowhere/l"], 3, "/nowhere/l"),
        (&["layer", "compress", "/nowhere/l", "/nowhere/out"], 3, "/nowhere/l"),
        (&["layer", "compress", &text, "/nowhere/out"], 5, "not a sealed overlaybd layer"),
        (&["layer", "compress", &text, "/nowhere/out", "--block-size", "5000"], 2, "--block-size"),
        (&["layer", "extract", &layer, &text], 7, "--force"),
        (&["layer", "extract", &layer, "/nowhere/out"], 3, "/nowhere/out"),
        (&["list", "--socket", &nowhere], 8, "systemctl start stratabd"),
        (&["ls", "--socket", &nowhere], 8, "no stratabd"),
        (&["delete", "0", "--socket", &nowhere], 8, "no stratabd"),
        (&["create", "a", "--socket", &nowhere], 8, "--foreground"),
        (&["add", "a", "--no-cache", "--socket", &nowhere], 2, "need --foreground"),
    ];
    for (arguments, code, part) in cases {
        let ended = run(arguments);
        assert_eq!(ended.code, *code, "{arguments:?}: {}", ended.err);
        assert!(ended.err.contains(part), "{arguments:?}: {}", ended.err);
        assert_eq!(ended.out.is_empty(), *code != 0, "{arguments:?}: {}", ended.out);
    }
}

/// A daemon that has device 1, cannot remove device 2 since it is mounted, and answers `count` requests.
fn scripted_daemon(socket: &Path, count: usize) -> JoinHandle<Vec<String>> {
    let listener = UnixListener::bind(socket).unwrap();
    thread::spawn(move || {
        let answer = |mut stream: UnixStream| {
            let mut lines = BufReader::new(&stream).lines().map(Result::unwrap);
            let asked = lines.next().unwrap();
            lines.find(String::is_empty).unwrap();
            let (status, body) = match asked.split(['/', '?', ' ']).nth(4).unwrap() {
                "1" => (
                    200,
                    r#"{"id":1,"path":"/dev/ublkb1","state":"detaching","size_bytes":0,"logical_block_bytes":512,
                        "read_only":true,"queues":1,"depth":1,"held_open":true}"#,
                ),
                "2" => (409, r#"{"error":{"class":"conflict","message":"device 2 is in use"}}"#),
                _ => (404, r#"{"error":{"class":"not_found","message":"there is no device 3"}}"#),
            };
            let len = body.len();
            write!(stream, "HTTP/1.1 {status} x\r\nContent-Length: {len}\r\n\r\n{body}").unwrap();
            asked
        };
        let asked = iter::repeat_with(|| answer(listener.accept().unwrap().0));
        // Each command greets first.
        asked.filter(|line| !line.starts_with("GET /v1/daemon ")).take(count).collect()
    })
}

#[test]
fn del_tells_every_failure_and_what_was_removed() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let name = socket.to_str().unwrap();
    let daemon = scripted_daemon(&socket, 7);
    let ended = run(&["del", "2", "1", "3", "--socket", name]);
    assert_eq!(ended.code, 7, "{}", ended.err);
    assert!(ended.err.contains("device 2 is in use") && ended.err.contains("no device 3"), "{}", ended.err);
    assert!(ended.out.contains("removed: 1") && ended.out.contains("still open"), "{}", ended.out);
    let ended = run(&["del", "3", "2", "1", "--force", "--json", "--socket", name]);
    assert_eq!(ended.code, 3, "{}", ended.err);
    let done: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!((&done["removed"][0], &done["held_open"][0]), (&Value::from(1), &Value::from(1)), "{done}");
    assert_eq!(done["failed"][0]["error"]["class"], "not_found", "{done}");
    assert_eq!((&done["failed"][1]["id"], done["failed"].as_array().unwrap().len()), (&Value::from(2), 2));
    assert_eq!(run(&["del", "1", "--no-wait", "--socket", name]).code, 0);
    let asked = daemon.join().unwrap();
    let parts = [(0, "force=false"), (3, "force=true"), (6, "wait=false")];
    assert!(parts.iter().all(|(index, part)| asked[*index].contains(part)), "{asked:?}");
}

#[test]
fn with_json_a_failure_is_one_object_too() {
    let ended = run(&["layer", "inspect", "/nowhere/l", "--json"]);
    let answer: Value = serde_json::from_str(&ended.err).unwrap();
    assert_eq!((ended.code, answer["error"]["class"].as_str()), (3, Some("not_found")));
    assert!(answer["error"]["message"].as_str().unwrap().contains("/nowhere/l"));
}

#[test]
fn a_host_without_the_driver_is_told_how_to_get_it() {
    if Path::new("/dev/ublk-control").exists() {
        return;
    }
    let layer = fixture("lsmt/tiny.lsmt");
    for arguments in [&["features"][..], &["add", "--foreground", "--layer", layer.to_str().unwrap()]] {
        let ended = run(arguments);
        assert_eq!(ended.code, 4, "{arguments:?}: {}", ended.err);
        assert!(ended.err.contains("modprobe ublk_drv"), "{}", ended.err);
    }
}

#[test]
fn a_layer_says_what_it_is_and_that_it_is_sound() {
    let layer = fixture("ext4/L1.z32kt");
    let path = layer.to_str().unwrap();
    let report: Value = serde_json::from_str(&run(&["layer", "inspect", path, "--json"]).out).unwrap();
    assert_eq!(report["compression"]["algorithm"], "lz4");
    assert_eq!(report["compression"]["block_bytes"], 32768);
    assert_eq!(report["tar_envelope"], true);
    assert_eq!(report["virtual_size_bytes"], 1 << 30);
    assert_eq!(report["uuid"], "ABC00001-1111-2222-3333-000000000001");
    let verified: Value = serde_json::from_str(&run(&["layer", "verify", path, "--json"]).out).unwrap();
    assert_eq!((&verified["checksums"], &verified["blocks"]), (&Value::Bool(true), &Value::from(77)));
    let damaged = run(&["layer", "verify", fixture("corrupt/zfile-data-flip").to_str().unwrap()]);
    assert_eq!(damaged.code, 5);
    assert!(damaged.err.contains("zfile-data-flip") && damaged.err.contains("636"), "{}", damaged.err);
}

#[test]
fn a_layer_is_extracted_and_compressed_to_what_upstream_made() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (plain, packed) = (path("plain"), path("packed"));
    let upstreams = fixture("ext4/L1.z32kt");
    let done = run(&["layer", "extract", upstreams.to_str().unwrap(), &plain, "--json"]);
    let done: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(done["output_bytes"], 2_502_656);
    let form = ["--block-size", "32768", "--tar", "--threads", "3"];
    let ended = run(&[&["layer", "compress", &plain, &packed][..], &form].concat());
    assert_eq!((ended.code, ended.err.as_str()), (0, ""));
    assert!(ended.out.starts_with(&packed), "{}", ended.out);
    let compared = Command::new("cmp").arg(&packed).arg(&upstreams).status().unwrap();
    assert!(compared.success(), "they differ");
    // The other way round the output is there already.
    let ended = run(&["layer", "compress", &plain, &packed, "--algorithm", "zstd"]);
    assert_eq!(ended.code, 7);
    assert_eq!(run(&["layer", "compress", &plain, &packed, "--algorithm", "zstd", "--force"]).code, 0);
    assert_eq!(run(&["layer", "verify", &packed]).code, 0);
}

#[test]
fn a_reader_that_has_gone_is_no_failure() {
    let mut child = Command::new(PROGRAM)
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}

#[test]
fn the_manual_shows_the_tour_that_readme_shows() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(run(&["man", dir.path().to_str().unwrap()]).code, 0);
    let page = fs::read_to_string(dir.path().join("ublk-ctl.1")).unwrap().replace("\\-", "-");
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let (_, tour) = readme.split_once("### From an image to its next version\n").unwrap();
    let (tour, _) = tour.split_once("```\n\n").unwrap();
    let commands = tour.lines().map(|line| line.split_once("  #").map_or(line, |(command, _)| command));
    let commands: Vec<_> = commands.filter(|line| line.contains("ublk-ctl")).collect();
    assert!(commands.len() > 5, "{tour}");
    for command in commands {
        assert!(page.contains(command.replace("sudo ", "").trim_end()), "{command} is not in {page}");
    }
}

/// What the last of `words` can become, as fish is told.
fn completed(words: &[&str]) -> String {
    let asked =
        Command::new(PROGRAM).arg("--").arg("ublk-ctl").args(words).env("COMPLETE", "fish").output().unwrap();
    assert!(asked.status.success(), "{asked:?}");
    String::from_utf8(asked.stdout).unwrap()
}

#[test]
fn completions_and_manual_pages_know_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(run(&["completions", shell]).out.contains("ublk-ctl"), "{shell}");
    }
    let script = [completed(&[""]), completed(&["layer", ""]), completed(&["image", ""])].concat();
    assert!(completed(&["list", "--output", "de"]).contains("device\t"));
    assert!(!completed(&["info", ""]).contains("add"), "where there is no daemon there are no devices");
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(run(&["man", dir.path().to_str().unwrap()]).code, 0);
    for command in [
        "add",
        "del",
        "list",
        "info",
        "features",
        "image-export",
        "layer-commit",
        "layer-compress",
        "layer-create",
        "layer-diff",
        "layer-extract",
        "layer-flatten",
        "layer-inspect",
        "layer-merge",
        "layer-resize",
        "layer-verify",
        "resize",
    ] {
        let page = dir.path().join(format!("ublk-ctl-{command}.1"));
        assert!(page.exists(), "{} is missing", page.display());
        let last = command.rsplit('-').next().unwrap();
        assert!(script.contains(last), "{command}");
    }
}

#[test]
fn a_command_that_may_not_have_its_threads_ends_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    if std::os::unix::fs::chown(dir.path(), Some(1), Some(1)).is_err() {
        eprintln!("skipped: only root can be another user, and only another user has a limit");
        return;
    }
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (program, layer) = (path("ublk-ctl"), path("layer"));
    fs::copy(PROGRAM, &program).unwrap();
    fs::copy(fixture("ext4/L1.z32kt"), &layer).unwrap();
    let (data, index, out) = (path("data"), path("index"), path("out"));
    let commands: [&[&str]; 5] = [
        &["list", "--socket", "/nowhere"],
        &["layer", "create", &data, &index, "--size", "1MiB"],
        &["layer", "commit", &layer, &out, "--force"],
        &["image", "export", "--no-cache", "--sha256", "--layer", &layer],
        &["add", "--foreground", "--no-cache", "--layer", &layer],
    ];
    for limit in [1, 2, 3, 4, 6, 10] {
        for arguments in commands {
            // A user of its own for each, since the limit counts all that a user has, and others may run the same test.
            let user = 10_000 + std::process::id() % 700 * 64 + limit;
            let output = Command::new("timeout")
                .args(["60", "prlimit", &format!("--nproc={limit}"), "setpriv", "--clear-groups"])
                .args([format!("--reuid={user}"), format!("--regid={user}")])
                .arg(&program)
                .args(arguments)
                .stdin(Stdio::null())
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            let code = output.status.code();
            assert!(code.is_some_and(|code| code < 10), "{limit}: {arguments:?}: {code:?}: {said}");
            assert!(code == Some(0) || !said.is_empty(), "{limit}: {arguments:?}: {code:?}");
            for made in [&data, &index] {
                let _ = fs::remove_file(made);
            }
        }
    }
}

#[test]
fn what_an_option_names_is_looked_at_before_anything_is_done() {
    let layer = fixture("lsmt/tiny.lsmt").to_str().unwrap().to_owned();
    let cases: [(&[&str], i32, &str); 3] = [
        (&["list", "--output", "size,colour"], 2, "colour"),
        (
            &["add", "--foreground", "--layer", &layer, "--authfile", "/nowhere/auth.json"],
            3,
            "/nowhere/auth.json: cannot read it",
        ),
        (
            &["add", "--foreground", "a", "--plain-http", "http://a/v2/"],
            2,
            "a host is named as HOST or HOST:PORT",
        ),
    ];
    for (arguments, code, part) in cases {
        let ended = run(arguments);
        assert_eq!(ended.code, code, "{arguments:?}: {}", ended.err);
        assert!(ended.err.contains(part), "{arguments:?}: {}", ended.err);
    }
}

#[test]
fn help_is_a_command_as_well() {
    for (command, option) in
        [(&["help"][..], &["--help"][..]), (&["help", "layer", "commit"], &["layer", "commit", "--help"])]
    {
        let (asked, given) = (run(command), run(option));
        assert_eq!((asked.code, given.code), (0, 0), "{}", asked.err);
        assert_eq!(asked.out, given.out);
    }
}

#[test]
fn a_wrong_use_is_json_where_json_is_asked_for() {
    for arguments in [&["--json", "frobnicate"][..], &["list", "--bogus", "--json"]] {
        let ended = run(arguments);
        let answer: Value = serde_json::from_str(&ended.err).expect(&ended.err);
        assert_eq!((ended.code, answer["error"]["class"].as_str()), (2, Some("usage")), "{}", ended.err);
    }
    assert!(run(&["add", "a", "--", "--json"]).err.starts_with("error: "));
}

#[test]
fn a_daemon_that_says_nothing_is_not_waited_for_longer_than_said() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("silent.sock");
    // The kernel takes connections in its name.
    let _silent = UnixListener::bind(&socket).unwrap();
    let began = std::time::Instant::now();
    for arguments in [&["list"][..], &["add", "a"], &["del", "3"]] {
        let ended = run(&[arguments, &["--patience", "1", "--socket", socket.to_str().unwrap()]].concat());
        assert_eq!(ended.code, 8, "{}", ended.err);
        assert!(ended.err.contains("has said nothing in 1s"), "{}", ended.err);
    }
    assert!(began.elapsed() < std::time::Duration::from_secs(60));
}

/// The manual pages, in a folder that is still there.
fn manual() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(run(&["man", dir.path().to_str().unwrap()]).code, 0);
    dir
}

#[test]
fn the_manual_has_every_setting_with_its_default() {
    let dir = manual();
    let page = fs::read_to_string(dir.path().join("stratabd.toml.5")).unwrap().replace("\\-", "-");
    let (mut section, mut found) = (String::new(), BTreeSet::new());
    for line in page.lines() {
        if let Some(name) = line.strip_prefix(".SH ") {
            section = name.trim_matches(['[', ']']).replace("\"registry.example:5000\"", "HOST");
        } else if let Some((key, _)) = line.strip_prefix("\\fB").and_then(|line| line.split_once(" = ")) {
            found.insert(format!("{section}.{key}"));
        }
    }
    let wanted: BTreeSet<String> = Config::keys().into_iter().collect();
    assert_eq!(found, wanted, "{page}");
    assert!(page.contains("size_mib = 8192") && page.contains("Several processes may share it."), "{page}");
}

#[test]
fn the_manual_is_what_its_readers_take() {
    let dir = manual();
    let daemon = fs::read_to_string(dir.path().join("stratabd.8")).unwrap();
    for part in ["overlaybd\\-config", "SIGTERM", "/run/stratabd\\-journals", "SEE ALSO"] {
        assert!(daemon.contains(part), "{part} is not in {daemon}");
    }
    assert!(!daemon.contains("standby"), "what it tells itself is nobody's");
    for page in fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()) {
        let text = fs::read_to_string(&page).unwrap();
        let title = text.lines().find(|line| line.starts_with(".TH ")).unwrap().to_owned();
        assert!(title.contains(concat!("stratabd ", env!("CARGO_PKG_VERSION"))), "{title}");
        for (reader, words) in
            [("mandoc", &["-T", "lint", "-W", "error"][..]), ("man", &["--warnings", "-l"])]
        {
            let Ok(read) = Command::new(reader).args(words).arg(&page).env("MANPAGER", "cat").output() else {
                eprintln!("there is no {reader} here");
                continue;
            };
            assert!(read.status.success() && read.stderr.is_empty(), "{}: {read:?}", page.display());
        }
    }
}

#[test]
fn on_a_terminal_something_is_said_while_a_registry_is_silent() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = silent.local_addr().unwrap();
    let layer = fixture("ext4/L1.z32kt");
    for (command, word) in [
        (format!("image export --no-cache --sha256 --plain-http {host} {host}/a:b"), "opening the image"),
        (
            format!("image push --no-cache --plain-http {host} --layer {} {host}/a:b", layer.display()),
            "pushing",
        ),
    ] {
        // It makes a terminal for the program.
        let mut terminal = Command::new("script")
            .args(["-qec", &format!("{PROGRAM} {command}"), "/dev/null"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut pipe = terminal.stdout.take().unwrap();
        let (mut said, mut part) = (String::new(), [0; 1024]);
        while !said.contains(word) {
            let count = pipe.read(&mut part).unwrap();
            assert!(count > 0, "{command}: {said}");
            said.push_str(&String::from_utf8_lossy(part.get(..count).unwrap()));
        }
        terminal.kill().unwrap();
        terminal.wait().unwrap();
    }
}
