//! Collects the paths that a file names, where it stands in the module tree, and whether it is test code there.

use proc_macro2::TokenStream;
use syn::{Attribute, Meta, UseTree, spanned::Spanned, visit::Visit};

use crate::tokens::{self, RawPath};

/// A path that a file names.
#[derive(Debug)]
pub(crate) struct Mention {
    /// As written; `*` for a glob.
    pub(crate) segments: Vec<String>,
    /// Counted from 1.
    pub(crate) line: usize,
    /// The module it stands in.
    pub(crate) module: Vec<String>,
    /// Under `#[cfg(test)]` in this file.
    pub(crate) in_test: bool,
}

/// What one file says.
#[derive(Debug, Default)]
pub(crate) struct Mentions {
    pub(crate) paths: Vec<Mention>,
    /// Modules in files of their own that are compiled only for tests.
    pub(crate) test_modules: Vec<Vec<String>>,
}

/// Collects from `syntax`, the file of the module at `module`.
pub(crate) fn collect(syntax: &syn::File, module: Vec<String>) -> Mentions {
    let in_test = syntax.attrs.iter().any(is_test_only);
    let mut collector = Collector { module, in_test, mentions: Mentions::default() };
    collector.visit_file(syntax);
    collector.mentions
}

struct Collector {
    module: Vec<String>,
    in_test: bool,
    mentions: Mentions,
}

impl Collector {
    fn mention(&mut self, path: RawPath) {
        self.mentions.paths.push(Mention {
            segments: path.segments,
            line: path.line,
            module: self.module.clone(),
            in_test: self.in_test,
        });
    }

    fn use_tree(&mut self, tree: &UseTree, prefix: &[String]) {
        let with = |name: String| prefix.iter().cloned().chain([name]).collect::<Vec<_>>();
        match tree {
            UseTree::Path(path) => self.use_tree(&path.tree, &with(path.ident.to_string())),
            UseTree::Group(group) => group.items.iter().for_each(|item| self.use_tree(item, prefix)),
            leaf => {
                let segments = match leaf {
                    UseTree::Name(name) => with(name.ident.to_string()),
                    UseTree::Rename(name) => with(name.ident.to_string()),
                    _ => with("*".to_owned()),
                };
                self.mention(RawPath { segments, line: leaf.span().start().line });
            }
        }
    }

    /// Visits what an item holds, as test code if its attributes say so.
    fn inside(&mut self, attributes: &[Attribute], visit: impl FnOnce(&mut Self)) {
        let before = self.in_test;
        self.in_test |= attributes.iter().any(is_test_only);
        visit(self);
        self.in_test = before;
    }
}

impl<'ast> Visit<'ast> for Collector {
    fn visit_item(&mut self, node: &'ast syn::Item) {
        let attributes = attributes_of(node);
        self.inside(attributes, |this| syn::visit::visit_item(this, node));
    }

    fn visit_impl_item_fn(&mut self, node: &'ast syn::ImplItemFn) {
        self.inside(&node.attrs, |this| syn::visit::visit_impl_item_fn(this, node));
    }

    fn visit_item_mod(&mut self, node: &'ast syn::ItemMod) {
        self.module.push(node.ident.to_string());
        if node.content.is_none() && self.in_test {
            self.mentions.test_modules.push(self.module.clone());
        }
        syn::visit::visit_item_mod(self, node);
        self.module.pop();
    }

    fn visit_item_use(&mut self, node: &'ast syn::ItemUse) {
        self.use_tree(&node.tree, &[]);
    }

    fn visit_item_extern_crate(&mut self, node: &'ast syn::ItemExternCrate) {
        let segments = vec![node.ident.to_string(), "*".to_owned()];
        self.mention(RawPath { segments, line: node.span().start().line });
    }

    fn visit_path(&mut self, node: &'ast syn::Path) {
        if node.segments.len() > 1 {
            let segments = node.segments.iter().map(|segment| segment.ident.to_string()).collect();
            self.mention(RawPath { segments, line: node.span().start().line });
        }
        syn::visit::visit_path(self, node);
    }

    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {
        // `pub(in crate::block)` opens a thing to a module and uses nothing of it.
    }

    fn visit_macro(&mut self, node: &'ast syn::Macro) {
        self.visit_path(&node.path);
        tokens::paths(node.tokens.clone()).into_iter().for_each(|path| self.mention(path));
    }

    fn visit_attribute(&mut self, node: &'ast Attribute) {
        if node.path().is_ident("doc") {
            return;
        }
        self.visit_path(node.path());
        let tokens = match &node.meta {
            Meta::List(list) => list.tokens.clone(),
            Meta::NameValue(_) | Meta::Path(_) => TokenStream::new(),
        };
        tokens::paths_of_attribute(tokens).into_iter().for_each(|path| self.mention(path));
    }
}

/// Whether the attribute is `cfg(test)` or `cfg(all(test, ..))`.
fn is_test_only(attribute: &Attribute) -> bool {
    let Meta::List(list) = &attribute.meta else { return false };
    if !list.path.is_ident("cfg") {
        return false;
    }
    let condition: String = list.tokens.to_string().split_whitespace().collect();
    condition == "test" || condition.starts_with("all(test,")
}

fn attributes_of(item: &syn::Item) -> &[Attribute] {
    use syn::Item;
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}
