//! One error type for all crates, with closed cause classes.

use std::error::Error as StdError;
use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

/// What a caller can do about an error; decides the exit code of `cpr`.
///
/// The classes follow what a script would do next (LBNL-3.6.1.11), not where in the code the error arose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// The command line or a request is wrong. Correct it.
    Usage,
    /// The image is damaged or is no image. Use another one.
    Damaged,
    /// A named job, process, image or file does not exist.
    NotFound,
    /// A name is taken already.
    AlreadyExists,
    /// The process ended or changed under our hands. Look again.
    Gone,
    /// An identifier or lock the restart needs is held by somebody else.
    InUse,
    /// The disk, quota or memory is exhausted.
    NoSpace,
    /// Reading or writing failed below us.
    Io,
    /// Another operation on the same object is under way. Try again later.
    Busy,
    /// A deadline passed. Try again or raise the limit.
    TimedOut,
    /// The caller may not do this.
    Denied,
    /// The job uses something that cannot be checkpointed; the message names it.
    Unsupported,
    /// The image is sound but cannot restart here; the message names what is missing.
    Incompatible,
    /// The operation was cancelled by a signal.
    Cancelled,
    /// A defect of GridCPR itself.
    Internal,
}

impl ErrorKind {
    /// Every kind, in the order of the manual's table.
    pub const ALL: [ErrorKind; 15] = [
        ErrorKind::Usage,
        ErrorKind::Damaged,
        ErrorKind::NotFound,
        ErrorKind::AlreadyExists,
        ErrorKind::Gone,
        ErrorKind::InUse,
        ErrorKind::NoSpace,
        ErrorKind::Io,
        ErrorKind::Busy,
        ErrorKind::TimedOut,
        ErrorKind::Denied,
        ErrorKind::Unsupported,
        ErrorKind::Incompatible,
        ErrorKind::Cancelled,
        ErrorKind::Internal,
    ];

    /// The exit code of `cpr` for this class: 64 to 80, near `sysexits.h`, clear of shells' 126 to 165.
    pub const fn exit_code(self) -> u8 {
        match self {
            ErrorKind::Usage => 64,
            ErrorKind::Damaged => 65,
            ErrorKind::NotFound => 66,
            ErrorKind::AlreadyExists => 67,
            ErrorKind::Gone => 68,
            ErrorKind::Unsupported => 69,
            ErrorKind::Internal => 70,
            ErrorKind::InUse => 71,
            ErrorKind::NoSpace => 73,
            ErrorKind::Io => 74,
            ErrorKind::Busy => 75,
            ErrorKind::TimedOut => 76,
            ErrorKind::Denied => 77,
            ErrorKind::Incompatible => 78,
            ErrorKind::Cancelled => 80,
        }
    }

    /// The cause class a script can switch on: `usage`, `permission`, `environment`, `temporary`, `unsupported`,
    /// `damaged` or `internal`.
    pub const fn class(self) -> &'static str {
        match self {
            ErrorKind::Usage => "usage",
            ErrorKind::Denied => "permission",
            ErrorKind::NotFound
            | ErrorKind::AlreadyExists
            | ErrorKind::NoSpace
            | ErrorKind::Io
            | ErrorKind::Incompatible => "environment",
            ErrorKind::Gone | ErrorKind::InUse | ErrorKind::Busy | ErrorKind::TimedOut | ErrorKind::Cancelled => {
                "temporary"
            }
            ErrorKind::Unsupported => "unsupported",
            ErrorKind::Damaged => "damaged",
            ErrorKind::Internal => "internal",
        }
    }

    /// The class an operating-system error falls into when nothing better is known.
    pub fn of_io(error: &io::Error) -> ErrorKind {
        // Numbers of <asm-generic/errno.h>, equal on every Linux architecture we support.
        const ESRCH: i32 = 3;
        const ENOMEM: i32 = 12;
        const EBUSY: i32 = 16;
        const ENFILE: i32 = 23;
        const EMFILE: i32 = 24;
        const EAGAIN: i32 = 11;
        const ENOSPC: i32 = 28;
        const EDQUOT: i32 = 122;
        const EFBIG: i32 = 27;
        match error.raw_os_error() {
            Some(ESRCH) => return ErrorKind::Gone,
            Some(EBUSY | EAGAIN) => return ErrorKind::Busy,
            Some(ENOSPC | EDQUOT | EFBIG | ENOMEM | ENFILE | EMFILE) => return ErrorKind::NoSpace,
            _ => {}
        }
        match error.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::PermissionDenied => ErrorKind::Denied,
            io::ErrorKind::AlreadyExists => ErrorKind::AlreadyExists,
            io::ErrorKind::TimedOut => ErrorKind::TimedOut,
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => ErrorKind::Damaged,
            _ => ErrorKind::Io,
        }
    }
}

/// What failed, to which object, why, and what can be done.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
    passes: bool,
    source: Option<Box<dyn StdError + Send + Sync + 'static>>,
}

impl Error {
    /// An error of `kind`; `message` says what was being done and to which object, without final period.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error {
            kind,
            message: message.into(),
            hint: None,
            passes: false,
            source: None,
        }
    }

    /// Adds what the user can do.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync + 'static>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Says that the cause is of the moment: it passes by itself when the program goes on.
    #[must_use]
    pub fn passing(mut self) -> Self {
        self.passes = true;
        self
    }

    /// Whether the cause, or one below it, is of the moment only.
    pub fn is_passing(&self) -> bool {
        let mut next: Option<&(dyn StdError + 'static)> = Some(self);
        while let Some(error) = next {
            if error.downcast_ref::<Error>().is_some_and(|ours| ours.passes) {
                return true;
            }
            next = error.source();
        }
        false
    }

    /// Replaces the class, keeping message, hint and cause.
    #[must_use]
    pub fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.kind = kind;
        self
    }

    /// The class of the cause.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What was being done, without the causes below it.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The nearest hint along the chain.
    pub fn hint(&self) -> Option<&str> {
        if self.hint.is_some() {
            return self.hint.as_deref();
        }
        let mut next = self.source();
        while let Some(error) = next {
            if let Some(ours) = error.downcast_ref::<Error>() {
                return ours.hint();
            }
            next = error.source();
        }
        None
    }

    /// The whole chain on one line: `a: b: c`.
    pub fn chain(&self) -> String {
        let mut text = self.message.clone();
        let mut next = self.source();
        while let Some(error) = next {
            text.push_str(": ");
            text.push_str(&error.to_string());
            next = error.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|s| &**s as &(dyn StdError + 'static))
    }
}

/// Result with our [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Adds what was being done to a failure, keeping its class.
pub trait Context<T> {
    /// Wraps the failure in an error whose message is made by `what`, for example `read /proc/7/maps`.
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|error| Error::new(ErrorKind::of_io(&error), what()).with_source(error))
    }
}

impl<T> Context<T> for Result<T> {
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|error| Error::new(error.kind(), what()).with_source(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn exit_codes_are_distinct_and_clear_of_shell_codes() {
        let codes: HashSet<u8> = ErrorKind::ALL.iter().map(|k| k.exit_code()).collect();
        assert_eq!(codes.len(), ErrorKind::ALL.len());
        assert!(codes.iter().all(|c| (64..=80).contains(c)));
    }

    #[test]
    fn chain_keeps_kind_causes_and_hint() {
        let low: io::Result<()> = Err(io::Error::from_raw_os_error(28));
        let error = low
            .context(|| "write image a.cpr")
            .map_err(|e| e.with_hint("free some space"))
            .context(|| "checkpoint job a")
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert!(error.chain().starts_with("checkpoint job a: write image a.cpr: "));
        assert_eq!(error.hint(), Some("free some space"));
        assert!(!error.is_passing());
    }

    #[test]
    fn what_passes_is_known_from_above() {
        let error: Result<()> = Err(Error::new(ErrorKind::Unsupported, "a connection waits").passing());
        assert!(error.context(|| "save it").unwrap_err().is_passing());
    }
}
