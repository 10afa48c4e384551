//! Lint exceptions need a reason, and no attribute or item may lead the module tree or a name elsewhere.

use proc_macro2::{TokenStream, TokenTree};
use syn::{Attribute, Meta, spanned::Spanned, visit::Visit};

use crate::{Finding, Rule, tree::SourceFile};

pub(crate) fn check(file: &SourceFile, syntax: &syn::File, findings: &mut Vec<Finding>) {
    Attributes { file, findings }.visit_file(syntax);
}

struct Attributes<'a> {
    file: &'a SourceFile,
    findings: &'a mut Vec<Finding>,
}

impl Attributes<'_> {
    fn complain(&mut self, line: usize, rule: Rule, message: String) {
        self.findings.push(Finding { file: self.file.path.clone(), line, rule, message });
    }

    /// Looks for `allow(..)` and `expect(..)` at any depth, so that `cfg_attr` does not hide them.
    fn check_exceptions(&mut self, tokens: TokenStream) {
        let mut before = None;
        for token in tokens {
            if let TokenTree::Group(group) = &token {
                if let Some((name, line)) = before.take()
                    && !has_reason(group.stream())
                {
                    self.complain(line, Rule::LintException, format!("`{name}` without a `reason`"));
                }
                self.check_exceptions(group.stream());
            }
            before = match &token {
                TokenTree::Ident(name) if *name == "allow" || *name == "expect" => {
                    Some((name.to_string(), name.span().start().line))
                }
                _ => None,
            };
        }
    }
}

impl<'ast> Visit<'ast> for Attributes<'_> {
    fn visit_attribute(&mut self, node: &'ast Attribute) {
        match &node.meta {
            Meta::List(list) => {
                let name = list.path.get_ident().map(ToString::to_string).unwrap_or_default();
                if ["allow", "expect"].contains(&name.as_str()) && !has_reason(list.tokens.clone()) {
                    let line = list.span().start().line;
                    self.complain(line, Rule::LintException, format!("`{name}` without a `reason`"));
                }
                if name == "cfg_attr" {
                    self.check_exceptions(list.tokens.clone());
                }
            }
            Meta::NameValue(pair) if pair.path.is_ident("path") && self.file.is_library() => {
                let message = "`#[path]` puts a module where its name does not lead".to_owned();
                self.complain(pair.span().start().line, Rule::Opaque, message);
            }
            Meta::NameValue(_) | Meta::Path(_) => {}
        }
    }

    fn visit_item_extern_crate(&mut self, node: &'ast syn::ItemExternCrate) {
        if self.file.is_library() {
            let message = "`extern crate` is not needed, and may give a crate another name".to_owned();
            self.complain(node.span().start().line, Rule::Opaque, message);
        }
    }

    fn visit_macro(&mut self, node: &'ast syn::Macro) {
        if node.path.is_ident("include") && self.file.is_library() {
            let message = "`include!` brings source that is not checked".to_owned();
            self.complain(node.span().start().line, Rule::Opaque, message);
        }
        syn::visit::visit_macro(self, node);
    }
}

fn has_reason(tokens: TokenStream) -> bool {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    tokens.windows(2).any(|pair| match pair {
        [TokenTree::Ident(name), TokenTree::Punct(sign)] => *name == "reason" && sign.as_char() == '=',
        _ => false,
    })
}
