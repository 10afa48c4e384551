//! Sizes, purpose lines and file names.

use syn::{Block, Signature, spanned::Spanned, visit::Visit};

use crate::{Finding, Rule, tree::SourceFile};

const FILE_LINES: usize = 500;
const FUNCTION_LINES: usize = 70;

/// Words that say nothing of what a file holds.
const EMPTY_NAMES: [&str; 11] = [
    "util", "utils", "utility", "common", "manager", "helper", "helpers", "misc", "prelude", "shared",
    "stuff",
];

/// Checks what needs no parsing.
pub(crate) fn check_text(file: &SourceFile, findings: &mut Vec<Finding>) {
    let mut complain =
        |line, rule, message| findings.push(Finding { file: file.path.clone(), line, rule, message });
    let count = file.text.lines().count();
    if count > FILE_LINES {
        complain(
            FILE_LINES + 1,
            Rule::FileLength,
            format!("{count} lines; {FILE_LINES} are the limit: split it by concept"),
        );
    }
    let first = file.text.lines().next().unwrap_or_default();
    let purpose = first.strip_prefix("//! ").unwrap_or_default().trim();
    if purpose.split_whitespace().count() < 2 {
        complain(1, Rule::Purpose, "the first line is not a `//!` sentence that says what it is for".into());
    }
    for part in file.path.trim_end_matches(".rs").split('/') {
        if let Some(word) = part.split(['_', '-']).find(|word| EMPTY_NAMES.contains(word)) {
            complain(1, Rule::Name, format!("`{word}` in a name says nothing: call it by its concept"));
        }
    }
}

/// Checks the length of every function, nested ones included.
pub(crate) fn check_functions(file: &SourceFile, syntax: &syn::File, findings: &mut Vec<Finding>) {
    Functions { file, findings }.visit_file(syntax);
}

struct Functions<'a> {
    file: &'a SourceFile,
    findings: &'a mut Vec<Finding>,
}

impl Functions<'_> {
    fn check(&mut self, signature: &Signature, block: &Block) {
        let first = signature.span().start().line;
        let lines = block.span().end().line + 1 - first;
        if lines > FUNCTION_LINES {
            self.findings.push(Finding {
                file: self.file.path.clone(),
                line: first,
                rule: Rule::FunctionLength,
                message: format!("`{}` has {lines} lines; {FUNCTION_LINES} are the limit", signature.ident),
            });
        }
    }
}

impl<'ast> Visit<'ast> for Functions<'_> {
    fn visit_item_fn(&mut self, node: &'ast syn::ItemFn) {
        self.check(&node.sig, &node.block);
        syn::visit::visit_item_fn(self, node);
    }

    fn visit_impl_item_fn(&mut self, node: &'ast syn::ImplItemFn) {
        self.check(&node.sig, &node.block);
        syn::visit::visit_impl_item_fn(self, node);
    }

    fn visit_trait_item_fn(&mut self, node: &'ast syn::TraitItemFn) {
        if let Some(block) = &node.default {
            self.check(&node.sig, block);
        }
        syn::visit::visit_trait_item_fn(self, node);
    }
}
