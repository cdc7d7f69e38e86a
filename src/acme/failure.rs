//! Why no certificate came: what it counts as, and how soon to try again.

use instant_acme::{Error, Problem};

use super::{certificate::Unusable, client::Unreachable, schedule::Setback, storage::StorageError};

/// Characters of a detail that are logged.
const DETAIL: usize = 1000;

/// An order that failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) kind: Kind,
    pub(super) detail: String,
}

/// The `result` of `acme_orders_total`, other than `ok`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// No connection, no valid certificate of the directory, no answer in time.
    Unreachable,
    /// The directory asks for fewer orders.
    RateLimited,
    /// The directory could not see our proof.
    Challenge,
    /// The directory said no for another reason.
    Refused,
    /// It does not know the account any more.
    UnknownAccount,
    /// It has a certificate already that says that it replaces the one in force.
    AlreadyReplaced,
    /// It did not come to an end in time.
    Timeout,
    /// What it answered makes no sense.
    BadAnswer,
    /// A file can't be read or written.
    Storage,
}

impl Kind {
    /// The label value.
    pub(super) fn label(self) -> &'static str {
        match self {
            Kind::Unreachable => "unreachable",
            Kind::RateLimited => "rate_limited",
            Kind::Challenge => "challenge_failed",
            Kind::Refused | Kind::UnknownAccount | Kind::AlreadyReplaced => "refused",
            Kind::Timeout => "timeout",
            Kind::BadAnswer => "bad_answer",
            Kind::Storage => "storage",
        }
    }

    pub(super) fn setback(self) -> Setback {
        match self {
            Kind::Unreachable => Setback::Unreachable,
            Kind::RateLimited
            | Kind::Challenge
            | Kind::Refused
            | Kind::UnknownAccount
            | Kind::AlreadyReplaced
            | Kind::Timeout
            | Kind::BadAnswer
            | Kind::Storage => Setback::Refused,
        }
    }
}

impl Failure {
    pub(super) fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Failure { kind, detail: one_line(&detail.into()) }
    }
}

/// What a directory says goes into the log: without line ends and the like, and not without end.
fn one_line(text: &str) -> String {
    text.chars().take(DETAIL).map(|character| if character.is_control() { ' ' } else { character }).collect()
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let detail = error.to_string();
        // WHY a wildcard: the library's enum is open.
        let kind = match &error {
            Error::Api(problem) => kind_of(problem),
            Error::Other(inner) if inner.is::<Unreachable>() => Kind::Unreachable,
            Error::Timeout(_) => Kind::Timeout,
            _ => Kind::BadAnswer,
        };
        Failure::new(kind, detail)
    }
}

/// By the type of the problem (RFC 8555 §6.7, RFC 9773 §7.4).
fn kind_of(problem: &Problem) -> Kind {
    let name = problem.r#type.as_deref().unwrap_or_default();
    match name.strip_prefix("urn:ietf:params:acme:error:") {
        Some("rateLimited") => Kind::RateLimited,
        Some("accountDoesNotExist") => Kind::UnknownAccount,
        Some("alreadyReplaced") => Kind::AlreadyReplaced,
        Some("connection" | "dns" | "incorrectResponse" | "tls" | "unauthorized") => Kind::Challenge,
        _ => Kind::Refused,
    }
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Self {
        Failure::new(Kind::Storage, error.to_string())
    }
}

impl From<Unusable> for Failure {
    fn from(error: Unusable) -> Self {
        Failure::new(Kind::BadAnswer, format!("the certificate can't be used: {error}"))
    }
}

impl From<rcgen::Error> for Failure {
    fn from(error: rcgen::Error) -> Self {
        Failure::new(Kind::BadAnswer, format!("no request could be made: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(name: &str) -> Error {
        let text = format!("{{\"type\":\"{name}\",\"detail\":\"because\"}}");
        Error::Api(serde_json::from_str(&text).unwrap())
    }

    #[test]
    fn what_the_directory_says_has_its_result() {
        for (name, expected) in [
            ("urn:ietf:params:acme:error:rateLimited", Kind::RateLimited),
            ("urn:ietf:params:acme:error:accountDoesNotExist", Kind::UnknownAccount),
            ("urn:ietf:params:acme:error:alreadyReplaced", Kind::AlreadyReplaced),
            ("urn:ietf:params:acme:error:unauthorized", Kind::Challenge),
            ("urn:ietf:params:acme:error:rejectedIdentifier", Kind::Refused),
            ("about:blank", Kind::Refused),
        ] {
            let failure = Failure::from(problem(name));
            assert_eq!(failure.kind, expected, "{name}");
            assert!(failure.detail.contains("because"), "{}", failure.detail);
        }
    }

    #[test]
    fn what_a_directory_says_is_one_line_of_bounded_length() {
        let failure = Failure::new(Kind::Refused, "no\n\x1b[31m".to_owned() + &"x".repeat(DETAIL));
        assert!(failure.detail.starts_with("no  [31mx"), "{}", failure.detail);
        assert_eq!(failure.detail.chars().count(), DETAIL);
    }

    #[test]
    fn only_what_never_reached_the_directory_is_tried_again_soon() {
        let unreachable = Error::Other(Box::new(Unreachable("no route".to_owned())));
        assert_eq!(Failure::from(unreachable).kind.setback(), Setback::Unreachable);
        for error in [Error::Timeout(None), Error::Str("nonsense"), Error::Other("x".into()), problem("x")] {
            assert_eq!(Failure::from(error).kind.setback(), Setback::Refused);
        }
    }
}
