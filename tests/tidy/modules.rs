//! The module table against the sources: rows and folders, imports, cycles, and who names which crate.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    Finding, Rule,
    graph::{self, Graph},
    mentions::{self, Mention},
    table::Tables,
    tree::{SourceFile, Tree},
};

/// What test code may use beyond its module's row: the doubles that stand at the seam.
const TEST_DOUBLES: &str = "device";
/// What the daemon's own files call the library.
const LIBRARY: &str = "stratabd";

pub(crate) fn check(tree: &Tree, tables: &Tables, findings: &mut Vec<Finding>) {
    check_rows(tree, tables, findings);
    let allowed: Graph =
        tables.modules.iter().map(|(name, row)| (name.clone(), row.may_use.clone())).collect();
    if let Some(circle) = graph::cycle(&allowed) {
        let line = circle.first().and_then(|name| tables.modules.get(name)).map_or(1, |row| row.line);
        let message = format!("the table allows a circle: {}", circle.join(" -> "));
        findings.push(Finding { file: "ARCHITECTURE.md".to_owned(), line, rule: Rule::Cycle, message });
    }
    check_mentions(tree, tables, findings);
}

fn check_rows(tree: &Tree, tables: &Tables, findings: &mut Vec<Finding>) {
    let mut folders = BTreeSet::new();
    for file in tree.files.iter().filter(|file| file.is_library() && !file.is_binary()) {
        match file.path.strip_prefix("src/").and_then(|inside| inside.split_once('/')) {
            Some((folder, _)) => {
                if folders.insert(folder) && !tables.modules.contains_key(folder) {
                    let message = format!("src/{folder} has no row in ARCHITECTURE.md");
                    findings.push(Finding { file: file.path.clone(), line: 1, rule: Rule::Table, message });
                }
            }
            None if file.path == "src/lib.rs" => {}
            None => {
                let message = "a module under src is a folder with a row".to_owned();
                findings.push(Finding { file: file.path.clone(), line: 1, rule: Rule::Table, message });
            }
        }
    }
    for (name, row) in tables.modules.iter().filter(|(name, _)| !folders.contains(name.as_str())) {
        let message = format!("`{name}` has a row but no folder src/{name}");
        let file = "ARCHITECTURE.md".to_owned();
        findings.push(Finding { file, line: row.line, rule: Rule::Table, message });
    }
}

fn check_mentions(tree: &Tree, tables: &Tables, findings: &mut Vec<Finding>) {
    let mut collected = Vec::new();
    let mut test_modules = Vec::new();
    for file in tree.files.iter().filter(|file| file.is_library()) {
        // What does not parse is reported by the caller.
        let Ok(syntax) = syn::parse_file(&file.text) else { continue };
        let mentions = mentions::collect(&syntax, file.module_path());
        test_modules.extend(mentions.test_modules);
        collected.push((file, mentions.paths));
    }
    let mut used: BTreeMap<String, BTreeMap<String, (String, usize)>> = BTreeMap::new();
    for (file, mention) in
        collected.iter().flat_map(|(file, paths)| paths.iter().map(move |path| (file, path)))
    {
        let in_test = mention.in_test || test_modules.iter().any(|module| mention.module.starts_with(module));
        let mut complain = |rule, message| {
            findings.push(Finding { file: file.path.clone(), line: mention.line, rule, message });
        };
        let own = mention.module.first().map(String::as_str).unwrap_or_default();
        match target(file, mention) {
            Target::Root if !own.is_empty() => {
                complain(Rule::Import, "names the crate root, which hides whose things are used".to_owned());
            }
            Target::Module(module) => {
                if let Err(message) = permitted(tables, own, &module, in_test) {
                    complain(Rule::Import, message);
                }
                if !in_test && module != own && tables.modules.contains_key(&module) && !own.is_empty() {
                    let at = (file.path.clone(), mention.line);
                    used.entry(own.to_owned()).or_default().entry(module).or_insert(at);
                }
            }
            Target::Crate if !in_test => {
                if let Some(name) = tables.withheld(own, &mention.segments) {
                    complain(Rule::Crate, format!("`{own}` may not name `{name}`"));
                }
            }
            Target::Crate | Target::Inside | Target::Root => {}
        }
    }
    check_circle(&used, findings);
}

fn check_circle(used: &BTreeMap<String, BTreeMap<String, (String, usize)>>, findings: &mut Vec<Finding>) {
    let graph: Graph =
        used.iter().map(|(name, targets)| (name.clone(), targets.keys().cloned().collect())).collect();
    let Some(circle) = graph::cycle(&graph) else { return };
    let next = circle.get(1).or(circle.first());
    let at =
        circle.first().and_then(|first| used.get(first)).zip(next).and_then(|(uses, next)| uses.get(next));
    let (file, line) = at.cloned().unwrap_or_else(|| ("src/lib.rs".to_owned(), 1));
    let message = format!("modules use one another in a circle: {}", circle.join(" -> "));
    findings.push(Finding { file, line, rule: Rule::Cycle, message });
}

fn permitted(tables: &Tables, own: &str, module: &str, in_test: bool) -> Result<(), String> {
    if module == own || own.is_empty() || (in_test && module == TEST_DOUBLES) {
        return Ok(());
    }
    if !tables.modules.contains_key(module) {
        return Err(format!("`{module}` of the crate root is no module with a row"));
    }
    match tables.modules.get(own) {
        Some(row) if row.may_use.contains(module) => Ok(()),
        _ => Err(format!("`{own}` may not use `{module}`")),
    }
}

/// Where a path leads.
enum Target {
    /// A module under the crate root, maybe its own.
    Module(String),
    /// The crate root itself.
    Root,
    /// Another crate, or a name of this scope: the crate table decides by the name.
    Crate,
    /// Somewhere inside the module it stands in.
    Inside,
}

fn target(file: &SourceFile, mention: &Mention) -> Target {
    let mut segments = mention.segments.iter().map(String::as_str).peekable();
    let mut base: Vec<&str> = match segments.peek().copied() {
        // The daemon's files stand outside the library: their own root is theirs, and `stratabd` is the crate root.
        Some("crate" | "self" | "super") if file.is_binary() => return Target::Inside,
        Some(LIBRARY) if file.is_binary() => Vec::new(),
        Some("crate") => Vec::new(),
        Some("self" | "super") => mention.module.iter().map(String::as_str).collect(),
        Some(_) => return Target::Crate,
        None => return Target::Inside,
    };
    for segment in segments {
        match segment {
            "super" => {
                base.pop();
            }
            "crate" | "self" => {}
            LIBRARY if file.is_binary() && base.is_empty() => {}
            "*" => break,
            name => {
                base.push(name);
                // Beyond the first segment under the root nothing climbs out again.
                if base.len() == 1 {
                    break;
                }
            }
        }
    }
    match base.first() {
        Some(module) => Target::Module((*module).to_owned()),
        None => Target::Root,
    }
}
