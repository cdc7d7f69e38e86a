//! A private CA: certificates for the web servers behind the balancer, and for the balancer itself.
//!
//! Its folder is all of its state. Whoever runs `portcullis pki` needs the key of the CA; a balancer
//! that runs does not: it has an authority of its own below the CA, which can sign certificates of
//! balancers and nothing else (decision 0027).
//!
//! ```text
//! ca.crt  ca.key            the CA; the key is for `portcullis pki` alone
//! balancer/                 what a running balancer reads: ca.crt, ca.crl, client-ca.crt, client-ca.key
//! issued/NAME/              what goes to a web server: backend.crt, backend.key, ca.crt
//! archive/NAME.SERIAL.crt   every certificate that was issued, for `list` and `revoke`
//! ```

mod authority;
mod folder;
mod identity;
mod names;
mod record;
mod revocation;

use std::{fmt, io, path::PathBuf, time::Duration};

pub use self::{
    authority::{Authority, Init, Issued},
    identity::{Identity, identity},
    names::{SubjectName, Subtree},
    record::{Record, State},
};

/// How long the CA is good for.
const CA_LIFETIME: Duration = Duration::from_hours(10 * 365 * 24);
/// Clocks of other machines may be that far behind.
const SKEW: Duration = Duration::from_hours(1);

/// Why the private CA could not do what it was asked for.
#[derive(Debug)]
pub enum PkiError {
    /// There is a CA in the folder already.
    Exists(PathBuf),
    /// There is none.
    NoCa(PathBuf),
    /// What was done to which file.
    Io {
        what: &'static str,
        path: PathBuf,
        error: io::Error,
    },
    /// A file is not what it should be.
    Broken {
        path: PathBuf,
        detail: String,
    },
    /// The CA's constraints forbid the name; what they permit.
    NotPermitted {
        name: SubjectName,
        permitted: Vec<Subtree>,
    },
    /// Neither a DNS name nor an address.
    InvalidName(String),
    /// Neither a domain nor a network.
    InvalidSubtree(String),
    /// Nothing was issued under this name; the names there are.
    UnknownName {
        name: String,
        known: Vec<String>,
    },
    /// The CA itself has ended, on this day.
    Ended(String),
    /// No such group on this machine.
    UnknownGroup(String),
    Library(rcgen::Error),
    /// The system gave no random numbers.
    NoRandomness,
}

impl From<rcgen::Error> for PkiError {
    fn from(error: rcgen::Error) -> Self {
        PkiError::Library(error)
    }
}

impl fmt::Display for PkiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PkiError::Exists(folder) => write!(
                f,
                "there is a CA in {} already; a new one would make every certificate of it worthless: move the \
                 folder away first if that is what you want",
                folder.display()
            ),
            PkiError::NoCa(folder) => write!(
                f,
                "there is no CA in {}; make one with `portcullis pki init --directory {0}`, or name its folder with \
                 --directory",
                folder.display()
            ),
            PkiError::Io { what, path, error } => write!(f, "{what} {} failed: {error}", path.display()),
            PkiError::Broken { path, detail } => write!(f, "{} can't be used: {detail}", path.display()),
            PkiError::NotPermitted { name, permitted } => {
                let permitted: Vec<String> = permitted.iter().map(ToString::to_string).collect();
                write!(
                    f,
                    "this CA may not certify {name}: it is constrained to {}; use another name, or make a CA with \
                     `portcullis pki init --permit`",
                    permitted.join(", ")
                )
            }
            PkiError::InvalidName(name) => write!(
                f,
                "\"{name}\" is neither a DNS name nor an address; write names such as web1.internal,10.0.0.11"
            ),
            PkiError::InvalidSubtree(text) => {
                write!(f, "\"{text}\" is neither a domain such as internal nor a network such as 10.0.0.0/8")
            }
            PkiError::UnknownName { name, known } if known.is_empty() => {
                write!(f, "nothing was issued under \"{name}\", or under any other name")
            }
            PkiError::UnknownName { name, known } => {
                write!(f, "nothing was issued under \"{name}\"; the names are {}", known.join(", "))
            }
            PkiError::Ended(day) => write!(
                f,
                "this CA ended on {day} and can certify nothing any more: make a new one with `portcullis pki init` in \
                 another folder"
            ),
            PkiError::UnknownGroup(name) => write!(f, "there is no group \"{name}\" on this machine"),
            PkiError::Library(error) => write!(f, "the certificate can't be made: {error}"),
            PkiError::NoRandomness => f.write_str("the system gave no random numbers"),
        }
    }
}

impl std::error::Error for PkiError {}
