//! What README and the guides have people type is there: commands, options, settings, files and headings.
#![expect(clippy::unwrap_used, reason = "a test panics where something is not as expected")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const GUIDES: [&str; 5] =
    ["README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "docs/operations.md", "docs/figures.md"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap()
}

/// What is written as code: lines of blocks, and words between backticks.
fn code(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut in_block = false;
    let mut prose = String::new();
    for line in text.lines() {
        if line.starts_with("```") {
            in_block = !in_block;
        } else if in_block {
            found.push(line.split(" #").next().unwrap_or_default().to_owned());
        } else {
            prose.push_str(line);
            prose.push('\n');
        }
    }
    found.extend(prose.split('`').skip(1).step_by(2).map(|span| span.replace('\n', " ")));
    found
}

/// Uses of `program` in code: its arguments.
fn uses(code: &[String], program: &str) -> Vec<Vec<String>> {
    let commands = code.iter().flat_map(|line| line.split(['|', ';', '&', '(', ')', '"']));
    let words = commands.map(|command| command.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    let with_program = words.filter_map(|words| {
        let at = words.iter().position(|word| word != "sudo")?;
        (words.get(at)? == program).then(|| words.get(at + 1..).unwrap_or_default().to_vec())
    });
    with_program.collect()
}

/// What `program` says of a command; `None` where it has none of that name.
fn help(program: &Path, command: &[String]) -> Option<String> {
    let output = Command::new(program).args(command).arg("--help").env_remove("RUST_LOG").output().unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}

fn options(arguments: &[String]) -> impl Iterator<Item = &str> {
    let options = arguments.iter().filter(|argument| argument.starts_with('-') && argument.len() > 1);
    options.map(|option| option.split(['=', ',', '.']).next().unwrap_or_default())
}

#[test]
fn each_command_and_option_in_the_guides_is_one_of_the_tool() {
    let tool = Path::new(env!("CARGO_BIN_EXE_ublk-ctl"));
    let mut said: BTreeMap<Vec<String>, Option<String>> = BTreeMap::new();
    let mut seen = 0;
    for guide in GUIDES {
        for arguments in uses(&code(&read(guide)), "ublk-ctl") {
            let is_name = |word: &&String| word.chars().all(|c| c.is_ascii_lowercase());
            let names = match arguments.first().map(String::as_str) {
                Some("layer" | "image") => 2,
                _ => 1,
            };
            let command: Vec<String> = arguments.iter().take(names).take_while(is_name).cloned().collect();
            let help = said.entry(command.clone()).or_insert_with(|| help(tool, &command));
            let help = help.as_ref().unwrap_or_else(|| panic!("{guide}: no command {command:?}"));
            for option in options(&arguments) {
                assert!(help.contains(option), "{guide}: {command:?} has no {option}");
            }
            seen += 1;
        }
    }
    assert!(seen > 40, "the guides have {seen} commands only");
}

#[test]
fn each_option_of_the_daemon_in_the_guides_is_one() {
    let daemon = Path::new(env!("CARGO_BIN_EXE_ublk-ctl")).with_file_name("stratabd");
    if !daemon.exists() {
        eprintln!("stratabd was not built");
        return;
    }
    let help = help(&daemon, &[]).unwrap();
    for guide in GUIDES {
        for arguments in uses(&code(&read(guide)), "stratabd") {
            for option in options(&arguments) {
                assert!(help.contains(option), "{guide}: stratabd has no {option}");
            }
        }
    }
}

#[test]
fn each_setting_in_the_guides_is_one_of_the_example() {
    let mut section = String::new();
    let mut sections = BTreeSet::new();
    let mut keys = BTreeSet::new();
    for line in read("examples/stratabd.toml").lines() {
        let line = line.trim_start_matches('#');
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = name.to_owned();
            sections.insert(name.split('.').next().unwrap().to_owned());
        } else if let Some((key, _)) = line.split_once(" = ")
            && !key.contains(' ')
        {
            keys.insert(format!("{section}.{key}"));
        }
    }
    let mut seen = 0;
    for guide in GUIDES {
        for word in code(&read(guide)).iter().flat_map(|code| code.split_whitespace()) {
            let word = word.split('=').next().unwrap();
            let is_key = word.split_once('.').is_some_and(|(first, rest)| {
                let is_name = rest.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c == '.');
                sections.contains(first) && is_name && !rest.is_empty()
            });
            if is_key && !["rs", "toml", "service"].iter().any(|end| word.ends_with(&format!(".{end}"))) {
                let is_section = keys.iter().any(|key| key.starts_with(&format!("{word}.")));
                assert!(keys.contains(word) || is_section, "{guide}: no setting {word}");
                seen += 1;
            }
        }
    }
    assert!(seen > 5, "the guides have {seen} settings only");
}

#[test]
fn each_link_in_the_guides_leads_to_a_file_and_a_heading() {
    let slug = |heading: &str| {
        let words = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = words.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect::<String>()
    };
    for guide in GUIDES {
        let text = read(guide);
        let folder = Path::new(guide).parent().unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let path = if file.is_empty() { PathBuf::from(guide) } else { folder.join(file) };
            assert!(root().join(&path).exists(), "{guide}: {link} leads nowhere");
            if !anchor.is_empty() {
                let there = read(path.to_str().unwrap());
                let has = there.lines().any(|line| line.starts_with('#') && slug(line) == anchor);
                assert!(has, "{guide}: {link} leads to no heading");
            }
        }
        for code in code(&text) {
            let Some(script) = code.split_whitespace().next().filter(|word| word.starts_with("ci/")) else {
                continue;
            };
            assert!(root().join(script).exists(), "{guide}: there is no {script}");
        }
    }
}
