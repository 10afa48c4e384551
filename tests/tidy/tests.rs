//! Every rule is shown to fire on a small made-up source, and a clean house to pass.

use std::collections::BTreeSet;

use crate::{
    Finding, Rule, check,
    tree::{SourceFile, Tree},
};

const ARCHITECTURE: &str = "\
# Architecture

| module | does | may use |
|---|---|---|
| `reactor` | loops | nothing |
| `block` | contracts | `reactor` |
| `device` | doubles | `block`, `reactor` |
| `image` | engine | `block` |
| `server` | root | all above |

| crate | modules |
|---|---|
| `tokio`, `hyper` | `server` |
| `anyhow` | none |
| `std::fs`, `std::time` | `server` |
";

/// A house that keeps every rule, with `file` put in place of, or beside, its files.
fn house(file: Option<(&str, &str)>) -> Tree {
    let mut files = vec![
        ("src/lib.rs", "//! A library that is clean.\npub mod block;\n"),
        ("src/reactor/mod.rs", "//! Runs things in turn.\npub struct Reactor;\n"),
        ("src/block/mod.rs", "//! Says what a device is.\nuse crate::reactor::Reactor;\n"),
        ("src/device/mod.rs", "//! Doubles for the tests.\nuse crate::{block::Device, reactor::Reactor};\n"),
        ("src/image/mod.rs", "//! Reads layered images.\nmod stack;\nuse self::stack::Stack;\n"),
        ("src/image/stack.rs", "//! Layers upon layers.\nuse super::super::block::Device;\n"),
        ("src/server/mod.rs", "//! Puts all together.\nuse crate::image::Image;\nuse tokio::net;\n"),
        ("src/bin/stratabd.rs", "//! Starts the daemon.\nfn main() { stratabd::server::run() }\n"),
        ("ublk-ctl/src/main.rs", "//! Starts the tool.\nfn main() -> anyhow::Result<()> { todo!() }\n"),
    ];
    if let Some((path, text)) = file {
        files.retain(|(other, _)| *other != path);
        files.push((path, text));
    }
    let files =
        files.into_iter().map(|(path, text)| SourceFile { path: path.to_owned(), text: text.to_owned() });
    Tree { architecture: ARCHITECTURE.to_owned(), files: files.collect() }
}

fn with(path: &str, text: &str) -> Vec<Finding> {
    check(&house(Some((path, text))))
}

/// The rules and lines of what is found in a file of `image` that says `body` from its second line on.
fn in_image(body: &str) -> Vec<(Rule, usize)> {
    let findings = with("src/image/stack.rs", &format!("//! Layers upon layers.\n{body}\n"));
    findings.into_iter().map(|finding| (finding.rule, finding.line)).collect()
}

#[test]
fn a_clean_house_passes() {
    assert_eq!(check(&house(None)), []);
}

#[test]
fn an_import_outside_the_table_is_found_however_it_is_written() {
    for body in [
        "use crate::device::Null;",
        "use crate::{block::Device, device::Null};",
        "use crate::{block, device};",
        "use super::super::device::Null;",
        "use super::super::{block, device};",
        "fn f() { crate::device::null() }",
        "fn f(null: &crate::device::Null) {}",
        "fn f() { let x = <crate::device::Null as Clone>::clone; }",
        "mod inner { use super::super::super::device::Null; }",
        "fn f() { println!(\"{}\", crate::device::NULL) }",
        "fn f() { vec![crate::device::Null {}] }",
        "macro_rules! m { () => { $crate::device::Null } }",
        "macro_rules! m { () => { use crate::{block, device}; } }",
        "#[derive(Serialize)] struct S { #[serde(with = \"crate::device::hex\")] x: u8 }",
        "use crate::nowhere::Thing;",
        "use crate::*;",
        "use crate as root;",
        "use super::super as root;",
        "use super::super::*;",
        "impl Into<crate::device::Null> for u8 { fn into(self) {} }",
    ] {
        assert_eq!(in_image(body), [(Rule::Import, 2)], "{body}");
    }
}

#[test]
fn a_path_that_stays_inside_or_goes_where_the_row_says_passes() {
    for body in [
        "use crate::block::{self, Device};",
        "use super::Stack;",
        "use crate::image::stack::Layer;",
        "use std::io;",
        "pub(in crate::image) fn f() {}",
        "/// See [`crate::device::Null`].\npub fn f() {}",
        "fn f() { assert_eq!(NAME, \"crate::device::Null\") }",
        "mod inner { use super::super::Stack; }",
    ] {
        assert_eq!(in_image(body), [], "{body}");
    }
}

#[test]
fn a_finding_names_its_file_line_and_rule() {
    let findings = with("src/image/stack.rs", "//! Layers upon layers.\n\nuse crate::device::Null;\n");
    let texts: Vec<String> = findings.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["src/image/stack.rs:3: Import: `image` may not use `device`"]);
}

#[test]
fn test_code_may_use_the_test_doubles_and_any_crate_but_no_other_module() {
    assert_eq!(in_image("#[cfg(test)] mod tests { use crate::device::Null; use tokio::time; }"), []);
    assert_eq!(in_image("#[cfg(all(test, unix))] use crate::device::Null;"), []);
    assert_eq!(in_image("#[cfg(not(test))] use crate::device::Null;"), [(Rule::Import, 2)]);
    let server = "#[cfg(test)]\nmod tests { use crate::server::Server; }";
    assert_eq!(in_image(server), [(Rule::Import, 3)]);
}

#[test]
fn a_test_module_in_a_file_of_its_own_is_test_code_only_if_it_is_declared_so() {
    let mut tree = house(Some(("src/image/tests.rs", "//! Tries the engine.\nuse crate::device::Null;\n")));
    assert_eq!(check(&tree).len(), 1);
    for file in &mut tree.files {
        if file.path == "src/image/mod.rs" {
            file.text.push_str("#[cfg(test)]\nmod tests;\n");
        }
    }
    assert_eq!(check(&tree), []);
}

#[test]
fn the_daemon_has_the_rights_of_the_server() {
    let path = "src/bin/stratabd.rs";
    assert_eq!(
        with(path, "//! Starts the daemon.\nmod args;\nuse crate::args::Args;\nuse tokio::net;\n"),
        []
    );
    let findings = with(path, "//! Starts the daemon.\nuse anyhow::Context;\n");
    assert!(matches!(findings.as_slice(), [finding] if finding.rule == Rule::Crate), "{findings:?}");
}

#[test]
fn a_crate_is_named_only_where_the_table_says() {
    for body in [
        "use tokio::net;",
        "use ::tokio::net;",
        "use tokio;",
        "fn f() { tokio::spawn(g()) }",
        "fn f() { tokio::select! {} }",
        "#[tokio::main] fn f() {}",
        "fn f() { let x = vec![hyper::Version]; }",
        "use anyhow::Result;",
    ] {
        assert_eq!(in_image(body), [(Rule::Crate, 2)], "{body}");
    }
    assert_eq!(in_image("fn f(tokio: u8) -> u8 { tokio }"), []);
}

#[test]
fn a_module_of_a_crate_is_named_only_where_the_table_says() {
    for body in [
        "use std::fs;",
        "use std::{io, time::Instant};",
        "use ::std::fs::File;",
        "use std::*;",
        "use std as system;",
        "use std::{self};",
        "fn f() { std::fs::read(NAME) }",
        "fn f(now: std::time::Instant) {}",
        "fn f() { assert!(std::fs::exists(NAME)) }",
    ] {
        assert_eq!(in_image(body), [(Rule::Crate, 2)], "{body}");
    }
    for body in ["use std::{io, fmt};", "fn f() { std::mem::take(x) }", "fn f(fs: u8, time: u8) {}"] {
        assert_eq!(in_image(body), [], "{body}");
    }
    assert_eq!(in_image("#[cfg(test)] mod tests { use std::fs; }"), []);
    assert_eq!(with("src/server/mod.rs", "//! Puts all together.\nuse std::{fs, time::Instant};\n"), []);
}

#[test]
fn a_circle_is_found_in_the_table_and_in_the_sources() {
    let mut tree = house(None);
    tree.architecture = ARCHITECTURE.replace("| loops | nothing |", "| loops | `image` |");
    let findings = check(&tree);
    assert!(matches!(findings.as_slice(), [one] if one.rule == Rule::Cycle && one.line == 6), "{findings:?}");
    let findings = with("src/reactor/mod.rs", "//! Runs things in turn.\nuse crate::block::Device;\n");
    let rules: BTreeSet<Rule> = findings.iter().map(|finding| finding.rule).collect();
    assert_eq!(rules, BTreeSet::from([Rule::Import, Rule::Cycle]));
}

#[test]
fn folders_and_rows_must_agree() {
    let findings = with("src/snapshot/mod.rs", "//! Takes a picture.\n");
    assert!(matches!(findings.as_slice(), [one] if one.rule == Rule::Table), "{findings:?}");
    let findings = with("src/lonely.rs", "//! Stands beside folders.\n");
    assert!(matches!(findings.as_slice(), [one] if one.rule == Rule::Table), "{findings:?}");
    let mut tree = house(None);
    tree.files.retain(|file| !file.path.starts_with("src/device/"));
    assert!(matches!(check(&tree).as_slice(), [one] if one.rule == Rule::Table && one.line == 7));
}

#[test]
fn a_table_that_is_malformed_or_names_the_unknown_is_refused() {
    for (from, to) in [
        ("| engine | `block` |", "| engine | `blocks` |"),
        ("| `anyhow` | none |", "| `anyhow` | nobody |"),
        ("| `anyhow` | none |", "| `anyhow` | `nobody` |"),
        ("| `anyhow` | none |", "| `tokio` | none |"),
        ("| module | does | may use |", "| module | may use |"),
        ("| `device` |", "| `block` |"),
    ] {
        let mut tree = house(None);
        tree.architecture = ARCHITECTURE.replace(from, to);
        assert!(check(&tree).iter().any(|finding| finding.rule == Rule::Table), "{to}");
    }
}

#[test]
fn a_long_file_is_refused_at_501_lines() {
    assert_eq!(in_image(&"\n".repeat(498)), []);
    assert_eq!(in_image(&"\n".repeat(499)), [(Rule::FileLength, 501)]);
}

#[test]
fn a_long_function_is_refused_at_71_lines_wherever_it_stands() {
    for (before, after) in [("fn f()", ""), ("impl S { fn f()", "}"), ("trait T { fn f()", "}")] {
        let fits = format!("{before} {{{}}}{after}", "\n".repeat(69));
        assert_eq!(in_image(&fits), [], "{before}");
        let long = format!("{before} {{{}}}{after}", "\n".repeat(70));
        assert_eq!(in_image(&long), [(Rule::FunctionLength, 2)], "{before}");
    }
}

#[test]
fn a_file_without_a_purpose_is_refused() {
    for text in
        ["", "use std::io;\n", "// Not a doc comment.\n", "//! stack\n", "\n//! Layers upon layers.\n"]
    {
        let findings = with("ublk-ctl/src/cmd.rs", text);
        assert!(matches!(findings.as_slice(), [one] if one.rule == Rule::Purpose), "{text}: {findings:?}");
    }
}

#[test]
fn an_empty_name_is_refused() {
    for path in
        ["src/image/util.rs", "src/image/cache_manager.rs", "tests/common/mod.rs", "src/image/misc/x.rs"]
    {
        let findings = with(path, "//! Holds this and that.\n");
        assert!(matches!(findings.as_slice(), [one] if one.rule == Rule::Name), "{path}: {findings:?}");
    }
}

#[test]
fn a_lint_exception_needs_a_reason() {
    for body in [
        "#[allow(dead_code)] fn f() {}",
        "#[expect(dead_code)] fn f() {}",
        "#![allow(dead_code)]",
        "#[cfg_attr(test, allow(dead_code))] fn f() {}",
        "fn f() { #[allow(unused)] let x = 1; }",
    ] {
        assert_eq!(in_image(body), [(Rule::LintException, 2)], "{body}");
    }
    assert_eq!(in_image("#[expect(dead_code, reason = \"held, not read\")] fn f() {}"), []);
}

#[test]
fn unsafe_is_refused_outside_the_modules_that_open_it() {
    for body in ["fn f() { unsafe { g() } }", "unsafe impl Send for S {}", "fn f() { vec![unsafe { g() }] }"]
    {
        assert_eq!(in_image(body), [(Rule::Unsafe, 2)], "{body}");
        assert_eq!(with("src/reactor/ring.rs", &format!("//! Holds the ring.\n{body}\n")), []);
    }
    assert_eq!(in_image("/// Never unsafe.\n#[deny(unsafe_code)] fn f() { g(\"unsafe\") }"), []);
}

#[test]
fn source_that_cannot_be_followed_is_refused() {
    assert_eq!(in_image("#[path = \"elsewhere.rs\"] mod x;"), [(Rule::Opaque, 2)]);
    assert_eq!(in_image("include!(\"elsewhere.rs\");"), [(Rule::Opaque, 2)]);
    assert_eq!(in_image("fn {"), [(Rule::Opaque, 2)]);
    assert_eq!(in_image("extern crate std as system;"), [(Rule::Crate, 2), (Rule::Opaque, 2)]);
    assert_eq!(in_image("extern crate alloc;"), [(Rule::Opaque, 2)]);
}

#[test]
fn every_rule_has_a_source_that_breaks_it() {
    let mut tree = house(None);
    tree.architecture = tree.architecture.replace("| loops | nothing |", "| loops | `block`, `nobody` |");
    let long = "\n".repeat(500);
    let bad = format!(
        "#![allow(dead_code)]\nuse crate::device::Null;\nuse tokio::net;\ninclude!(\"x\");\nunsafe fn f() {{{long}}}\n"
    );
    tree.files.push(SourceFile { path: "src/image/util.rs".to_owned(), text: bad });
    let fired: BTreeSet<Rule> = check(&tree).iter().map(|finding| finding.rule).collect();
    assert_eq!(fired, BTreeSet::from(Rule::ALL));
}
