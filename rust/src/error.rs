//! The crate's one error type; every message says what, the value got, what is allowed and the way out.

use thiserror::Error;

/// Result of every fallible function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong in the core, by the kind of Python exception it becomes.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument or setting is outside what is allowed.
    #[error("{0}")]
    InvalidArgument(String),
    /// Tokenizer data (file or table) can't be read or represented.
    #[error("{0}")]
    Tokenizer(String),
    /// A request can never be served with the cache and limits given.
    #[error("{0}")]
    Capacity(String),
    /// Too many requests wait; the same request may work a moment later.
    #[error("{0}")]
    QueueFull(String),
    /// No request has this id.
    #[error("unknown request id {0}; it was never added, or it already finished")]
    UnknownRequest(u64),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Training data is missing or unreadable.
    #[error("{0}")]
    Data(String),
    /// An invariant of this crate was broken: a bug here, never the caller's fault.
    #[error("internal error: {0}; please report it")]
    Internal(String),
}
