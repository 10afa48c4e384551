//! A login with where it is from, and what may be said of it to whoever has to mend it.

use std::fmt;

use super::Credentials;

/// Credentials, and where they are from.
#[derive(Debug, Default)]
pub(in crate::registry) struct Login {
    pub(in crate::registry) credentials: Credentials,
    /// File, helper or service; of anonymous ones, where there were none.
    pub(in crate::registry) origin: String,
}

/// What was shown to a host that has refused. Holds no secret.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shown {
    /// Whose login it was; `None`: nobody's.
    pub login: Option<String>,
    /// Where it is from, or where there was none.
    pub origin: String,
}

impl Login {
    /// What may be said of it.
    pub(in crate::registry) fn shown(&self) -> Shown {
        let login = match &self.credentials {
            Credentials::Anonymous => None,
            Credentials::Basic { username, .. } => Some(format!("the login of {username:?}")),
            Credentials::IdentityToken(_) => Some("the identity token".to_owned()),
            Credentials::RegistryToken(_) => Some("the registry token".to_owned()),
        };
        Shown { login, origin: self.origin.clone() }
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.login, self.origin.as_str()) {
            (Some(login), origin) => write!(f, "{login} from {origin} was refused"),
            (None, "") => f.write_str("no login was shown"),
            (None, origin) => write!(f, "there is no login for it in {origin}"),
        }
    }
}
