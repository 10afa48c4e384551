//! What a repository is entered for, in the words of token servers.

use super::Repository;

/// A repository and what is to be done there. Access is remembered by it, since a token is for one scope.
#[derive(Debug, Clone)]
pub(super) struct Scope {
    pub(super) repository: Repository,
    text: String,
    is_push: bool,
}

impl Scope {
    /// To read blobs and manifests.
    pub(super) fn pull(repository: &Repository) -> Self {
        let text = format!("repository:{}:pull", repository.name());
        Self { repository: repository.clone(), text, is_push: false }
    }

    /// To write them too, and to take blobs over from `mounted`, a repository of the same registry.
    pub(super) fn push(repository: &Repository, mounted: Option<&Repository>) -> Self {
        let mut text = format!("repository:{}:pull,push", repository.name());
        if let Some(mounted) = mounted {
            text.push_str(&format!(" repository:{}:pull", mounted.name()));
        }
        Self { repository: repository.clone(), text, is_push: true }
    }

    /// What tells it from the others of the same registry.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// What to ask the token server for, where the registry has named `challenged`. Some registries name the right to pull
    /// whatever the request was, so that a push asks for its own too.
    pub(super) fn wanted(&self, challenged: Option<&str>) -> String {
        match challenged.filter(|scope| !scope.is_empty()) {
            Some(challenged) if self.is_push => {
                let is_new = |word: &&str| !self.text.split(' ').any(|own| own == *word);
                let more = challenged.split_ascii_whitespace().filter(is_new);
                std::iter::once(self.text.as_str()).chain(more).collect::<Vec<_>>().join(" ")
            }
            Some(challenged) => challenged.to_owned(),
            None => self.text.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_push_asks_for_its_own_right_and_a_pull_for_what_the_registry_names() {
        let [target, other] =
            ["team/app", "team/base"].map(|name| Repository::new("r", name, false).unwrap());
        let pull = Scope::pull(&target);
        assert_eq!(pull.wanted(None), "repository:team/app:pull");
        assert_eq!(pull.wanted(Some("")), "repository:team/app:pull");
        assert_eq!(pull.wanted(Some("a b")), "a b");
        let push = Scope::push(&target, Some(&other));
        assert_eq!(push.wanted(None), "repository:team/app:pull,push repository:team/base:pull");
        assert_eq!(push.wanted(Some("repository:team/app:pull,push x")), format!("{} x", push.text()));
    }
}
