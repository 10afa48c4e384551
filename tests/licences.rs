//! Every crate that a build of this workspace pulls in has a licence from the list below.
//!
//! The graph is that of Cargo.lock: normal, build and development dependencies, all features, and all platforms where
//! their crates are at hand, else this platform alone. Nothing is downloaded.

use std::process::Command;

use serde_json::Value;
use spdx::{Expression, LicenseReq, ParseMode};

/// Licences that let the result be used under Apache-2.0 without further duties than a notice.
const ALLOWED: [&str; 14] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "NCSA",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// A crate whose licence is not on the list, the licence as it stands there, and why it is taken all the same.
const EXCEPTIONS: [(&str, &str, &str); 1] = [(
    "bitmaps",
    "MPL-2.0+",
    "copyleft of single files, which are used unchanged; comes with libublk, of which only the kernel's ABI is used",
)];

/// Why `licence` of the crate `name` is refused.
fn judge(name: &str, licence: Option<&str>) -> Result<(), String> {
    let Some(licence) = licence else { return Err(format!("{name}: names no licence")) };
    if EXCEPTIONS.iter().any(|(other, exact, _)| (*other, *exact) == (name, licence)) {
        return Ok(());
    }
    // Lax, since older crates write `MIT/Apache-2.0`.
    let expression = Expression::parse_mode(licence, ParseMode::LAX)
        .map_err(|error| format!("{name}: cannot read the licence {licence:?}: {}", error.reason))?;
    if expression.evaluate(is_allowed) {
        return Ok(());
    }
    Err(format!("{name}: {licence} is not allowed"))
}

fn is_allowed(required: &LicenseReq) -> bool {
    ALLOWED.contains(&required.to_string().as_str())
}

/// What cargo says of the workspace. A crate for reading it would give the tests' build of `serde_json` a feature that the
/// programs' own has not, so that nearly all crates would be built twice.
fn metadata(arguments: &[&str]) -> Result<Value, String> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--offline", "--locked", "--all-features"])
        .args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")])
        .args(arguments)
        .output()
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())
}

fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    let list = value.pointer(pointer).and_then(Value::as_array);
    list.unwrap_or_else(|| panic!("cargo's metadata has no {pointer}"))
}

/// The crates of the graph with their licences.
fn crates() -> Vec<(String, Option<String>)> {
    let metadata = metadata(&[]).or_else(|error| {
        let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        println!("other platforms' crates are not at hand, so only {platform} is checked: {error}");
        metadata(&["--filter-platform", &platform])
    });
    let metadata = metadata.expect("cargo can read Cargo.lock");
    let in_graph: Vec<_> = list(&metadata, "/resolve/nodes").iter().map(|node| node.get("id")).collect();
    let text = |package: &Value, name: &str| package.get(name).and_then(Value::as_str).map(str::to_owned);
    list(&metadata, "/packages")
        .iter()
        .filter(|package| in_graph.contains(&package.get("id")))
        .map(|package| (text(package, "name").expect("a crate has a name"), text(package, "license")))
        .collect()
}

#[test]
fn every_dependency_has_an_allowed_licence() {
    let crates = crates();
    assert!(crates.len() > 100, "only {} crates were found", crates.len());
    let refused: Vec<String> =
        crates.iter().filter_map(|(name, licence)| judge(name, licence.as_deref()).err()).collect();
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}

#[test]
fn every_exception_is_still_needed() {
    let crates = crates();
    for (name, licence, reason) in EXCEPTIONS {
        assert!(!reason.is_empty());
        let found = crates.iter().any(|(other, theirs)| other == name && theirs.as_deref() == Some(licence));
        assert!(found, "{name} with {licence} is no longer in the graph: take the exception away");
    }
}

#[test]
fn a_licence_with_duties_is_refused() {
    for licence in [
        "GPL-3.0-only",
        "GPL-2.0-or-later",
        "AGPL-3.0-only",
        "LGPL-2.1-or-later",
        "MPL-2.0",
        "SSPL-1.0",
        "CC-BY-SA-4.0",
        "MIT AND GPL-3.0-only",
        "(MIT OR Apache-2.0) AND LGPL-3.0-only",
        "GPL-2.0-only WITH Classpath-exception-2.0",
        "GPL-3.0",
    ] {
        assert!(judge("made-up", Some(licence)).is_err(), "{licence}");
    }
}

#[test]
fn an_exception_holds_for_its_crate_and_licence_only() {
    assert!(judge("bitmaps", Some("MPL-2.0+")).is_ok());
    assert!(judge("bitmaps", Some("GPL-3.0-only")).is_err());
    assert!(judge("made-up", Some("MPL-2.0+")).is_err());
}

#[test]
fn a_licence_that_is_missing_or_unknown_is_refused() {
    assert!(judge("made-up", None).is_err());
    for licence in ["", "Custom", "LicenseRef-Proprietary", "MIT OR", "see LICENSE"] {
        assert!(judge("made-up", Some(licence)).is_err(), "{licence}");
    }
}

#[test]
fn a_choice_that_holds_an_allowed_licence_passes() {
    for licence in [
        "MIT",
        "MIT OR Apache-2.0",
        "MIT/Apache-2.0",
        "Apache-2.0 / MIT",
        "GPL-3.0-only OR MIT",
        "(MIT OR Apache-2.0) AND Unicode-3.0",
        "Apache-2.0 WITH LLVM-exception OR GPL-2.0-only",
        "Unlicense OR LGPL-2.1-or-later",
    ] {
        assert_eq!(judge("made-up", Some(licence)), Ok(()), "{licence}");
    }
}
