//! Programs that live as long as a machine: a database with one transaction after another, and `tail -f`, across kills and upgrades of
//! the daemon that serves their file system.

use std::{
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Lines, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use crate::{
    frame::{in_guest, output_of, wait_until},
    holdings::Holdings,
    recovery::{kills, start},
    support::{
        file_system::{EXT4, unmount},
        process,
    },
    writable::{MIB, config_with_upper, text},
};

/// The last line of what `tail` follows.
const END: &str = "end";

/// What the programs have done, as far as they were told that it is done.
#[derive(Default)]
struct Progress {
    is_over: AtomicBool,
    transactions: AtomicU64,
    lines: AtomicU64,
}

impl Progress {
    fn goes_on(&self) -> bool {
        !self.is_over.load(Ordering::Relaxed)
    }

    /// Waits until so many more transactions have ended, and lines been written.
    fn wait_for(&self, more: u64) {
        let now = || [&self.transactions, &self.lines].map(|done| done.load(Ordering::Relaxed));
        let before = now();
        wait_until("the programs go on", || (0..2).all(|program| now()[program] >= before[program] + more));
    }
}

/// A program that says an error on standard error and then ends, and what it says on standard output.
struct Program {
    child: Child,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Program {
    fn start(name: &str, arguments: &[&str], stdin: Stdio) -> Self {
        let mut command = Command::new(name);
        command.args(arguments).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, answers }
    }

    fn answer(&mut self) -> String {
        self.answers.next().expect("it has ended").unwrap()
    }

    /// It has said no error, and ends now as it should.
    fn end(mut self, expected: Option<i32>) {
        assert_eq!(process::ended(&mut self.child), expected);
        let said = std::io::read_to_string(self.child.stderr.take().unwrap()).unwrap();
        assert!(said.is_empty(), "{said}");
    }
}

/// Has a database make one transaction after another, each of which is durable before the next.
fn transact(database: &Path, progress: &Progress) {
    let mut program = Program::start("sqlite3", &["-batch", "-bail", text(database)], Stdio::piped());
    let mut stdin: ChildStdin = program.child.stdin.take().unwrap();
    writeln!(stdin, "PRAGMA synchronous=FULL; CREATE TABLE told (number INTEGER PRIMARY KEY, word TEXT);")
        .unwrap();
    for number in (1..).take_while(|_| progress.goes_on()) {
        writeln!(stdin, "BEGIN; INSERT INTO told VALUES ({number}, hex(randomblob(200)));").unwrap();
        writeln!(stdin, "UPDATE told SET word = hex(randomblob(300)) WHERE number = {number} / 2; COMMIT;")
            .unwrap();
        writeln!(stdin, "SELECT max(number) FROM told;").unwrap();
        assert_eq!(program.answer(), number.to_string());
        progress.transactions.store(number, Ordering::Relaxed);
    }
    drop(stdin);
    program.end(Some(0));
}

fn line(number: u64) -> String {
    format!("line {number} {}", "x".repeat(usize::try_from(number % 100).unwrap()))
}

/// Appends a line after another to a file, each of which is durable before the next.
fn append(mut log: &File, progress: &Progress) {
    for number in (1..).take_while(|_| progress.goes_on()) {
        log.write_all(format!("{}\n", line(number)).as_bytes()).expect("a line cannot be written");
        log.sync_data().expect("a line cannot be made durable");
        progress.lines.store(number, Ordering::Relaxed);
    }
    writeln!(log, "{END}").expect("the last line cannot be written");
}

/// Has `tail` follow the file, which is to say each line once, to the last; returns how many there were.
fn follow(log: &Path) -> u64 {
    let mut program = Program::start("tail", &["-n", "+1", "-f", text(log)], Stdio::null());
    let mut seen = 0;
    loop {
        let said = program.answer();
        if said == END {
            process::signal(&program.child, "-TERM");
            program.end(None);
            return seen;
        }
        seen += 1;
        assert_eq!(said, line(seen));
    }
}

#[test]
fn a_database_and_a_tail_live_on_across_kills_and_upgrades() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir_in("/var").unwrap();
    let mut daemon = start(dir.path());
    let device = daemon.add(&["--config", &config_with_upper(dir.path(), None, 64 * MIB), "--id", "1"]);
    EXT4.make(&device);
    let point = EXT4.mount(&device, dir.path());
    let (database, path) = (point.join("database"), point.join("log"));
    let log = OpenOptions::new().append(true).create_new(true).open(&path).unwrap();
    let progress = Progress::default();
    // Of a process that has taken over, as all later ones have.
    let mut held = None;
    let mut random = fastrand::Rng::with_seed(7);
    let daemon = thread::scope(|scope| {
        let programs =
            [scope.spawn(|| transact(&database, &progress)), scope.spawn(|| append(&log, &progress))];
        let tail = scope.spawn(|| follow(&path));
        for round in 1..=kills().div_ceil(2) {
            progress.wait_for(random.u64(1..6));
            daemon.signal("-KILL");
            assert_eq!(daemon.wait(), None);
            daemon = start(dir.path());
            if round % 3 == 0 {
                progress.wait_for(random.u64(1..6));
                daemon.upgrade(&["--timeout", "120"]).unwrap();
            }
            held.get_or_insert_with(|| Holdings::of(&daemon, dir.path())).check(&daemon, dir.path());
        }
        progress.wait_for(2);
        progress.is_over.store(true, Ordering::Relaxed);
        programs.into_iter().for_each(|program| program.join().unwrap());
        assert_eq!(tail.join().unwrap(), progress.lines.load(Ordering::Relaxed));
        daemon
    });
    drop(log);
    let acknowledged = progress.transactions.load(Ordering::Relaxed);
    let lines = progress.lines.load(Ordering::Relaxed);
    println!("{acknowledged} transactions and {lines} lines");
    // Past the page cache.
    unmount(&point);
    EXT4.mount(&device, dir.path());
    let asked = "PRAGMA integrity_check; SELECT count(*), max(number) FROM told;";
    let said = output_of("sqlite3", &["-batch", "-bail", text(&database), asked]);
    assert_eq!(said, format!("ok\n{acknowledged}|{acknowledged}\n"));
    let expected: String =
        (1..=lines).map(|number| line(number) + "\n").chain([format!("{END}\n")]).collect();
    assert!(fs::read_to_string(&path).unwrap() == expected, "lines are lost, or others are there");
    unmount(&point);
    EXT4.check(&device);
    daemon.finish();
}
