//! What a registry says in the body of a refusal, as far as it can be shown.

use roxmltree::Document;
use serde_json::Value;

/// Longer words are cut.
const MAX_SHOWN_CHARS: usize = 256;

/// Of several errors, as many are shown.
const MAX_ERRORS: usize = 3;

/// Reads the body of an answer that refuses: the distribution specification's `errors`, the members that token servers use instead,
/// or the XML of storage. `None` where it is none of these.
#[must_use]
pub fn parse_refusal(body: &[u8]) -> Option<String> {
    match serde_json::from_slice(body) {
        Ok(json) => words_of_document(&json),
        Err(_) => words_of_xml(str::from_utf8(body).ok()?),
    }
}

fn words_of_document(body: &Value) -> Option<String> {
    let errors = match body.get("errors") {
        Some(Value::Array(errors)) => errors.iter().filter_map(words_of).take(MAX_ERRORS).collect(),
        Some(error) => words_of(error).into_iter().collect(),
        None => Vec::new(),
    };
    let words = if errors.is_empty() { words_of(body)? } else { errors.join("; ") };
    Some(words).filter(|words| !words.is_empty())
}

/// What one error says: its code and its message, each as far as it is there.
fn words_of(error: &Value) -> Option<String> {
    let text = |keys: &[&str]| {
        let found = keys.iter().find_map(|key| error.get(key)?.as_str());
        found.map(cleaned).filter(|text| !text.is_empty())
    };
    if let Some(text) = error.as_str() {
        return Some(cleaned(text));
    }
    let message = text(&["message", "error_description", "details", "detail"]);
    joined(text(&["code", "error"]), message)
}

/// What S3, Azure and Google's storage say: an `Error` that has a `Code` and a `Message`.
fn words_of_xml(body: &str) -> Option<String> {
    let document = Document::parse(body).ok()?;
    let error = Some(document.root_element()).filter(|root| root.has_tag_name("Error"))?;
    let text = |name: &str| {
        let found = error.children().find(|child| child.tag_name().name() == name)?;
        found.text().map(cleaned).filter(|text| !text.is_empty())
    };
    joined(text("Code"), text("Message"))
}

fn joined(code: Option<String>, message: Option<String>) -> Option<String> {
    match (code, message) {
        (Some(code), Some(message)) => Some(format!("{code}: {message}")),
        (code, message) => code.or(message),
    }
}

/// One line of bounded length that does nothing to a terminal or a log.
fn cleaned(text: &str) -> String {
    let is_shown = |char: &char| {
        !char.is_control()
            && !matches!(*char, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    let words: Vec<&str> = text.split_whitespace().collect();
    let line: String = words.join(" ").chars().filter(is_shown).take(MAX_SHOWN_CHARS + 1).collect();
    match line.char_indices().nth(MAX_SHOWN_CHARS) {
        Some((end, _)) => format!("{}...", line.get(..end).unwrap_or_default()),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_found_in_every_form_that_is_in_use() {
        for (body, words) in [
            (r#"{"errors":[{"code":"DENIED","message":"no pull","detail":{"a":1}}]}"#, "DENIED: no pull"),
            (r#"{"errors":[{"code":"A"},{"message":"b"},{"code":"C"},{"code":"D"}]}"#, "A; b; C"),
            (r#"{"errors":{"code":"DENIED"}}"#, "DENIED"),
            (r#"{"errors":["over the limit"]}"#, "over the limit"),
            (r#"{"details":"incorrect username or password"}"#, "incorrect username or password"),
            (r#"{"error":"invalid_grant","error_description":"old"}"#, "invalid_grant: old"),
            (r#"{"errors":[],"message":"gone"}"#, "gone"),
            (
                "<?xml version=\"1.0\"?>\n<Error><Code>AccessDenied</Code><Message>Access\n Denied</Message><Resource/></Error>",
                "AccessDenied: Access Denied",
            ),
            (
                "\u{feff}<Error><Code>BlobNotFound</Code><Message>&lt;a&gt;</Message></Error>",
                "BlobNotFound: <a>",
            ),
            ("<Error xmlns=\"urn:x\"><Message>gone</Message></Error>", "gone"),
        ] {
            assert_eq!(parse_refusal(body.as_bytes()).as_deref(), Some(words), "{body}");
        }
        let bomb = "<!DOCTYPE a [<!ENTITY b \"bbbb\">]><Error><Code>&b;</Code></Error>";
        let deep = "<Error>".repeat(100_000);
        for nothing in [
            "",
            "no",
            "[]",
            "{}",
            r#"{"errors":[{"code":7}]}"#,
            "<html>",
            "<html><Code>x</Code></html>",
            "<Error><Code/></Error>",
            bomb,
            &deep,
            r#"{"message":" \n "}"#,
        ] {
            assert_eq!(parse_refusal(nothing.as_bytes()), None, "{nothing}");
        }
    }

    #[test]
    fn words_are_one_line_and_no_longer_than_a_line() {
        let body = serde_json::json!({"message": format!("a\r\nforged\u{1b}[31m {}", "x".repeat(999))});
        let words = parse_refusal(body.to_string().as_bytes()).unwrap();
        assert!(words.starts_with("a forged[31m xxx") && words.ends_with("x..."), "{words}");
        assert_eq!(words.chars().count(), MAX_SHOWN_CHARS + 3);
    }
}
