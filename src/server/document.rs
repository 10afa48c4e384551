//! A JSON document read key by key, so that each complaint names the file and the JSON pointer.

use std::{path::PathBuf, sync::Arc};

use serde_json::{Map, Value};

/// A configuration is a few hundred lines; anything larger is not one, and is not read into memory.
pub const MAX_DOCUMENT_BYTES: usize = 4 << 20;

/// Why a JSON configuration is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DocumentError {
    /// The file is larger than any configuration.
    #[error(
        "{file}: {size_bytes} bytes are more than the {MAX_DOCUMENT_BYTES} bytes a configuration may have"
    )]
    TooLarge {
        /// The file as the user named it.
        file: Arc<str>,
        /// Its size in bytes.
        size_bytes: usize,
    },
    /// The bytes are not JSON.
    #[error("{file}: not JSON: {message}")]
    Syntax {
        /// The file as the user named it.
        file: Arc<str>,
        /// The parser's answer, with line and column.
        message: String,
    },
    /// A value has another JSON type than its key needs.
    #[error("{file}: {pointer}: expected {expected}, found {found}")]
    Type {
        /// The file as the user named it.
        file: Arc<str>,
        /// JSON pointer of the value; `/` alone is the whole document.
        pointer: String,
        /// What the key needs.
        expected: &'static str,
        /// What is there.
        found: &'static str,
    },
    /// A value of the right type that cannot be used.
    #[error("{file}: {pointer}: {rule}")]
    Value {
        /// The file as the user named it.
        file: Arc<str>,
        /// JSON pointer of the value.
        pointer: String,
        /// What it breaks.
        rule: String,
    },
    /// A key whose function this version does not have.
    #[error("{file}: {pointer}: not yet supported: {what}")]
    Unsupported {
        /// The file as the user named it.
        file: Arc<str>,
        /// JSON pointer of the value.
        pointer: String,
        /// The function.
        what: &'static str,
    },
}

/// Parses `bytes` of the file called `file` in messages.
///
/// # Errors
/// When it is too large or not JSON.
pub fn parse(file: &Arc<str>, bytes: &[u8]) -> Result<Value, DocumentError> {
    if bytes.len() > MAX_DOCUMENT_BYTES {
        return Err(DocumentError::TooLarge { file: Arc::clone(file), size_bytes: bytes.len() });
    }
    serde_json::from_slice(bytes)
        .map_err(|error| DocumentError::Syntax { file: Arc::clone(file), message: error.to_string() })
}

/// An object inside a document.
#[derive(Debug, Clone)]
pub struct ObjectNode<'a> {
    file: &'a Arc<str>,
    pointer: String,
    members: &'a Map<String, Value>,
}

impl<'a> ObjectNode<'a> {
    /// The object that `value`, at `pointer` of `file`, must be.
    ///
    /// # Errors
    /// When it is something else.
    pub fn new(file: &'a Arc<str>, pointer: String, value: &'a Value) -> Result<Self, DocumentError> {
        match value {
            Value::Object(members) => Ok(Self { file, pointer, members }),
            other => Err(wrong_type(file, or_root(pointer), "an object", other)),
        }
    }

    /// A complaint about the value of `key`.
    #[must_use]
    pub fn invalid(&self, key: &str, rule: impl Into<String>) -> DocumentError {
        DocumentError::Value { file: Arc::clone(self.file), pointer: self.at(key), rule: rule.into() }
    }

    /// Refuses the function behind `key`.
    #[must_use]
    pub fn unsupported(&self, key: &str, what: &'static str) -> DocumentError {
        DocumentError::Unsupported { file: Arc::clone(self.file), pointer: self.at(key), what }
    }

    /// A string, `None` where the key is missing or the string empty.
    ///
    /// # Errors
    /// When the value is not a string, or holds a NUL, which no path or URL may.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>, DocumentError> {
        match self.members.get(key) {
            None => Ok(None),
            Some(Value::String(text)) if text.contains('\0') => Err(self.invalid(key, "holds a NUL byte")),
            Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
            Some(other) => Err(self.wrong(key, "a string", other)),
        }
    }

    /// As [`ObjectNode::text`], as a path.
    ///
    /// # Errors
    /// As [`ObjectNode::text`].
    pub fn path(&self, key: &str) -> Result<Option<PathBuf>, DocumentError> {
        Ok(self.text(key)?.map(PathBuf::from))
    }

    /// A boolean, `None` where the key is missing.
    ///
    /// # Errors
    /// When the value is not a boolean.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, DocumentError> {
        match self.members.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.wrong(key, "true or false", other)),
        }
    }

    /// A whole number that is not negative, `None` where the key is missing.
    ///
    /// # Errors
    /// When the value is anything else.
    pub fn count(&self, key: &str) -> Result<Option<u64>, DocumentError> {
        match self.members.get(key) {
            None => Ok(None),
            Some(value) => match value.as_u64() {
                Some(count) => Ok(Some(count)),
                None => Err(self.wrong(key, "a whole number of at least 0", value)),
            },
        }
    }

    /// A whole number of either sign, `None` where the key is missing.
    ///
    /// # Errors
    /// When the value is anything else.
    pub fn number(&self, key: &str) -> Result<Option<i64>, DocumentError> {
        match self.members.get(key) {
            None => Ok(None),
            Some(value) => match value.as_i64() {
                Some(number) => Ok(Some(number)),
                None => Err(self.wrong(key, "a whole number", value)),
            },
        }
    }

    /// An object inside, `None` where the key is missing.
    ///
    /// # Errors
    /// When the value is not an object.
    pub fn object(&self, key: &str) -> Result<Option<ObjectNode<'a>>, DocumentError> {
        self.members.get(key).map(|value| ObjectNode::new(self.file, self.at(key), value)).transpose()
    }

    /// The objects of an array, empty where the key is missing.
    ///
    /// # Errors
    /// When the value is not an array of objects.
    pub fn objects(&self, key: &str) -> Result<Vec<ObjectNode<'a>>, DocumentError> {
        match self.members.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => items
                .iter()
                .enumerate()
                .map(|(index, item)| ObjectNode::new(self.file, format!("{}/{index}", self.at(key)), item))
                .collect(),
            Some(other) => Err(self.wrong(key, "an array", other)),
        }
    }

    /// Pointers of the keys that are not in `known`.
    pub fn others(&self, known: &[&str]) -> Vec<String> {
        self.members.keys().filter(|key| !known.contains(&key.as_str())).map(|key| self.at(key)).collect()
    }

    /// The pointer of `key`, if it is there.
    #[must_use]
    pub fn pointer_of(&self, key: &str) -> Option<String> {
        self.members.contains_key(key).then(|| self.at(key))
    }

    fn at(&self, key: &str) -> String {
        format!("{}/{}", self.pointer, key.replace('~', "~0").replace('/', "~1"))
    }

    fn wrong(&self, key: &str, expected: &'static str, found: &Value) -> DocumentError {
        wrong_type(self.file, self.at(key), expected, found)
    }
}

fn or_root(pointer: String) -> String {
    if pointer.is_empty() { "/".to_owned() } else { pointer }
}

fn wrong_type(file: &Arc<str>, pointer: String, expected: &'static str, found: &Value) -> DocumentError {
    let found = match found {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a fraction",
        Value::Number(number) if number.is_i64() && !number.is_u64() => "a negative number",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    };
    DocumentError::Type { file: Arc::clone(file), pointer, expected, found }
}
