//! Reads the two tables of ARCHITECTURE.md: what a module may use, and which modules may name a crate.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Finding, Rule};

const FILE: &str = "ARCHITECTURE.md";

/// A row of the module table.
#[derive(Debug)]
pub(crate) struct Module {
    pub(crate) line: usize,
    pub(crate) may_use: BTreeSet<String>,
}

/// Both tables.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    pub(crate) modules: BTreeMap<String, Module>,
    /// Which modules may name a crate, or a module of one such as `std::fs`; what is not here is free.
    pub(crate) crates: BTreeMap<String, BTreeSet<String>>,
}

impl Tables {
    /// The row of the crate table that keeps `module` from naming the path `segments`. A glob over a crate, or the crate
    /// by itself, which may get another name there, is as much as all of its modules.
    pub(crate) fn withheld(&self, module: &str, segments: &[String]) -> Option<&str> {
        let names = segments.iter().map(String::as_str);
        let segments: Vec<&str> = names.filter(|name| !["*", "self"].contains(name)).collect();
        let covers = |name: &str| {
            let named: Vec<&str> = name.split("::").collect();
            segments.starts_with(&named) || named.starts_with(&segments)
        };
        let mut rows = self.crates.iter();
        rows.find(|(name, modules)| covers(name) && !modules.contains(module)).map(|(name, _)| name.as_str())
    }
}

/// Parses `architecture` and reports rows that are malformed, doubled or name what no row describes.
pub(crate) fn parse(architecture: &str, findings: &mut Vec<Finding>) -> Tables {
    let mut tables = Tables::default();
    let mut complain =
        |line, message| findings.push(Finding { file: FILE.to_owned(), line, rule: Rule::Table, message });
    for (line, cells) in rows(architecture, &["module", "does", "may use"]) {
        let (Some(name), Some(may_use)) = (cells.first().and_then(|cell| quoted(cell).pop()), cells.get(2))
        else {
            complain(line, "a row of the module table is not `module` | does | may use".to_owned());
            continue;
        };
        let may_use = match may_use.as_str() {
            "nothing" => BTreeSet::new(),
            "all above" => tables.modules.keys().cloned().collect(),
            cell => quoted(cell).into_iter().collect(),
        };
        if tables.modules.insert(name.clone(), Module { line, may_use }).is_some() {
            complain(line, format!("`{name}` has two rows"));
        }
    }
    for (line, cells) in rows(architecture, &["crate", "modules"]) {
        let modules: BTreeSet<String> = match cells.get(1).map(String::as_str) {
            Some("none") => BTreeSet::new(),
            Some(cell) if !quoted(cell).is_empty() => quoted(cell).into_iter().collect(),
            _ => {
                complain(line, "a row of the crate table is not `crate` | `modules` or none".to_owned());
                continue;
            }
        };
        for unknown in modules.iter().filter(|module| !tables.modules.contains_key(*module)) {
            complain(line, format!("`{unknown}` has no row in the module table"));
        }
        for name in cells.first().map(|cell| quoted(cell)).unwrap_or_default() {
            if tables.crates.insert(name.clone(), modules.clone()).is_some() {
                complain(line, format!("the crate `{name}` has two rows"));
            }
        }
    }
    for module in tables.modules.values() {
        for unknown in module.may_use.iter().filter(|name| !tables.modules.contains_key(*name)) {
            complain(module.line, format!("`{unknown}` may be used but has no row"));
        }
    }
    if tables.modules.is_empty() || tables.crates.is_empty() {
        complain(1, "a table is missing: module | does | may use, and crate | modules".to_owned());
    }
    tables
}

/// The rows below the table head `head`, each with its line.
fn rows(text: &str, head: &[&str]) -> Vec<(usize, Vec<String>)> {
    let mut lines = (1..).zip(text.lines()).skip_while(|(_, line)| cells(line) != head);
    lines
        .by_ref()
        .skip(2)
        .take_while(|(_, line)| line.starts_with('|'))
        .map(|(number, line)| (number, cells(line)))
        .collect()
}

fn cells(line: &str) -> Vec<String> {
    let line = line.trim().trim_start_matches('|').trim_end_matches('|');
    line.split('|').map(|cell| cell.trim().to_owned()).collect()
}

/// The words of a cell that stand between backticks.
fn quoted(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}
