//! Answers to the http-01 challenges of certificate directories (RFC 8555 §8.3), on every clear-text listener.
//!
//! Only what is waited for is answered; while nothing is, a request is not even looked at.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

const PATH: &str = "/.well-known/acme-challenge/";

/// What the process is asked to prove now; shared by the workers and whoever orders certificates.
#[derive(Debug, Default)]
pub struct HttpChallenges {
    /// By token.
    answers: RwLock<HashMap<String, Arc<str>>>,
    has_some: AtomicBool,
}

impl HttpChallenges {
    /// Answers requests for `token` until it is removed.
    pub fn set(&self, token: &str, answer: &str) {
        self.change(|answers| _ = answers.insert(token.to_owned(), answer.into()));
    }

    pub fn remove(&self, token: &str) {
        self.change(|answers| _ = answers.remove(token));
    }

    fn change(&self, change: impl FnOnce(&mut HashMap<String, Arc<str>>)) {
        let mut answers = self.answers.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut answers);
        self.has_some.store(!answers.is_empty(), Ordering::Release);
    }

    /// The answer to a request for this path, if it is one that is waited for.
    pub fn answer(&self, path: &str) -> Option<Arc<str>> {
        if !self.has_some.load(Ordering::Acquire) {
            return None;
        }
        let token = path.strip_prefix(PATH)?;
        self.answers.read().unwrap_or_else(PoisonError::into_inner).get(token).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_only_what_is_waited_for() {
        let challenges = HttpChallenges::default();
        let path = |token: &str| format!("{PATH}{token}");
        assert_eq!(challenges.answer(&path("a")), None);
        challenges.set("a", "a.key");
        challenges.set("b", "b.key");
        assert_eq!(challenges.answer(&path("a")).as_deref(), Some("a.key"));
        for other in ["", "c", "a/", "A", "a.key"] {
            assert_eq!(challenges.answer(&path(other)), None, "{other}");
        }
        assert_eq!(challenges.answer("/a"), None);
        challenges.remove("a");
        assert_eq!(challenges.answer(&path("a")), None);
        assert!(challenges.answer(&path("b")).is_some());
        challenges.remove("b");
        assert!(!challenges.has_some.load(Ordering::Relaxed));
    }
}
