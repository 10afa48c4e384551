//! The house rules as a test: reads the tables of ARCHITECTURE.md and refuses what they do not allow.
//!
//! What is checked where:
//!
//! * `src/`: everything below. `src/bin` has the rights of the `server` row and names the library as `stratabd`.
//! * The other folders of `tree::FOLDERS`: sizes, purpose lines, file names, lint exceptions.
//! * Test code in `src/` (under `#[cfg(test)]`) may name any crate. Of modules it may name what its row allows and
//!   `device`, whose members are the test doubles of the seam; those imports do not count as cycles, since no product
//!   code depends on them.

#[path = "tidy/attributes.rs"]
mod attributes;
#[path = "tidy/graph.rs"]
mod graph;
#[path = "tidy/mentions.rs"]
mod mentions;
#[path = "tidy/modules.rs"]
mod modules;
#[path = "tidy/shape.rs"]
mod shape;
#[path = "tidy/table.rs"]
mod table;
#[path = "tidy/tests.rs"]
mod tests;
#[path = "tidy/tokens.rs"]
mod tokens;
#[path = "tidy/tree.rs"]
mod tree;

use std::{fmt, path::Path};

use tree::Tree;

/// What a finding breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Rule {
    /// The tables themselves are wrong, or lack, or have too much.
    Table,
    /// A module names one that its row does not allow, or the crate root.
    Import,
    /// Modules that use one another in a circle.
    Cycle,
    /// A crate, or a module of one, named outside the modules that may name it.
    Crate,
    /// A file of more than 500 lines.
    FileLength,
    /// A function of more than 70 lines.
    FunctionLength,
    /// A first line that is not a `//!` sentence.
    Purpose,
    /// A file called `util` and the like.
    Name,
    /// An exception to a lint without a reason.
    LintException,
    /// `unsafe` where it is not opened.
    Unsafe,
    /// Source that these checks cannot follow: it does not parse, comes by `#[path]` or `include!`, or renames a crate.
    Opaque,
}

impl Rule {
    /// Every rule, so that a test can ask whether each one has been seen to fire.
    const ALL: [Self; 11] = [
        Self::Table,
        Self::Import,
        Self::Cycle,
        Self::Crate,
        Self::FileLength,
        Self::FunctionLength,
        Self::Purpose,
        Self::Name,
        Self::LintException,
        Self::Unsafe,
        Self::Opaque,
    ];
}

/// One breach of a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    file: String,
    /// Counted from 1.
    line: usize,
    rule: Rule,
    message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {:?}: {}", self.file, self.line, self.rule, self.message)
    }
}

/// All breaches in `tree`, by file and line.
fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    let tables = table::parse(&tree.architecture, &mut findings);
    modules::check(tree, &tables, &mut findings);
    for file in &tree.files {
        shape::check_text(file, &mut findings);
        match syn::parse_file(&file.text) {
            Ok(syntax) => {
                shape::check_functions(file, &syntax, &mut findings);
                attributes::check(file, &syntax, &mut findings);
                tokens::check_unsafe(file, &mut findings);
            }
            Err(error) => findings.push(Finding {
                file: file.path.clone(),
                line: error.span().start().line,
                rule: Rule::Opaque,
                message: format!("does not parse: {error}"),
            }),
        }
    }
    findings.sort();
    findings
}

#[test]
fn this_repository_keeps_its_own_rules() {
    let tree = Tree::load(Path::new(env!("CARGO_MANIFEST_DIR"))).expect("the sources are readable");
    assert!(tree.files.len() > 20, "only {} files were found", tree.files.len());
    let findings = check(&tree);
    let report: Vec<String> = findings.iter().map(ToString::to_string).collect();
    assert!(findings.is_empty(), "{} breaches of the house rules:\n{}\n", report.len(), report.join("\n"));
}
