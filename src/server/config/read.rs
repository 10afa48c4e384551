//! From text to a [`Config`]: unknown names, single overrides, and rules that span keys.

use std::{collections::BTreeMap, net::SocketAddr};

use serde::{Deserialize as _, Deserializer, de::Error as _};
use toml::{Table, Value};

use super::{Config, HostSection, MAX_DEPTH, MAX_QUEUES, OverlaybdConfig, nearest::nearest};
use crate::registry::HostName;

/// A configuration is a page; anything larger is not one.
const MAX_BYTES: usize = 1 << 20;

/// The table whose keys are names of hosts.
const HOSTS: &str = "registry.hosts";

/// Why a configuration is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The text is not TOML, or a value has the wrong type.
    #[error("{origin}: {message}")]
    Syntax {
        /// The file, or `--set`.
        origin: String,
        /// The parser's answer, with line and column.
        message: String,
    },
    /// A key that there is not.
    #[error("{origin}: unknown key {key}{}", suggestion(.nearest.as_deref()))]
    UnknownKey {
        /// The file, or `--set`.
        origin: String,
        /// The whole dotted key.
        key: String,
        /// What was probably meant.
        nearest: Option<String>,
    },
    /// A value that cannot be used.
    #[error("{origin}: {key}: {rule}")]
    Value {
        /// The file, or `--set`.
        origin: String,
        /// The whole dotted key.
        key: &'static str,
        /// What it breaks.
        rule: String,
    },
}

/// Characters of a text of the input that a message repeats.
const SHOWN_CHARS: usize = 200;

/// Characters of the parser's answer, which quotes a line of the input.
const SHOWN_SYNTAX_CHARS: usize = 2000;

fn shown(text: &str) -> String {
    text.chars().take(SHOWN_CHARS).collect()
}

fn suggestion(nearest: Option<&str>) -> String {
    nearest.map(|name| format!(" (did you mean {name}?)")).unwrap_or_default()
}

/// Single values given as `section.key=value`, which win over every file.
#[derive(Debug, Clone, Default)]
pub struct Overrides(Table);

impl Overrides {
    /// Adds `assignment`, such as `cache.size_mib=100`. A value that is not TOML stands for itself as text.
    ///
    /// # Errors
    /// When it is not `key=value`, or the key passes through a value.
    pub fn set(&mut self, assignment: &str) -> Result<(), ConfigError> {
        let origin = || "--set".to_owned();
        let (key, text) = assignment.split_once('=').ok_or_else(|| ConfigError::Syntax {
            origin: origin(),
            message: format!("{assignment:?} is not KEY=VALUE"),
        })?;
        let value = format!("v={text}")
            .parse::<Table>()
            .ok()
            .filter(|table| table.len() == 1)
            .and_then(|mut table| table.remove("v"))
            .unwrap_or_else(|| Value::String(text.to_owned()));
        let names = split_key(key.trim());
        let Some((last, sections)) = names.split_last() else { return Ok(()) };
        let mut table = &mut self.0;
        for name in sections {
            let inner = table.entry(name.clone()).or_insert_with(|| Value::Table(Table::new()));
            table = inner.as_table_mut().ok_or_else(|| ConfigError::Syntax {
                origin: origin(),
                message: format!("{key}: {name} is a value, not a section"),
            })?;
        }
        table.insert(last.clone(), value);
        Ok(())
    }
}

/// Splits at dots outside of quotes, since host names hold dots: `registry.hosts."a.b:5000".plain_http`.
fn split_key(key: &str) -> Vec<String> {
    let mut names = vec![String::new()];
    let mut quoted = false;
    for letter in key.chars() {
        match letter {
            '"' => quoted = !quoted,
            '.' if !quoted => names.push(String::new()),
            other => {
                if let Some(name) = names.last_mut() {
                    name.push(other);
                }
            }
        }
    }
    names
}

impl Config {
    /// Reads `text` of the file called `origin`, then `overrides`.
    ///
    /// # Errors
    /// The first unknown key, wrong type or broken rule.
    pub fn parse(origin: &str, text: &str, overrides: &Overrides) -> Result<Self, ConfigError> {
        Self::parse_with(origin, text, &OverlaybdConfig::default(), overrides)
    }

    /// As [`Config::parse`], with upstream's configuration between the two.
    ///
    /// # Errors
    /// The first unknown key, wrong type or broken rule.
    pub fn parse_with(
        origin: &str,
        text: &str,
        theirs: &OverlaybdConfig,
        overrides: &Overrides,
    ) -> Result<Self, ConfigError> {
        let syntax = |message: String| ConfigError::Syntax {
            origin: origin.to_owned(),
            message: message.chars().take(SHOWN_SYNTAX_CHARS).collect(),
        };
        if text.len() > MAX_BYTES {
            return Err(syntax(format!("more than the {MAX_BYTES} bytes a configuration may have")));
        }
        let table: Table = text.parse().map_err(|error: toml::de::Error| syntax(error.to_string()))?;
        // A command that has nothing but the defaults is not to wait until all of their names are known.
        if !(table.is_empty() && overrides.0.is_empty()) {
            let known = known_keys();
            refuse_unknown(origin, "", &table, &known)?;
            refuse_unknown("--set", "", &overrides.0, &known)?;
        }
        let mut config: Self = toml::from_str(text).map_err(|error| syntax(error.to_string()))?;
        theirs.apply(&mut config);
        if !overrides.0.is_empty() {
            // Numbers of a file that TOML cannot hold are not in it, but upstream's may be that large.
            let text = |error: &dyn std::fmt::Display| ConfigError::Syntax {
                origin: "--set".to_owned(),
                message: error.to_string(),
            };
            let mut merged = Table::try_from(&config).map_err(|error| text(&error))?;
            merge(&mut merged, &overrides.0);
            config = merged.try_into().map_err(|error: toml::de::Error| text(&error))?;
        }
        config.check(origin)?;
        Ok(config)
    }

    /// Every dotted key that may be set; keys of hosts have `HOST` in place of the name.
    #[must_use]
    pub fn keys() -> Vec<String> {
        fn walk(prefix: &str, table: &Table, keys: &mut Vec<String>) {
            for (name, value) in table {
                let path = join(prefix, name);
                match value {
                    Value::Table(inner) => walk(&path, inner, keys),
                    _ => keys.push(path),
                }
            }
        }
        let mut keys = Vec::new();
        walk("", &known_keys(), &mut keys);
        keys
    }

    fn check(&self, origin: &str) -> Result<(), ConfigError> {
        let broken = |key, rule: String| Err(ConfigError::Value { origin: origin.to_owned(), key, rule });
        if self.socket_mode().is_none() {
            let mode = shown(&self.daemon.socket_mode);
            let rule = format!("{mode:?} is not permission bits in octal, such as 0600");
            return broken("daemon.socket_mode", rule);
        }
        let listen = &self.daemon.metrics_listen;
        if !listen.is_empty() && listen.parse::<SocketAddr>().is_err() {
            return broken("daemon.metrics_listen", format!("{:?} is not ADDRESS:PORT", shown(listen)));
        }
        for (key, value, most) in [
            ("device.queues", self.device.queues, MAX_QUEUES),
            ("device.depth", self.device.depth, MAX_DEPTH),
        ] {
            if !(1..=most).contains(&value) {
                return broken(key, format!("{value} is not 1 to {most}"));
            }
        }
        for (key, value) in [
            ("daemon.drain_timeout_ms", self.daemon.drain_timeout_ms),
            ("device.attach_timeout_ms", self.device.attach_timeout_ms),
            ("device.detach_timeout_ms", self.device.detach_timeout_ms),
            ("device.overdue_after_ms", self.device.overdue_after_ms),
            ("reactors.request_buffer_mib", u64::from(self.reactors.request_buffer_mib)),
            ("reactors.io_buffer_mib", u64::from(self.reactors.io_buffer_mib)),
            ("registry.limits.concurrent_requests", u64::from(self.registry.limits.concurrent_requests)),
            ("registry.limits.request_deadline_ms", self.registry.limits.request_deadline_ms),
            ("registry.limits.total_deadline_ms", self.registry.limits.total_deadline_ms),
            ("registry.limits.connect_timeout_ms", self.registry.limits.connect_timeout_ms),
            ("registry.limits.stall_timeout_ms", self.registry.limits.stall_timeout_ms),
            ("registry.limits.max_tries", u64::from(self.registry.limits.max_tries)),
            ("registry.credential_service.timeout_ms", self.registry.credential_service.timeout_ms),
        ] {
            if value == 0 {
                return broken(key, "must be at least 1".to_owned());
            }
        }
        let registry = &self.registry;
        let service = &registry.credential_service;
        let hosts = registry.hosts.values().map(|host| (HOSTS, &host.client_cert, &host.client_key));
        for (key, cert, key_file) in [
            ("registry.client_cert", &registry.client_cert, &registry.client_key),
            ("registry.credential_service.client_cert", &service.client_cert, &service.client_key),
        ]
        .into_iter()
        .chain(hosts)
        {
            // One without the other would be no identity at all, and nobody would be told.
            if cert.as_os_str().is_empty() != key_file.as_os_str().is_empty() {
                return broken(key, "client_cert and client_key must be set together".to_owned());
            }
        }
        for host in registry.hosts.values() {
            if host.plain_http && host.insecure_tls {
                return broken(HOSTS, "plain_http and insecure_tls exclude each other".to_owned());
            }
        }
        Ok(())
    }

    /// Permission bits of the control socket, `None` where the text is not octal or has other bits.
    #[must_use]
    pub fn socket_mode(&self) -> Option<u32> {
        u32::from_str_radix(&self.daemon.socket_mode, 8).ok().filter(|mode| *mode <= 0o777)
    }
}

/// Reads the section of hosts, in which each is to be named once, however it is written.
pub(super) fn hosts<'de, D: Deserializer<'de>>(
    source: D,
) -> Result<BTreeMap<HostName, HostSection>, D::Error> {
    let mut hosts = BTreeMap::new();
    for (text, host) in BTreeMap::<String, HostSection>::deserialize(source)? {
        let name: HostName =
            text.parse().map_err(|error| D::Error::custom(format!("{HOSTS}.{text:?}: {error}")))?;
        if hosts.insert(name, host).is_some() {
            return Err(D::Error::custom(format!("{HOSTS}.{text:?} is the same host as another key")));
        }
    }
    Ok(hosts)
}

/// The defaults as a table: it has every key, and for hosts one with all keys that a host may have.
fn known_keys() -> Table {
    let table = |value: Result<Table, toml::ser::Error>| {
        value.expect("the defaults are made of texts, numbers and tables")
    };
    let mut known = table(Table::try_from(Config::default()));
    let any_host =
        Table::from_iter([("HOST".to_owned(), Value::Table(table(Table::try_from(HostSection::default()))))]);
    if let Some(Value::Table(registry)) = known.get_mut("registry") {
        registry.insert("hosts".to_owned(), Value::Table(any_host));
    }
    known
}

fn refuse_unknown(origin: &str, prefix: &str, table: &Table, known: &Table) -> Result<(), ConfigError> {
    for (name, value) in table {
        let path = join(prefix, name);
        let model = if prefix == HOSTS { known.values().next() } else { known.get(name) };
        let Some(model) = model else {
            let near = nearest(name, known.keys().map(String::as_str)).map(|near| join(prefix, near));
            return Err(ConfigError::UnknownKey {
                origin: origin.to_owned(),
                key: shown(&path),
                nearest: near,
            });
        };
        if let (Value::Table(inner), Value::Table(model)) = (value, model) {
            refuse_unknown(origin, &path, inner, model)?;
        }
    }
    Ok(())
}

fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
}

fn merge(into: &mut Table, from: &Table) {
    for (name, value) in from {
        match (into.get_mut(name), value) {
            (Some(Value::Table(inner)), Value::Table(other)) => merge(inner, other),
            _ => {
                into.insert(name.clone(), value.clone());
            }
        }
    }
}
