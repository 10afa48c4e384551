//! What is found in bare tokens: paths inside macros, whose syntax only the macro knows, and `unsafe`.

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use crate::{Finding, Rule, tree::SourceFile};

/// Modules in which DESIGN opens `unsafe`.
const UNSAFE_MODULES: [&str; 2] = ["reactor", "frontend"];

/// A path as written, up to the first thing that is not a name, and its line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RawPath {
    pub(crate) segments: Vec<String>,
    pub(crate) line: usize,
}

/// Refuses the keyword wherever it stands in product code, macros included.
pub(crate) fn check_unsafe(file: &SourceFile, findings: &mut Vec<Finding>) {
    let product = file.is_library()
        || ["ublk-ctl/src/", "convertor/"].iter().any(|folder| file.path.starts_with(folder));
    let module = file.module_path().into_iter().next().unwrap_or_default();
    if !product || (file.is_library() && UNSAFE_MODULES.contains(&module.as_str())) {
        return;
    }
    let Ok(tokens) = file.text.parse::<TokenStream>() else { return };
    let mut lines = Vec::new();
    find_unsafe(tokens, &mut lines);
    for line in lines {
        let message = format!("`unsafe` is open only in {}", UNSAFE_MODULES.join(" and "));
        findings.push(Finding { file: file.path.clone(), line, rule: Rule::Unsafe, message });
    }
}

fn find_unsafe(tokens: TokenStream, lines: &mut Vec<usize>) {
    for token in tokens {
        match token {
            TokenTree::Ident(name) if name == "unsafe" => lines.push(name.span().start().line),
            TokenTree::Group(group) => find_unsafe(group.stream(), lines),
            _ => {}
        }
    }
}

/// All paths of at least two segments in `tokens`, with those in braces (`use a::{b, c::d}`) written out.
pub(crate) fn paths(tokens: TokenStream) -> Vec<RawPath> {
    let mut found = Vec::new();
    scan(tokens, &[], &mut found);
    found
}

/// As [`paths`], with those in strings: derives take names of functions so (`with = "crate::format::hex"`).
pub(crate) fn paths_of_attribute(tokens: TokenStream) -> Vec<RawPath> {
    let mut found = paths(tokens.clone());
    strings(tokens, &mut found);
    found
}

fn strings(tokens: TokenStream, found: &mut Vec<RawPath>) {
    for token in tokens {
        match token {
            TokenTree::Group(group) => strings(group.stream(), found),
            TokenTree::Literal(literal) => {
                let text = literal.to_string();
                if text.contains("::") && !text.contains(' ') {
                    let segments = text.trim_matches('"').split("::").map(str::to_owned).collect();
                    found.push(RawPath { segments, line: literal.span().start().line });
                }
            }
            TokenTree::Ident(_) | TokenTree::Punct(_) => {}
        }
    }
}

/// `prefix` is what stood before the braces that `tokens` were in.
fn scan(tokens: TokenStream, prefix: &[String], found: &mut Vec<RawPath>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut rest = tokens.as_slice();
    while let Some((token, after)) = rest.split_first() {
        rest = match token {
            TokenTree::Ident(name) => {
                let line = name.span().start().line;
                let mut segments = prefix.to_vec();
                segments.push(name.to_string());
                path(segments, line, after, found)
            }
            TokenTree::Group(group) => {
                scan(group.stream(), prefix, found);
                after
            }
            TokenTree::Punct(_) | TokenTree::Literal(_) => after,
        };
    }
}

/// Follows one path from its first segment; returns the tokens behind it.
fn path<'a>(
    mut segments: Vec<String>,
    line: usize,
    mut rest: &'a [TokenTree],
    found: &mut Vec<RawPath>,
) -> &'a [TokenTree] {
    while let [TokenTree::Punct(one), TokenTree::Punct(two), after @ ..] = rest {
        if (one.as_char(), two.as_char()) != (':', ':') {
            break;
        }
        match after {
            [TokenTree::Ident(name), behind @ ..] => {
                segments.push(name.to_string());
                rest = behind;
            }
            [TokenTree::Group(group), behind @ ..] if group.delimiter() == Delimiter::Brace => {
                scan(group.stream(), &segments, found);
                return behind;
            }
            [TokenTree::Punct(star), behind @ ..] if star.as_char() == '*' => {
                segments.push("*".to_owned());
                rest = behind;
            }
            _ => {
                rest = after;
                break;
            }
        }
    }
    if segments.len() > 1 {
        found.push(RawPath { segments, line });
    }
    rest
}
